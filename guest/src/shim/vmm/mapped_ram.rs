//! A file that a monitor has migrated to with `mapped-ram`, made into one that machines can map as their memory.
//!
//! Every page has its place in such a file, and a bitmap tells which of them count. A page that became zero after it was first written does not
//! count any more, but what it was still lies there. So what does not count becomes a hole, which reads as zeros.
//!
//! ```text
//! file header │ configuration │ ram: start, the sizes of its blocks, each with where its bitmap and its pages lie │ …
//! ```
//!
//! The format: docs/devel/migration/mapped-ram.rst of QEMU. Checked with QEMU 10.0.2.

use super::stream::{BLOCK, MACHINE, MAGIC_AND_VERSION, RAM_SIZE, RAM_VERSION, SECTION_CONFIGURATION, SECTION_START};
use nix::fcntl::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

/// The first block, the machine's memory, is told within the first few hundred bytes.
const HEAD_BYTES_MAX: u64 = 64 << 10;
const PAGE: u64 = 4096;
/// More memory than any machine has.
const MEMORY_BYTES_MAX: u64 = 1 << 42;
const BITMAP_CHUNK: usize = 64 << 10;
const SUBSECTION: u8 = 0x05;
const CAPABILITIES: &[u8] = b"configuration/capabilities";
/// What a monitor says first whose `dirty-bitmaps` are on: a command without arguments.
const POSTCOPY_ADVICE: [u8; 5] = [0x08, 0, 3, 0, 0];
const HEADER_VERSION: u32 = 1;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PunchMappedRam {
    file: PathBuf,
    /// Also on disk when it is done.
    #[serde(default)]
    sync: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Punched {
    /// Where the memory begins in the file.
    offset: u64,
    memory_bytes: u64,
    /// That count, of 4,096 bytes.
    pages: u64,
    /// What the file takes less of the disk.
    freed_bytes: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Block {
    memory_bytes: u64,
    bitmap_offset: u64,
    pages_offset: u64,
}

impl PunchMappedRam {
    pub fn run(&self) -> Result<Punched, String> {
        let file = File::options().read(true).write(true).open(&self.file);
        let file = file.map_err(|error| format!("open {}: {error}", self.file.display()))?;
        let punched = punch(&file).map_err(|error| format!("{}: {error}", self.file.display()))?;
        if self.sync {
            file.sync_all().map_err(|error| format!("sync {}: {error}", self.file.display()))?;
        }
        Ok(punched)
    }
}

fn punch(file: &File) -> Result<Punched, String> {
    let failed = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let mut head = Vec::new();
    file.take(HEAD_BYTES_MAX).read_to_end(&mut head).map_err(failed("read its head"))?;
    let block = parse(&head).ok_or("this is no mapped-ram file of a machine, or of a version that is not known")?;
    let before = file.metadata().map_err(failed("look at it"))?;
    // Pages at its end that are zero have not made it longer, but whoever maps it needs them to be there.
    let end = block.pages_offset + block.memory_bytes;
    if before.len() < end {
        file.set_len(end).map_err(failed("make it longer"))?;
    }
    let mut pages = 0;
    let mut hole: Option<u64> = None;
    let count = block.memory_bytes / PAGE;
    let dig = |from: &mut Option<u64>, until: u64| match from.take() {
        Some(start) => dig_hole(file, block.pages_offset + start * PAGE, (until - start) * PAGE),
        None => Ok(()),
    };
    let mut page = 0;
    let mut chunk = vec![0; BITMAP_CHUNK];
    while page < count {
        let bytes = chunk.len().min((count - page).div_ceil(8) as usize);
        file.read_exact_at(&mut chunk[..bytes], block.bitmap_offset + page / 8).map_err(failed("read its bitmap"))?;
        for byte in &chunk[..bytes] {
            for bit in 0..8.min(count - page) {
                if byte >> bit & 1 == 0 {
                    hole.get_or_insert(page);
                } else {
                    pages += 1;
                    dig(&mut hole, page)?;
                }
                page += 1;
            }
        }
    }
    dig(&mut hole, count)?;
    let after = file.metadata().map_err(failed("look at it"))?;
    Ok(Punched {
        offset: block.pages_offset,
        memory_bytes: block.memory_bytes,
        pages,
        freed_bytes: before.blocks().saturating_sub(after.blocks()) * 512,
    })
}

fn dig_hole(file: &File, offset: u64, bytes: u64) -> Result<(), String> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, flags, offset as i64, bytes as i64).map_err(|error| format!("dig a hole: {error}; can its file system have holes?"))
}

/// The monitor may be hostile: nothing of what it says is taken that does not fit together.
fn parse(head: &[u8]) -> Option<Block> {
    let mut head = Head(head);
    head.expect(&MAGIC_AND_VERSION)?;
    head.expect(&[SECTION_CONFIGURATION])?;
    head.expect(&(MACHINE.len() as u32).to_be_bytes())?;
    head.expect(MACHINE)?;
    if head.0.first() == Some(&SUBSECTION) {
        head.expect(&[SUBSECTION, CAPABILITIES.len() as u8])?;
        head.expect(CAPABILITIES)?;
        head.expect(&1_u32.to_be_bytes())?;
        for _ in 0..head.u32()?.min(256) {
            let length = head.bytes(1)?[0];
            head.bytes(length.into())?;
        }
    }
    if head.0.starts_with(&POSTCOPY_ADVICE) {
        head.bytes(POSTCOPY_ADVICE.len())?;
    }
    head.expect(&[SECTION_START])?;
    head.u32()?; // its number
    head.expect(b"\x03ram")?;
    head.expect(&0_u32.to_be_bytes())?;
    head.expect(&RAM_VERSION.to_be_bytes())?;
    if head.u64()? & RAM_SIZE == 0 {
        return None;
    }
    // It is the first: the monitor sorts its blocks by size.
    head.expect(&[BLOCK.len() as u8])?;
    head.expect(BLOCK)?;
    let memory_bytes = head.u64()?;
    head.expect(&HEADER_VERSION.to_be_bytes())?;
    head.expect(&PAGE.to_be_bytes())?;
    let (bitmap_offset, pages_offset) = (head.u64()?, head.u64()?);
    let fits = memory_bytes > 0
        && memory_bytes <= MEMORY_BYTES_MAX
        && memory_bytes.is_multiple_of(PAGE)
        && pages_offset.is_multiple_of(PAGE)
        && pages_offset <= MEMORY_BYTES_MAX
        && bitmap_offset.checked_add((memory_bytes / PAGE).div_ceil(8))? <= pages_offset;
    fits.then_some(Block { memory_bytes, bitmap_offset, pages_offset })
}

struct Head<'a>(&'a [u8]);

impl<'a> Head<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn expect(&mut self, bytes: &[u8]) -> Option<()> {
        (self.bytes(bytes.len())? == bytes).then_some(())
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.bytes(8)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::vmm::private::tests::scratch;

    const BITMAP_AT: u64 = 0x200;
    const PAGES_AT: u64 = 0x10_0000;

    fn head(memory_bytes: u64) -> Vec<u8> {
        let mut bytes = b"QEVM\0\0\0\x03\x07\0\0\0\x07microvm\x05\x1aconfiguration/capabilities\0\0\0\x01\0\0\0\x01\x0amapped-ram".to_vec();
        bytes.extend(b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04");
        bytes.extend(((memory_bytes + 0x2_0000) | RAM_SIZE).to_be_bytes());
        bytes.extend(b"\x03mem");
        bytes.extend(memory_bytes.to_be_bytes());
        bytes.extend(1_u32.to_be_bytes());
        bytes.extend(PAGE.to_be_bytes());
        bytes.extend(BITMAP_AT.to_be_bytes());
        bytes.extend(PAGES_AT.to_be_bytes());
        bytes
    }

    /// All of its pages have been written at some time; those of `counting` count.
    fn file(pages: u64, counting: impl Fn(u64) -> bool) -> File {
        let file = scratch(PAGES_AT + pages * PAGE);
        file.write_all_at(&head(pages * PAGE), 0).unwrap();
        let mut bitmap = vec![0_u8; pages.div_ceil(64) as usize * 8];
        for page in 0..pages {
            bitmap[page as usize / 8] |= u8::from(counting(page)) << (page % 8);
            file.write_all_at(&[page as u8 | 1; PAGE as usize], PAGES_AT + page * PAGE).unwrap();
        }
        file.write_all_at(&bitmap, BITMAP_AT).unwrap();
        file
    }

    #[test]
    fn what_does_not_count_reads_as_zeros_and_takes_no_room() {
        for pages in [1, 7, 8, 64, 203] {
            for counting in [|page| page % 3 == 1, |_| true, |_| false, |page| !(5..160).contains(&page)] as [fn(u64) -> bool; 4] {
                let file = file(pages, counting);
                file.write_all_at(b"after", PAGES_AT + pages * PAGE).unwrap();
                let punched = punch(&file).unwrap();
                let count = (0..pages).filter(|page| counting(*page)).count() as u64;
                assert_eq!((punched.offset, punched.memory_bytes, punched.pages), (PAGES_AT, pages * PAGE, count));
                assert_eq!(punched.freed_bytes, (pages - count) * PAGE);
                for page in 0..pages {
                    let mut bytes = [7; PAGE as usize];
                    file.read_exact_at(&mut bytes, PAGES_AT + page * PAGE).unwrap();
                    assert_eq!(bytes, [if counting(page) { page as u8 | 1 } else { 0 }; PAGE as usize], "page {page} of {pages}");
                }
                let mut after = [0; 5];
                file.read_exact_at(&mut after, PAGES_AT + pages * PAGE).unwrap();
                assert_eq!(&after, b"after");
            }
        }
    }

    #[test]
    fn a_file_that_ends_early_becomes_as_long_as_its_memory() {
        let file = file(16, |page| page < 4);
        file.set_len(PAGES_AT + 4 * PAGE).unwrap();
        assert_eq!(punch(&file).unwrap().pages, 4);
        assert_eq!(file.metadata().unwrap().len(), PAGES_AT + 16 * PAGE);
    }

    #[test]
    fn what_a_monitor_says_before_its_memory_is_passed_over() {
        let mut bytes = head(64 * PAGE);
        let known = parse(&bytes);
        let at = bytes.windows(5).position(|found| found == b"\x01\0\0\0\x01").unwrap();
        let at = at + bytes[at + 1..].windows(5).position(|found| found == b"\x01\0\0\0\x01").unwrap() + 1;
        bytes.splice(at..at, POSTCOPY_ADVICE);
        assert!(known.is_some() && parse(&bytes) == known);
    }

    #[test]
    fn what_does_not_fit_together_is_refused_before_anything_is_changed() {
        let whole = head(64 * PAGE);
        assert!(parse(&whole).is_some());
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), None, "{length} bytes");
        }
        let numbers = whole.len() - 28..whole.len();
        for index in 0..whole.len() {
            for bit in 0..8 {
                let mut changed = whole.clone();
                changed[index] ^= 1 << bit;
                // A number may become another that fits as well; then it is within its bounds.
                if let Some(block) = parse(&changed) {
                    assert!(block.pages_offset <= MEMORY_BYTES_MAX && block.memory_bytes <= MEMORY_BYTES_MAX);
                    assert!(block.bitmap_offset < block.pages_offset, "byte {index} of {numbers:?}");
                }
            }
        }
    }
}

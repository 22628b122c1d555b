//! A machine's state as its monitor takes it with `migrate-incoming`: its devices, and the pages in which its memory differs from its base.
//!
//! The monitor's own ways to write such a stream hold all of the memory, or none. What it writes of the devices alone
//! (`xen-save-devices-state`) becomes a whole stream with a section of pages before it:
//!
//! ```text
//! file header │ configuration │ ram: start, its size │ ram: end, the pages │ the sections of the devices │ end │ an empty description
//! ```
//!
//! Sections, flags and their meaning: docs/devel/migration/main.rst and migration/ram.c of QEMU. Checked with QEMU 10.0.2.

use super::private::{BATCH_PAGES, PAGE_BYTES, Scanner};
use super::qmp::{Command, Failure};
use super::timer::postpone;
use super::{Target, mapping};
use crate::shim::sys;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Of what is read of the monitor's own file: 20 KB are usual.
const DEVICE_STATE_BYTES_MAX: u64 = 64 << 20;

pub(super) const MAGIC_AND_VERSION: [u8; 8] = *b"QEVM\0\0\0\x03";
pub(super) const MACHINE: &[u8] = b"microvm";
/// The memory backend's id, which the server gives it.
pub(super) const BLOCK: &[u8] = b"mem";
const SECTION_END_OF_FILE: u8 = 0x00;
pub(super) const SECTION_START: u8 = 0x01;
const SECTION_END: u8 = 0x03;
const SECTION_DESCRIPTION: u8 = 0x06;
pub(super) const SECTION_CONFIGURATION: u8 = 0x07;
const SECTION_FOOTER: u8 = 0x7e;
const RAM_SECTION: u32 = 2;
pub(super) const RAM_VERSION: u32 = 4;
const RAM_ZERO: u64 = 0x02;
pub(super) const RAM_SIZE: u64 = 0x04;
const RAM_PAGE: u64 = 0x08;
const RAM_END: u64 = 0x10;
const RAM_SAME_BLOCK: u64 = 0x20;

const ZEROES: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaveMemory {
    /// The file that the machine maps as its memory.
    base: PathBuf,
    /// What `xen-save-devices-state` has written, at the latest `meanwhile`.
    device_state: PathBuf,
    /// Made new, 0600.
    out: PathBuf,
    /// Also on disk when it is done.
    #[serde(default)]
    sync: bool,
    /// How much later the timers of its processors come in a machine that is restored.
    #[serde(default)]
    timers_later_ms: u32,
    /// What the monitor does while its memory is read, in order: what writes `device_state`, and nothing that changes memory.
    #[serde(default)]
    pub(super) meanwhile: Vec<Command>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Saved {
    /// With their content.
    pages: u64,
    zero_pages: u64,
    /// Of the whole stream.
    bytes: u64,
    /// Timers of processors that come later.
    timers: usize,
}

impl SaveMemory {
    /// The machine must stand still meanwhile. `execute` does one of the monitor's commands.
    pub fn run(&self, machine: &Target, mut execute: impl FnMut(&Command) -> Result<(), Failure>) -> Result<Saved, Failure> {
        let base = File::open(&self.base).map_err(|error| failed(format!("open {}: {error}", self.base.display())))?;
        let memory = mapping::find(machine.pid, &base).map_err(failed)?;
        let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.out);
        let mut out = out.map_err(|error| failed(format!("create {}: {error}", self.out.display())))?;
        let saved = std::thread::scope(|scope| {
            // It stands still for the longer of the two, where there are two processors.
            let pages = scope.spawn(|| self.write_pages(&mut out, machine.pid, memory));
            let done = self.meanwhile.iter().try_for_each(&mut execute);
            let pages = pages.join().unwrap_or_else(|_| Err("its pages were not read".into()));
            done.and(pages.map_err(failed))
        });
        let saved = saved.and_then(|pages| {
            let saved = self.write_devices(&mut out, pages).map_err(failed)?;
            // Its pid may be another's once it is gone: what was read is its own only if it is still there now.
            if machine.has_ended() { Err(failed("the machine has ended".into())) } else { Ok(saved) }
        });
        saved.inspect_err(|_| drop(fs::remove_file(&self.out)))
    }

    /// All of the stream before its devices.
    fn write_pages(&self, out: &mut File, pid: i32, memory: Range<u64>) -> Result<Saved, String> {
        let mut stream = Stream { out, saved: Saved::default(), named: false };
        stream.put(&opening(memory.end - memory.start)).map_err(|error| self.not_written(&error))?;
        let mut batch = Batch::new();
        let mut scanner = Scanner::new(pid, memory.clone()).map_err(|error| format!("look at the machine's pages: {error}"))?;
        loop {
            let ranges = scanner.next_batch().map_err(|error| format!("look at the machine's pages: {error}"))?;
            if ranges.is_empty() {
                return Ok(stream.saved);
            }
            batch.read(pid, &ranges).map_err(|error| format!("read the machine's memory: {error}"))?;
            stream.put_pages(&mut batch, memory.start).map_err(|error| self.not_written(&error))?;
        }
    }

    fn write_devices(&self, out: &mut File, saved: Saved) -> Result<Saved, String> {
        let mut devices = read_device_state(&self.device_state)?;
        let timers = postpone(&mut devices, Duration::from_millis(self.timers_later_ms.into()));
        let rest = closing(&devices);
        out.write_all(&rest).map_err(|error| self.not_written(&error))?;
        if self.sync {
            out.sync_all().map_err(|error| self.not_written(&error))?;
        }
        Ok(Saved { timers, bytes: saved.bytes + rest.len() as u64, ..saved })
    }

    fn not_written(&self, error: &io::Error) -> String {
        format!("write {}: {error}; is the disk full?", self.out.display())
    }
}

fn failed(error: String) -> Failure {
    Failure::new(format!("save_memory: {error}"))
}

pub(super) fn read_device_state(path: &Path) -> Result<Vec<u8>, String> {
    let name = path.display();
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| format!("open {name}: {error}"))?;
    file.take(DEVICE_STATE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| format!("read {name}: {error}"))?;
    let whole = bytes.len() as u64 <= DEVICE_STATE_BYTES_MAX
        && bytes.len() > MAGIC_AND_VERSION.len()
        && bytes.starts_with(&MAGIC_AND_VERSION)
        && bytes.last() == Some(&SECTION_END_OF_FILE);
    if whole { Ok(bytes) } else { Err(format!("{name} is not a whole device state of a version that is known")) }
}

/// Up to where the pages begin.
pub(super) fn opening(memory_bytes: u64) -> Vec<u8> {
    let mut bytes = MAGIC_AND_VERSION.to_vec();
    bytes.push(SECTION_CONFIGURATION);
    bytes.extend((MACHINE.len() as u32).to_be_bytes());
    bytes.extend(MACHINE);
    bytes.push(SECTION_START);
    bytes.extend(RAM_SECTION.to_be_bytes());
    bytes.extend(b"\x03ram");
    bytes.extend(0_u32.to_be_bytes());
    bytes.extend(RAM_VERSION.to_be_bytes());
    bytes.extend((memory_bytes | RAM_SIZE).to_be_bytes());
    bytes.push(BLOCK.len() as u8);
    bytes.extend(BLOCK);
    bytes.extend(memory_bytes.to_be_bytes());
    end_of_ram(&mut bytes);
    bytes.push(SECTION_END);
    bytes.extend(RAM_SECTION.to_be_bytes());
    bytes
}

pub(super) fn closing(devices: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    end_of_ram(&mut bytes);
    bytes.extend(&devices[MAGIC_AND_VERSION.len()..]);
    bytes.push(SECTION_DESCRIPTION);
    bytes.extend(2_u32.to_be_bytes());
    bytes.extend(b"{}");
    bytes
}

fn end_of_ram(bytes: &mut Vec<u8>) {
    bytes.extend(RAM_END.to_be_bytes());
    bytes.push(SECTION_FOOTER);
    bytes.extend(RAM_SECTION.to_be_bytes());
}

struct Stream<'a> {
    out: &'a mut File,
    saved: Saved,
    /// The first page names the block, the others lie in the same.
    named: bool,
}

impl Stream<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.saved.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn put_pages(&mut self, batch: &mut Batch, start: u64) -> io::Result<()> {
        batch.encoded.clear();
        for (address, page) in batch.addresses.iter().zip(batch.pages.chunks_exact(PAGE_BYTES)) {
            let zero = page == ZEROES;
            let kind = if zero { RAM_ZERO } else { RAM_PAGE };
            let same = if self.named { RAM_SAME_BLOCK } else { 0 };
            batch.encoded.extend(((address - start) | kind | same).to_be_bytes());
            if !self.named {
                self.named = true;
                batch.encoded.push(BLOCK.len() as u8);
                batch.encoded.extend(BLOCK);
            }
            if zero {
                self.saved.zero_pages += 1;
                // The byte that it is full of.
                batch.encoded.push(0);
            } else {
                self.saved.pages += 1;
                batch.encoded.extend(page);
            }
        }
        self.saved.bytes += batch.encoded.len() as u64;
        self.out.write_all(&batch.encoded)
    }
}

/// Some pages of a machine.
struct Batch {
    addresses: Vec<u64>,
    pages: Vec<u8>,
    encoded: Vec<u8>,
}

impl Batch {
    fn new() -> Self {
        Self {
            addresses: Vec::with_capacity(BATCH_PAGES),
            pages: Vec::new(),
            encoded: Vec::with_capacity(BATCH_PAGES * (PAGE_BYTES + 8) + 8),
        }
    }

    fn read(&mut self, pid: i32, ranges: &[Range<u64>]) -> io::Result<()> {
        self.addresses.clear();
        self.addresses.extend(ranges.iter().flat_map(|range| range.clone().step_by(PAGE_BYTES)));
        self.pages.resize(self.addresses.len() * PAGE_BYTES, 0);
        sys::read_process(pid, ranges, &mut self.pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::sys::{self, FileMap};
    use crate::shim::vmm::private::tests::scratch;
    use std::os::unix::fs::FileExt;

    const PAGES: u64 = 1500;
    const DEVICES: &[u8] = b"QEVM\0\0\0\x03some devices\0";

    /// What a stream says of each page: zeroes or content, by the rules of the monitor's own reader.
    fn pages_of(stream: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let opening = opening(PAGES * PAGE_BYTES as u64);
        assert!(stream.starts_with(&opening));
        let mut rest = &stream[opening.len()..];
        let mut pages = Vec::new();
        loop {
            let word = u64::from_be_bytes(rest[..8].try_into().unwrap());
            if word == RAM_END {
                assert_eq!(rest, closing(DEVICES));
                return pages;
            }
            rest = &rest[8..];
            let flags = word % PAGE_BYTES as u64;
            assert_eq!(flags & RAM_SAME_BLOCK == 0, pages.is_empty(), "the first page names the block");
            if pages.is_empty() {
                rest = rest.strip_prefix(b"\x03mem").unwrap();
            }
            let length = if flags & RAM_ZERO != 0 { 1 } else { PAGE_BYTES };
            assert_eq!(flags & (RAM_ZERO | RAM_PAGE), if length == 1 { RAM_ZERO } else { RAM_PAGE });
            let mut content = rest[..length].to_vec();
            content.resize(PAGE_BYTES, 0);
            pages.push((word / PAGE_BYTES as u64, content));
            rest = &rest[length..];
        }
    }

    fn commands(names: &[&str]) -> Vec<Command> {
        names.iter().map(|name| Command { execute: (*name).into(), arguments: None }).collect()
    }

    #[test]
    fn a_stream_holds_what_was_written_and_nothing_else() {
        let base = scratch(PAGES * PAGE_BYTES as u64);
        for page in 0..PAGES {
            base.write_all_at(&[1; PAGE_BYTES], page * PAGE_BYTES as u64).unwrap();
        }
        let map = FileMap::new(&base, PAGES * PAGE_BYTES as u64).unwrap();
        let mut expected = Vec::new();
        for page in (0..PAGES).filter(|page| page % 5 == 1 || *page > 800) {
            let mut content = vec![1; PAGE_BYTES];
            // Zeroes but for the last byte must not count as zeroes.
            let zeroes = match page % 4 {
                0 => PAGE_BYTES,
                1 => PAGE_BYTES - 1,
                _ => 1,
            };
            for offset in 0..zeroes {
                map.write(page * PAGE_BYTES as u64 + offset as u64, 0);
            }
            content[..zeroes].fill(0);
            expected.push((page, content));
        }
        let dir = std::env::temp_dir().join(format!("mitos-stream-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        // The base has no name any more, but this process has it open.
        let base = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&base)).into();
        let save = SaveMemory {
            base,
            device_state: dir.join("devices"),
            out: dir.join("out"),
            sync: true,
            timers_later_ms: 0,
            meanwhile: commands(&["first", "second"]),
        };
        let pid = std::process::id() as i32;
        let machine = Target { pid, pidfd: sys::pidfd_open(pid).unwrap() };
        let refused = save.run(&machine, |_| Err(Failure::new("it does not want to")));
        assert_eq!(refused.unwrap_err().error, "it does not want to");
        assert!(!dir.join("out").exists());
        let mut done = Vec::new();
        let saved = save.run(&machine, |command| {
            done.push(command.execute.clone());
            fs::write(dir.join("devices"), &DEVICES[..DEVICES.len() * done.len() / 2]).unwrap();
            Ok(())
        });
        let saved = saved.unwrap();
        assert_eq!(done, ["first", "second"]);
        let stream = fs::read(dir.join("out")).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        let zero_pages = expected.iter().filter(|(page, _)| page % 4 == 0).count() as u64;
        assert_eq!(saved, Saved { pages: expected.len() as u64 - zero_pages, zero_pages, bytes: stream.len() as u64, timers: 0 });
        assert!(pages_of(&stream) == expected);
    }
}

//! The pages of a mapped file that a process has made its own by writing to them, and what is in them.

use crate::shim::sys::{self, PageRegion};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

pub const PAGE_BYTES: usize = 4096;
const PAGE: u64 = PAGE_BYTES as u64;
/// The kernel takes 1,024 pieces in one read of another process.
pub const BATCH_PAGES: usize = 512;
/// Of `/proc/PID/pagemap`, eight bytes a page.
const ENTRIES: usize = 4096;
const ENTRY_PRESENT: u64 = 1 << 63;
const ENTRY_SWAPPED: u64 = 1 << 62;
/// A page of the file itself, or of shared memory.
const ENTRY_FILE: u64 = 1 << 61;

/// Finds them from the lowest address on, a batch at a time: no machine is so large that the shim is.
pub struct Scanner {
    pagemap: File,
    next: u64,
    end: u64,
    way: Way,
    /// Found and not yet handed out (`Way::Read` only).
    found: VecDeque<Range<u64>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The kernel looks (Linux 6.7 and newer).
    Scan,
    Read,
}

impl Scanner {
    pub fn new(pid: i32, addresses: Range<u64>) -> io::Result<Self> {
        let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
        Ok(Self { pagemap, next: addresses.start, end: addresses.end, way: Way::Scan, found: VecDeque::new() })
    }

    /// Ranges of at most `BATCH_PAGES` pages in all; none when all have been found.
    pub fn next_batch(&mut self) -> io::Result<Vec<Range<u64>>> {
        if self.way == Way::Scan {
            match self.scan() {
                // An older kernel knows the call for nothing of this file.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => self.way = Way::Read,
                other => return other,
            }
        }
        self.read()
    }

    fn scan(&mut self) -> io::Result<Vec<Range<u64>>> {
        let mut regions = [PageRegion::default(); BATCH_PAGES];
        let mut batch = Vec::new();
        while batch.is_empty() && self.next < self.end {
            let (count, next) = sys::scan_private_pages(&self.pagemap, self.next..self.end, &mut regions, BATCH_PAGES)?;
            batch = regions[..count].iter().map(|region| region.start..region.end).collect();
            if next <= self.next {
                return Err(io::Error::other("the kernel's scan of the pages does not go on"));
            }
            self.next = next;
        }
        Ok(batch)
    }

    fn read(&mut self) -> io::Result<Vec<Range<u64>>> {
        while self.found.is_empty() && self.next < self.end {
            let count = ENTRIES.min(((self.end - self.next) / PAGE) as usize);
            let mut bytes = vec![0; count * 8];
            self.pagemap.read_exact_at(&mut bytes, self.next / PAGE * 8)?;
            for (index, entry) in bytes.chunks_exact(8).enumerate() {
                let entry = u64::from_ne_bytes(entry.try_into().expect("eight bytes"));
                if entry & (ENTRY_PRESENT | ENTRY_SWAPPED) == 0 || entry & ENTRY_FILE != 0 {
                    continue;
                }
                let start = self.next + index as u64 * PAGE;
                match self.found.back_mut() {
                    Some(last) if last.end == start => last.end = start + PAGE,
                    _ => self.found.push_back(start..start + PAGE),
                }
            }
            self.next += count as u64 * PAGE;
        }
        Ok(self.take_found())
    }

    fn take_found(&mut self) -> Vec<Range<u64>> {
        let mut batch = Vec::new();
        let mut left = BATCH_PAGES as u64 * PAGE;
        while left > 0
            && let Some(mut range) = self.found.pop_front()
        {
            let taken = left.min(range.end - range.start);
            batch.push(range.start..range.start + taken);
            left -= taken;
            range.start += taken;
            if range.start < range.end {
                self.found.push_front(range);
            }
        }
        batch
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::shim::sys::FileMap;

    pub fn scratch(bytes: u64) -> File {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("mitos-base-{}-{number}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(bytes).unwrap();
        file
    }

    fn pages(way: Way, map: &FileMap, count: u64) -> Vec<u64> {
        let mut scanner = Scanner::new(std::process::id() as i32, map.address()..map.address() + count * PAGE).unwrap();
        scanner.way = way;
        let mut pages = Vec::new();
        loop {
            let batch = scanner.next_batch().unwrap();
            if batch.is_empty() {
                return pages;
            }
            let all: Vec<u64> = batch.into_iter().flat_map(|range| range.step_by(PAGE_BYTES)).collect();
            assert!(all.len() <= BATCH_PAGES);
            pages.extend(all.into_iter().map(|address| (address - map.address()) / PAGE));
        }
    }

    #[test]
    fn pages_that_were_written_are_found_in_both_ways_and_those_only_read_are_not() {
        let count = 3 * BATCH_PAGES as u64;
        let map = FileMap::new(&scratch(count * PAGE), count * PAGE).unwrap();
        let written: Vec<u64> = (0..count).filter(|page| page % 7 == 3 || (600..1400).contains(page)).collect();
        for page in 0..count {
            assert_eq!(map.read(page * PAGE), 0);
        }
        for way in [Way::Scan, Way::Read] {
            assert!(pages(way, &map, count).is_empty());
        }
        for page in &written {
            map.write(page * PAGE, 1);
        }
        for way in [Way::Scan, Way::Read] {
            assert_eq!(pages(way, &map, count), written, "{way:?}");
        }
    }
}

//! Where a machine's memory lies in its monitor: the mapping of its base.

use crate::shim::sys::FileMap;
use std::fs::{self, File};
use std::ops::Range;

/// A bound on what is read of another process: a monitor has some hundred mappings, one of a hostile guest perhaps many more.
const MAPS_BYTES_MAX: u64 = 16 << 20;

/// One line of `/proc/PID/maps`.
struct Line<'a> {
    addresses: Range<u64>,
    offset: u64,
    /// Device and inode, as the kernel prints them.
    file: (&'a str, &'a str),
}

/// The addresses of all of `base` that `pid` maps, which are the guest's memory from its first byte to its last.
pub fn find(pid: i32, base: &File) -> Result<Range<u64>, String> {
    let file = name(base)?;
    let maps = read(&pid.to_string())?;
    let mut lines: Vec<Line> = parse(&maps).filter(|line| line.file == (&file.0, &file.1)).collect();
    // The kernel may have divided it, for one when a part of it was advised about.
    lines.sort_by_key(|line| line.offset);
    let (Some(first), Some(last)) = (lines.first(), lines.last()) else { return Err("the machine does not map this base".into()) };
    let whole = first.addresses.start..last.addresses.end;
    let together = lines
        .windows(2)
        .all(|pair| pair[0].addresses.end == pair[1].addresses.start && pair[0].offset + length(&pair[0].addresses) == pair[1].offset);
    if together { Ok(whole) } else { Err("the machine maps this base in parts that do not belong together".into()) }
}

/// Device and inode of a file, as the kernel prints them. On some file systems (btrfs, overlayfs) it prints another device than `stat` says, so a
/// mapping of our own tells.
fn name(file: &File) -> Result<(String, String), String> {
    let own = FileMap::new(file, 1).map_err(|error| format!("map the base: {error}"))?;
    let maps = read("self")?;
    let line = parse(&maps).find(|line| line.addresses.contains(&own.address())).ok_or("map the base: it is not there")?;
    Ok((line.file.0.into(), line.file.1.into()))
}

fn length(range: &Range<u64>) -> u64 {
    range.end - range.start
}

fn read(pid: &str) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("read the mappings of process {pid}: {error}; it has ended, or belongs to another user");
    let file = fs::File::open(format!("/proc/{pid}/maps")).map_err(failed)?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, MAPS_BYTES_MAX), &mut bytes).map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn parse(maps: &str) -> impl Iterator<Item = Line<'_>> {
    maps.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let (_permissions, offset, device, inode) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let number = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (number(start)?, number(end)?);
        (start < end).then_some(Line { addresses: start..end, offset: number(offset)?, file: (device, inode) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::vmm::private::tests::scratch;

    #[test]
    fn a_base_is_found_where_it_is_mapped_also_in_two_parts() {
        let file = scratch(8 * 4096);
        let pid = std::process::id() as i32;
        let map = FileMap::new(&file, 8 * 4096).unwrap();
        assert_eq!(find(pid, &file).unwrap(), map.address()..map.address() + 8 * 4096);
        map.divide(4 * 4096);
        assert_eq!(find(pid, &file).unwrap(), map.address()..map.address() + 8 * 4096);
    }

    #[test]
    fn a_base_that_is_not_mapped_is_refused() {
        let error = find(1, &scratch(4096)).unwrap_err();
        assert!(error.contains("does not map") || error.contains("another user"), "{error}");
    }
}

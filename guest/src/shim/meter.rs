//! The processes of a machine, and what they use.
//!
//! A sandbox's memory is a memfd that several processes map, so `smaps` of any one of them counts too little or too much: the blocks of each
//! memfd are counted once, and of every process only what is anonymous. Shared anonymous pages are counted by share.
//!
//! A virtual machine's memory is a file. What it has changed of a base is anonymous; of a file that it writes to (a machine that was booted) every page
//! is its own.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// A bound on every walk through a tree that the machine can grow.
const PROCESSES_MAX: usize = 20_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub memory_bytes: u64,
    pub cpu_ms: u64,
}

/// All descendants of `roots`, themselves included; subtrees that begin with one of `except` are left out.
pub fn tree(roots: &[i32], except: &[i32]) -> Vec<i32> {
    let mut found: Vec<i32> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut next = roots.to_vec();
    while let Some(pid) = next.pop() {
        if except.contains(&pid) || !seen.insert(pid) || found.len() >= PROCESSES_MAX {
            continue;
        }
        found.push(pid);
        next.extend(children(pid));
    }
    found
}

/// Whether a thread of it runs, waits for a processor, or is in the middle of what cannot be interrupted.
pub fn runs(pid: i32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    tasks.flatten().any(|task| {
        let text = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        matches!(stat_fields(&text).and_then(|mut fields| fields.next()), Some("R" | "D"))
    })
}

/// To all that descend from it. One that has just ended is no error.
pub fn signal_descendants(root: i32, signal: Signal) {
    for pid in tree(&[root], &[]).into_iter().filter(|pid| *pid != root) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

pub fn children(pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut children = Vec::new();
    for task in tasks.flatten() {
        match fs::read_to_string(task.path().join("children")) {
            Ok(list) => children.extend(list.split_ascii_whitespace().filter_map(|child| child.parse::<i32>().ok())),
            // A kernel without CONFIG_PROC_CHILDREN; a task that has just ended looks the same and costs one scan.
            Err(_) => return children_by_scan(pid),
        }
    }
    children
}

fn children_by_scan(parent: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == parent)).collect()
}

/// What `machine` (processes of the sandbox) and the shim itself use. Processes that end meanwhile count as nothing.
/// `virtual_machine`: files that they map to write to are its memory.
pub fn usage(machine: &[i32], virtual_machine: bool) -> Usage {
    let ticks_per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as u64;
    let mut memfds = BTreeSet::new();
    let mut usage = Usage::default();
    let mut ticks = 0;
    for pid in machine.iter().copied().chain([std::process::id() as i32]) {
        usage.memory_bytes += private_bytes(pid);
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for path in descriptors.flatten().map(|entry| entry.path()) {
            if !fs::read_link(&path).is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"/memfd:")) {
                continue;
            }
            if let Ok(file) = fs::metadata(&path)
                && memfds.insert((file.dev(), file.ino()))
            {
                usage.memory_bytes += file.blocks() * 512;
            }
        }
    }
    if virtual_machine {
        usage.memory_bytes += file_bytes(machine, Pages::Written);
    }
    for pid in machine {
        ticks += stat(*pid).map_or(0, |stat| stat.ticks);
    }
    usage.cpu_ms = ticks * 1000 / ticks_per_second;
    usage
}

/// The pages of host files (programs and libraries, also those that the guest runs) that `machine` and the shim itself have mapped. They lie in
/// the page cache once, however many machines map them. The processes of one machine map mostly the same pages of a file, so of each file the
/// process that maps the most of it counts: never too much. What a process has changed of a file's pages is its private memory.
pub fn shared_bytes(machine: &[i32], virtual_machine: bool) -> u64 {
    let own = [std::process::id() as i32];
    file_bytes(&[machine, &own].concat(), if virtual_machine { Pages::UnchangedOfOthers } else { Pages::Unchanged })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pages {
    /// As they are in the file.
    Unchanged,
    /// The same without files that are mapped to write to.
    UnchangedOfOthers,
    /// Those of files that are mapped to write to.
    Written,
}

/// Of each file the process counts that maps the most of it.
fn file_bytes(processes: &[i32], pages: Pages) -> u64 {
    let mut files: BTreeMap<String, u64> = BTreeMap::new();
    for pid in processes {
        let Ok(smaps) = fs::read_to_string(format!("/proc/{pid}/smaps")) else { continue };
        for (file, bytes) in file_pages(&smaps, pages) {
            let largest = files.entry(file).or_default();
            *largest = bytes.max(*largest);
        }
    }
    files.values().sum()
}

/// Device and inode of each file that one process maps, with the bytes of it that are in memory and unchanged.
fn file_pages(smaps: &str, pages: Pages) -> BTreeMap<String, u64> {
    let mut files: BTreeMap<String, u64> = BTreeMap::new();
    let mut file = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        let sign = match first {
            "Rss:" => 1,
            "Anonymous:" => -1,
            _ if first.ends_with(':') => continue,
            // `address permissions offset device inode path`; inode 0 is anonymous memory, and a memfd is the machine's own.
            _ => {
                let (device, inode, path) = (words.nth(1), words.next(), words.next().unwrap_or_default());
                // `second` are the permissions, as in `rw-s`: written to, and not to pages of its own.
                let written = second.starts_with("rw") && second.ends_with('s');
                let wanted = pages == Pages::Unchanged || written == (pages == Pages::Written);
                file = match (device, inode) {
                    (Some(device), Some(inode)) if wanted && inode != "0" && !path.starts_with("/memfd:") => {
                        Some(format!("{device} {inode}"))
                    }
                    _ => None,
                };
                continue;
            }
        };
        if let Some(file) = &file {
            let bytes = files.entry(file.clone()).or_default();
            *bytes = bytes.saturating_add_signed(sign * second.parse::<i64>().unwrap_or(0) * 1024);
        }
    }
    files
}

/// Anonymous memory in RAM and swap. The pages of a memfd are file pages to the kernel and not in it.
fn private_bytes(pid: i32) -> u64 {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { return 0 };
    let field = |name: &str| -> u64 {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or(0)
    };
    (field("Pss_Anon:") + field("SwapPss:")) * 1024
}

struct Stat {
    parent: i32,
    /// User and system time, children that were waited for included: a process that ends takes nothing away from the sum.
    ticks: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat_fields(&text)?.collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks: number(11)? + number(12)? + number(13)? + number(14)? })
}

/// The name in parentheses may hold anything, so fields count from the last parenthesis: 0 is the state.
fn stat_fields(stat: &str) -> Option<impl Iterator<Item = &str>> {
    Some(stat[stat.rfind(')')? + 1..].split_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_pages_are_counted_by_file_without_memfds_and_without_what_was_changed() {
        let mapping = |header: &str, rss: u32, anonymous: u32| {
            format!("{header}\nSize: 99 kB\nRss: {rss} kB\nAnonymous: {anonymous} kB\nVmFlags: rd ex\n")
        };
        let smaps = [
            mapping("00400000-00500000 r-xp 00000000 08:01 42 /usr/bin/runsc", 100, 0),
            mapping("00500000-00600000 rw-p 00100000 08:01 42 /usr/bin/runsc", 20, 16),
            mapping("7f0000000000-7f0000100000 rw-s 00000000 00:01 7 /memfd:runsc-memory (deleted)", 1000, 0),
            mapping("7f0000200000-7f0000300000 rw-p 00000000 00:00 0 [heap]", 500, 500),
            mapping("7f0000300000-7f0000400000 rw-p 00000000 00:00 0", 500, 500),
            mapping("7f0000400000-7f0000500000 r--p 00000000 08:02 42 /usr/lib/other file", 8, 0),
            mapping("7f0000500000-7f0000600000 rw-s 00000000 08:02 43 /srv/memory", 64, 0),
        ]
        .concat();
        let (programs, memory) =
            ([("08:01 42".to_owned(), 104 << 10), ("08:02 42".to_owned(), 8 << 10)], [("08:02 43".to_owned(), 64 << 10)]);
        assert_eq!(file_pages(&smaps, Pages::Unchanged), programs.iter().chain(&memory).cloned().collect());
        assert_eq!(file_pages(&smaps, Pages::UnchangedOfOthers), programs.into());
        assert_eq!(file_pages(&smaps, Pages::Written), memory.into());
    }
}

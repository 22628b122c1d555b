//! All processes of the sandbox, from /proc. Names only: arguments may hold secrets.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::call::{Call, Status, decode};
use crate::proto::sandbox::v1 as pb;

const CPU_WINDOW: Duration = Duration::from_millis(100);
const PROCESSES_MAX: usize = 65_536;

/// What /proc/<pid>/stat says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stat {
    command: String,
    state: char,
    ppid: i32,
    session: i32,
    /// Of its session; 0 = none that the kernel tells of.
    terminal: i64,
    cpu_ticks: u64,
    rss_pages: i64,
}

pub async fn processes(first: Bytes, call: Call) -> Result<(), Status> {
    decode::<pb::ProcessesRequest>(first)?;
    let before = blocking(read_all).await?;
    let start = Instant::now();
    tokio::time::sleep(CPU_WINDOW).await;
    let after = blocking(read_all).await?;
    let window_ticks = start.elapsed().as_secs_f64() * ticks_per_second();
    let row = |(pid, stat): (i32, Stat)| {
        // A number that was reused in between starts over.
        let used = before.get(&pid).map_or(0, |earlier| stat.cpu_ticks.saturating_sub(earlier.cpu_ticks));
        pb::ProcessInfo {
            pid,
            ppid: stat.ppid,
            command: stat.command,
            state: stat.state.to_string(),
            cpu_percent: used as f64 * 100.0 / window_ticks.max(f64::MIN_POSITIVE),
            rss_bytes: stat.rss_pages.max(0).saturating_mul(page_bytes()),
        }
    };
    let mut processes: Vec<pb::ProcessInfo> = after.into_iter().map(row).collect();
    processes.sort_by_key(|process| process.pid);
    Ok(call.send(&pb::ProcessList { processes }).await?)
}

async fn blocking<R: Send + 'static>(read: fn() -> R) -> Result<R, Status> {
    tokio::task::spawn_blocking(read).await.map_err(|_| Status::new("internal", "reading /proc was abandoned"))
}

fn read_all() -> HashMap<i32, Stat> {
    pids().filter_map(|pid| Some((pid, read(pid)?))).take(PROCESSES_MAX).collect()
}

fn read(pid: i32) -> Option<Stat> {
    parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// All processes of a session whose terminal the kernel does not tell of, as runsc 20240729 does of none; nobody where it does.
pub fn session_without_known_terminal(leader: i32) -> Vec<i32> {
    if read(leader).is_none_or(|stat| stat.terminal != 0) {
        return Vec::new();
    }
    pids().filter(|pid| read(*pid).is_some_and(|stat| stat.session == leader)).collect()
}

/// Numbers of all processes. One that ends meanwhile may still be among them.
pub fn pids() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The name stands in parentheses and may hold any byte, also parentheses: the last one closes it.
fn parse(stat: &[u8]) -> Option<Stat> {
    let open = stat.iter().position(|byte| *byte == b'(')?;
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let command = String::from_utf8_lossy(stat.get(open + 1..close)?).into_owned();
    let rest = String::from_utf8_lossy(stat.get(close + 1..)?);
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<i64>().ok());
    Some(Stat {
        command,
        state: fields.first()?.chars().next()?,
        ppid: i32::try_from(number(1)?).ok()?,
        session: i32::try_from(number(3)?).ok()?,
        terminal: number(4)?,
        cpu_ticks: number(11)?.max(0) as u64 + number(12)?.max(0) as u64,
        rss_pages: number(21)?,
    })
}

fn ticks_per_second() -> f64 {
    // SAFETY: reads a constant.
    unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as f64
}

fn page_bytes() -> i64 {
    // SAFETY: reads a constant.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_does_not_shift_the_fields() {
        let line = b"77 (a) R 1 (b) S 5 77 77 0 -1 4194560 1 0 0 0 30 12 0 0 20 0 1 0 100 2048000 345 18446744073709551615 0";
        let expected = Stat { command: "a) R 1 (b".into(), state: 'S', ppid: 5, session: 77, terminal: 0, cpu_ticks: 42, rss_pages: 345 };
        assert_eq!(parse(line), Some(expected));
        assert_eq!(parse(b"77 (x"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn a_session_is_found_only_where_the_kernel_tells_of_no_terminal() {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new("sleep");
        // SAFETY: setsid is async-signal-safe and touches no memory.
        unsafe { command.arg("1000").pre_exec(|| if libc::setsid() < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }) };
        let mut child = command.spawn().unwrap();
        let leader = child.id() as i32;
        let found = session_without_known_terminal(leader);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, [leader]);
        assert!(session_without_known_terminal(leader).is_empty());
    }

    #[test]
    fn we_are_among_the_processes() {
        assert!(read_all().contains_key(&(std::process::id() as i32)));
    }
}

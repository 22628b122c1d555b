//! The cgroup of everything that users run, so that all of it can be stopped at once: nothing in there runs from QUIESCED to RESUME, and in
//! a fork's child not before its identity is renewed.
//!
//! Only where the agent is process 1 of a Linux kernel of its own. Elsewhere (gVisor, tests) there is no such cgroup, and freezing does
//! nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{RwLock, RwLockWriteGuard};

use super::spawn::Started;

/// Mounted for a moment only: programs are not to see it.
const MOUNT: &str = "/run/mitos-cgroup";
/// Without `favordynmods` (since Linux 6.0) each program that starts waits some milliseconds for the kernel to let it in.
const MOUNT_OPTIONS: [Option<&str>; 2] = [Some("nsdelegate,favordynmods"), Some("nsdelegate")];
/// Programs stand still within a millisecond or two, unless one waits for a device that does not answer.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(5);
/// `cgroup.events` is a few short lines.
const EVENTS_BYTES_MAX: u64 = 4096;

/// Not set where there is no kernel of our own; an error where there is one that cannot do it: such a machine serves, but is not forked.
static CGROUP: OnceLock<Result<Cgroup, String>> = OnceLock::new();
/// Held for reading while a program is being started, for writing while programs are frozen: a start that is under way ends before, one that
/// comes later waits. Else its child would stop half-way, and with it the thread that is waiting for it.
static STARTS: RwLock<()> = RwLock::const_new(());
static FROZEN: Mutex<Option<RwLockWriteGuard<'static, ()>>> = Mutex::new(None);

fn frozen() -> MutexGuard<'static, Option<RwLockWriteGuard<'static, ()>>> {
    FROZEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the cgroup. Once, as process 1, before there are programs.
pub fn prepare() {
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if filesystems.lines().any(|line| line.split_whitespace().last() == Some("cgroup2")) {
        let made = Cgroup::make().map_err(|error| format!("its programs have no cgroup to be frozen in: {error}"));
        if let Err(error) = &made {
            eprintln!("init: {error}");
        }
        let _ = CGROUP.set(made);
    }
}

/// What a child writes `0` to, to become one of the programs.
pub fn members() -> Option<RawFd> {
    Some(CGROUP.get()?.as_ref().ok()?.members.as_raw_fd())
}

/// How many processes and threads all of them together may have. Where there is no cgroup, limits of each user alone hold.
pub fn set_processes_max(processes_max: u32) -> io::Result<()> {
    match CGROUP.get() {
        Some(Ok(cgroup)) => cgroup.processes_max.write_all_at(processes_max.to_string().as_bytes(), 0),
        _ => Ok(()),
    }
}

/// Runs `spawn::spawn` once programs may run. The error is a sentence for the user.
pub async fn start(program: impl FnOnce() -> Result<Started, String> + Send + 'static) -> Result<Started, String> {
    let turn = STARTS.read().await;
    // Loading a program can wait for a slow file system; the link must not.
    let started = tokio::task::spawn_blocking(move || {
        let started = program();
        drop(turn);
        started
    });
    started.await.map_err(|_| "the start was abandoned".to_owned())?
}

/// Stops every program. Resolves when all of them stand still; after an error all of them run.
pub async fn freeze() -> Result<(), String> {
    let cgroup = match CGROUP.get() {
        None => return Ok(()),
        Some(Err(error)) => return Err(error.clone()),
        Some(Ok(cgroup)) => cgroup,
    };
    if frozen().is_some() {
        return Ok(());
    }
    let until = Instant::now() + FREEZE_TIMEOUT;
    let starts = tokio::time::timeout(FREEZE_TIMEOUT, STARTS.write());
    let starts = starts.await.map_err(|_| "a program that is being started does not come to its start")?;
    *frozen() = Some(starts);
    let stopped = tokio::task::spawn_blocking(move || cgroup.freeze.write_all_at(b"1", 0).and_then(|()| cgroup.wait_until_frozen(until)));
    stopped.await.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into())).map_err(|error| {
        thaw();
        format!("its programs cannot be frozen: {error}")
    })
}

/// Whether programs stand still, and none can be started.
pub fn are_frozen() -> bool {
    frozen().is_some()
}

/// Lets every program run. Does nothing when they do.
pub fn thaw() {
    let mut frozen = frozen();
    if let (Some(Ok(cgroup)), true) = (CGROUP.get(), frozen.is_some())
        && let Err(error) = cgroup.freeze.write_all_at(b"0", 0)
    {
        eprintln!("programs cannot be thawed: {error}");
    }
    *frozen = None;
}

/// Its files, in a file system that no path leads to any more. They are kept open: to open one takes the kernel longer than what is done with it.
struct Cgroup {
    /// `cgroup.procs`.
    members: File,
    /// `cgroup.freeze`.
    freeze: File,
    /// `pids.max`.
    processes_max: File,
    /// `cgroup.events`.
    events: Mutex<File>,
}

impl Cgroup {
    fn make() -> io::Result<Self> {
        fs::create_dir_all(MOUNT)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let mounted = |options| mount(Some("cgroup2"), MOUNT, Some("cgroup2"), flags, options);
        mounted(MOUNT_OPTIONS[0]).or_else(|_| mounted(MOUNT_OPTIONS[1]))?;
        let made = Self::open(Path::new(MOUNT));
        umount2(MOUNT, MntFlags::MNT_DETACH)?;
        fs::remove_dir(MOUNT)?;
        made
    }

    fn open(root: &Path) -> io::Result<Self> {
        fs::write(root.join("cgroup.subtree_control"), "+pids")?;
        let programs = root.join("programs");
        fs::create_dir(&programs)?;
        let to_write = |name| OpenOptions::new().write(true).open(programs.join(name));
        let (members, freeze, processes_max) = (to_write("cgroup.procs")?, to_write("cgroup.freeze")?, to_write("pids.max")?);
        let events = File::open(programs.join("cgroup.events"))?;
        Ok(Self { members, freeze, processes_max, events: Mutex::new(events) })
    }

    /// The kernel tells of every change of the file that it can be read anew.
    fn wait_until_frozen(&self, until: Instant) -> io::Result<()> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut text = String::new();
            events.seek(SeekFrom::Start(0))?;
            (&mut *events).take(EVENTS_BYTES_MAX).read_to_string(&mut text)?;
            if says_frozen(&text) {
                return Ok(());
            }
            let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::ZERO);
            if poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], left)? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

fn says_frozen(events: &str) -> bool {
    events.lines().any(|line| line == "frozen 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frozen_is_what_the_kernel_says() {
        assert!(says_frozen("populated 1\nfrozen 1\n"));
        assert!(!says_frozen("populated 1\nfrozen 0\n"));
        assert!(!says_frozen(""));
    }

    #[tokio::test]
    async fn without_a_cgroup_nothing_is_frozen_and_programs_start() {
        assert_eq!(freeze().await, Ok(()));
        assert!(frozen().is_none());
        thaw();
        let (_, exit) = tokio::sync::oneshot::channel();
        assert_eq!(start(move || Ok(Started { pid: 7, exit })).await.map(|started| started.pid), Ok(7));
    }
}

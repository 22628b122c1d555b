//! How many processes and threads programs may have. Enforced by the sandbox's own kernel, so that a fork bomb is told EAGAIN and everything
//! else in the sandbox lives on; the host's cgroup is the backstop for programs that get around it (a user namespace of their own).
//!
//! The agent itself is exempt: it has CAP_SYS_ADMIN and CAP_SYS_RESOURCE.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{proctable, programs};

/// Tasks of the agent, which count for root as well: its threads, most of which come and go with file transfers.
const OWN_TASKS: u64 = 32;

/// 0 = not told.
static PROCESSES_MAX: AtomicU32 = AtomicU32::new(0);

/// For every process that is started from now on, and for those that the snapshot has brought along.
pub fn set_processes_max(processes_max: u32) {
    // As a child's is that of its parent: every program has it since its start.
    if PROCESSES_MAX.swap(processes_max, Ordering::Relaxed) == processes_max {
        return;
    }
    let Some(limit) = processes() else { return };
    // SAFETY: cannot fail.
    if unsafe { libc::getpid() } != 1 {
        return; // not a sandbox of its own: a test
    }
    if let Err(error) = programs::set_processes_max(processes_max) {
        eprintln!("programs cannot be limited to {processes_max} processes: {error}");
    }
    for pid in proctable::pids().filter(|pid| *pid != 1) {
        // SAFETY: reads one limit. One that has ended meanwhile needs none.
        unsafe { libc::prlimit(pid, libc::RLIMIT_NPROC, &raw const limit, std::ptr::null_mut()) };
    }
}

/// What a program gets as RLIMIT_NPROC.
pub fn processes() -> Option<libc::rlimit> {
    let limit = match PROCESSES_MAX.load(Ordering::Relaxed) {
        0 => return None,
        told => u64::from(told) + OWN_TASKS,
    };
    Some(libc::rlimit { rlim_cur: limit, rlim_max: limit })
}

//! The one process that *is* the machine.

use super::cgroup::{OomCounter, TaskCounter};
use super::vmm::Target;
use super::{meter, sys};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

pub struct Machine {
    pub pid: i32,
    pub pidfd: OwnedFd,
    oom: Option<OomCounter>,
    tasks: Option<TaskCounter>,
    out_of_memory: bool,
    out_of_tasks: bool,
    /// Set when it has ended.
    pub ended: Option<Status>,
}

/// Both are empty when somebody else was its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
}

impl Status {
    /// None for a process that has not ended (stopped, continued, traced).
    pub fn from_wait(status: WaitStatus) -> Option<(i32, Self)> {
        match status {
            WaitStatus::Exited(pid, code) => Some((pid.as_raw(), Self { exit_code: Some(code), signal: None })),
            WaitStatus::Signaled(pid, signal, _) => Some((pid.as_raw(), Self { exit_code: None, signal: Some(signal as i32) })),
            _ => None,
        }
    }
}

impl Machine {
    pub fn watch(pid: i32, cgroup_memory: Option<&Path>, cgroup_pids: Option<&Path>) -> Result<Self, String> {
        let oom = cgroup_memory.map(OomCounter::new).transpose()?;
        let tasks = cgroup_pids.map(TaskCounter::new).transpose()?;
        let pidfd = sys::pidfd_open(pid)
            .map_err(|error| format!("watch pid {pid}: {error}; it has ended already or was never started, see machine.log"))?;
        Ok(Self { pid, pidfd, oom, tasks, out_of_memory: false, out_of_tasks: false, ended: None })
    }

    pub fn pid_from_file(path: &Path) -> Result<i32, String> {
        let text = fs::read_to_string(path)
            .map_err(|error| format!("read pid file {}: {error}; run the command that writes it first", path.display()))?;
        text.trim().parse().map_err(|_| format!("read pid file {}: {:?} is not a pid", path.display(), text.trim()))
    }

    pub fn signal(&self, signal: Signal) -> Result<(), String> {
        let signal = signal as i32;
        sys::pidfd_signal(&self.pidfd, signal)
            .map_err(|error| format!("send signal {signal} to pid {}: {error}; the machine has ended or belongs to another user", self.pid))
    }

    /// Also to what descends from the machine's process. That one is stopped first, so that it starts none that is missed, and goes on last.
    pub fn signal_all(&self, signal: Signal) -> Result<(), String> {
        if signal == Signal::SIGCONT {
            meter::signal_descendants(self.pid, signal);
            return self.signal(signal);
        }
        self.signal(signal)?;
        meter::signal_descendants(self.pid, signal);
        Ok(())
    }

    /// Whether no thread of it runs, or waits for a processor.
    pub fn is_at_rest(&self) -> bool {
        meter::tree(&[self.pid], &[]).into_iter().all(|pid| !meter::runs(pid))
    }

    pub fn target(&self) -> Result<Target, String> {
        let pidfd = self.pidfd.try_clone().map_err(|error| format!("keep pid {}: {error}; raise the limit of open files", self.pid))?;
        Ok(Target { pid: self.pid, pidfd })
    }

    /// Looked up once, before the commands of `on_end`, which remove the cgroup.
    pub fn note_limits(&mut self) {
        self.note_oom();
        self.out_of_tasks = self.tasks.as_ref().is_some_and(TaskCounter::has_refused);
    }

    /// Whether something of it has been killed for want of memory.
    pub fn note_oom(&mut self) -> bool {
        self.out_of_memory |= self.oom.as_ref().is_some_and(OomCounter::has_killed);
        self.out_of_memory
    }

    pub fn counts_oom(&self) -> bool {
        self.oom.is_some()
    }

    pub fn oom(&self) -> bool {
        self.out_of_memory
    }

    pub fn process_limit(&self) -> bool {
        self.out_of_tasks
    }
}

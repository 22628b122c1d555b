//! Host commands that the server (or the end of the machine) asks for.

use super::log::MachineLog;
use super::protocol::Reply;
use super::sys;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Of each captured stream the last bytes are kept: the error is at the end.
const CAPTURE_BYTES_MAX: usize = 64 << 10;
const READ_BYTES: usize = 64 << 10;

/// Who gets the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    pub connection: u64,
    pub channel: u32,
}

/// The machine's ends of its sockets, as a command's stdin and stdout.
pub struct MachineEnds<'a> {
    pub stdin: &'a OwnedFd,
    pub stdout: &'a OwnedFd,
}

pub struct Command {
    pub pid: i32,
    /// None: one of the commands of `on_end`.
    pub caller: Option<Caller>,
    pub stdout: Capture,
    pub stderr: Capture,
    /// What it starts is the machine: its stderr belongs in `machine.log`.
    pub machine: bool,
    pub deadline: Instant,
    timed_out: bool,
}

impl Command {
    /// Starts it in a process group of its own, so that a time-out reaches what it has started.
    pub fn spawn(
        argv: &[String],
        env: Option<&BTreeMap<String, String>>,
        ends: Option<MachineEnds>,
        timeout: Duration,
        caller: Option<Caller>,
    ) -> Result<Self, String> {
        let (program, arguments) = argv.split_first().ok_or("run: argv is empty; give a program and its arguments")?;
        let failed = |error: io::Error| format!("run {program}: {error}; is it installed, executable, and on PATH?");
        let mut command = std::process::Command::new(program);
        command.args(arguments).process_group(0);
        if let Some(env) = env {
            command.env_clear().envs(env);
        }
        let mut stdout = Capture::default();
        match &ends {
            Some(ends) => {
                command.stdin(ends.stdin.try_clone().map_err(failed)?).stdout(ends.stdout.try_clone().map_err(failed)?);
            }
            None => {
                command.stdin(Stdio::null()).stdout(stdout.open().map_err(failed)?);
            }
        }
        let mut stderr = Capture::default();
        command.stderr(stderr.open().map_err(failed)?);
        // SAFETY: one async-signal-safe call. The signals that the loop takes from its signalfd must reach the command again.
        unsafe { command.pre_exec(|| SigSet::empty().thread_set_mask().map_err(io::Error::from)) };
        // Waited for by the loop, which reaps every child: the handle is not needed, and dropping it does neither kill nor wait.
        let child = command.spawn().map_err(failed)?;
        let deadline = Instant::now() + timeout;
        Ok(Self { pid: child.id() as i32, caller, stdout, stderr, machine: ends.is_some(), deadline, timed_out: false })
    }

    pub fn kill(&mut self, timed_out: bool) {
        self.timed_out |= timed_out;
        let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
    }

    pub fn timed_out(&self) -> bool {
        self.timed_out
    }

    /// What it wrote before it ended; whatever it left running may hold the pipes open for ever, so nobody waits for their end.
    pub fn drain(&mut self, log: &mut MachineLog) {
        for _ in 0..16 {
            if !self.stdout.read(None) {
                break;
            }
        }
        let mut log = self.machine.then_some(log);
        for _ in 0..16 {
            if !self.stderr.read(log.as_deref_mut()) {
                break;
            }
        }
    }

    pub fn reply(&self, exit_code: Option<i32>, signal: Option<i32>) -> Reply {
        Reply::Ran { ok: true, exit_code, signal, stdout: self.stdout.text(), stderr: self.stderr.text(), timed_out: self.timed_out }
    }
}

/// The reading end of a pipe and the last that came out of it.
#[derive(Default)]
pub struct Capture {
    pipe: Option<OwnedFd>,
    tail: Vec<u8>,
}

impl Capture {
    fn open(&mut self) -> io::Result<Stdio> {
        let (reader, writer) = io::pipe()?;
        let reader = OwnedFd::from(reader);
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        self.pipe = Some(reader);
        Ok(writer.into())
    }

    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// For a stream that outlives its command.
    pub fn take_pipe(&mut self) -> Option<OwnedFd> {
        self.pipe.take()
    }

    /// One read. False when there was nothing (more) to read.
    pub fn read(&mut self, log: Option<&mut MachineLog>) -> bool {
        let Some(pipe) = &self.pipe else { return false };
        let mut buffer = [0; READ_BYTES];
        match sys::read(pipe.as_fd(), &mut buffer) {
            Ok(count) if count > 0 => {
                self.tail.extend_from_slice(&buffer[..count]);
                let excess = self.tail.len().saturating_sub(CAPTURE_BYTES_MAX);
                self.tail.drain(..excess);
                if let Some(log) = log {
                    // A full disk must not end the machine; its stderr is then lost.
                    let _ = log.append(&buffer[..count]);
                }
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            _ => {
                self.pipe = None;
                false
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.tail).into_owned()
    }
}

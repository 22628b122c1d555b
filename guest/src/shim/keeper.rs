//! The loop: everything that the shim waits for, and the machine's way from its first command to `exit.json`.
//!
//! ```text
//! Serving ── machine ended by itself ──> Draining ── commands finished ──> Killing ──> Cleaning ──> Flushing ──> exit
//!    └────── end, deadline, limit, abandoned ─────────────────────────────────^
//! ```

use super::command::{Caller, Command, MachineEnds};
use super::connect_link::{LinkConnector, Progress};
use super::connection::{Connection, Received};
use super::daemon::Files;
use super::exit::{Exit, unix_ms};
use super::frames::OUTBOX_BYTES_HIGH;
use super::link::{Closed, Link};
use super::log::MachineLog;
use super::machine::{Machine, Status};
use super::meter;
use super::protocol::{Event, Reply, Request, Stdio};
use super::sys;
use super::vmm::Vmm;
use crate::wire::FrameType;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, waitpid};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const COMMANDS_MAX: usize = 32;
const CONTROLS_MAX: usize = 8;
const ON_END_MAX: usize = 32;
const LOG_PIPES_MAX: usize = 16;
/// What a machine may write to its stderr in a second; more waits in its pipe.
const LOG_READ_BYTES: usize = 32 << 10;
const LOG_BYTES_PER_SECOND: usize = 4 << 20;
/// The largest pipe has 1 MiB.
const LAST_WORDS_READS: usize = 40;
const RUN_TIMEOUT_MAX: Duration = Duration::from_secs(3600);
const ON_END_TIMEOUT: Duration = Duration::from_secs(10);
/// For commands that are about a machine which has just ended (a snapshot that ends it, for one).
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// A shim that no server has ever connected to is a leftover of a server that died while starting it.
const FIRST_CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Longer than a machine takes from shutting its link to its end.
const LINK_NOTICE: Duration = Duration::from_secs(5);
/// The wall clock may be set, so a deadline is looked at this often at least.
const DEADLINE_CHECK: Duration = Duration::from_secs(30);
/// The kernel kills the largest process of a cgroup, which may be the one in which a single program of the guest runs: then the machine would
/// live on, crippled, and nobody would be told.
const OOM_CHECK: Duration = Duration::from_millis(500);
const MEMORY_INTERVAL_MS: std::ops::RangeInclusive<u64> = 50..=60_000;

pub struct Keeper {
    link_socket: UnixListener,
    control_socket: UnixListener,
    _files: Files,
    signals: SignalFd,
    link: Link,
    /// When a link that was shut without a violation is reported, if the machine lives on.
    link_notice: Option<Instant>,
    /// A link that is not there yet, and who is told when it is.
    connecting: Option<(LinkConnector, Caller)>,
    server: Option<Connection>,
    controls: Vec<Connection>,
    next_connection: u64,
    commands: Vec<Command>,
    log: MachineLog,
    /// The stderr of what commands that start machines have left running.
    log_pipes: Vec<OwnedFd>,
    log_budget: LogBudget,
    machine: Option<Machine>,
    /// The monitor of what the last command with `vmm` has started.
    vmm: Option<Vmm>,
    on_end: Vec<Vec<String>>,
    deadline: Option<Deadline>,
    memory_limit: Option<MemoryLimit>,
    next_oom_check: Instant,
    cpu_ms: u64,
    phase: Phase,
    /// Why the machine ends; the first cause wins.
    cause: Option<Cause>,
    /// Who asked for the end, and is answered when all is done.
    ending: Vec<Caller>,
}

enum Phase {
    /// Until the first connection there is a time limit.
    Serving {
        first_connection: Option<Instant>,
    },
    Draining {
        until: Instant,
    },
    Killing {
        until: Instant,
    },
    /// The commands of `on_end`, one after the other.
    Cleaning {
        next: usize,
    },
    Flushing {
        until: Instant,
    },
    Over,
}

struct Cause {
    reason: String,
    oom: bool,
}

struct Deadline {
    unix_ms: u64,
    reason: String,
}

struct MemoryLimit {
    bytes: u64,
    interval: Duration,
    next: Instant,
}

struct LogBudget {
    second: Instant,
    left: usize,
}

#[derive(Debug, Clone, Copy)]
enum Token {
    Signals,
    LinkSocket,
    ControlSocket,
    Machine,
    Vmm,
    Link,
    Connecting,
    Server,
    Control(u64),
    Stdout(i32),
    Stderr(i32),
    LogPipe(RawFd),
}

impl Keeper {
    pub fn new(files: Files) -> Result<Self, String> {
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}; are open files or memory exhausted?");
        // What a command leaves behind becomes our child, so that nothing of a machine can slip away.
        nix::sys::prctl::set_child_subreaper(true).map_err(|error| failed("become a subreaper", &error))?;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.add(Signal::SIGTERM);
        mask.thread_block().map_err(|error| failed("block signals", &error))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map_err(|e| failed("signalfd", &e))?;
        let now = Instant::now();
        Ok(Self {
            link_socket: files.link_socket.try_clone().map_err(|error| failed("serve shim.sock", &error))?,
            control_socket: files.control_socket.try_clone().map_err(|error| failed("serve control.sock", &error))?,
            _files: files,
            signals,
            link: Link::new()?,
            link_notice: None,
            connecting: None,
            server: None,
            controls: Vec::new(),
            next_connection: 1,
            commands: Vec::new(),
            log: MachineLog::create("machine.log").map_err(|error| failed("create machine.log", &error))?,
            log_pipes: Vec::new(),
            log_budget: LogBudget { second: now, left: LOG_BYTES_PER_SECOND },
            machine: None,
            vmm: None,
            on_end: Vec::new(),
            deadline: None,
            memory_limit: None,
            next_oom_check: now,
            cpu_ms: 0,
            phase: Phase::Serving { first_connection: Some(now + FIRST_CONNECTION_TIMEOUT) },
            cause: None,
            ending: Vec::new(),
        })
    }

    pub fn run(mut self) -> ExitCode {
        loop {
            self.advance();
            if matches!(self.phase, Phase::Over) {
                return ExitCode::SUCCESS;
            }
            let (mut fds, tokens) = self.interests();
            if let Err(error) = sys::poll(&mut fds, self.timeout_ms()) {
                eprintln!("wait for events: {error}");
                self.begin_end("lost", false);
            }
            for (fd, token) in fds.iter().zip(tokens) {
                if fd.revents != 0 {
                    self.handle(token, fd.revents);
                }
            }
            self.flush();
        }
    }

    // ------------------------------------------------------------------ what to wait for

    fn interests(&self) -> (Vec<libc::pollfd>, Vec<Token>) {
        let mut fds = Vec::with_capacity(16);
        let mut tokens = Vec::with_capacity(16);
        let mut add = |fd: BorrowedFd, read: bool, write: bool, token: Token| {
            let events = if read { libc::POLLIN } else { 0 } | if write { libc::POLLOUT } else { 0 };
            // Without an interest not even a hang-up is reported, which would spin; -1 makes the kernel skip the entry.
            let fd = if events == 0 { -1 } else { fd.as_raw_fd() };
            fds.push(libc::pollfd { fd, events, revents: 0 });
            tokens.push(token);
        };
        add(self.signals.as_fd(), true, false, Token::Signals);
        add(self.link_socket.as_fd(), true, false, Token::LinkSocket);
        add(self.control_socket.as_fd(), true, false, Token::ControlSocket);
        if let Some(machine) = self.machine.as_ref().filter(|machine| machine.ended.is_none()) {
            add(machine.pidfd.as_fd(), true, false, Token::Machine);
        }
        if let Some(vmm) = &self.vmm {
            add(vmm.fd(), true, false, Token::Vmm);
        }
        if self.link.closed.is_none() {
            let server_reads = self.server.as_ref().is_none_or(|server| server.outbox.len() < OUTBOX_BYTES_HIGH);
            add(self.link.ours.as_fd(), server_reads, !self.link.to_machine.is_empty(), Token::Link);
        }
        if let Some((connector, _)) = &self.connecting
            && let Some((fd, read, write)) = connector.interest()
        {
            add(fd, read, write, Token::Connecting);
        }
        if let Some(server) = &self.server {
            add(server.stream().as_fd(), server.wants_read(&self.link.to_machine), !server.outbox.is_empty(), Token::Server);
        }
        for control in &self.controls {
            let read = control.wants_read(&self.link.to_machine);
            add(control.stream().as_fd(), read, !control.outbox.is_empty(), Token::Control(control.id));
        }
        let log = self.log_budget.left > 0;
        for command in &self.commands {
            if let Some(fd) = command.stdout.fd() {
                add(fd, true, false, Token::Stdout(command.pid));
            }
            if let Some(fd) = command.stderr.fd() {
                add(fd, log || !command.machine, false, Token::Stderr(command.pid));
            }
        }
        for pipe in &self.log_pipes {
            add(pipe.as_fd(), log, false, Token::LogPipe(pipe.as_raw_fd()));
        }
        (fds, tokens)
    }

    fn timeout_ms(&self) -> i32 {
        let now = Instant::now();
        let mut wait: Option<Duration> = None;
        let mut until = |duration: Duration| wait = Some(wait.map_or(duration, |wait| wait.min(duration)));
        for command in self.commands.iter().filter(|command| !command.timed_out()) {
            until(command.deadline.saturating_duration_since(now));
        }
        if self.log_budget.left == 0 {
            until((self.log_budget.second + Duration::from_secs(1)).saturating_duration_since(now));
        }
        if let Some((connector, _)) = &self.connecting {
            until(connector.due().saturating_duration_since(now));
        }
        match &self.phase {
            Phase::Serving { first_connection } => {
                if let Some(limit) = first_connection {
                    until(limit.saturating_duration_since(now));
                }
                if let Some(notice) = self.link_notice {
                    until(notice.saturating_duration_since(now));
                }
                if let Some(deadline) = &self.deadline {
                    until(Duration::from_millis(deadline.unix_ms.saturating_sub(unix_ms())).min(DEADLINE_CHECK));
                }
                if self.machine.as_ref().is_some_and(Machine::counts_oom) {
                    until(self.next_oom_check.saturating_duration_since(now));
                }
                if let Some(limit) = self.memory_limit.as_ref().filter(|_| self.machine.is_some()) {
                    until(limit.next.saturating_duration_since(now));
                }
            }
            Phase::Draining { until: limit } | Phase::Flushing { until: limit } => until(limit.saturating_duration_since(now)),
            // A process that forked while it was being killed shows up as a new child without a signal.
            Phase::Killing { until: limit } => until(limit.saturating_duration_since(now).min(Duration::from_millis(20))),
            Phase::Cleaning { .. } | Phase::Over => {}
        }
        // Rounded up, so that a time is over when the loop looks at it.
        wait.map_or(-1, |wait| i32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(i32::MAX))
    }

    // ------------------------------------------------------------------ what has happened

    fn handle(&mut self, token: Token, revents: i16) {
        match token {
            Token::Signals => self.take_signals(),
            Token::LinkSocket => self.accept_server(),
            Token::ControlSocket => self.accept_control(),
            Token::Machine => self.machine_gone(),
            Token::Vmm => self.answer_steps(),
            Token::Link => {
                if revents & !libc::POLLOUT != 0 && self.link.receive(self.server.as_mut()) {
                    self.link_closed();
                }
            }
            Token::Connecting => self.connect_link(),
            Token::Server => {
                if revents & !libc::POLLOUT != 0 {
                    self.receive_from_server();
                }
            }
            Token::Control(id) => {
                if revents & !libc::POLLOUT != 0 {
                    self.receive_from_control(id);
                }
            }
            Token::Stdout(pid) => {
                if let Some(command) = self.commands.iter_mut().find(|command| command.pid == pid) {
                    command.stdout.read(None);
                }
            }
            Token::Stderr(pid) => {
                if let Some(command) = self.commands.iter_mut().find(|command| command.pid == pid) {
                    let log = command.machine.then_some(&mut self.log);
                    if command.stderr.read(log) && command.machine {
                        self.log_budget.spend();
                    }
                }
            }
            Token::LogPipe(fd) => self.read_log_pipe(fd),
        }
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if signal.ssi_signo == Signal::SIGTERM as u32 {
                self.begin_end("terminated", false);
            }
        }
        self.reap();
    }

    /// Takes the status of every child that has ended. True when no child is left at all.
    fn reap(&mut self) -> bool {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(status) => match Status::from_wait(status) {
                    Some((pid, status)) => self.child_ended(pid, status),
                    None => return false,
                },
                Err(Errno::EINTR) => {}
                Err(_) => return true,
            }
        }
    }

    fn child_ended(&mut self, pid: i32, status: Status) {
        if let Some(index) = self.commands.iter().position(|command| command.pid == pid) {
            let mut command = self.commands.swap_remove(index);
            command.drain(&mut self.log);
            if command.machine
                && let Some(pipe) = command.stderr.take_pipe()
                && self.log_pipes.len() < LOG_PIPES_MAX
            {
                self.log_pipes.push(pipe);
            }
            if let Some(caller) = command.caller {
                self.reply(caller, &command.reply(status.exit_code, status.signal));
            }
        }
        if let Some(machine) = self.machine.as_mut().filter(|machine| machine.pid == pid && machine.ended.is_none()) {
            machine.ended = Some(status);
            self.machine_ended();
        }
    }

    /// The pidfd says that the machine has ended; whoever its parent is has the status.
    fn machine_gone(&mut self) {
        self.reap();
        if let Some(machine) = self.machine.as_mut().filter(|machine| machine.ended.is_none()) {
            machine.ended = Some(Status::default());
            self.machine_ended();
        }
    }

    fn machine_ended(&mut self) {
        if let Phase::Serving { .. } = self.phase {
            self.phase = Phase::Draining { until: Instant::now() + DRAIN_TIMEOUT };
        }
    }

    fn accept_server(&mut self) {
        while let Ok((stream, _)) = self.link_socket.accept() {
            let id = self.take_connection_id();
            let Ok(mut connection) = Connection::new(id, true, stream) else { continue };
            if self.link_notice.is_none()
                && let Some(Closed { error, .. }) = self.link.closed.clone()
            {
                connection.send_json(FrameType::ShimEvent, 0, &Event::LinkClosed { error });
            }
            // The old one goes, and with it what it had not read; the HELLO of the new one makes it void anyway.
            self.server = Some(connection);
            if let Phase::Serving { first_connection } = &mut self.phase {
                *first_connection = None;
            }
        }
    }

    fn accept_control(&mut self) {
        while let Ok((stream, _)) = self.control_socket.accept() {
            let id = self.take_connection_id();
            if self.controls.len() < CONTROLS_MAX
                && let Ok(connection) = Connection::new(id, false, stream)
            {
                self.controls.push(connection);
            }
        }
    }

    fn take_connection_id(&mut self) -> u64 {
        self.next_connection += 1;
        self.next_connection
    }

    fn receive_from_server(&mut self) {
        let Some(server) = &mut self.server else { return };
        let id = server.id;
        match server.receive(&mut self.link) {
            Received::Requests(requests) => self.serve(id, requests),
            Received::Closed(error) => self.server_gone(error),
        }
    }

    fn server_gone(&mut self, error: Option<String>) {
        if let Some(error) = error {
            eprintln!("close the server's connection: {error}");
        }
        self.server = None;
        // A successor may be waiting already.
        self.accept_server();
        if self.server.is_none() && self.machine.is_none() {
            self.begin_end("abandoned", false);
        }
    }

    fn receive_from_control(&mut self, id: u64) {
        let Some(index) = self.controls.iter().position(|control| control.id == id) else { return };
        match self.controls[index].receive(&mut self.link) {
            Received::Requests(requests) => self.serve(id, requests),
            Received::Closed(_) => drop(self.controls.swap_remove(index)),
        }
    }

    fn read_log_pipe(&mut self, fd: RawFd) {
        let mut buffer = [0; LOG_READ_BYTES];
        let Some(index) = self.log_pipes.iter().position(|pipe| pipe.as_raw_fd() == fd) else { return };
        match sys::read(self.log_pipes[index].as_fd(), &mut buffer) {
            Ok(count) if count > 0 => {
                self.log_budget.spend();
                // A full disk must not end the machine; its stderr is then lost.
                let _ = self.log.append(&buffer[..count]);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => drop(self.log_pipes.swap_remove(index)),
        }
    }

    // ------------------------------------------------------------------ requests

    fn serve(&mut self, connection: u64, requests: Vec<(u32, Vec<u8>)>) {
        for (channel, payload) in requests {
            let caller = Caller { connection, channel };
            let reply = match serde_json::from_slice::<Request>(&payload) {
                Ok(request) => self.answer(caller, request).unwrap_or_else(|error| Some(Reply::failed(error))),
                Err(error) => Some(Reply::failed(format!("read a request: {error}; docs/shim.md lists operations and fields"))),
            };
            if let Some(reply) = reply {
                self.reply(caller, &reply);
            }
        }
    }

    /// None: the reply comes later.
    fn answer(&mut self, caller: Caller, request: Request) -> Result<Option<Reply>, String> {
        if let Request::End { reason } = request {
            if matches!(self.phase, Phase::Flushing { .. }) {
                return Ok(Some(Reply::done()));
            }
            self.ending.push(caller);
            self.begin_end(&reason, false);
            return Ok(None);
        }
        if !matches!(self.phase, Phase::Serving { .. }) {
            return Err("the machine has ended; wait for the exit event or read exit.json".into());
        }
        match request {
            Request::Run { argv, env, stdio, timeout_ms } => {
                if self.commands.len() >= COMMANDS_MAX {
                    return Err(format!("run {argv:?}: {COMMANDS_MAX} commands are running; wait for one to end"));
                }
                let timeout = Duration::from_millis(timeout_ms).min(RUN_TIMEOUT_MAX);
                self.run_command(caller, &argv, env.as_ref(), stdio.unwrap_or(Stdio::Null), timeout)?;
                return Ok(None);
            }
            Request::Watch { pid, pid_file, cgroup_memory, cgroup_pids } => {
                if let Some(machine) = &self.machine {
                    return Err(format!("watch: pid {} is watched already; one shim keeps one machine", machine.pid));
                }
                let pid = match (pid, pid_file) {
                    (Some(pid), None) => pid,
                    (None, Some(path)) => Machine::pid_from_file(&path)?,
                    _ => return Err("watch: give either pid or pid_file".into()),
                };
                self.machine = Some(Machine::watch(pid, cgroup_memory.as_deref(), cgroup_pids.as_deref())?);
                return Ok(Some(Reply::Watching { ok: true, pid }));
            }
            Request::OnEnd { commands } => {
                if commands.len() > ON_END_MAX || commands.iter().any(Vec::is_empty) {
                    return Err(format!("on_end: at most {ON_END_MAX} commands, each with a program"));
                }
                self.on_end = commands;
            }
            Request::Signal { signal, descendants } => {
                let (machine, signal) = (self.require_machine("signal")?, signal.known()?);
                if descendants { machine.signal_all(signal)? } else { machine.signal(signal)? }
            }
            Request::Freeze {} => {
                let machine = self.require_machine("freeze")?;
                let frozen = machine.is_at_rest();
                if frozen {
                    machine.signal_all(Signal::SIGSTOP)?;
                }
                return Ok(Some(Reply::Frozen { ok: true, frozen }));
            }
            Request::Deadline { unix_ms, reason } => self.deadline = unix_ms.map(|unix_ms| Deadline { unix_ms, reason }),
            Request::MemoryLimit { bytes, interval_ms } => {
                let interval = Duration::from_millis(interval_ms.clamp(*MEMORY_INTERVAL_MS.start(), *MEMORY_INTERVAL_MS.end()));
                self.memory_limit = bytes.map(|bytes| MemoryLimit { bytes, interval, next: Instant::now() });
            }
            Request::Meter { shared } => {
                self.require_machine("meter")?;
                let usage = self.meter();
                let shared_bytes = shared.then(|| meter::shared_bytes(&self.machine_processes(), self.vmm.is_some()));
                return Ok(Some(Reply::Metered { ok: true, memory_bytes: usage.memory_bytes, shared_bytes, cpu_ms: usage.cpu_ms }));
            }
            Request::ConnectLink { path, port, timeout_ms } => {
                if self.connecting.is_some() {
                    return Err("connect_link: the link is being connected; wait for that".into());
                }
                let connector = LinkConnector::new(path, port, Duration::from_millis(timeout_ms))?;
                self.link.disconnect();
                self.link_notice = None;
                self.connecting = Some((connector, caller));
                self.connect_link();
                return Ok(None);
            }
            Request::Vmm { steps, timeout_ms } => {
                let vmm = self.vmm.as_mut().ok_or("vmm: there is no monitor yet; run a command with stdio vmm first")?;
                let target = self.machine.as_ref().map(Machine::target).transpose()?;
                vmm.ask(caller, steps, target, timeout_ms)?;
                return Ok(None);
            }
            Request::End { .. } => unreachable!("answered above"),
        }
        Ok(Some(Reply::done()))
    }

    /// Goes on with a link that is being connected.
    fn connect_link(&mut self) {
        let Some((connector, caller)) = &mut self.connecting else { return };
        let caller = *caller;
        let reply = match connector.advance(Instant::now()) {
            Progress::Waiting => return,
            Progress::Connected(stream) => {
                self.link.replace(stream);
                Reply::done()
            }
            Progress::Failed(error) => Reply::failed(error),
        };
        self.connecting = None;
        self.reply(caller, &reply);
    }

    fn run_command(
        &mut self,
        caller: Caller,
        argv: &[String],
        env: Option<&BTreeMap<String, String>>,
        stdio: Stdio,
        timeout: Duration,
    ) -> Result<(), String> {
        let link = &self.link.machines;
        let command = match stdio {
            Stdio::Null => Command::spawn(argv, env, None, timeout, Some(caller))?,
            Stdio::Link => Command::spawn(argv, env, Some(MachineEnds { stdin: link, stdout: link }), timeout, Some(caller))?,
            Stdio::Vmm => {
                if self.vmm.as_ref().is_some_and(Vmm::pending) {
                    return Err("run: the monitor of the machine before is still at work; wait for its operations".into());
                }
                let (vmm, monitor) = Vmm::new()?;
                let command = Command::spawn(argv, env, Some(MachineEnds { stdin: link, stdout: &monitor }), timeout, Some(caller))?;
                self.vmm = Some(vmm);
                command
            }
        };
        self.commands.push(command);
        Ok(())
    }

    fn answer_steps(&mut self) {
        let outcomes = self.vmm.as_mut().map(Vmm::take).unwrap_or_default();
        for (caller, outcome) in outcomes {
            self.reply(caller, &Reply::Stepped(outcome));
        }
    }

    fn require_machine(&self, operation: &str) -> Result<&Machine, String> {
        self.machine.as_ref().ok_or_else(|| format!("{operation}: there is no machine yet; send watch first"))
    }

    /// Commands that only work on the machine (a snapshot being saved) are not part of it.
    fn machine_processes(&self) -> Vec<i32> {
        let Some(machine) = &self.machine else { return Vec::new() };
        let commands: Vec<i32> = self.commands.iter().map(|command| command.pid).filter(|pid| *pid != machine.pid).collect();
        let mut roots = meter::children(std::process::id() as i32);
        roots.push(machine.pid);
        meter::tree(&roots, &commands)
    }

    fn meter(&mut self) -> meter::Usage {
        if self.machine.is_none() {
            return meter::Usage::default();
        }
        let mut usage = meter::usage(&self.machine_processes(), self.vmm.is_some());
        // Processes that ended between two looks must not turn the clock back.
        self.cpu_ms = self.cpu_ms.max(usage.cpu_ms);
        usage.cpu_ms = self.cpu_ms;
        usage
    }

    // ------------------------------------------------------------------ the way to the end

    /// Kills; the first cause stands.
    fn begin_end(&mut self, reason: &str, oom: bool) {
        if !matches!(self.phase, Phase::Serving { .. } | Phase::Draining { .. }) {
            return;
        }
        if self.machine.as_ref().is_none_or(|machine| machine.ended.is_none()) {
            self.cause.get_or_insert(Cause { reason: reason.into(), oom });
        }
        self.phase = Phase::Killing { until: Instant::now() + KILL_TIMEOUT };
    }

    /// Times that are over, and steps that are due.
    fn advance(&mut self) {
        let now = Instant::now();
        self.log_budget.renew(now);
        for command in self.commands.iter_mut().filter(|command| !command.timed_out() && command.deadline <= now) {
            command.kill(true);
        }
        if let Phase::Serving { first_connection } = self.phase {
            self.check_limits(now, first_connection);
            self.connect_link();
        } else if let Some((_, caller)) = self.connecting.take() {
            self.reply(caller, &Reply::failed("connect_link: the machine has ended"));
        }
        if let Phase::Draining { until } = self.phase
            && (self.idle() || until <= now)
        {
            self.phase = Phase::Killing { until: now + KILL_TIMEOUT };
        }
        if let Phase::Killing { until } = self.phase {
            self.kill_all();
            let nobody_left = self.reap();
            // What was being asked of the monitor fails with it, and is answered.
            if (nobody_left && !self.vmm.as_ref().is_some_and(Vmm::pending)) || until <= now {
                if let Some(machine) = &mut self.machine {
                    machine.note_limits();
                }
                self.phase = Phase::Cleaning { next: 0 };
            }
        }
        if let Phase::Cleaning { next } = self.phase {
            self.clean(next);
        }
        if let Phase::Flushing { until } = self.phase {
            let connections = self.server.iter().chain(&self.controls);
            if until <= now || connections.into_iter().all(|connection| connection.outbox.is_empty()) {
                self.phase = Phase::Over;
            }
        }
    }

    fn idle(&self) -> bool {
        self.commands.is_empty() && !self.vmm.as_ref().is_some_and(Vmm::pending)
    }

    fn check_limits(&mut self, now: Instant, first_connection: Option<Instant>) {
        if first_connection.is_some_and(|limit| limit <= now) {
            return self.begin_end("abandoned", false);
        }
        if self.link_notice.is_some_and(|notice| notice <= now) {
            self.tell_link_closed();
        }
        if let Some(deadline) = self.deadline.take_if(|deadline| deadline.unix_ms <= unix_ms()) {
            return self.begin_end(&deadline.reason, false);
        }
        if self.next_oom_check <= now {
            self.next_oom_check = now + OOM_CHECK;
            if self.machine.as_mut().is_some_and(Machine::note_oom) {
                return self.begin_end("oom_killed", true);
            }
        }
        if self.machine.is_none() || self.memory_limit.as_ref().is_none_or(|limit| limit.next > now) {
            return;
        }
        let used = self.meter().memory_bytes;
        if let Some(limit) = &mut self.memory_limit {
            limit.next = Instant::now() + limit.interval;
            if used > limit.bytes {
                self.begin_end("oom_killed", true);
            }
        }
    }

    /// The machine and everything that commands have left behind.
    fn kill_all(&mut self) {
        if let Some(machine) = &self.machine
            && machine.ended.is_none()
        {
            let _ = machine.signal(Signal::SIGKILL);
        }
        meter::signal_descendants(std::process::id() as i32, Signal::SIGKILL);
    }

    fn clean(&mut self, next: usize) {
        if !self.commands.is_empty() {
            return;
        }
        let Some(argv) = self.on_end.get(next).cloned() else { return self.finish() };
        self.phase = Phase::Cleaning { next: next + 1 };
        match Command::spawn(&argv, None, None, ON_END_TIMEOUT, None) {
            Ok(command) => self.commands.push(command),
            Err(error) => {
                eprintln!("on_end: {error}");
                self.clean(next + 1);
            }
        }
    }

    fn finish(&mut self) {
        self.kill_all();
        let exit = self.judge();
        // Its last words. Whoever could write more is gone, so the bound only guards against a pipe that somebody else was given.
        for fd in self.log_pipes.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>() {
            for _ in 0..LAST_WORDS_READS {
                self.read_log_pipe(fd);
            }
        }
        let _ = self.log.cut();
        if let Err(error) = exit.write() {
            eprintln!("write exit.json: {error}; is the disk full?");
        }
        let ending = std::mem::take(&mut self.ending);
        let event = Event::Exit { exit: exit.clone() };
        for connection in self.server.iter_mut().chain(&mut self.controls) {
            if !ending.iter().any(|caller| caller.connection == connection.id) {
                connection.send_json(FrameType::ShimEvent, 0, &event);
            }
        }
        for caller in ending {
            self.reply(caller, &Reply::done());
        }
        // A server that comes now finds nobody, and exit.json.
        let _ = std::fs::remove_file("shim.sock");
        let _ = std::fs::remove_file("control.sock");
        self.phase = Phase::Flushing { until: Instant::now() + FLUSH_TIMEOUT };
        self.flush();
    }

    fn judge(&self) -> Exit {
        let status = self.machine.as_ref().and_then(|machine| machine.ended).unwrap_or_default();
        let oom = self.machine.as_ref().is_some_and(Machine::oom);
        let (reason, oom) = match &self.cause {
            Some(cause) => (cause.reason.clone(), cause.oom),
            None if oom => ("oom_killed".into(), true),
            None if status.signal.is_some() => ("killed".into(), false),
            None => ("exited".into(), false),
        };
        // Ended for another cause it may have met the limit as well, without harm.
        let process_limit = self.cause.is_none() && !oom && self.machine.as_ref().is_some_and(Machine::process_limit);
        Exit { reason, exit_code: status.exit_code, signal: status.signal, oom, process_limit, at_unix_ms: unix_ms() }
    }

    // ------------------------------------------------------------------ what goes out

    fn reply(&mut self, caller: Caller, reply: &Reply) {
        if let Some(connection) = self.server.iter_mut().chain(&mut self.controls).find(|connection| connection.id == caller.connection) {
            connection.send_json(FrameType::ShimReply, caller.channel, reply);
        }
    }

    /// A machine that shuts its end is most likely about to end, and its end is what the server should hear of.
    fn link_closed(&mut self) {
        match &self.link.closed {
            Some(closed) if !closed.by_violation => self.link_notice = Some(Instant::now() + LINK_NOTICE),
            _ => self.tell_link_closed(),
        }
    }

    fn tell_link_closed(&mut self) {
        let Some(Closed { error, .. }) = self.link.closed.clone() else { return };
        self.link_notice = None;
        eprintln!("close the link: {error}");
        let event = Event::LinkClosed { error };
        for connection in self.server.iter_mut().chain(&mut self.controls) {
            connection.send_json(FrameType::ShimEvent, 0, &event);
        }
    }

    /// One write for everything that this round has brought.
    fn flush(&mut self) {
        if self.link.flush() {
            self.link_closed();
        }
        if let Some(server) = &mut self.server
            && let Err(error) = server.flush()
        {
            let expected = matches!(error.kind(), std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset);
            self.server_gone((!expected).then(|| format!("write to the server: {error}")));
        }
        self.controls.retain_mut(|control| control.flush().is_ok());
    }
}

impl LogBudget {
    fn renew(&mut self, now: Instant) {
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            *self = Self { second: now, left: LOG_BYTES_PER_SECOND };
        }
    }

    /// By the read, not by the byte: many small writes cost as much as large ones.
    fn spend(&mut self) {
        self.left = self.left.saturating_sub(LOG_READ_BYTES);
    }
}

//! Processes started through the link: Exec (start and attach), ListProcesses, WriteStdin, ResizeTerminal, SignalProcess.
//!
//! A process belongs to the sandbox, not to the call that started it. A call follows it through readers on its two rings; while there is a
//! reader the pipe exerts back-pressure, without one the ring keeps the newest bytes. It ends when the program has exited *and* both
//! pipes are at their end, or 200 ms after its deadline.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::call::{Call, Gone, Status, decode};
use super::reaper::ExitStatus;
use super::ring::{self, CHUNK_BYTES_MAX, Next, Reader, Ring};
use super::spawn::{self, Program};
use super::{identity, paths, proctable, programs, pty, user};
use crate::proto::guest::v1 as pb;
use crate::proto::guest::v1::exec_input::Msg as Input;
use crate::proto::guest::v1::exec_output::Msg as Output;

const SHELL: &str = "/bin/sh";
const EXIT_CODE_TIMED_OUT: i32 = 124;
const OUTPUT_GRACE: Duration = Duration::from_millis(200);
const ENDED_KEPT_MAX: usize = 256;
const ENDED_KEPT_FOR: Duration = Duration::from_secs(600);
const RUNNING_MAX: usize = 4096;
const COMMAND_TEXT_BYTES_MAX: usize = 4096;
const STDIN_MESSAGES_MAX: usize = 4;
/// How long the first bytes of a code point wait for the rest of it.
const CODE_POINT_WAIT: Duration = Duration::from_millis(20);
pub const SIGNAL_MAX: i32 = 64;

pub struct Process {
    pid: i32,
    command: String,
    started_unix_ms: i64,
    started: Instant,
    stdout: Ring,
    stderr: Ring,
    has_terminal: bool,
    has_stdin: bool,
    /// Our end of its terminal, until it ends.
    terminal: Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
    stdin: tokio::sync::Mutex<Stdin>,
    /// Told of every output and of the end.
    changed: watch::Sender<()>,
    exit: Mutex<Option<pb::ProcessExit>>,
    ended: CancellationToken,
}

enum Stdin {
    Null,
    Pipe(AsyncFd<OwnedFd>),
    Terminal(Arc<AsyncFd<OwnedFd>>),
    Closed,
}

// ---------------------------------------------------------------- the table

#[derive(Default)]
struct Table {
    processes: BTreeMap<i32, Arc<Process>>,
    /// In the order in which they ended.
    ended: VecDeque<(Instant, i32)>,
}

static TABLE: Mutex<Option<Table>> = Mutex::new(None);

fn with_table<R>(action: impl FnOnce(&mut Table) -> R) -> R {
    let mut table: MutexGuard<'_, _> = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    action(table.get_or_insert_default())
}

impl Table {
    fn forget_old(&mut self) {
        while let Some((at, pid)) = self.ended.front().copied() {
            if self.ended.len() <= ENDED_KEPT_MAX && at.elapsed() < ENDED_KEPT_FOR {
                break;
            }
            self.ended.pop_front();
            self.processes.remove(&pid);
        }
    }

    fn insert(&mut self, process: Arc<Process>) {
        // The number of a process that ended earlier has come round.
        self.ended.retain(|(_, pid)| *pid != process.pid);
        self.processes.insert(process.pid, process);
        self.forget_old();
    }

    fn relieve(&self) {
        let ended = self.ended.iter().filter_map(|(_, pid)| self.processes.get(pid));
        let running = self.processes.values().filter(|process| !process.ended.is_cancelled());
        for process in ended.chain(running) {
            if !ring::crowded() {
                return;
            }
            process.stdout.give_up_unneeded();
            process.stderr.give_up_unneeded();
        }
    }
}

fn find(pid: i32) -> Result<Arc<Process>, Status> {
    let found = with_table(|table| {
        table.forget_old();
        table.processes.get(&pid).cloned()
    });
    found.ok_or_else(|| Status::not_found(format!("no process {pid} was started here, or it ended long ago")))
}

// ---------------------------------------------------------------- starting

impl Process {
    /// Starts a program and everything that follows it. The error is the user's: a result, not a failure of the call.
    async fn start(request: &pb::ProcessStart, argv: Vec<String>, traceparent: &str) -> Result<Arc<Self>, String> {
        let running = with_table(|table| table.processes.len() - table.ended.len());
        if running >= RUNNING_MAX {
            return Err(format!("{RUNNING_MAX} processes are running already"));
        }
        let user = user_of(&request.user)?;
        let environment = environment(request, user.as_ref(), traceparent);
        let cwd = if request.cwd.is_empty() { default_directory() } else { request.cwd.clone() };
        if !request.shell_command.is_empty() && !std::path::Path::new(SHELL).exists() {
            return Err(format!(
                "there is no {SHELL} in this sandbox to run a shell command with: give the program and its arguments instead"
            ));
        }
        let wiring =
            Wiring::new(request, user.as_ref().map(|user| user.uid)).map_err(|error| format!("cannot set up its descriptors: {error}"))?;
        let Wiring { theirs, terminal, stdin, stdout, stderr } = wiring;
        let command = command_text(request);
        let started = Instant::now();
        let started_unix_ms = unix_ms();
        let has_terminal = terminal.is_some();
        let child = programs::start(move || {
            spawn::spawn(Program {
                argv: &argv,
                env: &environment,
                cwd: &cwd,
                user: user.as_ref(),
                fds: theirs,
                terminal: has_terminal.then_some(0),
            })
        });
        let child = child.await?;
        let process = Arc::new(Self {
            pid: child.pid,
            command,
            started_unix_ms,
            started,
            stdout: Ring::default(),
            stderr: Ring::default(),
            has_terminal,
            has_stdin: has_terminal || request.stdin,
            terminal: Mutex::new(terminal),
            stdin: tokio::sync::Mutex::new(stdin),
            changed: watch::Sender::new(()),
            exit: Mutex::new(None),
            ended: CancellationToken::new(),
        });
        with_table(|table| table.insert(process.clone()));
        let deadline = u64::try_from(request.timeout_ms).ok().filter(|ms| *ms > 0).map(Duration::from_millis);
        tokio::spawn(process.clone().supervise(child.exit, stdout, stderr, deadline));
        Ok(process)
    }

    async fn supervise(
        self: Arc<Self>,
        exit: oneshot::Receiver<ExitStatus>,
        stdout: Arc<AsyncFd<OwnedFd>>,
        stderr: Option<AsyncFd<OwnedFd>>,
        deadline: Option<Duration>,
    ) {
        let abandon = CancellationToken::new();
        // Attachments register before they await anything, so a starter's reader is there before the first byte is read.
        let read_stdout = tokio::spawn(self.clone().read(Side::Stdout, stdout, abandon.clone()));
        let read_stderr: Option<JoinHandle<()>> =
            stderr.map(|stderr| tokio::spawn(self.clone().read(Side::Stderr, Arc::new(stderr), abandon.clone())));
        if read_stderr.is_none() {
            self.stderr.finish();
        }
        let finished = async {
            let status = exit.await.ok();
            let _ = read_stdout.await;
            if let Some(read_stderr) = read_stderr {
                let _ = read_stderr.await;
            }
            status
        };
        tokio::pin!(finished);
        let in_time = match deadline {
            None => Some(finished.await),
            Some(deadline) => {
                let in_time = tokio::time::timeout(deadline, &mut finished).await.ok();
                if in_time.is_none() {
                    self.kill_group();
                    if tokio::time::timeout(OUTPUT_GRACE, &mut finished).await.is_err() {
                        abandon.cancel();
                        // The killed program's own end is certain; only its pipes may be held by others.
                        finished.await;
                    }
                }
                in_time
            }
        };
        let timed_out = in_time.is_none();
        let (exit_code, signal) = match in_time.flatten() {
            _ if timed_out => (EXIT_CODE_TIMED_OUT, 0),
            Some(ExitStatus::Exited(code)) => (code, 0),
            Some(ExitStatus::Signaled(signal)) => (-1, signal),
            None => (-1, 0),
        };
        let exit = pb::ProcessExit {
            exit_code,
            signal,
            timed_out,
            exec_time_ms: self.started.elapsed().as_micros() as f64 / 1000.0,
            error: String::new(),
            stdout_bytes: self.stdout.end(),
            stderr_bytes: self.stderr.end(),
        };
        *self.exit.lock().unwrap_or_else(PoisonError::into_inner) = Some(exit);
        self.ended.cancel();
        *self.stdin.lock().await = Stdin::Closed;
        *self.terminal.lock().unwrap_or_else(PoisonError::into_inner) = None;
        with_table(|table| {
            if table.processes.get(&self.pid).is_some_and(|current| Arc::ptr_eq(current, &self)) {
                table.ended.push_back((Instant::now(), self.pid));
                table.forget_old();
            }
        });
        self.changed.send_replace(());
    }

    /// Moves one pipe into its ring until its end.
    async fn read(self: Arc<Self>, side: Side, source: Arc<AsyncFd<OwnedFd>>, abandon: CancellationToken) {
        let ring = self.ring(side);
        let everything = async {
            loop {
                let room = ring.wait_for_room().await;
                let Ok(mut ready) = source.readable().await else { return };
                let outcome = ready.try_io(|source| {
                    with_read_buffer(|buffer| {
                        let count = read_into(source.get_ref(), &mut buffer[..room])?;
                        ring.push(&buffer[..count]);
                        Ok(count)
                    })
                });
                match outcome {
                    Ok(Ok(0)) => return,
                    Ok(Ok(_)) => {
                        self.changed.send_replace(());
                        if ring::crowded() {
                            with_table(|table| table.relieve());
                        }
                    }
                    Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                    // EIO is how a terminal tells that nobody holds its other end.
                    Ok(Err(_)) => return,
                    Err(_would_block) => {}
                }
            }
        };
        tokio::select! {
            biased;
            () = everything => {}
            () = abandon.cancelled() => {}
        }
        ring.finish();
        self.changed.send_replace(());
    }

    fn ring(&self, side: Side) -> &Ring {
        match side {
            Side::Stdout => &self.stdout,
            Side::Stderr => &self.stderr,
        }
    }

    fn exit(&self) -> Option<pb::ProcessExit> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn kill_group(&self) {
        let _ = self.signal_group(libc::SIGKILL);
    }

    fn signal_group(&self, signal: i32) -> Result<(), Status> {
        if self.ended.is_cancelled() {
            return Err(Status::not_found(format!("process {} has ended", self.pid)));
        }
        kill(-self.pid, signal)
    }

    fn resize(&self, size: Option<&crate::proto::sandbox::v1::WindowSize>) -> Result<(), Status> {
        let terminal = self.terminal.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let terminal = terminal.ok_or_else(|| failed_precondition(format!("process {} has no terminal", self.pid)))?;
        pty::resize(terminal.get_ref(), size).map_err(|error| failed_precondition(format!("the terminal cannot be resized: {error}")))?;
        // runsc 20240729 sends no SIGWINCH and does not tell which group is in the foreground; whoever does not wait for it ignores it.
        let leader = self.pid;
        tokio::task::spawn_blocking(move || {
            for pid in proctable::session_without_known_terminal(leader) {
                let _ = kill(pid, libc::SIGWINCH);
            }
        });
        Ok(())
    }

    async fn write_stdin(&self, data: &[u8]) -> Result<(), Status> {
        let mut stdin = self.stdin.lock().await;
        let written = tokio::select! {
            biased;
            () = self.ended.cancelled() => Err(io::ErrorKind::BrokenPipe.into()),
            written = async {
                match &*stdin {
                    Stdin::Null => Err(io::ErrorKind::NotConnected.into()),
                    Stdin::Closed => Err(io::ErrorKind::BrokenPipe.into()),
                    Stdin::Pipe(pipe) => write_all(pipe, data).await,
                    Stdin::Terminal(terminal) => write_all(terminal, data).await,
                }
            } => written,
        };
        written.map_err(|error| match error.kind() {
            io::ErrorKind::NotConnected => failed_precondition(format!("process {} was started without stdin", self.pid)),
            _ => {
                *stdin = Stdin::Closed;
                failed_precondition(format!("the stdin of process {} is closed", self.pid))
            }
        })
    }

    async fn close_stdin(&self) -> Result<(), Status> {
        {
            let mut stdin = self.stdin.lock().await;
            match &*stdin {
                Stdin::Terminal(_) => {}
                Stdin::Null => return Err(failed_precondition(format!("process {} was started without stdin", self.pid))),
                Stdin::Pipe(_) | Stdin::Closed => {
                    *stdin = Stdin::Closed;
                    return Ok(());
                }
            }
        }
        self.write_stdin(pty::END_OF_TRANSMISSION).await
    }
}

#[derive(Clone, Copy)]
enum Side {
    Stdout,
    Stderr,
}

/// The descriptors of a new process: its ends, and ours.
struct Wiring {
    theirs: Vec<(OwnedFd, i32)>,
    terminal: Option<Arc<AsyncFd<OwnedFd>>>,
    stdin: Stdin,
    stdout: Arc<AsyncFd<OwnedFd>>,
    stderr: Option<AsyncFd<OwnedFd>>,
}

impl Wiring {
    fn new(request: &pb::ProcessStart, owner: Option<u32>) -> io::Result<Self> {
        if let Some(options) = &request.pty {
            let (ours, theirs) = pty::open(options.size.as_ref(), owner)?;
            let terminal = Arc::new(watched(ours)?);
            let theirs = vec![(theirs.try_clone()?, 0), (theirs.try_clone()?, 1), (theirs, 2)];
            return Ok(Self {
                theirs,
                stdin: Stdin::Terminal(terminal.clone()),
                stdout: terminal.clone(),
                stderr: None,
                terminal: Some(terminal),
            });
        }
        let (stdin, their_stdin) = if request.stdin {
            let (read, write) = spawn::pipe()?;
            (Stdin::Pipe(watched(write)?), read)
        } else {
            (Stdin::Null, spawn::dev_null()?)
        };
        let output = || -> io::Result<_> {
            let (read, write) = spawn::pipe()?;
            Ok((watched(read)?, write))
        };
        let (stdout, their_stdout) = output()?;
        let (stderr, their_stderr) = output()?;
        let theirs = vec![(their_stdin, 0), (their_stdout, 1), (their_stderr, 2)];
        Ok(Self { theirs, terminal: None, stdin, stdout: Arc::new(stdout), stderr: Some(stderr) })
    }
}

fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    spawn::set_nonblocking(&fd)?;
    // SAFETY: an OwnedFd always gives the same open descriptor, and we never take it out.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Whom a program runs as; empty = the sandbox's default. None: as we do, in a test that is not root and so can become nobody else.
pub fn user_of(asked: &str) -> Result<Option<user::User>, String> {
    // SAFETY: cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(None);
    }
    if asked.is_empty() { user::find(&identity::default_user()) } else { user::find(asked) }.map(Some)
}

/// Where a program starts that nobody has said otherwise of.
pub fn default_directory() -> String {
    paths::real(&identity::default_directory()).to_string_lossy().into_owned()
}

fn environment(request: &pb::ProcessStart, user: Option<&user::User>, traceparent: &str) -> BTreeMap<String, String> {
    let mut environment = identity::environment(user);
    if let Some(options) = &request.pty {
        let term = if options.term.is_empty() { pty::TERM_DEFAULT } else { &options.term };
        environment.insert("TERM".into(), term.into());
    }
    if !traceparent.is_empty() {
        environment.insert("TRACEPARENT".into(), traceparent.into());
    }
    environment.extend(request.env.iter().map(|variable| (variable.key.clone(), variable.value.clone())));
    environment
}

fn command_text(request: &pb::ProcessStart) -> String {
    let mut text = if request.argv.is_empty() { request.shell_command.clone() } else { request.argv.join(" ") };
    if text.len() > COMMAND_TEXT_BYTES_MAX {
        let end = (0..=COMMAND_TEXT_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

// ---------------------------------------------------------------- bytes in and out

fn with_read_buffer<R>(action: impl FnOnce(&mut [u8; CHUNK_BYTES_MAX]) -> R) -> R {
    // One for all streams: reading and copying into the ring is one step without a wait.
    thread_local!(static BUFFER: std::cell::RefCell<Box<[u8; CHUNK_BYTES_MAX]>> = std::cell::RefCell::new(Box::new([0; CHUNK_BYTES_MAX])));
    BUFFER.with_borrow_mut(|buffer| action(buffer))
}

fn read_into(source: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: reads at most the buffer's length into it.
    let count = unsafe { libc::read(source.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

async fn write_all(sink: &AsyncFd<OwnedFd>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let mut ready = sink.writable().await?;
        let outcome = ready.try_io(|sink| {
            // SAFETY: writes from within the slice.
            let count = unsafe { libc::write(sink.as_raw_fd(), data.as_ptr().cast(), data.len()) };
            usize::try_from(count).map_err(|_| io::Error::last_os_error())
        });
        match outcome {
            Ok(Ok(count)) => data = &data[count..],
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

// ---------------------------------------------------------------- following

/// Sends what the process writes and how it ends, and takes its input from the call.
async fn follow(process: Arc<Process>, mut call: Call, from: (u64, u64), mode: Follow) -> Result<(), Status> {
    let out_of_range = || Status::new("out_of_range", format!("process {} has not written so much", process.pid));
    let stdout = process.stdout.reader(from.0).ok_or_else(out_of_range)?;
    let stderr = process.stderr.reader(from.1).ok_or_else(out_of_range)?;
    let inbound = call.take_inbound();
    let result = tokio::select! {
        biased;
        () = call.cancelled.cancelled() => Err(Gone),
        result = send_output(&process, &call, [stdout, stderr], mode) => result,
        () = take_input(&process, inbound, mode) => Err(Gone),
    };
    if mode == Follow::Started && call.cancelled.is_cancelled() && call.reset_by_caller() {
        process.kill_group();
    }
    Ok(result?)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    /// By the call that started it.
    Started,
    Attached,
    /// What there is now.
    Snapshot,
}

async fn send_output(process: &Process, call: &Call, readers: [Reader<'_>; 2], mode: Follow) -> Result<(), Gone> {
    let mut changed = process.changed.subscribe();
    let started = pb::ProcessStarted { pid: process.pid, started_unix_ms: process.started_unix_ms };
    send(call, Output::Started(started)).await?;
    let mut incomplete_too = false;
    loop {
        changed.borrow_and_update();
        // Before the streams are looked at: an exit that is known now follows all output.
        let exit = process.exit();
        let (mut progress, mut incomplete, mut ended) = (false, false, 0);
        for (reader, stream) in readers.iter().zip([pb::Stream::Stdout, pb::Stream::Stderr]) {
            match reader.next(incomplete_too) {
                Next::Chunk { offset, data } => {
                    let output = pb::Output { stream: stream.into(), offset, data: data.into() };
                    send(call, Output::Output(output)).await?;
                    progress = true;
                }
                Next::Gap { from, to } => {
                    send(call, Output::Gap(pb::Gap { stream: stream.into(), from, to })).await?;
                    progress = true;
                }
                Next::Incomplete => incomplete = true,
                Next::Nothing => {}
                Next::Ended => ended += 1,
            }
        }
        incomplete_too = false;
        if let Some(exit) = exit
            && ended == readers.len()
        {
            return send(call, Output::Exit(exit)).await;
        }
        if progress {
            continue;
        }
        if incomplete {
            incomplete_too = mode == Follow::Snapshot || tokio::time::timeout(CODE_POINT_WAIT, changed.changed()).await.is_err();
        } else if mode == Follow::Snapshot || changed.changed().await.is_err() {
            return Ok(());
        }
    }
}

async fn send(call: &Call, message: Output) -> Result<(), Gone> {
    call.send(&pb::ExecOutput { msg: Some(message) }).await
}

/// Applies input messages until the caller half-closes, then waits for ever. A program that does not read its stdin holds up neither
/// signals nor sizes before the queue is full.
async fn take_input(process: &Process, mut inbound: mpsc::Receiver<Bytes>, mode: Follow) {
    enum ToStdin {
        Data(Bytes),
        Close,
    }
    let (queue, mut queued) = mpsc::channel(STDIN_MESSAGES_MAX);
    let receive = async move {
        while let Some(message) = inbound.recv().await {
            // There is nobody to tell of input that cannot be used: the stream goes one way. The unary calls do tell.
            let Ok(pb::ExecInput { msg: Some(message) }) = decode(message) else { continue };
            match message {
                Input::Stdin(data) => {
                    let _ = queue.send(ToStdin::Data(data)).await;
                }
                Input::StdinClose(true) => {
                    let _ = queue.send(ToStdin::Close).await;
                }
                Input::Resize(size) => {
                    let _ = process.resize(Some(&size));
                }
                Input::Signal(signal) => {
                    if (1..=SIGNAL_MAX).contains(&signal) {
                        let _ = process.signal_group(signal);
                    }
                }
                Input::StdinClose(false) | Input::Start(_) | Input::Attach(_) => {}
            }
        }
        // The starter's half-close ends the input; an attachment is a guest.
        if mode == Follow::Started {
            let _ = queue.send(ToStdin::Close).await;
        }
    };
    let write = async {
        while let Some(message) = queued.recv().await {
            let taken = match message {
                ToStdin::Data(data) => process.write_stdin(&data).await,
                ToStdin::Close => process.close_stdin().await,
            };
            // A program that has closed its stdin is like one that does not read it: its caller waits, rather than believe that it did.
            if taken.is_err() && process.has_stdin {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::join!(receive, write);
    std::future::pending::<()>().await;
}

// ---------------------------------------------------------------- methods

pub async fn exec(first: Bytes, call: Call) -> Result<(), Status> {
    match decode::<pb::ExecInput>(first)?.msg {
        Some(Input::Start(start)) => exec_start(start, call).await,
        Some(Input::Attach(attach)) => {
            let process = find(attach.pid)?;
            let mode = if attach.follow { Follow::Attached } else { Follow::Snapshot };
            follow(process, call, (attach.stdout_from, attach.stderr_from), mode).await
        }
        _ => Err(Status::invalid("the first message must be start or attach")),
    }
}

async fn exec_start(request: pb::ProcessStart, call: Call) -> Result<(), Status> {
    let argv = match (request.argv.is_empty(), request.shell_command.is_empty()) {
        (false, true) => request.argv.clone(),
        (true, false) => vec![SHELL.into(), "-c".into(), request.shell_command.clone()],
        _ => return Err(Status::invalid("exactly one of argv and shell_command must be given")),
    };
    match Process::start(&request, argv, &call.traceparent).await {
        Ok(process) if request.detached => {
            let started = pb::ProcessStarted { pid: process.pid, started_unix_ms: process.started_unix_ms };
            Ok(send(&call, Output::Started(started)).await?)
        }
        Ok(process) => follow(process, call, (0, 0), Follow::Started).await,
        Err(error) => Ok(send(&call, Output::Exit(pb::ProcessExit { exit_code: 1, error, ..Default::default() })).await?),
    }
}

pub async fn list_processes(first: Bytes, call: Call) -> Result<(), Status> {
    decode::<pb::ListProcessesRequest>(first)?;
    let all: Vec<Arc<Process>> = with_table(|table| {
        table.forget_old();
        table.processes.values().cloned().collect()
    });
    let row = |process: &Arc<Process>| {
        let exit = process.exit();
        pb::ProcessRow {
            pid: process.pid,
            command: process.command.clone(),
            started_unix_ms: process.started_unix_ms,
            state: if exit.is_some() { "exited" } else { "running" }.into(),
            exit,
            stdout_bytes: process.stdout.end(),
            stderr_bytes: process.stderr.end(),
            pty: process.has_terminal,
        }
    };
    Ok(call.send(&pb::ListProcessesReply { processes: all.iter().map(row).collect() }).await?)
}

pub async fn write_stdin(first: Bytes, call: Call) -> Result<(), Status> {
    let request: pb::WriteStdinRequest = decode(first)?;
    let process = find(request.pid)?;
    let write = async {
        if !request.data.is_empty() {
            process.write_stdin(&request.data).await?;
        }
        if request.close { process.close_stdin().await } else { Ok(()) }
    };
    tokio::select! {
        biased;
        () = call.cancelled.cancelled() => return Err(Gone.into()),
        written = write => written?,
    }
    Ok(call.send(&pb::Empty {}).await?)
}

pub async fn resize_terminal(first: Bytes, call: Call) -> Result<(), Status> {
    let request: pb::ResizeTerminalRequest = decode(first)?;
    find(request.pid)?.resize(request.size.as_ref())?;
    Ok(call.send(&pb::Empty {}).await?)
}

pub async fn signal_process(first: Bytes, call: Call) -> Result<(), Status> {
    let request: pb::SignalProcessRequest = decode(first)?;
    if !(1..=SIGNAL_MAX).contains(&request.signal) {
        return Err(Status::invalid(format!("{} is not a signal: 1 to {SIGNAL_MAX}", request.signal)));
    }
    if request.pid <= 1 {
        return Err(Status::invalid(format!("process {} cannot be signalled", request.pid)));
    }
    if request.group {
        find(request.pid)?.signal_group(request.signal)?;
    } else {
        // kill(2) takes the number of any thread for its process.
        if std::path::Path::new("/proc/self/task").join(request.pid.to_string()).exists() {
            return Err(Status::invalid("the agent of the sandbox cannot be signalled"));
        }
        kill(request.pid, request.signal)?;
    }
    Ok(call.send(&pb::Empty {}).await?)
}

fn kill(pid: i32, signal: i32) -> Result<(), Status> {
    // SAFETY: no memory is touched; `pid` is neither 0 nor -1 (checked by the callers), so it cannot mean everybody.
    if unsafe { libc::kill(pid, signal) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::ESRCH) => Status::not_found(format!("there is no process {}", pid.abs())),
        Some(libc::EPERM) => Status::new("permission_denied", format!("process {} may not be signalled", pid.abs())),
        _ => Status::invalid(format!("process {} cannot be signalled: {error}", pid.abs())),
    })
}

fn failed_precondition(message: String) -> Status {
    Status::new("failed_precondition", message)
}

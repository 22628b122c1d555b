//! Code kernels (docs/kernels.md): interpreters that keep their state between RunCode calls.
//!
//! Each kernel belongs to a task of its own, which starts it, runs one cell after the other in the order of the calls, keeps its pipes
//! empty between cells, and tells it of every ADOPT at once. A call only listens: when its caller is lost with the link the cell goes on
//! unheard, and when a living caller resets the call the cell is interrupted. What runs in a kernel is a stranger's code, so every line from
//! it is checked and every buffer is bounded.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::call::{Call, Status, decode};
use super::contexts;
use super::files::Place;
use super::identity::{self, Identity};
use super::reaper::ExitStatus;
use super::spawn::{self, Program};
use super::{paths, process, programs, user, utf8};
use crate::proto::guest::v1 as pb;
use crate::proto::guest::v1::run_code_input::Msg as Input;
use crate::proto::sandbox::v1::run_code_response::Msg as Output;
use crate::proto::sandbox::v1::{RunCodeResponse, RunError, RunResult};

const FOLDER: &str = "/run/mitos/kernels";
const CHUNK_BYTES_MAX: usize = 32 * 1024;
const EVENT_BYTES_MAX: usize = 96 * 1024 * 1024;
/// What fits into one message of the link.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024 - 1024;
/// Taken from a pipe before an event is handed on; a pipe holds no more unless its program made it larger.
const DRAIN_BYTES_MAX: usize = 1024 * 1024;
/// Output of a cell that is being interrupted while its caller does not read.
const UNREAD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Output between cells, of threads and programs that a cell left behind.
const HELD_BYTES_MAX: usize = 64 * 1024;
const START_STDERR_BYTES_MAX: usize = 4096;
const CALLS_WAITING_MAX: usize = 64;
const ORDERS_WAITING_MAX: usize = 4;
const MESSAGES_UNDER_WAY_MAX: usize = 4;
const LANGUAGE_TEXT_MAX: usize = 64;
const KEEPER_GONE: &str = "the context was removed meanwhile";
const EXIT_CODE_ERROR: i32 = 1;
const EXIT_CODE_UNAVAILABLE: i32 = 127;
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// An interpreter that is just about to begin a cell may not be listening for SIGINT yet.
const INTERRUPT_NOT_BEFORE: Duration = Duration::from_millis(50);
/// SIGINT again, now to everything that the cell started and waits for.
const INTERRUPT_GROUP_AFTER: Duration = Duration::from_millis(500);
const KILL_AFTER: Duration = Duration::from_secs(2);
const EXIT_AFTER_EVENTS: Duration = Duration::from_millis(500);

pub(super) struct Language {
    pub name: &'static str,
    interpreters: &'static [&'static str],
    /// Which of them will do, for people.
    needs: &'static str,
    arguments: &'static [&'static str],
    file: &'static str,
    source: &'static str,
    /// Files beside it that it loads when it needs them: name and content.
    companions: &'static [(&'static str, &'static str)],
    interrupted_by: InterruptedBy,
}

/// What first asks a kernel to stop its cell.
enum InterruptedBy {
    /// A command that names the cell.
    Command,
    /// SIGINT to the kernel alone.
    Signal,
    /// SIGINT to its group: a shell waits for its program, which therefore needs the signal at once.
    GroupSignal,
}

pub(super) static LANGUAGES: [Language; 3] = [
    Language {
        name: "python",
        interpreters: &["python3", "python"],
        needs: "Python 3.8 or newer",
        arguments: &["-u"],
        file: "python_kernel.py",
        source: include_str!("../../kernels/python_kernel.py"),
        companions: &[("python_charts.py", include_str!("../../kernels/python_charts.py"))],
        interrupted_by: InterruptedBy::Signal,
    },
    Language {
        name: "javascript",
        interpreters: &["node"],
        needs: "Node.js 18 or newer",
        // A terminated callback leaves its async id behind, and with the checks Node would abort over that.
        arguments: &["--no-force-async-hooks-checks"],
        file: "javascript_kernel.mjs",
        source: include_str!("../../kernels/javascript_kernel.mjs"),
        companions: &[],
        interrupted_by: InterruptedBy::Command,
    },
    Language {
        name: "bash",
        interpreters: &["bash"],
        needs: "bash 5 or newer",
        arguments: &["--noprofile", "--norc"],
        file: "bash_kernel.sh",
        source: include_str!("../../kernels/bash_kernel.sh"),
        companions: &[],
        interrupted_by: InterruptedBy::GroupSignal,
    },
];

// ---------------------------------------------------------------- handlers

pub async fn run_code(first: Bytes, mut call: Call) -> Result<(), Status> {
    let Some(Input::Open(open)) = decode::<pb::RunCodeInput>(first)?.msg else {
        return Err(Status::invalid("the first message of RunCode must be `open`"));
    };
    let Some(kernel) = contexts::kernel_for(&open.context, &open.language)? else {
        return Ok(refuse(&call, &no_such_language(&open.language)).await?);
    };
    let (listener, mut messages) = mpsc::channel(MESSAGES_UNDER_WAY_MAX);
    let (rest, mut last_messages) = oneshot::channel();
    let interrupt = CancellationToken::new();
    let abandoned = CancellationToken::new();
    let cell = Cell {
        code: open.code,
        timeout: u64::try_from(open.timeout_ms).ok().filter(|ms| *ms > 0).map(Duration::from_millis),
        listener,
        rest,
        interrupt: interrupt.clone(),
        abandoned: abandoned.clone(),
    };
    // A call that is gone before its turn never runs.
    let gone_early = abandoned.clone().drop_guard();
    let mut inbound = call.take_inbound();
    kernel
        .work
        .try_send(Work::Cell(cell))
        .map_err(|_| Status::new("resource_exhausted", format!("{CALLS_WAITING_MAX} calls wait for this kernel already")))?;
    let delivered = async {
        loop {
            tokio::select! {
                biased;
                // `stdin` messages are in the schema and have no meaning; they must not pile up.
                Some(_) = inbound.recv() => {}
                message = messages.recv() => match message {
                    Some(message) => call.send_bytes(message).await?,
                    None => break,
                },
                () = call.cancelled.cancelled() => return Err(super::call::Gone),
            }
        }
        for message in (&mut last_messages).await.unwrap_or_default() {
            call.send_bytes(message).await?;
        }
        Ok(())
    }
    .await;
    gone_early.disarm();
    if delivered.is_err() {
        if call.reset_by_caller() {
            interrupt.cancel();
        }
        abandoned.cancel();
    }
    Ok(delivered?)
}

pub async fn warm_kernel(first: Bytes, call: Call) -> Result<(), Status> {
    let request: pb::WarmKernelRequest = decode(first)?;
    let reply = match language(&request.language) {
        None => pb::WarmKernelReply { available: false, detail: no_such_language(&request.language) },
        Some(language) => {
            let kernel = contexts::default_kernel(language)?;
            let outcome = tokio::select! {
                outcome = kernel.warm() => outcome,
                () = call.cancelled.cancelled() => return Err(super::call::Gone.into()),
            };
            pb::WarmKernelReply { available: outcome.is_ok(), detail: outcome.err().unwrap_or_default() }
        }
    };
    Ok(call.send(&reply).await?)
}

async fn refuse(call: &Call, value: &str) -> Result<(), super::call::Gone> {
    call.send(&error_message("KernelUnavailable", value, vec![])).await?;
    call.send(&exit_code(EXIT_CODE_UNAVAILABLE)).await
}

/// Empty = Python.
pub(super) fn language(name: &str) -> Option<&'static Language> {
    let name = if name.is_empty() { "python" } else { name };
    LANGUAGES.iter().find(|language| language.name == name)
}

pub(super) fn no_such_language(name: &str) -> String {
    let named: String = name.chars().take(LANGUAGE_TEXT_MAX).collect();
    let known: Vec<&str> = LANGUAGES.iter().map(|language| language.name).collect();
    format!("there is no kernel for {named:?}; there are {}", known.join(", "))
}

// ---------------------------------------------------------------- one kernel and its calls

/// The way to the task of one kernel.
#[derive(Clone)]
pub(super) struct Handle {
    work: mpsc::Sender<Work>,
    orders: mpsc::Sender<Order>,
    running: Arc<AtomicBool>,
}

/// Makes the task of one kernel, which starts its interpreter when it is first needed.
pub(super) fn spawn(language: &'static Language, cwd: Option<Place>) -> Handle {
    let (work, queue) = mpsc::channel(CALLS_WAITING_MAX);
    let (orders, received) = mpsc::channel(ORDERS_WAITING_MAX);
    let running = Arc::new(AtomicBool::new(false));
    let handle = Handle { work, orders, running: running.clone() };
    tokio::spawn(Keeper::new(language, cwd, received, running).run(queue));
    handle
}

impl Handle {
    /// Starts the interpreter unless it runs. The error is a sentence for the user.
    pub async fn warm(&self) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        self.work.try_send(Work::Warm(answer)).map_err(|_| "too many calls wait for this kernel".to_owned())?;
        answered.await.unwrap_or_else(|_| Err(KEEPER_GONE.into()))
    }

    /// Ends the interpreter and starts a new one. What runs in it or waits for it is told.
    pub async fn restart(&self) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(Order::Restart(answer)).await.map_err(|_| KEEPER_GONE.to_owned())?;
        answered.await.unwrap_or_else(|_| Err(KEEPER_GONE.into()))
    }

    /// Ends interpreter and task, and returns when they have ended.
    pub async fn end(&self) {
        let (answer, answered) = oneshot::channel();
        if self.orders.send(Order::End(answer)).await.is_ok() {
            let _ = answered.await;
        }
    }

    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    pub fn is_closed(&self) -> bool {
        self.work.is_closed()
    }
}

enum Work {
    Cell(Cell),
    Warm(oneshot::Sender<Result<(), String>>),
}

/// What does not wait for its turn.
enum Order {
    Restart(oneshot::Sender<Result<(), String>>),
    End(oneshot::Sender<()>),
}

impl Order {
    /// How the kernel ended, for those who were using it.
    fn how(&self) -> &'static str {
        match self {
            Self::Restart(_) => "was restarted",
            Self::End(_) => "was removed",
        }
    }
}

struct Cell {
    code: String,
    timeout: Option<Duration>,
    /// Messages while the cell runs; closed when nobody listens.
    listener: mpsc::Sender<Bytes>,
    /// The last ones, so that a caller that reads slowly does not hold the kernel.
    rest: oneshot::Sender<Vec<Bytes>>,
    interrupt: CancellationToken,
    abandoned: CancellationToken,
}

/// Why a cell is being stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    Deadline,
    Caller,
}

static WARMED: LazyLock<watch::Sender<()>> = LazyLock::new(|| watch::Sender::new(()));

/// Lets every kernel that is idle do once what an ADOPT asks of it.
pub fn warm_all() {
    WARMED.send_replace(());
}

struct Keeper {
    language: &'static Language,
    cwd: Option<Place>,
    kernel: Option<Kernel>,
    running: Arc<AtomicBool>,
    orders: mpsc::Receiver<Order>,
    /// Came while a cell ran, which it has ended.
    ordered: Option<Order>,
    identity: watch::Receiver<Identity>,
    warmed: watch::Receiver<()>,
    cells: u64,
    /// Told on stderr by the next cell: the state was lost and no call has heard of it.
    notice: Option<String>,
}

impl Keeper {
    fn new(language: &'static Language, cwd: Option<Place>, orders: mpsc::Receiver<Order>, running: Arc<AtomicBool>) -> Self {
        let (identity, warmed) = (identity::subscribe(), WARMED.subscribe());
        Self { language, cwd, kernel: None, running, orders, ordered: None, identity, warmed, cells: 0, notice: None }
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Work>) {
        loop {
            if let Some(order) = self.ordered.take() {
                self.clear(order.how(), &mut queue).await;
                match order {
                    Order::Restart(answer) => {
                        let outcome = self.ensure_started().await;
                        let _ = answer.send(outcome);
                        continue;
                    }
                    Order::End(answer) => {
                        // What was sent before the queue closed has to be told as well.
                        queue.close();
                        self.clear("was removed", &mut queue).await;
                        let _ = answer.send(());
                        return;
                    }
                }
            }
            let work = tokio::select! {
                biased;
                Some(order) = self.orders.recv() => {
                    self.ordered = Some(order);
                    continue;
                }
                work = queue.recv() => work,
                () = Self::idle(&mut self.kernel, &mut self.identity, &mut self.warmed) => {
                    self.notice = Some(self.state_gone("ended between two calls"));
                    self.bury();
                    continue;
                }
            };
            match work {
                None => break,
                Some(Work::Warm(answer)) => {
                    let outcome = self.ensure_started().await;
                    let _ = answer.send(outcome);
                }
                Some(Work::Cell(cell)) if cell.abandoned.is_cancelled() => {}
                Some(Work::Cell(cell)) => self.run_cell(cell).await,
            }
        }
        self.bury();
    }

    /// Ends the kernel with all of its process group, and everything that waits for it.
    async fn clear(&mut self, how: &str, queue: &mut mpsc::Receiver<Work>) {
        if let Some(kernel) = &mut self.kernel {
            kernel.signal(libc::SIGKILL, true);
            if kernel.ended.is_none()
                && let Ok(status) = timeout_at(Instant::now() + KILL_AFTER, &mut kernel.exit).await
            {
                kernel.ended = Some(status.unwrap_or(ExitStatus::Exited(-1)));
            }
        }
        self.bury();
        self.notice = None;
        while let Ok(work) = queue.try_recv() {
            let value = format!("the {} kernel {how} before the code ran", self.language.name);
            match work {
                Work::Warm(answer) => drop(answer.send(Err(value))),
                Work::Cell(cell) => {
                    let last = [error_message("KernelDied", &value, vec![]), exit_code(EXIT_CODE_ERROR)];
                    let _ = cell.rest.send(last.map(|message| message.encode_to_vec().into()).into());
                }
            }
        }
    }

    /// Between cells: keeps the pipes empty and passes on renewals. Returns when the kernel has ended, never without one.
    async fn idle(kernel: &mut Option<Kernel>, identity: &mut watch::Receiver<Identity>, warmed: &mut watch::Receiver<()>) {
        let Some(kernel) = kernel else { return std::future::pending().await };
        loop {
            tokio::select! {
                happened = kernel.next(true) => match happened {
                    Happened::Output(stream, data) => kernel.held.keep(stream, &data),
                    // `renewed`, or something shown by a thread after its cell: nobody listens.
                    Happened::Line(line) if parse(&line).is_ok() => {}
                    Happened::Line(_) | Happened::LineTooLong | Happened::Ended => return,
                    Happened::Nothing => {}
                },
                changed = identity.changed() => match changed {
                    Ok(()) => kernel.renew(),
                    Err(_) => std::future::pending().await,
                },
                Ok(()) = warmed.changed() => kernel.renew_nothing(),
            }
        }
    }

    fn state_gone(&self, how: &str) -> String {
        format!("the {} kernel {how}; a new one was started, the state of the old one is gone", self.language.name)
    }

    async fn ensure_started(&mut self) -> Result<(), String> {
        if self.kernel.is_none() {
            self.kernel = Some(Kernel::start(self.language, self.cwd.as_ref()).await?);
            self.running.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Ends what is left of a kernel. Programs that it started and that hold its pipes are not to be stopped by a full one.
    fn bury(&mut self) {
        let Some(kernel) = self.kernel.take() else { return };
        self.running.store(false, Ordering::Relaxed);
        kernel.signal(libc::SIGKILL, false);
        for pipe in [kernel.stdout, kernel.stderr].into_iter().filter(|pipe| pipe.open) {
            tokio::spawn(async move {
                let mut pipe = pipe;
                while pipe.open {
                    pipe.read().await;
                }
            });
        }
    }

    async fn run_cell(&mut self, cell: Cell) {
        let Cell { code, timeout, listener, rest, interrupt, .. } = cell;
        let mut out = Outbox::new(listener);
        if let Err(problem) = self.ensure_started().await {
            out.push(&error_message("KernelUnavailable", &problem, vec![]));
            out.push(&exit_code(EXIT_CODE_UNAVAILABLE));
            let _ = rest.send(out.into_rest());
            return;
        }
        let exit = self.follow_cell(&code, timeout, &mut out, &interrupt).await;
        out.push(&exit_code(exit));
        let _ = rest.send(out.into_rest());
    }

    /// Runs one cell to its end, and returns the exit code of the call.
    async fn follow_cell(&mut self, code: &str, timeout: Option<Duration>, out: &mut Outbox, interrupt: &CancellationToken) -> i32 {
        self.cells += 1;
        let id = self.cells;
        let language = self.language;
        let Some(kernel) = self.kernel.as_mut() else { return EXIT_CODE_UNAVAILABLE };
        kernel.renew();
        if let Some(notice) = self.notice.take() {
            out.push(&output_message(Stream::Stderr, format!("mitos: {notice}\n").into()));
        }
        kernel.held.hand_over(out);
        kernel.command(&Execute { op: "execute", id, code });

        let started = Instant::now();
        let mut deadline = timeout.map(|timeout| started + timeout);
        let mut stop: Option<(Stop, u8)> = None;
        let mut failed = false;
        let loss = loop {
            // What is here already is taken first: a result and the end of its cell come together, and go on together.
            let at_hand = kernel.has_line();
            // While the caller does not read, the kernel's pipes fill up and its code waits; when it is being stopped it must not wait.
            let read = out.is_empty() || stop.is_some() || at_hand;
            let discard = out.unread_bytes >= UNREAD_BYTES_MAX;
            tokio::select! {
                () = out.send_one(), if !out.is_empty() && !at_hand => {}
                happened = kernel.next(read) => match happened {
                    Happened::Output(stream, data) => {
                        if !discard {
                            out.output(stream, &data);
                        }
                    }
                    Happened::Line(line) => {
                        kernel.drain(out);
                        let Ok(event) = parse(&line) else { break Some(Loss::BadLine) };
                        if event.id != Some(id) {
                            continue;
                        }
                        match event.event.as_str() {
                            "result" if discard => {}
                            "result" => {
                                let message = sendable(result_message(event), "a result");
                                failed |= matches!(message.msg, Some(Output::Error(_)));
                                out.push(&message);
                            }
                            "error" if !failed => {
                                failed = true;
                                // The time-out is what the caller has to know; that it came as an interrupt is not.
                                if !matches!(stop, Some((Stop::Deadline, _))) {
                                    out.push(&sendable(error_message(&event.name, &event.value, event.traceback), "an error"));
                                }
                            }
                            "done" => {
                                failed |= event.status != "ok";
                                break None;
                            }
                            _ => {}
                        }
                    }
                    Happened::LineTooLong => break Some(Loss::LineTooLong),
                    Happened::Ended => {
                        kernel.drain(out);
                        break Some(Loss::Died);
                    }
                    Happened::Nothing => {}
                },
                () = sleep_until(deadline.unwrap_or(started)), if deadline.is_some() => {
                    let (reason, step) = stop.unwrap_or((Stop::Deadline, 0));
                    stop = Some((reason, step + 1));
                    match step {
                        0 => {
                            match language.interrupted_by {
                                InterruptedBy::Command => kernel.command(&Interrupt { op: "interrupt", id }),
                                InterruptedBy::Signal => kernel.signal(libc::SIGINT, false),
                                InterruptedBy::GroupSignal => kernel.signal(libc::SIGINT, true),
                            }
                            deadline = Some(Instant::now() + INTERRUPT_GROUP_AFTER);
                        }
                        1 => {
                            kernel.signal(libc::SIGINT, true);
                            deadline = Some(Instant::now() + (KILL_AFTER - INTERRUPT_GROUP_AFTER));
                        }
                        _ => break Some(Loss::Killed),
                    }
                }
                () = interrupt.cancelled(), if stop.is_none() => {
                    stop = Some((Stop::Caller, 0));
                    deadline = Some(Instant::now().max(started + INTERRUPT_NOT_BEFORE));
                }
                Ok(()) = self.identity.changed() => kernel.renew(),
                Some(order) = self.orders.recv() => {
                    let how = order.how();
                    self.ordered = Some(order);
                    break Some(Loss::Ordered(how));
                }
            }
        };
        out.flush();
        let timed_out = matches!(stop, Some((Stop::Deadline, _)));
        if timed_out {
            let budget = timeout.unwrap_or_default();
            out.push(&error_message("TimeoutError", &format!("execution exceeded the {}s timeout budget", seconds(budget)), vec![]));
            failed = true;
        }
        match loss {
            None => return if failed { EXIT_CODE_ERROR } else { 0 },
            Some(Loss::Killed) => {
                kernel.signal(libc::SIGKILL, true);
                let gone = format!(
                    "the {} kernel did not stop within {} s and was killed; the next call starts a new one, the state is gone",
                    language.name,
                    KILL_AFTER.as_secs()
                );
                if timed_out {
                    out.push(&output_message(Stream::Stderr, format!("mitos: {gone}\n").into()));
                } else {
                    // Its caller went away, so the next one has to hear it.
                    self.notice = Some(gone);
                }
            }
            Some(Loss::Ordered(how)) => {
                if !failed {
                    let value = format!("the {} kernel {how} while the code ran; its state is gone", language.name);
                    out.push(&error_message("KernelDied", &value, vec![]));
                }
                // The order itself ends the kernel.
                return EXIT_CODE_ERROR;
            }
            Some(Loss::Died) => {
                let how = kernel.how_it_ended();
                let value = format!(
                    "the {} kernel ended while the code ran ({how}); the next call starts a new one, the state is gone",
                    language.name
                );
                match timed_out {
                    true => out.push(&output_message(Stream::Stderr, format!("mitos: {value}\n").into())),
                    false if !failed => out.push(&error_message("KernelDied", &value, vec![])),
                    false => out.push(&output_message(Stream::Stderr, format!("mitos: KernelDied: {value}\n").into())),
                }
            }
            Some(loss @ (Loss::BadLine | Loss::LineTooLong)) => {
                let (name, what) = match loss {
                    Loss::BadLine => ("KernelStreamError", "sent an event that cannot be read".to_owned()),
                    _ => ("KernelOutputTooLarge", format!("sent an event above {} MiB", EVENT_BYTES_MAX >> 20)),
                };
                let value = format!("the {} kernel {what} and was ended; the next call starts a new one, the state is gone", language.name);
                match failed {
                    false => out.push(&error_message(name, &value, vec![])),
                    true => out.push(&output_message(Stream::Stderr, format!("mitos: {name}: {value}\n").into())),
                }
            }
        }
        self.bury();
        EXIT_CODE_ERROR
    }
}

enum Loss {
    /// By a restart or a removal.
    Ordered(&'static str),
    Died,
    Killed,
    BadLine,
    LineTooLong,
}

/// Without trailing zeros: 2, 1.5, 0.25.
fn seconds(time: Duration) -> String {
    format!("{}", time.as_millis() as f64 / 1000.0)
}

// ---------------------------------------------------------------- messages on their way to the caller

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    Stdout = 0,
    Stderr = 1,
}

struct Outbox {
    /// None = nobody listens any more.
    listener: Option<mpsc::Sender<Bytes>>,
    waiting: VecDeque<Bytes>,
    unread_bytes: usize,
    /// The first bytes of a character whose rest has not come: each message is decoded by itself.
    partial: [Vec<u8>; 2],
}

impl Outbox {
    fn new(listener: mpsc::Sender<Bytes>) -> Self {
        Self { listener: Some(listener), waiting: VecDeque::new(), unread_bytes: 0, partial: Default::default() }
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn push(&mut self, message: &RunCodeResponse) {
        if self.listener.is_some() {
            let message: Bytes = message.encode_to_vec().into();
            self.unread_bytes += message.len();
            self.waiting.push_back(message);
        }
    }

    fn output(&mut self, stream: Stream, data: &[u8]) {
        let mut bytes = std::mem::take(&mut self.partial[stream as usize]);
        bytes.extend_from_slice(data);
        let complete = bytes.len() - utf8::incomplete_suffix(&bytes);
        self.partial[stream as usize] = bytes.split_off(complete);
        for chunk in chunks(&bytes) {
            self.push(&output_message(stream, Bytes::copy_from_slice(chunk)));
        }
    }

    /// No more output is to come before what follows: what waits for its rest is sent as it is.
    fn flush(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let partial = std::mem::take(&mut self.partial[stream as usize]);
            if !partial.is_empty() {
                self.push(&output_message(stream, partial.into()));
            }
        }
    }

    /// Hands on the first message, when there is room for it.
    async fn send_one(&mut self) {
        let Some(listener) = &self.listener else { return std::future::pending().await };
        if let Ok(room) = listener.reserve().await {
            if let Some(message) = self.waiting.pop_front() {
                self.unread_bytes -= message.len();
                room.send(message);
            }
            return;
        }
        self.listener = None;
        self.waiting.clear();
        self.unread_bytes = 0;
    }

    fn into_rest(self) -> Vec<Bytes> {
        self.waiting.into()
    }
}

/// Pieces of at most a chunk's size that do not cut a character.
fn chunks(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let mut end = bytes.len().min(CHUNK_BYTES_MAX);
        if end < bytes.len() {
            end -= utf8::incomplete_suffix(&bytes[..end]);
        }
        let (chunk, rest) = bytes.split_at(end);
        bytes = rest;
        Some(chunk)
    })
}

fn output_message(stream: Stream, data: Bytes) -> RunCodeResponse {
    RunCodeResponse { msg: Some(if stream == Stream::Stdout { Output::Stdout(data) } else { Output::Stderr(data) }) }
}

fn result_message(event: Event) -> RunCodeResponse {
    let data = event.data.into_iter().map(|(mime, value)| (mime, value.into())).collect();
    RunCodeResponse { msg: Some(Output::Result(RunResult { text: event.text, data })) }
}

fn error_message(name: &str, value: &str, traceback: Vec<String>) -> RunCodeResponse {
    RunCodeResponse { msg: Some(Output::Error(RunError { name: name.into(), value: value.into(), traceback })) }
}

/// The message, or what says that it is more than the host takes: it would end the session over it.
fn sendable(message: RunCodeResponse, what: &str) -> RunCodeResponse {
    if message.encoded_len() <= MESSAGE_BYTES_MAX {
        return message;
    }
    error_message("KernelOutputTooLarge", &format!("{what} is above 64 MiB"), vec![])
}

fn exit_code(code: i32) -> RunCodeResponse {
    RunCodeResponse { msg: Some(Output::ExitCode(code)) }
}

/// The newest output of the time between two cells.
#[derive(Default)]
struct Held {
    bytes: [VecDeque<u8>; 2],
    dropped: u64,
}

impl Held {
    fn keep(&mut self, stream: Stream, data: &[u8]) {
        let held = &mut self.bytes[stream as usize];
        held.extend(data);
        let surplus = held.len().saturating_sub(HELD_BYTES_MAX);
        held.drain(..surplus);
        self.dropped += surplus as u64;
    }

    fn hand_over(&mut self, out: &mut Outbox) {
        let held = std::mem::take(self);
        if held.dropped > 0 {
            let gap = format!("mitos: {} bytes of output written between two calls were dropped\n", held.dropped);
            out.push(&output_message(Stream::Stderr, gap.into()));
        }
        for (stream, bytes) in [Stream::Stdout, Stream::Stderr].into_iter().zip(held.bytes) {
            out.output(stream, &Vec::from(bytes));
        }
    }
}

// ---------------------------------------------------------------- the kernel's process

#[derive(Serialize)]
struct Execute<'a> {
    op: &'static str,
    id: u64,
    code: &'a str,
}

#[derive(Serialize)]
struct Interrupt {
    op: &'static str,
    id: u64,
}

#[derive(Serialize)]
struct Renew<'a> {
    op: &'static str,
    generation: u64,
    env: BTreeMap<&'a str, &'a str>,
    unset: Vec<&'a str>,
}

#[derive(Deserialize)]
struct Event {
    event: String,
    id: Option<u64>,
    #[serde(default)]
    text: String,
    #[serde(default)]
    data: BTreeMap<String, String>,
    #[serde(default)]
    name: String,
    #[serde(default)]
    value: String,
    #[serde(default)]
    traceback: Vec<String>,
    #[serde(default)]
    status: String,
}

fn parse(line: &[u8]) -> Result<Event, serde_json::Error> {
    serde_json::from_slice(line)
}

enum Happened {
    Output(Stream, Vec<u8>),
    Line(Vec<u8>),
    LineTooLong,
    Ended,
    Nothing,
}

/// A pipe from the kernel.
struct Pipe {
    fd: AsyncFd<OwnedFd>,
    open: bool,
}

impl Pipe {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: watched(fd)?, open: true })
    }

    /// What there is, at least one byte; empty at the end of the pipe. Waiting is all that can be cancelled.
    async fn read(&mut self) -> Vec<u8> {
        loop {
            let Ok(mut ready) = self.fd.readable().await else {
                self.open = false;
                return Vec::new();
            };
            match ready.try_io(|fd| read_some(fd.get_ref())) {
                Ok(Ok(data)) => {
                    self.open = !data.is_empty();
                    return data;
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => {
                    self.open = false;
                    return Vec::new();
                }
                Err(_would_block) => {}
            }
        }
    }

    /// What there is without waiting.
    fn read_now(&mut self) -> Option<Vec<u8>> {
        while self.open {
            match read_some(self.fd.get_ref()) {
                Ok(data) if data.is_empty() => self.open = false,
                Ok(data) => return Some(data),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) => self.open = false,
            }
        }
        None
    }
}

fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    spawn::set_nonblocking(&fd)?;
    // SAFETY: an OwnedFd always gives the same open descriptor, and we never take it out.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

fn read_some(fd: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; CHUNK_BYTES_MAX];
    // SAFETY: reads at most the buffer's length into it.
    let count = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    buffer.truncate(usize::try_from(count).map_err(|_| io::Error::last_os_error())?);
    Ok(buffer)
}

struct Kernel {
    pid: i32,
    exit: oneshot::Receiver<ExitStatus>,
    ended: Option<ExitStatus>,
    commands: AsyncFd<OwnedFd>,
    /// Commands that the kernel has not taken yet.
    unsent: BytesMut,
    events: Pipe,
    stdout: Pipe,
    stderr: Pipe,
    /// An event line as far as it has come, and how much of it is known to hold no line end.
    line: Vec<u8>,
    searched: usize,
    held: Held,
    generation: u64,
    user: Option<user::User>,
    environment: BTreeMap<String, String>,
}

impl Kernel {
    /// Starts an interpreter and waits until it takes cells. The error is a sentence for the user.
    async fn start(language: &'static Language, cwd: Option<&Place>) -> Result<Self, String> {
        let generation = identity::generation();
        let user = process::user_of("").map_err(|problem| format!("the {} kernel cannot be started: {problem}", language.name))?;
        let environment = identity::environment(user.as_ref());
        let path_variable = environment.get("PATH").map_or("", String::as_str);
        let interpreter = language.interpreters.iter().find_map(|name| find_program(name, path_variable)).ok_or_else(|| {
            let names = language.interpreters.join(" or ");
            format!("the {} kernel needs {}: {names} is not on the PATH of this sandbox", language.name, language.needs)
        })?;
        let cannot = |error: io::Error| format!("the {} kernel cannot be started: {error}", language.name);
        let program = install(language).map_err(cannot)?;

        let (their_commands, commands) = spawn::pipe().map_err(cannot)?;
        let (events, their_events) = spawn::pipe().map_err(cannot)?;
        let (stdout, their_stdout) = spawn::pipe().map_err(cannot)?;
        let (stderr, their_stderr) = spawn::pipe().map_err(cannot)?;
        let fds =
            vec![(spawn::dev_null().map_err(cannot)?, 0), (their_stdout, 1), (their_stderr, 2), (their_commands, 3), (their_events, 4)];
        let mut argv = vec![interpreter];
        argv.extend(language.arguments.iter().map(|argument| (*argument).to_owned()));
        argv.push(program);
        let cwd = match cwd {
            Some(place) => place.real.to_string_lossy().into_owned(),
            None => process::default_directory(),
        };
        let env = environment.clone();
        let program_user = user.clone();
        let started = programs::start(move || {
            spawn::spawn(Program { argv: &argv, env: &env, cwd: &cwd, user: program_user.as_ref(), fds, terminal: None })
        });
        let started = started.await?;
        let mut kernel = Self {
            pid: started.pid,
            exit: started.exit,
            ended: None,
            commands: watched(commands).map_err(cannot)?,
            unsent: BytesMut::new(),
            events: Pipe::new(events).map_err(cannot)?,
            stdout: Pipe::new(stdout).map_err(cannot)?,
            stderr: Pipe::new(stderr).map_err(cannot)?,
            line: Vec::new(),
            searched: 0,
            held: Held::default(),
            generation,
            user,
            environment,
        };
        match kernel.wait_until_ready().await {
            Ok(()) => Ok(kernel),
            Err(how) => {
                kernel.signal(libc::SIGKILL, true);
                let (_, stderr) = kernel.held.bytes.split_at(1);
                let said: Vec<u8> =
                    stderr[0].iter().copied().rev().take(START_STDERR_BYTES_MAX).collect::<Vec<_>>().into_iter().rev().collect();
                let said = String::from_utf8_lossy(&said).trim().to_owned();
                let said = if said.is_empty() { String::new() } else { format!(": {said}") };
                Err(format!("the {} kernel {how}; it needs {}{said}", language.name, language.needs))
            }
        }
    }

    async fn wait_until_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            match timeout_at(deadline, self.next(true)).await {
                Err(_) => return Err(format!("was not ready within {} s", START_TIMEOUT.as_secs())),
                Ok(Happened::Output(stream, data)) => self.held.keep(stream, &data),
                Ok(Happened::Line(line)) => match parse(&line) {
                    Ok(event) if event.event == "ready" => return Ok(()),
                    Ok(_) => {}
                    Err(_) => return Err("sent an event that cannot be read".into()),
                },
                Ok(Happened::LineTooLong) => return Err("sent an event that is too long".into()),
                Ok(Happened::Ended) => {
                    while let Some(data) = self.stderr.read_now() {
                        self.held.keep(Stream::Stderr, &data);
                    }
                    return Err(format!("ended before it was ready ({})", self.how_it_ended()));
                }
                Ok(Happened::Nothing) => {}
            }
        }
    }

    /// The next thing that comes from the kernel. Dropping the future loses nothing: each branch waits first and acts in one step.
    async fn next(&mut self, read: bool) -> Happened {
        if !read {
            tokio::select! {
                () = write_some(&self.commands, &mut self.unsent), if !self.unsent.is_empty() => {}
                status = &mut self.exit, if self.ended.is_none() => self.ended = Some(status.unwrap_or(ExitStatus::Exited(-1))),
                () = std::future::pending() => {}
            }
            return Happened::Nothing;
        }
        if let Some(line) = self.take_line() {
            return Happened::Line(line);
        }
        if self.line.len() > EVENT_BYTES_MAX {
            return Happened::LineTooLong;
        }
        if self.ended.is_some() {
            // What it wrote before it ended comes first.
            return match self.events.read_now() {
                Some(data) => {
                    self.line.extend_from_slice(&data);
                    Happened::Nothing
                }
                None => Happened::Ended,
            };
        }
        if !self.events.open {
            // The end of the pipe is seen a moment before that of the process. A kernel that only closed its pipe is of no more use either.
            if let Ok(status) = timeout_at(Instant::now() + EXIT_AFTER_EVENTS, &mut self.exit).await {
                self.ended = Some(status.unwrap_or(ExitStatus::Exited(-1)));
            }
            return Happened::Ended;
        }
        tokio::select! {
            data = self.events.read() => {
                self.line.extend_from_slice(&data);
                Happened::Nothing
            }
            data = self.stdout.read(), if self.stdout.open => Happened::Output(Stream::Stdout, data),
            data = self.stderr.read(), if self.stderr.open => Happened::Output(Stream::Stderr, data),
            () = write_some(&self.commands, &mut self.unsent), if !self.unsent.is_empty() => Happened::Nothing,
            status = &mut self.exit => {
                self.ended = Some(status.unwrap_or(ExitStatus::Exited(-1)));
                Happened::Nothing
            }
        }
    }

    fn has_line(&mut self) -> bool {
        let found = self.line[self.searched..].iter().position(|byte| *byte == b'\n');
        self.searched = found.map_or(self.line.len(), |found| self.searched + found);
        found.is_some()
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        if !self.has_line() {
            return None;
        }
        let rest = self.line.split_off(self.searched + 1);
        self.searched = 0;
        let mut line = std::mem::replace(&mut self.line, rest);
        line.pop();
        Some(line)
    }

    /// Takes the output that was written before an event.
    fn drain(&mut self, out: &mut Outbox) {
        for (stream, pipe) in [(Stream::Stdout, &mut self.stdout), (Stream::Stderr, &mut self.stderr)] {
            let mut taken = 0;
            while taken < DRAIN_BYTES_MAX
                && let Some(data) = pipe.read_now()
            {
                taken += data.len();
                if out.unread_bytes < UNREAD_BYTES_MAX {
                    out.output(stream, &data);
                }
            }
        }
    }

    fn command(&mut self, command: &impl Serialize) {
        // Maps with text keys and numbers: nothing that could fail.
        if let Ok(line) = serde_json::to_vec(command) {
            self.unsent.extend_from_slice(&line);
            self.unsent.extend_from_slice(b"\n");
        }
    }

    /// Tells the kernel of an ADOPT since the last time, if there was one. Only what the ADOPT changed is set: the code may have changed others.
    fn renew(&mut self) {
        let generation = identity::generation();
        if generation == self.generation {
            return;
        }
        self.generation = generation;
        let now = identity::environment(self.user.as_ref());
        let before = std::mem::replace(&mut self.environment, now.clone());
        let changed = |(key, value): &(&String, &String)| before.get(*key) != Some(*value);
        let env = now.iter().filter(changed).map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let unset = before.keys().filter(|key| !now.contains_key(*key)).map(String::as_str).collect();
        self.command(&Renew { op: "renew", generation, env, unset });
    }

    /// What an ADOPT will make it do, so that the memory for it is in place by then: fresh randomness is never wrong.
    fn renew_nothing(&mut self) {
        self.command(&Renew { op: "renew", generation: self.generation, env: BTreeMap::new(), unset: Vec::new() });
    }

    fn signal(&self, signal: i32, group: bool) {
        // After its end the pid may be another's; what is left of its group still has it as its number.
        if self.ended.is_none() || group {
            // SAFETY: a plain system call. The kernel leads a group of its own.
            unsafe { libc::kill(if group { -self.pid } else { self.pid }, signal) };
        }
    }

    fn how_it_ended(&self) -> String {
        match self.ended {
            Some(ExitStatus::Exited(code)) => format!("exit status {code}"),
            Some(ExitStatus::Signaled(signal)) => format!("signal {signal}"),
            None => "its pipes are closed".into(),
        }
    }
}

async fn write_some(fd: &AsyncFd<OwnedFd>, data: &mut BytesMut) {
    let Ok(mut ready) = fd.writable().await else {
        data.clear();
        return;
    };
    let written = ready.try_io(|fd| {
        // SAFETY: writes from within the buffer.
        let count = unsafe { libc::write(fd.as_raw_fd(), data.as_ptr().cast(), data.len()) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    });
    match written {
        Ok(Ok(count)) => data.advance(count),
        Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
        // The kernel has closed its end: its exit is noticed elsewhere.
        Ok(Err(_)) => data.clear(),
        Err(_would_block) => {}
    }
}

fn find_program(name: &str, path_variable: &str) -> Option<String> {
    let folders = path_variable.split(':').filter(|folder| folder.starts_with('/'));
    let mut candidates = folders.map(|folder| format!("{folder}/{name}"));
    candidates.find(|path| std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0))
}

/// Writes the kernel's program where interpreters of any user can read it, and returns its path.
fn install(language: &Language) -> io::Result<String> {
    let folder = paths::own(FOLDER);
    std::fs::create_dir_all(&folder)?;
    for folder in [folder.parent().unwrap_or(Path::new("/")), &folder] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    }
    for (file, source) in language.companions {
        install_file(&folder, file, source)?;
    }
    install_file(&folder, language.file, language.source)
}

fn install_file(folder: &Path, file: &str, source: &str) -> io::Result<String> {
    let path = folder.join(file);
    if std::fs::read(&path).ok().as_deref() != Some(source.as_bytes()) {
        let fresh = folder.join(format!(".{file}.new"));
        std::fs::write(&fresh, source)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o644))?;
        std::fs::rename(&fresh, &path)?;
    }
    Ok(path.to_string_lossy().into_owned())
}

//! The session on the link: which frames may come when, which channels are open, and what may be written (docs/link.md).

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::{Buf, Bytes};
use prost::Message;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::call::{Call, Status};
use super::channel::{Arrived, CREDIT_INITIAL, Channel, ReceiveWindow, SendCredit, Violation, Wide};
use super::link::{Answer, Outgoing, Received};
use super::{identity, programs};
use crate::proto::guest::v1 as pb;
use crate::wire::{FrameType, Header};

pub const PROTOCOL_VERSION: u32 = 5;
pub const CHANNELS_MAX: usize = 512;
/// Messages of a file that its handler may find at once, to write them together.
const WIDE_MESSAGES_MAX: usize = 8;
const PING_BYTES_MAX: usize = 64;
const CONTROL_FRAMES_MAX: usize = 1024;
const SESSION_TEXT_BYTES_MAX: usize = 256;
const STATUS_MESSAGE_BYTES_MAX: usize = 4096;

/// Where the session is. Only `Session::receive` changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// At start, and after a broken rule: every frame but HELLO is ignored, nothing is sent.
    AwaitingHello,
    /// HELLO was acknowledged: calls are served.
    Serving,
    /// QUIESCE has come: programs stand still and nothing is sent but its QUIESCED. RESUME of the same round leads back to Serving with all
    /// channels and credit as they were; HELLO leads there with none. Programs run again from RESUME, or, in a restored machine (HELLO says
    /// so), from ADOPT.
    Quiesced { round: u64 },
}

/// What the writer may do; follows `Phase`.
#[derive(Debug, Clone, PartialEq)]
enum Gate {
    Shut,
    Open,
    /// One QUIESCED is still to be written, then Shut.
    Quiescing(pb::Quiesced),
}

type HandlerFuture = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;
/// Serves one call: method, first message, the rest.
pub type Handler = fn(String, Bytes, Call) -> HandlerFuture;

/// Why the host did not do what a call asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub code: String,
    /// The exact one of docs/errors.md; empty when there is none.
    pub error_code: String,
    pub message: String,
}

impl Refused {
    fn new(code: &str, message: &str) -> Self {
        Self { code: code.into(), error_code: String::new(), message: message.into() }
    }
}

/// How a call to the host ended otherwise than with a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    Refused(Refused),
    /// The session ended. In a fork's child that is how a call that its parent had begun ends.
    SessionLost,
}

/// A frame on its way to the writer. Frames of an older epoch are dropped there.
struct Queued {
    epoch: u64,
    frame: Outgoing,
}

/// The parts of a session that its tasks share. Cheap to clone.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    open: Mutex<OpenChannels>,
    /// Raised by every HELLO and by every broken rule.
    epoch: AtomicU64,
    gate: watch::Sender<Gate>,
    control: mpsc::Sender<Queued>,
    /// Capacity 1: channels wait for their turn in the order in which they became ready, so that one frame of each goes in turn.
    data: mpsc::Sender<Queued>,
    /// Held from the choice of a channel number until its OPEN is on its way.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct OpenChannels {
    channels: HashMap<u32, Channel>,
    /// Calls to the host that the host has not ended.
    calls: HashMap<u32, oneshot::Sender<Ended>>,
    last_host: u32,
    last_guest: u32,
    host_count: usize,
}

/// The status of the host's END or RESET.
type Ended = Result<(), Refused>;

/// A call to the host. Dropping it before both ends have ended resets it.
pub struct HostStream {
    /// The host's messages after the first; `None` when it has ended, for whatever reason: see `ended`.
    inbound: mpsc::Receiver<Bytes>,
    /// Whole messages to the host. Dropping it is our half-close.
    outbound: mpsc::Sender<Bytes>,
    first: Option<oneshot::Receiver<Bytes>>,
    ended: oneshot::Receiver<Ended>,
    _abandoned: DropGuard,
}

impl HostStream {
    /// The host's first message. Once.
    pub async fn first(&mut self) -> Result<Bytes, CallError> {
        let no_answer = || CallError::Refused(Refused::new("internal", "the host sent no answer"));
        let mut first = self.first.take().ok_or_else(no_answer)?;
        tokio::select! {
            biased;
            Ok(message) = &mut first => Ok(message),
            end = &mut self.ended => {
                call_result(end)?;
                let message = first.await.map_err(|_| no_answer())?;
                // Read already; whoever asks again hears the same.
                let (sender, ended) = oneshot::channel();
                let _ = sender.send(Ok(()));
                self.ended = ended;
                Ok(message)
            }
        }
    }

    /// How the host has ended its side. Once, after `first`.
    pub async fn ended(&mut self) -> Result<(), CallError> {
        call_result((&mut self.ended).await)
    }

    /// The host's messages, ours, and how it ends, for two tasks at once.
    pub fn halves(self) -> (mpsc::Receiver<Bytes>, mpsc::Sender<Bytes>, HostEnd) {
        (self.inbound, self.outbound, HostEnd { ended: self.ended, _abandoned: self._abandoned })
    }
}

/// What is left of a stream whose halves are in use. Dropping it resets the stream unless both ends have ended.
pub struct HostEnd {
    ended: oneshot::Receiver<Ended>,
    _abandoned: DropGuard,
}

impl HostEnd {
    /// As `HostStream::ended`.
    pub async fn ended(&mut self) -> Result<(), CallError> {
        call_result((&mut self.ended).await)
    }
}

fn call_result(end: Result<Ended, oneshot::error::RecvError>) -> Result<(), CallError> {
    match end {
        Ok(Ok(())) => Ok(()),
        Ok(Err(refused)) => Err(CallError::Refused(refused)),
        Err(_) => Err(CallError::SessionLost),
    }
}

impl Link {
    fn channels(&self) -> MutexGuard<'_, OpenChannels> {
        self.shared.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn epoch(&self) -> u64 {
        self.shared.epoch.load(Ordering::Acquire)
    }

    async fn control(&self, epoch: u64, kind: FrameType, channel: u32, payload: Bytes) {
        // The receiver lives as long as the process.
        let _ = self.shared.control.send(Queued { epoch, frame: Outgoing { kind, more: false, channel, payload } }).await;
    }

    async fn data(&self, epoch: u64, kind: FrameType, more: bool, channel: u32, payload: Bytes) {
        let _ = self.shared.data.send(Queued { epoch, frame: Outgoing { kind, more, channel, payload } }).await;
    }

    async fn credit(&self, epoch: u64, channel: u32, credit: Option<u32>) {
        if let Some(bytes) = credit {
            self.control(epoch, FrameType::Credit, channel, Bytes::copy_from_slice(&bytes.to_be_bytes())).await;
        }
    }

    /// Calls a unary method of the host. A caller that is dropped resets the call.
    pub async fn call(&self, method: &str, message: &impl Message) -> Result<Bytes, CallError> {
        let mut stream = self.open(method, message, true);
        let reply = stream.first().await?;
        stream.ended().await?;
        Ok(reply)
    }

    /// Opens a stream to the host. With `end` there is no message but this one.
    pub fn open(&self, method: &str, message: &impl Message, end: bool) -> HostStream {
        let cancelled = CancellationToken::new();
        let (channel, arrived) = Channel::new(cancelled.clone());
        let (first_sender, first) = oneshot::channel();
        let (inbound_sender, inbound) = mpsc::channel(1);
        let (outbound, outbound_receiver) = mpsc::channel(1);
        let (ended_sender, ended) = oneshot::channel();
        let abandoned = CancellationToken::new();
        let open = pb::Open { method: method.into(), message: message.encode_to_vec().into(), end, traceparent: String::new() };
        let (link, guard) = (self.clone(), abandoned.clone().drop_guard());
        tokio::spawn(async move {
            let (window, credit) = (channel.window(), channel.send_credit.clone());
            // Numbers ascend in the order in which the OPEN frames leave.
            let turn = link.shared.opening.lock().await;
            let Some((epoch, number)) = link.admit(channel, ended_sender, end) else { return };
            let side = Side { link: link.clone(), epoch, number, cancelled };
            link.data(epoch, FrameType::Open, false, number, open.encode_to_vec().into()).await;
            drop(turn);
            tokio::spawn(pump(side.clone(), arrived, window, first_sender, inbound_sender, false));
            send_to_host(side, outbound_receiver, end, credit, abandoned).await;
        });
        HostStream { inbound, outbound, first: Some(first), ended, _abandoned: guard }
    }

    /// None when there is no session yet, or too much is open: whoever waits for the end of the call is told.
    fn admit(&self, mut channel: Channel, ended: oneshot::Sender<Ended>, our_end_sent: bool) -> Option<(u64, u32)> {
        let mut open = self.channels();
        let epoch = self.epoch();
        if epoch == 0 {
            return None;
        }
        if open.channels.len() - open.host_count >= CHANNELS_MAX {
            let _ = ended.send(Err(Refused::new("resource_exhausted", "too many calls to the host are open")));
            return None;
        }
        let number = if open.last_guest == 0 { 1 } else { open.last_guest + 2 };
        open.last_guest = number;
        channel.our_end_sent = our_end_sent;
        open.channels.insert(number, channel);
        open.calls.insert(number, ended);
        Some((epoch, number))
    }

    /// Whether the channel was still open.
    fn forget(&self, epoch: u64, number: u32) -> bool {
        let mut open = self.channels();
        self.epoch() == epoch && {
            open.calls.remove(&number);
            open.remove(number).is_some()
        }
    }

    /// Our half is done; the channel is gone when theirs is too.
    fn our_end(&self, epoch: u64, number: u32) {
        let mut open = self.channels();
        if self.epoch() == epoch
            && let Some(channel) = open.channels.get_mut(&number)
        {
            channel.our_end_sent = true;
            if channel.their_end_seen() {
                open.remove(number);
            }
        }
    }
}

impl OpenChannels {
    fn remove(&mut self, number: u32) -> Option<Channel> {
        let channel = self.channels.remove(&number)?;
        if number.is_multiple_of(2) {
            self.host_count -= 1;
        }
        Some(channel)
    }

    /// Whether a channel of this number was ever opened in this session.
    fn was_opened(&self, number: u32) -> bool {
        number != 0 && number <= if number.is_multiple_of(2) { self.last_host } else { self.last_guest }
    }
}

/// Starts the writer's side and returns the link and the session that reads it.
pub fn start(received: mpsc::Receiver<Vec<Received>>, outgoing: mpsc::Sender<Outgoing>, handler: Handler) -> (Link, Session) {
    let (control, control_receiver) = mpsc::channel(CONTROL_FRAMES_MAX);
    let (data, data_receiver) = mpsc::channel(1);
    let (gate, gate_receiver) = watch::channel(Gate::Shut);
    let shared = Shared { open: Mutex::default(), epoch: AtomicU64::new(0), gate, control, data, opening: tokio::sync::Mutex::default() };
    let link = Link { shared: Arc::new(shared) };
    tokio::spawn(write(link.clone(), gate_receiver, control_receiver, data_receiver, outgoing));
    (link.clone(), Session { link, phase: Phase::AwaitingHello, received, handler })
}

/// Gives the writing thread one frame at a time: control frames first, and nothing while the gate is shut.
async fn write(
    link: Link,
    mut gate: watch::Receiver<Gate>,
    mut control: mpsc::Receiver<Queued>,
    mut data: mpsc::Receiver<Queued>,
    outgoing: mpsc::Sender<Outgoing>,
) {
    loop {
        let now = gate.borrow_and_update().clone();
        let queued = match &now {
            Gate::Open => tokio::select! {
                biased;
                _ = gate.changed() => continue,
                Some(queued) = control.recv() => queued,
                Some(queued) = data.recv() => queued,
            },
            Gate::Quiescing(quiesced) => {
                let payload = quiesced.encode_to_vec().into();
                let frame = Outgoing { kind: FrameType::Quiesced, more: false, channel: 0, payload };
                if outgoing.send(frame).await.is_err() {
                    return;
                }
                link.shared.gate.send_if_modified(|gate| {
                    let answered = *gate == now;
                    if answered {
                        *gate = Gate::Shut;
                    }
                    answered
                });
                continue;
            }
            Gate::Shut => {
                if gate.changed().await.is_err() {
                    return;
                }
                continue;
            }
        };
        if queued.epoch == link.epoch() && outgoing.send(queued.frame).await.is_err() {
            return;
        }
    }
}

/// For `link::start`: a machine that goes on from a snapshot is greeted and adopted before anything else of the agent has run.
pub fn at_rest(header: &Header, payload: &[u8], answers: &mut Vec<u8>) -> Option<Answer> {
    matches!(header.kind, FrameType::Hello | FrameType::Adopt).then(|| answer(header.kind, payload, answers).ok()).flatten()
}

/// Of a HELLO or an ADOPT. Adds the payload to what is there.
fn answer(kind: FrameType, payload: &[u8], payloads: &mut Vec<u8>) -> Result<Answer, Violation> {
    // A vector takes as much as there is.
    const ENCODED: &str = "there is memory";
    Ok(match kind {
        FrameType::Hello => {
            acknowledge(decode(payload)?)?.encode(payloads).expect(ENCODED);
            Answer { kind: FrameType::HelloAck, done: true }
        }
        _ => {
            let adopted = identity::adopt(decode(payload)?);
            adopted.encode(payloads).expect(ENCODED);
            Answer { kind: FrameType::Adopted, done: adopted.error.is_empty() }
        }
    })
}

fn acknowledge(hello: pb::Hello) -> Result<pb::HelloAck, Violation> {
    if hello.session.is_empty() || hello.session.len() > SESSION_TEXT_BYTES_MAX {
        return Err(Violation("a HELLO without a usable session"));
    }
    Ok(pb::HelloAck {
        protocol_version: PROTOCOL_VERSION,
        session: hello.session,
        agent_version: env!("CARGO_PKG_VERSION").into(),
        generation: identity::generation(),
    })
}

pub struct Session {
    link: Link,
    phase: Phase,
    received: mpsc::Receiver<Vec<Received>>,
    handler: Handler,
}

impl Session {
    /// Serves the link for ever.
    pub async fn run(mut self) {
        while let Some(events) = self.received.recv().await {
            for event in events {
                match event {
                    Received::Frame(header, payload) => {
                        if let Err(violation) = self.receive(header, payload).await {
                            self.end(violation.0);
                        }
                    }
                    Received::Answered { header, payload, done } => self.answered(&header, &payload, done),
                    Received::Broken(_) => self.end("a frame header broke a rule"),
                    // The same session may go on when the link comes back; a new one begins with HELLO.
                    Received::Lost => {}
                }
            }
        }
    }

    fn end(&mut self, why: &str) {
        if self.phase != Phase::AwaitingHello {
            eprintln!("link session ended: {why}");
        }
        self.phase = Phase::AwaitingHello;
        self.link.shared.gate.send_replace(Gate::Shut);
        self.drop_channels();
    }

    /// Forgets every channel. Processes stay: their calls see that no living server has reset them.
    fn drop_channels(&mut self) {
        let mut open = self.link.channels();
        self.link.shared.epoch.fetch_add(1, Ordering::AcqRel);
        for (_, channel) in std::mem::take(&mut *open).channels {
            channel.cancel(false);
        }
    }

    async fn receive(&mut self, header: Header, payload: Bytes) -> Result<(), Violation> {
        if self.phase == Phase::AwaitingHello && header.kind != FrameType::Hello {
            return Ok(());
        }
        let is_control = (header.kind as u8) < FrameType::Open as u8;
        if is_control != (header.channel == 0) || (header.more && header.kind != FrameType::Data) {
            return Err(Violation("a channel number or flag where none belongs"));
        }
        match header.kind {
            FrameType::Hello | FrameType::Adopt => {
                let mut answered = Vec::new();
                let Answer { kind, done } = answer(header.kind, &payload, &mut answered)?;
                self.answered(&header, &payload, done);
                self.link.control(self.link.epoch(), kind, 0, answered.into()).await;
                Ok(())
            }
            FrameType::Quiesce => {
                let pb::Quiesce { round } = decode(payload)?;
                self.phase = Phase::Quiesced { round };
                let error = programs::freeze().await.err().unwrap_or_default();
                self.link.shared.gate.send_replace(Gate::Quiescing(pb::Quiesced { round, error }));
                Ok(())
            }
            FrameType::Resume => {
                let pb::Resume { round, wall_clock_unix_nanos } = decode(payload)?;
                if self.phase == (Phase::Quiesced { round }) {
                    self.phase = Phase::Serving;
                    identity::step_clock(wall_clock_unix_nanos);
                    programs::thaw();
                    self.link.shared.gate.send_replace(Gate::Open);
                }
                Ok(())
            }
            FrameType::Ping => {
                if payload.len() > PING_BYTES_MAX {
                    return Err(Violation("a PING is too long"));
                }
                // A PING that finds the queue full is one of thousands.
                let frame = Outgoing { kind: FrameType::Pong, more: false, channel: 0, payload };
                let _ = self.link.shared.control.try_send(Queued { epoch: self.link.epoch(), frame });
                Ok(())
            }
            FrameType::Open => self.open(header.channel, decode(payload)?).await,
            FrameType::Data => self.data(header, payload).await,
            FrameType::End => self.their_end(header.channel, payload),
            FrameType::Reset => self.reset(header.channel, payload),
            FrameType::Credit => {
                let bytes: [u8; 4] = payload[..].try_into().map_err(|_| Violation("a CREDIT is not four bytes"))?;
                let open = self.link.channels();
                match open.channels.get(&header.channel) {
                    Some(channel) => channel.send_credit.add(u32::from_be_bytes(bytes)),
                    None => known(&open, header.channel),
                }
            }
            FrameType::HelloAck
            | FrameType::Quiesced
            | FrameType::Adopted
            | FrameType::Pong
            | FrameType::ShimRequest
            | FrameType::ShimReply
            | FrameType::ShimEvent => Err(Violation("a frame that only a guest or a shim sends")),
        }
    }

    /// What becomes of a HELLO or an ADOPT beside its answer. Programs run no earlier, so that what they ask the host for is of the new session.
    fn answered(&mut self, header: &Header, payload: &Bytes, done: bool) {
        if header.kind == FrameType::Hello {
            self.drop_channels();
            self.phase = Phase::Serving;
            if pb::Hello::decode(&payload[..]).is_ok_and(|hello| !hello.adopt_follows) {
                programs::thaw();
            }
            self.link.shared.gate.send_replace(Gate::Open);
        } else if done {
            // A machine that is half renewed is not served, and nothing runs in it.
            programs::thaw();
        }
    }

    async fn open(&mut self, number: u32, open: pb::Open) -> Result<(), Violation> {
        let epoch = self.link.epoch();
        let admitted = {
            let mut channels = self.link.channels();
            if !number.is_multiple_of(2) || number <= channels.last_host {
                return Err(Violation("OPEN with a number that is not the next"));
            }
            channels.last_host = number;
            if channels.host_count >= CHANNELS_MAX {
                None
            } else {
                let (mut channel, arrived) = Channel::new(CancellationToken::new());
                let parts =
                    (arrived, channel.window(), channel.send_credit.clone(), channel.cancelled.clone(), channel.reset_by_caller.clone());
                // An empty first message is followed by the real one as DATA, unless nothing follows.
                if open.end || !open.message.is_empty() {
                    channel.first(open.message);
                }
                if open.end {
                    channel.their_end()?;
                }
                channels.host_count += 1;
                channels.channels.insert(number, channel);
                Some(parts)
            }
        };
        let Some((arrived, window, send_credit, cancelled, reset_by_caller)) = admitted else {
            let status = pb::Status {
                code: "resource_exhausted".into(),
                message: format!("{CHANNELS_MAX} calls are open on this machine"),
                ..Default::default()
            };
            self.link.control(epoch, FrameType::Reset, number, status.encode_to_vec().into()).await;
            return Ok(());
        };
        let is_wide = matches!(open.method.as_str(), "WriteFile" | "Upload");
        let (inbound_sender, inbound) = mpsc::channel(if is_wide { WIDE_MESSAGES_MAX } else { 1 });
        let (outbound, outbound_receiver) = mpsc::channel(1);
        let (status_sender, status) = oneshot::channel();
        let (first_sender, first) = oneshot::channel();
        let side = Side { link: self.link.clone(), epoch, number, cancelled: cancelled.clone() };
        tokio::spawn(pump(side.clone(), arrived, window, first_sender, inbound_sender, is_wide));
        let timing = is_recorded(&open.traceparent).then(Timing::begin);
        tokio::spawn(drain(side, outbound_receiver, status, send_credit, timing));
        let call = Call::new(inbound, outbound, cancelled.clone(), open.traceparent, reset_by_caller);
        let handler = self.handler;
        tokio::spawn(async move {
            let first = tokio::select! {
                biased;
                () = cancelled.cancelled() => return,
                first = first => first,
            };
            let result = match first {
                Ok(first) => handler(open.method, first, call).await,
                Err(_) => Err(Status::invalid("the call ended before its first message")),
            };
            let _ = status_sender.send(result);
        });
        Ok(())
    }

    async fn data(&mut self, header: Header, payload: Bytes) -> Result<(), Violation> {
        let credit = {
            let mut open = self.link.channels();
            match open.channels.get_mut(&header.channel) {
                Some(channel) => channel.data(payload, header.more)?,
                None => return known(&open, header.channel),
            }
        };
        self.link.credit(self.link.epoch(), header.channel, credit).await;
        Ok(())
    }

    fn their_end(&mut self, number: u32, payload: Bytes) -> Result<(), Violation> {
        let mut open = self.link.channels();
        let open = &mut *open;
        let Some(channel) = open.channels.get_mut(&number) else { return known(open, number) };
        channel.their_end()?;
        let both_ended = channel.our_end_sent;
        if let Some(call) = open.calls.remove(&number) {
            let _ = call.send(ended(payload)?);
        }
        if both_ended {
            open.remove(number);
        }
        Ok(())
    }

    fn reset(&mut self, number: u32, payload: Bytes) -> Result<(), Violation> {
        let mut open = self.link.channels();
        let Some(channel) = open.remove(number) else { return known(&open, number) };
        if let Some(call) = open.calls.remove(&number) {
            let canceled = || Refused::new("canceled", "the host ended the call");
            let _ = call.send(ended(payload)?.and_then(|()| Err(canceled())));
        }
        channel.cancel(true);
        Ok(())
    }
}

fn ended(payload: Bytes) -> Result<Ended, Violation> {
    let pb::Status { code, message, error_code, .. } = decode(payload)?;
    Ok(if code.is_empty() { Ok(()) } else { Err(Refused { code, error_code, message }) })
}

fn decode<M: Message + Default>(payload: impl Buf) -> Result<M, Violation> {
    M::decode(payload).map_err(|_| Violation("a payload cannot be decoded"))
}

/// A frame for a channel that is closed is ignored: both ends may close at once.
fn known(open: &OpenChannels, number: u32) -> Result<(), Violation> {
    if open.was_opened(number) { Ok(()) } else { Err(Violation("a frame on a channel that was never opened")) }
}

#[derive(Clone)]
struct Side {
    link: Link,
    epoch: u64,
    number: u32,
    cancelled: CancellationToken,
}

/// Hands arrived messages to the handler, one at a time, and gives their credit back.
async fn pump(
    side: Side,
    mut arrived: mpsc::UnboundedReceiver<Arrived>,
    window: Arc<ReceiveWindow>,
    first: oneshot::Sender<Bytes>,
    inbound: mpsc::Sender<Bytes>,
    is_wide: bool,
) {
    let mut first = Some(first);
    let mut received = 0;
    let mut wide = None;
    loop {
        let next = tokio::select! {
            biased;
            () = side.cancelled.cancelled() => return,
            next = arrived.recv() => next,
        };
        let Some(Arrived { message, credit }) = next else { return };
        let length = message.len();
        match first.take() {
            Some(first) => {
                let _ = first.send(message);
            }
            None => tokio::select! {
                biased;
                () = side.cancelled.cancelled() => return,
                // A handler that has returned reads no more; its caller may still be sending.
                _ = inbound.send(message) => {}
            },
        }
        side.link.credit(side.epoch, side.number, window.handed_on(length, credit)).await;
        received += length;
        if is_wide && wide.is_none() && received >= CREDIT_INITIAL as usize {
            wide = Wide::take();
            side.link.credit(side.epoch, side.number, wide.as_ref().map(|wide| window.widen(wide))).await;
        }
    }
}

/// Sends the handler's messages as credit allows, then END with its status.
async fn drain(
    side: Side,
    mut outbound: mpsc::Receiver<Bytes>,
    status: oneshot::Receiver<Result<(), Status>>,
    credit: Arc<SendCredit>,
    mut timing: Option<Timing>,
) {
    let cancelled = side.cancelled.clone();
    let finished = async {
        tokio::pin!(status);
        let mut result = None;
        loop {
            tokio::select! {
                biased;
                message = outbound.recv() => match message {
                    Some(message) => {
                        if let Some(timing) = &mut timing {
                            timing.message();
                        }
                        send_message(&side, message, &credit).await;
                    }
                    None => break,
                },
                returned = &mut status, if result.is_none() => {
                    result = Some(returned);
                    outbound.close();
                }
            }
        }
        let result = match result {
            Some(result) => result,
            None => status.await,
        };
        let timing = timing.map(Timing::end);
        let payload = match result {
            Ok(Ok(())) => {
                timing.map_or_else(Bytes::new, |timing| pb::Status { timing: Some(timing), ..Default::default() }.encode_to_vec().into())
            }
            Ok(Err(status)) => encode_status(status, timing),
            Err(_) => encode_status(Status::new("internal", "the agent's handler failed"), timing),
        };
        side.link.data(side.epoch, FrameType::End, false, side.number, payload).await;
        side.link.our_end(side.epoch, side.number);
    };
    tokio::select! {
        biased;
        () = cancelled.cancelled() => {}
        () = finished => {}
    }
}

/// Sends what is handed to it after the OPEN, then END; RESET once nobody is left who could take what the host still sends.
async fn send_to_host(
    side: Side,
    mut outbound: mpsc::Receiver<Bytes>,
    end_sent: bool,
    credit: Arc<SendCredit>,
    abandoned: CancellationToken,
) {
    let cancelled = side.cancelled.clone();
    let all = async {
        if !end_sent {
            while let Some(message) = outbound.recv().await {
                send_message(&side, message, &credit).await;
            }
            side.link.data(side.epoch, FrameType::End, false, side.number, Bytes::new()).await;
            side.link.our_end(side.epoch, side.number);
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        () = cancelled.cancelled() => return,
        () = abandoned.cancelled() => {}
        () = all => {}
    }
    if side.link.forget(side.epoch, side.number) {
        let status = encode_status(Status::new("canceled", "the program went away"), None);
        side.link.data(side.epoch, FrameType::Reset, false, side.number, status).await;
    }
}

async fn send_message(side: &Side, mut message: Bytes, credit: &SendCredit) {
    loop {
        let length = credit.take(message.len()).await;
        let part = message.split_to(length);
        let more = !message.is_empty();
        side.link.data(side.epoch, FrameType::Data, more, side.number, part).await;
        if !more {
            return;
        }
    }
}

fn encode_status(status: Status, timing: Option<pb::CallTiming>) -> Bytes {
    let mut message = status.message;
    if message.len() > STATUS_MESSAGE_BYTES_MAX {
        let end = (0..=STATUS_MESSAGE_BYTES_MAX).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
    }
    pb::Status { code: status.code.into(), message, timing, ..Default::default() }.encode_to_vec().into()
}

/// When the parts of a call happened, for the caller's trace.
struct Timing {
    begun: Instant,
    times: pb::CallTiming,
}

impl Timing {
    fn begin() -> Self {
        Self { begun: Instant::now(), times: pb::CallTiming::default() }
    }

    fn message(&mut self) {
        let passed = self.passed();
        let times = &mut self.times;
        if times.first_message_us == 0 {
            times.first_message_us = passed;
        } else if times.second_message_us == 0 {
            times.second_message_us = passed;
        }
    }

    fn end(self) -> pb::CallTiming {
        pb::CallTiming { end_us: self.passed(), ..self.times }
    }

    /// At least 1: 0 means that it did not happen.
    fn passed(&self) -> u64 {
        (self.begun.elapsed().as_micros() as u64).max(1)
    }
}

/// The last bit of the flags at the end of a W3C trace context: somebody records this call.
fn is_recorded(traceparent: &str) -> bool {
    let flags = traceparent.rsplit('-').next().and_then(|flags| u8::from_str_radix(flags, 16).ok());
    flags.is_some_and(|flags| flags & 1 == 1)
}

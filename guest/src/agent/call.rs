//! One RPC as its handler sees it: messages in, messages out, a status at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A failure of a call, with a Connect code (`not_found`, `permission_denied`, …).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub code: &'static str,
    pub message: String,
}

impl Status {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new("invalid_argument", message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new("not_found", message)
    }
}

/// The caller is gone: a RESET, a HELLO, or a message that cannot be decoded. The handler just returns.
#[derive(Debug)]
pub struct Gone;

impl From<Gone> for Status {
    fn from(_: Gone) -> Self {
        Self::new("canceled", "the caller went away")
    }
}

/// The handler's end of a channel. Dropping `outbound` is not the end of the call: the handler's return value is.
pub struct Call {
    /// Messages after the first, in order. `None` once the caller has half-closed (or is gone: see `cancelled`).
    pub inbound: mpsc::Receiver<Bytes>,
    /// Whole messages to the caller; waits while the caller gives no credit.
    pub outbound: mpsc::Sender<Bytes>,
    /// Cancelled by RESET (`reset_by_caller` is true) and by HELLO (it is false).
    pub cancelled: CancellationToken,
    /// W3C trace context; empty = the call is not traced.
    pub traceparent: String,
    reset_by_caller: Arc<AtomicBool>,
}

impl Call {
    pub fn new(
        inbound: mpsc::Receiver<Bytes>,
        outbound: mpsc::Sender<Bytes>,
        cancelled: CancellationToken,
        traceparent: String,
        reset_by_caller: Arc<AtomicBool>,
    ) -> Self {
        Self { inbound, outbound, cancelled, traceparent, reset_by_caller }
    }

    /// A call without a link: send requests after the first into the sender, read replies from the receiver.
    #[cfg(test)]
    pub fn for_test() -> (Self, mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>) {
        let (requests, inbound) = mpsc::channel(64);
        let (outbound, replies) = mpsc::channel(64);
        (Self::new(inbound, outbound, CancellationToken::new(), String::new(), Arc::default()), requests, replies)
    }

    /// Whether a living server ended the call. Only meaningful once `cancelled` has fired.
    pub fn reset_by_caller(&self) -> bool {
        self.reset_by_caller.load(Ordering::Acquire)
    }

    /// The requests, to be read by somebody else; `receive` then answers `None`.
    pub fn take_inbound(&mut self) -> mpsc::Receiver<Bytes> {
        std::mem::replace(&mut self.inbound, mpsc::channel(1).1)
    }

    pub async fn send(&self, message: &impl Message) -> Result<(), Gone> {
        self.send_bytes(message.encode_to_vec().into()).await
    }

    pub async fn send_bytes(&self, message: Bytes) -> Result<(), Gone> {
        tokio::select! {
            biased;
            () = self.cancelled.cancelled() => Err(Gone),
            sent = self.outbound.send(message) => sent.map_err(|_| Gone),
        }
    }

    /// The next message, or `None` when the caller has half-closed.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, Gone> {
        tokio::select! {
            biased;
            () = self.cancelled.cancelled() => Err(Gone),
            message = self.inbound.recv() => Ok(message),
        }
    }
}

/// Decodes a request; what cannot be decoded is the caller's mistake.
pub fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, Status> {
    M::decode(bytes).map_err(|error| Status::invalid(format!("the message cannot be decoded: {error}")))
}

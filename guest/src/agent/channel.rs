//! One channel of the link: credit both ways, reassembly, and the tasks between the session and a handler.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::wire::PAYLOAD_BYTES_MAX;

pub const CREDIT_INITIAL: u32 = 262_144;
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Credit is handed back in lumps of this size, so that small messages do not cost a frame each.
const GRANT_BYTES_MIN: u32 = 65_536;
/// The same in a window that is wide: each lump wakes shim and server, and the sender still has more than half of the window.
const WIDE_GRANT_BYTES_MIN: u32 = 512 << 10;
/// While more than this waits for the handler, parts of further messages are not credited on arrival.
const QUEUED_BYTES_MAX: usize = 1 << 20;
/// Messages without a byte cost no credit.
const QUEUED_MESSAGES_MAX: usize = 300_000;
const CREDIT_MAX: usize = 1 << 31;

/// The peer broke a rule of the link.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation(pub &'static str);

/// A message that has arrived, and how much credit is due once it has been handed on.
pub struct Arrived {
    pub message: Bytes,
    pub credit: u32,
}

/// What the session knows about an open channel.
pub struct Channel {
    /// None once the peer has half-closed.
    arrived: Option<mpsc::UnboundedSender<Arrived>>,
    partial: BytesMut,
    window: Arc<ReceiveWindow>,
    pub send_credit: Arc<SendCredit>,
    pub cancelled: CancellationToken,
    pub reset_by_caller: Arc<AtomicBool>,
    pub our_end_sent: bool,
}

impl Channel {
    pub fn new(cancelled: CancellationToken) -> (Self, mpsc::UnboundedReceiver<Arrived>) {
        let (arrived, receiver) = mpsc::unbounded_channel();
        let channel = Self {
            arrived: Some(arrived),
            partial: BytesMut::new(),
            window: Arc::default(),
            send_credit: Arc::default(),
            cancelled,
            reset_by_caller: Arc::default(),
            our_end_sent: false,
        };
        (channel, receiver)
    }

    pub fn window(&self) -> Arc<ReceiveWindow> {
        self.window.clone()
    }

    pub fn their_end_seen(&self) -> bool {
        self.arrived.is_none()
    }

    /// Queues a first message that came with OPEN, which needs no credit.
    pub fn first(&self, message: Bytes) {
        self.window.queue(message.len());
        if let Some(arrived) = &self.arrived {
            let _ = arrived.send(Arrived { message, credit: 0 });
        }
    }

    /// Takes one DATA frame. Returns credit to send back now.
    pub fn data(&mut self, payload: Bytes, more: bool) -> Result<Option<u32>, Violation> {
        let length = payload.len() as u32;
        self.window.take(length)?;
        let Some(arrived) = &self.arrived else { return Err(Violation("DATA after END")) };
        if self.partial.len() + payload.len() > MESSAGE_BYTES_MAX {
            return Err(Violation("a message is too long"));
        }
        if more {
            self.partial.extend_from_slice(&payload);
            return Ok(self.window.part_arrived(length));
        }
        let message = if self.partial.is_empty() {
            payload
        } else {
            self.partial.extend_from_slice(&payload);
            std::mem::take(&mut self.partial).freeze()
        };
        if self.window.queue(message.len()) > QUEUED_MESSAGES_MAX {
            return Err(Violation("too many messages without content"));
        }
        if let Err(mpsc::error::SendError(unread)) = arrived.send(Arrived { message, credit: length }) {
            // The handler has returned and reads no more; the peer may still be on its way to END.
            return Ok(self.window.handed_on(unread.message.len(), length));
        }
        Ok(None)
    }

    pub fn their_end(&mut self) -> Result<(), Violation> {
        if self.arrived.take().is_none() {
            return Err(Violation("a second END"));
        }
        if !self.partial.is_empty() {
            return Err(Violation("END within a message"));
        }
        Ok(())
    }

    pub fn cancel(&self, reset_by_caller: bool) {
        self.reset_by_caller.store(reset_by_caller, Ordering::Release);
        self.cancelled.cancel();
    }
}

/// How much the peer may still send, and what it is owed.
#[derive(Default)]
pub struct ReceiveWindow(Mutex<Window>);

struct Window {
    allowed: u32,
    grant_min: u32,
    owed: u32,
    /// Owed as well, but only when the handler has caught up.
    deferred: u32,
    queued_bytes: usize,
    queued_messages: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self { allowed: CREDIT_INITIAL, grant_min: GRANT_BYTES_MIN, owed: 0, deferred: 0, queued_bytes: 0, queued_messages: 0 }
    }
}

impl Window {
    fn grant(&mut self) -> Option<u32> {
        if self.owed < self.grant_min {
            return None;
        }
        self.allowed += self.owed;
        Some(std::mem::take(&mut self.owed))
    }
}

impl ReceiveWindow {
    fn lock(&self) -> MutexGuard<'_, Window> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, length: u32) -> Result<(), Violation> {
        let mut window = self.lock();
        window.allowed = window.allowed.checked_sub(length).ok_or(Violation("more DATA than credit"))?;
        Ok(())
    }

    fn queue(&self, length: usize) -> usize {
        let mut window = self.lock();
        window.queued_bytes += length;
        window.queued_messages += 1;
        window.queued_messages
    }

    fn part_arrived(&self, length: u32) -> Option<u32> {
        let mut window = self.lock();
        if window.queued_bytes > QUEUED_BYTES_MAX {
            window.deferred += length;
            return None;
        }
        window.owed += length;
        window.grant()
    }

    /// Makes the window wider. Returns the credit to send.
    pub fn widen(&self, _wide: &Wide) -> u32 {
        let mut window = self.lock();
        window.allowed += WIDE_BYTES;
        window.grant_min = WIDE_GRANT_BYTES_MIN;
        WIDE_BYTES
    }

    /// A message of `length` bytes has been taken by the handler; `credit` of it is due.
    pub fn handed_on(&self, length: usize, credit: u32) -> Option<u32> {
        let mut window = self.lock();
        window.queued_bytes = window.queued_bytes.saturating_sub(length);
        window.queued_messages = window.queued_messages.saturating_sub(1);
        window.owed += credit;
        if window.queued_bytes <= QUEUED_BYTES_MAX {
            window.owed += std::mem::take(&mut window.deferred);
        }
        window.grant()
    }
}

/// Credit beside that of every channel for the streams that carry files: what a large one needs so that its sender need not wait for each write.
/// Bounded over all of them, since it is memory of the sandbox.
static WIDE: AtomicU32 = AtomicU32::new(WIDE_BYTES_MAX);
const WIDE_BYTES_MAX: u32 = 8 << 20;
const WIDE_BYTES: u32 = 1 << 20;

/// A part of `WIDE`, until it is dropped.
pub struct Wide;

impl Wide {
    /// None while others have all of it.
    pub fn take() -> Option<Self> {
        WIDE.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(WIDE_BYTES)).ok().map(|_| Self)
    }
}

impl Drop for Wide {
    fn drop(&mut self) {
        WIDE.fetch_add(WIDE_BYTES, Ordering::AcqRel);
    }
}

/// How much we may still send.
pub struct SendCredit(Semaphore);

impl Default for SendCredit {
    fn default() -> Self {
        Self(Semaphore::new(CREDIT_INITIAL as usize))
    }
}

impl SendCredit {
    pub fn add(&self, bytes: u32) -> Result<(), Violation> {
        if self.0.available_permits() + bytes as usize > CREDIT_MAX {
            return Err(Violation("more credit than anybody needs"));
        }
        self.0.add_permits(bytes as usize);
        Ok(())
    }

    /// Waits for credit and takes as much of it as the next frame of a message with `remaining` bytes can use.
    pub async fn take(&self, remaining: usize) -> usize {
        if remaining == 0 {
            return 0;
        }
        // Never closed. There is one taker per channel, so what is available stays available.
        let Ok(first) = self.0.acquire().await else { return 0 };
        first.forget();
        let wanted = remaining.min(PAYLOAD_BYTES_MAX) - 1;
        let more = wanted.min(self.0.available_permits());
        match self.0.try_acquire_many(more as u32) {
            Ok(permits) => {
                permits.forget();
                1 + more
            }
            Err(_) => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel() -> (Channel, mpsc::UnboundedReceiver<Arrived>) {
        Channel::new(CancellationToken::new())
    }

    #[test]
    fn parts_become_one_message_and_are_credited_on_arrival() {
        let (mut channel, mut arrived) = channel();
        let part = Bytes::from(vec![7; 65_536]);
        assert_eq!(channel.data(part.clone(), true), Ok(Some(65_536)));
        assert_eq!(channel.data(part.clone(), true), Ok(Some(65_536)));
        assert_eq!(channel.data(Bytes::from_static(b"end"), false), Ok(None));
        let message = arrived.try_recv().map(|arrived| (arrived.message.len(), arrived.credit));
        assert_eq!(message, Ok((131_075, 3)));
    }

    #[test]
    fn more_than_the_credit_is_a_violation() {
        let (mut channel, _arrived) = channel();
        let part = Bytes::from(vec![7; 65_536]);
        for _ in 0..4 {
            assert_eq!(channel.data(part.clone(), false), Ok(None));
        }
        assert!(channel.data(Bytes::from_static(b"x"), false).is_err());
    }

    #[test]
    fn a_handler_that_reads_nothing_is_never_sent_more_than_the_window_and_a_message() {
        let (mut channel, mut arrived) = channel();
        let part = Bytes::from(vec![7; 65_536]);
        // One message of 2 MiB is taken whole, since its parts are credited as they come.
        for _ in 0..31 {
            assert!(channel.data(part.clone(), true).is_ok());
        }
        assert!(channel.data(part.clone(), false).is_ok());
        // The next finds it waiting: its parts are not credited until the first has been handed on.
        let mut sent = 0;
        while channel.data(part.clone(), true).is_ok() {
            sent += 1;
        }
        assert_eq!(sent, 3);
        let first = arrived.try_recv().ok().map(|first| channel.window().handed_on(first.message.len(), first.credit));
        assert_eq!(first, Some(Some(4 * 65_536)));
    }

    #[test]
    fn a_wider_window_is_as_much_wider_as_its_credit_and_there_are_few_of_them() {
        let (mut channel, _arrived) = channel();
        let all: Vec<_> = std::iter::from_fn(Wide::take).collect();
        assert_eq!(all.len() as u32, WIDE_BYTES_MAX / WIDE_BYTES);
        drop(all);
        let wide = Wide::take().unwrap();
        let frames = (CREDIT_INITIAL + channel.window().widen(&wide)) / 65_536;
        for _ in 0..frames {
            assert!(channel.data(Bytes::from(vec![7; 65_536]), false).is_ok());
        }
        assert!(channel.data(Bytes::from_static(b"x"), false).is_err());
    }

    #[test]
    fn a_wide_window_gives_credit_in_larger_lumps_that_leave_its_sender_more_than_half_of_it() {
        let (mut channel, _arrived) = channel();
        let wide = Wide::take().unwrap();
        channel.window().widen(&wide);
        let part = Bytes::from(vec![7; 65_536]);
        let mut lumps = Vec::new();
        for _ in 0..32 {
            assert_eq!(channel.data(part.clone(), false), Ok(None));
            lumps.extend(channel.window().handed_on(part.len(), 65_536));
        }
        assert_eq!(lumps, [WIDE_GRANT_BYTES_MIN; 4]);
        const { assert!(WIDE_GRANT_BYTES_MIN < (CREDIT_INITIAL + WIDE_BYTES) / 2) };
    }

    #[test]
    fn an_end_within_a_message_and_a_second_end_are_violations() {
        let (mut open, _arrived) = channel();
        assert!(open.data(Bytes::from_static(b"x"), true).is_ok());
        assert!(open.their_end().is_err());
        let (mut ended, _arrived) = channel();
        assert_eq!(ended.their_end(), Ok(()));
        assert!(ended.their_end().is_err());
        assert!(ended.data(Bytes::from_static(b"x"), false).is_err());
    }

    #[tokio::test]
    async fn send_credit_is_spent_frame_by_frame_and_can_be_topped_up() {
        let credit = SendCredit::default();
        for _ in 0..4 {
            assert_eq!(credit.take(1 << 20).await, 65_536);
        }
        assert_eq!(credit.add(10), Ok(()));
        assert_eq!(credit.take(1 << 20).await, 10);
        assert!(credit.add(u32::MAX).is_err());
    }
}

//! One connected server: frames of the link, and requests with their replies.

use super::frames::{Fill, Inbox, OUTBOX_BYTES_HIGH, Outbox};
use super::link::Link;
use super::sys;
use crate::wire::{FrameType, Header, PAYLOAD_BYTES_MAX};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Above this the server does not read its replies, and gets no further request served.
const REPLY_BYTES_HIGH: usize = 2 << 20;

pub struct Connection {
    /// Never used twice, so a late reply cannot reach a successor.
    pub id: u64,
    /// Frames of the link pass here; otherwise only requests and replies (`control.sock`).
    pub carries_link: bool,
    stream: UnixStream,
    inbox: Inbox,
    pub outbox: Outbox,
    /// Requests of which only a part has arrived, by channel.
    parts: BTreeMap<u32, Vec<u8>>,
}

/// What one read brought: frames for the machine have been passed on already.
pub enum Received {
    Requests(Vec<(u32, Vec<u8>)>),
    /// Gone, with the rule it broke if it broke one. What came before it has been served.
    Closed(Option<String>),
}

impl Connection {
    pub fn new(id: u64, carries_link: bool, stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        sys::widen(&stream);
        Ok(Self { id, carries_link, stream, inbox: Inbox::new(), outbox: Outbox::default(), parts: BTreeMap::new() })
    }

    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub fn wants_read(&self, to_machine: &Outbox) -> bool {
        self.outbox.len() < REPLY_BYTES_HIGH && (!self.carries_link || to_machine.len() < OUTBOX_BYTES_HIGH)
    }

    /// One read. A frame of which the rest never comes stays here and dies with the connection: the machine sees whole frames only.
    pub fn receive(&mut self, link: &mut Link) -> Received {
        match self.inbox.fill(self.stream.as_fd()) {
            Ok(Fill::Some) => {}
            Ok(Fill::Empty) => return Received::Requests(Vec::new()),
            Ok(Fill::Closed) => return Received::Closed(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Received::Closed(None),
            Err(error) => return Received::Closed(Some(format!("read the server's connection: {error}"))),
        }
        let mut requests = Vec::new();
        loop {
            let frames = self.inbox.next_of_link();
            if !frames.is_empty() {
                if !self.carries_link {
                    return Received::Closed(Some("control.sock takes requests only".into()));
                }
                link.pass(frames);
            }
            let frame = match self.inbox.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Received::Requests(requests),
                Err(error) => return Received::Closed(Some(format!("a frame of the server is malformed: {error:?}"))),
            };
            let channel = frame.header.channel;
            match frame.header.kind {
                FrameType::ShimRequest => {
                    let total: usize = self.parts.values().map(Vec::len).sum::<usize>() + frame.payload().len();
                    if total > REQUEST_BYTES_MAX {
                        return Received::Closed(Some(format!("requests in parts hold more than {REQUEST_BYTES_MAX} bytes")));
                    }
                    let mut request = self.parts.remove(&channel).unwrap_or_default();
                    request.extend_from_slice(frame.payload());
                    if frame.header.more { drop(self.parts.insert(channel, request)) } else { requests.push((channel, request)) }
                }
                kind => return Received::Closed(Some(format!("a server may not send {kind:?}"))),
            }
        }
    }

    /// Whole frames of the link.
    pub fn pass(&mut self, frames: &[u8]) {
        self.outbox.pass(frames, self.stream.as_fd());
    }

    pub fn send_json(&mut self, kind: FrameType, channel: u32, value: &impl Serialize) {
        let payload = serde_json::to_vec(value).expect("replies and events are plain data");
        let mut parts = payload.chunks(PAYLOAD_BYTES_MAX).peekable();
        while let Some(part) = parts.next() {
            self.outbox.push_frame(Header { length: part.len(), kind, more: parts.peek().is_some(), channel }, part);
        }
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.outbox.flush(self.stream.as_fd())
    }
}

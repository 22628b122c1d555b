//! Bytes of a stream into whole frames, and whole frames into bytes: the only unit in which the shim passes anything on.

use super::sys;
use crate::wire::{HEADER_BYTES, Header, HeaderError, PAYLOAD_BYTES_MAX};
use std::io;
use std::os::fd::BorrowedFd;

const READ_BYTES: usize = 512 << 10;
const INBOX_BYTES: usize = READ_BYTES + HEADER_BYTES + PAYLOAD_BYTES_MAX;

/// Reads large pieces and hands out the whole frames in them.
pub struct Inbox {
    /// Never larger; zeroed lazily by the kernel, so an idle shim does not pay for it.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

pub enum Fill {
    Some,
    /// Nothing to read now.
    Empty,
    Closed,
}

pub struct Frame<'a> {
    pub header: Header,
    /// Header and payload.
    pub bytes: &'a [u8],
}

impl Frame<'_> {
    pub fn payload(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..]
    }
}

impl Inbox {
    pub fn new() -> Self {
        Self { buffer: vec![0; INBOX_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    /// One read. All whole frames must have been taken before, so that there is room.
    pub fn fill(&mut self, fd: BorrowedFd) -> io::Result<Fill> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        match sys::read(fd, &mut self.buffer[self.end..]) {
            Ok(0) => Ok(Fill::Closed),
            Ok(count) => {
                self.end += count;
                Ok(Fill::Some)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Fill::Empty),
            Err(error) => Err(error),
        }
    }

    /// The next whole frame. A header is judged as soon as it is there, whatever length it claims.
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, HeaderError> {
        let Some((header, end)) = self.peek()? else { return Ok(None) };
        let bytes = &self.buffer[self.start..end];
        self.start = end;
        Ok(Some(Frame { header, bytes }))
    }

    /// All whole frames before the first of the shim itself, as they lie in the stream. Empty when there are none; `next` says what comes instead.
    pub fn next_of_link(&mut self) -> &[u8] {
        let start = self.start;
        while let Ok(Some((header, end))) = self.peek()
            && !header.kind.is_shim()
        {
            self.start = end;
        }
        &self.buffer[start..self.start]
    }

    /// Header of the next whole frame, and where the frame ends.
    fn peek(&self) -> Result<Option<(Header, usize)>, HeaderError> {
        let Some(head) = self.buffer[self.start..self.end].first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let header = Header::parse(head)?;
        let end = self.start + HEADER_BYTES + header.length;
        Ok((end <= self.end).then_some((header, end)))
    }
}

/// Whole frames that wait for the reader. Bounded by its users, which stop reading the other side above `OUTBOX_BYTES_HIGH`.
#[derive(Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

pub const OUTBOX_BYTES_HIGH: usize = 512 << 10;

impl Outbox {
    pub fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn push(&mut self, frame: &[u8]) {
        // Moves what is left only when the part already sent is the larger one, so every byte moves at most once on average.
        if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        self.bytes.extend_from_slice(frame);
    }

    /// Whole frames, straight from where they lie while nothing waits before them. What the reader does not take now is kept.
    pub fn pass(&mut self, frames: &[u8], fd: BorrowedFd) {
        // An error is that of the next flush.
        let sent = if self.is_empty() { sys::send(fd, frames).unwrap_or(0) } else { 0 };
        self.push(&frames[sent..]);
    }

    pub fn push_frame(&mut self, header: Header, payload: &[u8]) {
        self.push(&header.encode());
        self.bytes.extend_from_slice(payload);
    }

    /// Writes as much as the reader takes.
    pub fn flush(&mut self, fd: BorrowedFd) -> io::Result<()> {
        while self.sent < self.bytes.len() {
            match sys::send(fd, &self.bytes[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::FrameType;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn frame(length: usize, channel: u32) -> Vec<u8> {
        let mut bytes = Header { length, kind: FrameType::Data, more: false, channel }.encode().to_vec();
        bytes.resize(HEADER_BYTES + length, channel as u8);
        bytes
    }

    #[test]
    fn frames_come_out_whole_however_the_stream_is_cut() {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        let sizes = [0, 1, 9, 10, 65_536, 3, 65_536, 65_535, 0];
        let stream: Vec<u8> = sizes.iter().enumerate().flat_map(|(index, size)| frame(*size, index as u32)).collect();
        for cut in [1, 7, 10, 11, 4096, 65_546, 70_000] {
            let mut inbox = Inbox::new();
            let mut lengths = Vec::new();
            for piece in stream.chunks(cut) {
                writer.write_all(piece).unwrap();
                inbox.fill(reader.as_fd()).unwrap();
                while let Some(frame) = inbox.next().unwrap() {
                    assert_eq!(frame.payload().len(), frame.header.length);
                    assert!(frame.payload().iter().all(|byte| *byte == frame.header.channel as u8));
                    lengths.push(frame.header.length);
                }
            }
            assert_eq!(lengths, sizes, "cut every {cut} bytes");
        }
    }

    #[test]
    fn a_header_that_lies_is_refused_before_its_payload_arrives() {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        writer.write_all(&[0xff, 0, 0, 0, 0x11, 0, 0, 0, 0, 2]).unwrap();
        let mut inbox = Inbox::new();
        inbox.fill(reader.as_fd()).unwrap();
        assert!(inbox.next().is_err());
    }

    #[test]
    fn frames_of_the_link_come_together_up_to_one_of_the_shim_and_before_what_is_malformed() {
        let request =
            |channel| [Header { length: 2, kind: FrameType::ShimRequest, more: false, channel }.encode().to_vec(), b"{}".to_vec()].concat();
        let (mut writer, reader) = UnixStream::pair().unwrap();
        let (first, second) = ([frame(3, 1), frame(0, 2)].concat(), frame(5, 4));
        for piece in [&first[..], &request(3), &second, &[0xff; HEADER_BYTES]] {
            writer.write_all(piece).unwrap();
        }
        let mut inbox = Inbox::new();
        inbox.fill(reader.as_fd()).unwrap();
        assert_eq!(inbox.next_of_link(), first);
        assert_eq!(inbox.next_of_link(), b"");
        assert_eq!(inbox.next().unwrap().unwrap().header.channel, 3);
        assert_eq!(inbox.next_of_link(), second);
        assert_eq!(inbox.next_of_link(), b"");
        assert!(inbox.next().is_err());
    }

    #[test]
    fn what_is_passed_on_keeps_its_order_whether_it_waits_or_not() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        let mut outbox = Outbox::default();
        let mut expected = Vec::new();
        let mut received = Vec::new();
        let mut waited = false;
        for channel in 0..40 {
            let bytes = frame(60_000, channel);
            outbox.pass(&bytes, writer.as_fd());
            expected.extend(bytes);
            waited |= !outbox.is_empty();
            if channel % 8 == 7 {
                while received.len() < expected.len() {
                    let mut piece = vec![0; 1 << 20];
                    let count = io::Read::read(&mut reader, &mut piece).unwrap();
                    received.extend_from_slice(&piece[..count]);
                    outbox.flush(writer.as_fd()).unwrap();
                }
            }
        }
        assert!(waited, "the socket's own buffer took everything, so nothing was proven");
        assert!(received == expected);
    }

    #[test]
    fn an_outbox_keeps_the_order_across_partial_writes() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let mut outbox = Outbox::default();
        let mut expected = Vec::new();
        for channel in 0..20 {
            let bytes = frame(60_000, channel);
            outbox.push(&bytes);
            expected.extend(bytes);
            outbox.flush(writer.as_fd()).unwrap();
        }
        assert!(!outbox.is_empty(), "the socket's own buffer took everything, so nothing was proven");
        let mut received = vec![0; expected.len()];
        let mut count = 0;
        while count < received.len() {
            count += io::Read::read(&mut reader, &mut received[count..]).unwrap();
            outbox.flush(writer.as_fd()).unwrap();
        }
        assert!(received == expected);
    }
}

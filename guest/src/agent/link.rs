//! The byte stream to the host: two threads that read frames from stdin and write frames to stdout, with poll(2) where the link comes by vsock.
//!
//! A restore replaces what is behind both descriptors while the threads wait; gVisor then has them call anew. So nothing is assumed of it: it may hang up
//! and come back. Neither thread ever ends; a lost link is told to the session and tried again with a growing pause.
//!
//! A machine that goes on from a snapshot is answered by the thread that reads ([`AtRest`]): on a processor that is cold, or emulated, to wake two more
//! threads for it would take most of the time.

use std::io::{self, IoSlice};
use std::mem::{self, MaybeUninit};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use tokio::sync::mpsc;

use super::connection::{Connection, End};
use crate::proto::guest::v1::{Hello, Quiesce, Quiesced};
use crate::wire::{FrameType, HEADER_BYTES, Header, HeaderError, PAYLOAD_BYTES_MAX};

/// Under gVisor a system call costs more than to copy 64 KiB, so few of them carry much.
const READ_BYTES: usize = 512 * 1024;
/// A smaller rest of the memory is not read into.
const READ_BYTES_MIN: usize = 128 * 1024;
/// As much as can be under way to a file: its wide window, what is gathered for the next step, and what the last one writes.
const FULL_BUFFERS_MAX: usize = 8;
const WRITE_BATCH_BYTES: usize = 512 * 1024;
/// In one write: two pieces each, of which a system call takes 1,024.
const WRITE_FRAMES_MAX: usize = 64;
const HELLO_BYTES_MAX: usize = 1024;
/// What one read has brought, together: to wake the session for each frame would cost more than the frame.
const RECEIVED_READS_MAX: usize = 2;
/// Small, so that what goes next is decided late: a control frame overtakes everything that is not here yet.
const OUTGOING_FRAMES_MAX: usize = 8;
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(100);

#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Frame(Header, Bytes),
    /// A frame that `AtRest` has answered.
    Answered {
        header: Header,
        payload: Bytes,
        done: bool,
    },
    /// A header broke a rule. The next thing received is a HELLO.
    Broken(HeaderError),
    /// The other end is gone for now. What follows begins with a whole frame.
    Lost,
}

#[derive(Debug, Clone)]
pub struct Outgoing {
    pub kind: FrameType,
    pub more: bool,
    pub channel: u32,
    pub payload: Bytes,
}

impl Outgoing {
    fn header(&self) -> Header {
        Header { length: self.payload.len(), kind: self.kind, more: self.more, channel: self.channel }
    }
}

/// Answers a HELLO, and what comes with it, while the link is at rest: QUIESCED is the last that was written, and nothing came after its QUIESCE. Adds the
/// payload of the answer to what is there. None = the session is to do it, and nothing was added.
pub type AtRest = fn(&Header, &[u8], &mut Vec<u8>) -> Option<Answer>;

#[derive(Debug, Clone, Copy)]
pub struct Answer {
    pub kind: FrameType,
    /// What was asked for has been done.
    pub done: bool,
}

/// Room for what `AtRest` answers in one read. There from the start, as is the rest of what it takes: to find memory is much for a processor that is cold.
const ANSWERS_BYTES: usize = 4096;
const EVENTS_MAX: usize = 8;

/// Starts both threads on the connection's descriptors.
pub fn start(connection: &Arc<Connection>, at_rest: AtRest) -> io::Result<(mpsc::Receiver<Vec<Received>>, mpsc::Sender<Outgoing>)> {
    let (received_sender, received) = mpsc::channel(RECEIVED_READS_MAX);
    let (outgoing, outgoing_receiver) = mpsc::channel(OUTGOING_FRAMES_MAX);
    let written = Arc::new(AtomicU64::new(NO_ROUND));
    let rest = Rest { answer: at_rest, written: written.clone(), asked: None };
    let small_stack = |name: &str| std::thread::Builder::new().name(name.into()).stack_size(256 * 1024);
    let (input, output) = (connection.input(), connection.output());
    let answers = connection.output();
    small_stack("link-read").spawn(move || read_frames(input, answers, rest, &received_sender))?;
    small_stack("link-write").spawn(move || write_frames(output, &written, outgoing_receiver))?;
    Ok((received, outgoing))
}

/// No round has this number: the host counts from 1.
const NO_ROUND: u64 = 0;

/// Whether the link is at rest, for the thread that reads.
struct Rest {
    answer: AtRest,
    /// Round of the QUIESCED that was written last; `NO_ROUND` when something else was.
    written: Arc<AtomicU64>,
    /// Round of the QUIESCE after which nothing came.
    asked: Option<u64>,
}

impl Rest {
    /// Adds what is to be written at once to `answers`, which are those to what came in the same read.
    fn look_at(&mut self, event: Received, answers: &mut Vec<u8>) -> Received {
        let Received::Frame(header, payload) = event else {
            self.asked = None;
            return event;
        };
        let at_rest = self.asked.is_some_and(|round| self.written.load(Ordering::Acquire) == round);
        // A HELLO, and what follows it.
        let in_turn = (header.kind == FrameType::Hello) == answers.is_empty() && header.channel == 0 && !header.more;
        if at_rest
            && in_turn
            && let Some(done) = self.answer(&header, &payload, answers)
        {
            return Received::Answered { header, payload, done };
        }
        let round = (header.kind == FrameType::Quiesce).then(|| Quiesce::decode(&payload[..]).ok()).flatten();
        if round.is_some() {
            // Each session counts from 1: what was written for another is no answer to this one.
            self.written.store(NO_ROUND, Ordering::Release);
        }
        self.asked = round.map(|quiesce| quiesce.round).filter(|round| *round != NO_ROUND);
        Received::Frame(header, payload)
    }

    /// Whether what was asked for has been done; None = it was not answered.
    fn answer(&self, header: &Header, payload: &[u8], answers: &mut Vec<u8>) -> Option<bool> {
        let start = answers.len();
        answers.extend_from_slice(&[0; HEADER_BYTES]);
        let Some(Answer { kind, done }) = (self.answer)(header, payload, answers) else {
            answers.truncate(start);
            return None;
        };
        let length = answers.len() - start - HEADER_BYTES;
        answers[start..start + HEADER_BYTES].copy_from_slice(&Header { length, kind, more: false, channel: 0 }.encode());
        Some(done)
    }
}

fn read_frames(mut input: End, mut output: End, mut rest: Rest, received: &mpsc::Sender<Vec<Received>>) {
    let waits = !input.is_fixed();
    set_blocking(input.fd(), !waits);
    let mut frames = FrameReader::default();
    let mut answers = Vec::with_capacity(ANSWERS_BYTES);
    let mut events = Vec::with_capacity(EVENTS_MAX);
    let mut pause = PAUSE_MIN;
    let mut lost = false;
    loop {
        if waits {
            input.wait(libc::POLLIN);
        }
        let room = frames.room();
        // SAFETY: reads at most the room's length into it.
        let read = |fd| unsafe { libc::read(fd, room.as_mut_ptr().cast(), room.len()) };
        let Some(count) = input.during(read) else {
            (pause, lost) = (PAUSE_MIN, false);
            frames = FrameReader::default();
            if received.blocking_send(vec![Received::Lost]).is_err() {
                return;
            }
            continue;
        };
        if count > 0 {
            (pause, lost) = (PAUSE_MIN, false);
            // SAFETY: so much has just been written to the room.
            unsafe { frames.filled(count as usize) };
            while let Some(event) = frames.next() {
                events.push(rest.look_at(event, &mut answers));
            }
            if !answers.is_empty() {
                // The other thread has nothing to write until the session knows of this.
                write_all(&mut output, &[&answers], &[answers.len()]);
                answers.clear();
                rest.asked = None;
            }
            if rest.asked.is_some() {
                frames.shrink();
            }
            if !events.is_empty() && received.blocking_send(mem::replace(&mut events, Vec::with_capacity(EVENTS_MAX))).is_err() {
                return;
            }
            continue;
        }
        let again = count < 0 && matches!(io::Error::last_os_error().raw_os_error(), Some(libc::EAGAIN | libc::EINTR));
        if !again && !lost {
            lost = true;
            frames = FrameReader::default();
            if received.blocking_send(vec![Received::Lost]).is_err() {
                return;
            }
        }
        // Also for EAGAIN: poll answers at once for as long as the other end has hung up.
        input.pause(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn write_frames(mut output: End, written: &AtomicU64, mut outgoing: mpsc::Receiver<Outgoing>) {
    set_blocking(output.fd(), output.is_fixed());
    let mut batch: Vec<([u8; HEADER_BYTES], Bytes)> = Vec::with_capacity(WRITE_FRAMES_MAX);
    while let Some(first) = outgoing.blocking_recv() {
        written.store(NO_ROUND, Ordering::Release);
        let mut last_round = NO_ROUND;
        let mut next = Some(first);
        let mut length = 0;
        while let Some(frame) = next {
            last_round = match frame.kind {
                FrameType::Quiesced => Quiesced::decode(&frame.payload[..]).map_or(NO_ROUND, |quiesced| quiesced.round),
                _ => NO_ROUND,
            };
            length += HEADER_BYTES + frame.payload.len();
            batch.push((frame.header().encode(), frame.payload));
            let full = length + PAYLOAD_BYTES_MAX >= WRITE_BATCH_BYTES || batch.len() == WRITE_FRAMES_MAX;
            next = if full { None } else { outgoing.try_recv().ok() };
        }
        let pieces: Vec<&[u8]> = batch.iter().flat_map(|(header, payload)| [&header[..], payload]).collect();
        let mut end = 0;
        let ends: Vec<usize> = batch
            .iter()
            .map(|(_, payload)| {
                end += HEADER_BYTES + payload.len();
                end
            })
            .collect();
        write_all(&mut output, &pieces, &ends);
        // Not when the next frame comes: what has gone is not to be kept until then.
        batch.clear();
        written.store(last_round, Ordering::Release);
    }
}

/// Writes whole frames, which end at `ends` of what the pieces are together. When the link breaks in mid-frame, the frame is written again from its
/// start once there is a link: the new other end reads from a frame boundary and ignores what is not for it.
fn write_all(output: &mut End, pieces: &[&[u8]], ends: &[usize]) {
    let whole = |written: usize| ends.iter().copied().take_while(|end| *end <= written).last().unwrap_or(0);
    let total = ends.last().copied().unwrap_or(0);
    let mut written = 0;
    let mut pause = PAUSE_MIN;
    while written < total {
        let write = |fd| match pieces {
            // A list of one is more to do, for the kernel as well.
            // SAFETY: writes from a slice that is borrowed for the call.
            [piece] => unsafe { libc::write(fd, piece[written..].as_ptr().cast(), piece.len() - written) },
            _ => {
                let rest = after(written, pieces);
                // SAFETY: an IoSlice is an iovec, and they lie within slices that are borrowed for the call.
                unsafe { libc::writev(fd, rest.as_ptr().cast(), rest.len() as libc::c_int) }
            }
        };
        let Some(count) = output.during(write) else {
            (written, pause) = (whole(written), PAUSE_MIN);
            continue;
        };
        if count >= 0 {
            written += count as usize;
            pause = PAUSE_MIN;
            continue;
        }
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::EINTR) => continue,
            Some(libc::EAGAIN) => {
                if output.wait(libc::POLLOUT) & (libc::POLLHUP | libc::POLLERR) == 0 {
                    continue;
                }
            }
            _ => written = whole(written),
        }
        output.pause(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// What is left of the pieces without their first bytes.
fn after<'a>(mut bytes: usize, pieces: &[&'a [u8]]) -> Vec<IoSlice<'a>> {
    let mut rest = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let skipped = bytes.min(piece.len());
        bytes -= skipped;
        if skipped < piece.len() {
            rest.push(IoSlice::new(&piece[skipped..]));
        }
    }
    rest
}

fn set_blocking(fd: RawFd, blocks: bool) {
    // SAFETY: plain fcntl. If it fails we block where we would have polled, or poll where we would have blocked.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        if flags >= 0 {
            libc::fcntl(fd, libc::F_SETFL, if blocks { flags & !libc::O_NONBLOCK } else { flags | libc::O_NONBLOCK });
        }
    }
}

/// Cuts the stream into frames. After a broken header the boundaries are unknown: it looks for a HELLO at every byte.
struct FrameReader {
    buffer: BytesMut,
    /// Buffers without room. Each is used again when nobody has a frame in it any more: new memory is dearer in a sandbox than anything that is done with it.
    full: Vec<BytesMut>,
    searching: bool,
}

impl Default for FrameReader {
    fn default() -> Self {
        Self { buffer: BytesMut::with_capacity(READ_BYTES), full: Vec::new(), searching: false }
    }
}

impl FrameReader {
    #[cfg(test)]
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Where the next bytes go.
    fn room(&mut self) -> &mut [MaybeUninit<u8>] {
        if self.buffer.capacity() - self.buffer.len() < READ_BYTES_MIN {
            self.replace_buffer();
        }
        self.buffer.spare_capacity_mut()
    }

    fn replace_buffer(&mut self) {
        let unused = self.full.iter_mut().position(|full| full.try_reclaim(READ_BYTES));
        let mut next = unused.map_or_else(|| BytesMut::with_capacity(READ_BYTES), |index| self.full.swap_remove(index));
        next.extend_from_slice(&self.buffer);
        let mut full = mem::replace(&mut self.buffer, next);
        full.clear();
        if self.full.len() < FULL_BUFFERS_MAX {
            self.full.push(full);
        }
    }

    /// Keeps no memory for what may come: a snapshot need not have it.
    fn shrink(&mut self) {
        self.full.clear();
    }

    /// # Safety
    /// That many bytes of `room` have been written.
    unsafe fn filled(&mut self, count: usize) {
        // SAFETY: as promised by the caller.
        unsafe { self.buffer.set_len(self.buffer.len() + count) };
    }

    fn next(&mut self) -> Option<Received> {
        if self.searching && !self.find_hello() {
            return None;
        }
        self.searching = false;
        let header_bytes: &[u8; HEADER_BYTES] = self.buffer.first_chunk()?;
        let header = match Header::parse(header_bytes) {
            Ok(header) => header,
            Err(error) => {
                self.buffer.advance(1);
                self.searching = true;
                return Some(Received::Broken(error));
            }
        };
        if self.buffer.len() < HEADER_BYTES + header.length {
            return None;
        }
        self.buffer.advance(HEADER_BYTES);
        Some(Received::Frame(header, self.buffer.split_to(header.length).freeze()))
    }

    /// True when the buffer begins with a whole HELLO. What cannot be one is dropped.
    fn find_hello(&mut self) -> bool {
        while let Some(header_bytes) = self.buffer.first_chunk() {
            let possible = Header::parse(header_bytes).is_ok_and(|header| {
                header.kind == FrameType::Hello && header.channel == 0 && !header.more && (1..=HELLO_BYTES_MAX).contains(&header.length)
            });
            if possible {
                let length = u16::from_be_bytes([header_bytes[2], header_bytes[3]]) as usize;
                if self.buffer.len() < HEADER_BYTES + length {
                    return false;
                }
                let payload = &self.buffer[HEADER_BYTES..HEADER_BYTES + length];
                if Hello::decode(payload).is_ok_and(|hello| hello.protocol_version > 0 && !hello.session.is_empty()) {
                    return true;
                }
            }
            self.buffer.advance(1);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: FrameType, channel: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Header { length: payload.len(), kind, more: false, channel }.encode().to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }

    fn all(reader: &mut FrameReader) -> Vec<Received> {
        std::iter::from_fn(|| reader.next()).collect()
    }

    #[test]
    fn frames_are_cut_the_same_however_the_bytes_arrive() {
        let mut bytes = frame(FrameType::Data, 2, b"hello");
        bytes.extend(frame(FrameType::End, 2, b""));
        let mut whole = FrameReader::default();
        whole.push(&bytes);
        let expected = all(&mut whole);
        assert_eq!(expected.len(), 2);
        let mut piecemeal = FrameReader::default();
        let mut events = Vec::new();
        for byte in bytes {
            piecemeal.push(&[byte]);
            events.extend(all(&mut piecemeal));
        }
        assert_eq!(events, expected);
    }

    #[test]
    fn after_a_broken_header_the_next_thing_is_a_hello() {
        let hello = Hello { protocol_version: 5, session: "s".into(), adopt_follows: false }.encode_to_vec();
        let mut reader = FrameReader::default();
        reader.push(&[0xff; 37]);
        reader.push(&frame(FrameType::Data, 2, b"lost"));
        reader.push(&frame(FrameType::Hello, 0, &hello));
        reader.push(&frame(FrameType::Ping, 0, b"p"));
        let events = all(&mut reader);
        assert_eq!(events.len(), 3);
        assert!(matches!(events[0], Received::Broken(_)));
        assert!(matches!(&events[1], Received::Frame(header, payload) if header.kind == FrameType::Hello && payload[..] == hello));
        assert!(matches!(&events[2], Received::Frame(header, _) if header.kind == FrameType::Ping));
    }

    #[test]
    fn what_is_left_of_pieces_begins_in_the_middle_of_one() {
        let pieces: [&[u8]; 4] = [b"head", b"", b"body", b"next"];
        let left = |written| after(written, &pieces).iter().map(|piece| piece.to_vec()).collect::<Vec<_>>();
        assert_eq!(left(0), [b"head", b"body", b"next"]);
        assert_eq!(left(4), [b"body", b"next"]);
        assert_eq!(left(6), [&b"dy"[..], b"next"]);
        assert!(left(12).is_empty());
    }

    /// What `Rest` makes of frames after a QUIESCE and a QUIESCED of these rounds: which it answers.
    fn answered(asked: u64, written: u64, between: &[FrameType], batch: &[FrameType]) -> Vec<FrameType> {
        let answer: AtRest = |header, _, _| {
            let kind = match header.kind {
                FrameType::Hello => FrameType::HelloAck,
                FrameType::Adopt => FrameType::Adopted,
                _ => return None,
            };
            Some(Answer { kind, done: true })
        };
        let mut rest = Rest { answer, written: Arc::new(AtomicU64::new(NO_ROUND)), asked: None };
        let event =
            |kind, payload: Vec<u8>| Received::Frame(Header { length: payload.len(), kind, more: false, channel: 0 }, payload.into());
        let mut answers = Vec::new();
        rest.look_at(event(FrameType::Quiesce, Quiesce { round: asked }.encode_to_vec()), &mut answers);
        rest.written.store(written, Ordering::Release);
        for kind in between {
            rest.look_at(event(*kind, Vec::new()), &mut answers);
        }
        assert!(answers.is_empty());
        let seen: Vec<_> = batch.iter().map(|kind| rest.look_at(event(*kind, Vec::new()), &mut answers)).collect();
        let mut reader = FrameReader::default();
        reader.push(&answers);
        let written: Vec<_> = all(&mut reader);
        assert_eq!(written.len(), seen.iter().filter(|event| matches!(event, Received::Answered { .. })).count());
        let kinds = seen.iter().filter_map(|event| if let Received::Answered { header, .. } = event { Some(header.kind) } else { None });
        kinds.collect()
    }

    #[test]
    fn a_hello_and_its_adopt_are_answered_at_once_while_the_link_is_at_rest_and_at_no_other_time() {
        use FrameType::{Adopt, Hello, Open, Ping, Resume};
        assert_eq!(answered(3, 3, &[], &[Hello]), [Hello]);
        assert_eq!(answered(3, 3, &[], &[Hello, Adopt]), [Hello, Adopt]);
        assert_eq!(answered(3, 3, &[], &[Hello, Adopt, Open, Adopt]), [Hello, Adopt]);
        // An ADOPT alone is of a session that the session knows of; a second HELLO begins another.
        assert_eq!(answered(3, 3, &[], &[Adopt]), []);
        assert_eq!(answered(3, 3, &[], &[Hello, Hello, Adopt]), [Hello]);
        // QUIESCED is not written yet, or is not the last, or something came in between.
        assert_eq!(answered(3, 2, &[], &[Hello]), []);
        assert_eq!(answered(3, NO_ROUND, &[], &[Hello]), []);
        assert_eq!(answered(NO_ROUND, NO_ROUND, &[], &[Hello]), []);
        assert_eq!(answered(3, 3, &[Resume], &[Hello]), []);
        assert_eq!(answered(3, 3, &[Ping], &[Hello, Adopt]), []);
    }

    #[test]
    fn a_quiesced_of_another_session_is_no_answer_to_a_quiesce_of_the_same_round() {
        let written = Arc::new(AtomicU64::new(1));
        let mut rest = Rest { answer: |_, _, _| Some(Answer { kind: FrameType::HelloAck, done: true }), written, asked: None };
        let event =
            |kind, payload: Vec<u8>| Received::Frame(Header { length: payload.len(), kind, more: false, channel: 0 }, payload.into());
        let mut answers = Vec::new();
        rest.look_at(event(FrameType::Quiesce, Quiesce { round: 1 }.encode_to_vec()), &mut answers);
        assert!(matches!(rest.look_at(event(FrameType::Hello, Vec::new()), &mut answers), Received::Frame(..)));
        assert!(answers.is_empty());
    }

    #[test]
    fn a_full_buffer_is_read_into_again_when_nobody_has_a_frame_in_it_and_not_before() {
        /// Reads so much that there is no room left, and gives the address of the buffer.
        fn fill(reader: &mut FrameReader, held: &mut Vec<Received>) -> usize {
            let address = reader.room().as_ptr() as usize;
            let bytes = frame(FrameType::Data, 2, &[7; PAYLOAD_BYTES_MAX]);
            for _ in 0..(READ_BYTES - READ_BYTES_MIN) / bytes.len() + 1 {
                reader.room()[..bytes.len()].write_copy_of_slice(&bytes);
                // SAFETY: so many have just been written.
                unsafe { reader.filled(bytes.len()) };
                held.extend(std::iter::from_fn(|| reader.next()));
            }
            address
        }
        let mut reader = FrameReader::default();
        let (mut first, mut second) = (Vec::new(), Vec::new());
        let addresses = [fill(&mut reader, &mut first), fill(&mut reader, &mut second)];
        assert_ne!(addresses[0], addresses[1], "the first is still in use");
        drop(first);
        let third = fill(&mut reader, &mut Vec::new());
        assert_eq!(third, addresses[0]);
        let whole = |event: &Received| matches!(event, Received::Frame(_, payload) if payload[..] == [7; PAYLOAD_BYTES_MAX]);
        assert!(second.iter().all(whole));
        reader.shrink();
        assert!(reader.full.is_empty());
    }

    #[test]
    fn memory_that_waits_to_be_used_again_is_bounded() {
        let mut reader = FrameReader::default();
        let mut held = Vec::new();
        for _ in 0..4 * FULL_BUFFERS_MAX {
            for _ in 0..READ_BYTES / PAYLOAD_BYTES_MAX {
                reader.room();
                reader.push(&frame(FrameType::Data, 2, &[7; PAYLOAD_BYTES_MAX]));
                held.extend(std::iter::from_fn(|| reader.next()));
            }
        }
        assert_eq!(reader.full.len(), FULL_BUFFERS_MAX);
    }

    #[test]
    fn garbage_is_not_kept() {
        let mut reader = FrameReader::default();
        for _ in 0..64 {
            reader.push(&[0xee; 4096]);
            while reader.next().is_some() {}
        }
        assert!(reader.buffer.len() < HEADER_BYTES);
    }
}

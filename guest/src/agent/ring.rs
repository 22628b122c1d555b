//! The last bytes of one output stream, by absolute offset, and the readers that still need some of them.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::utf8;

pub const RING_BYTES_MAX: usize = 256 * 1024;
/// Of all rings together; above it rings give up what no reader needs, and readers get a smaller window.
pub const RETAINED_BYTES_MAX: usize = 16 << 20;
const CROWDED_RING_BYTES_MAX: usize = 32 * 1024;
pub const CHUNK_BYTES_MAX: usize = 32 * 1024;

static RETAINED_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Whether all rings together hold more than they should.
pub fn crowded() -> bool {
    RETAINED_BYTES.load(Ordering::Relaxed) > RETAINED_BYTES_MAX
}

#[derive(Default)]
pub struct Ring {
    content: Mutex<Content>,
    /// Told when the writer may find room again. There is one writer.
    room: Notify,
}

#[derive(Default)]
struct Content {
    bytes: VecDeque<u8>,
    /// Offset of the first retained byte.
    start: u64,
    ended: bool,
    cursors: HashMap<u64, u64>,
    next_cursor: u64,
}

impl Content {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn needed_from(&self) -> u64 {
        self.cursors.values().copied().min().unwrap_or(u64::MAX).min(self.end())
    }

    fn drop_front(&mut self, count: usize) {
        let count = count.min(self.bytes.len());
        self.bytes.drain(..count);
        self.start += count as u64;
        RETAINED_BYTES.fetch_sub(count, Ordering::Relaxed);
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        RETAINED_BYTES.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Chunk {
        offset: u64,
        data: Vec<u8>,
    },
    /// Bytes [from, to) are gone.
    Gap {
        from: u64,
        to: u64,
    },
    /// The only bytes there are begin a code point that has not arrived in full.
    Incomplete,
    Nothing,
    /// Everything has been read and nothing will come.
    Ended,
}

impl Ring {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the stream so far.
    pub fn end(&self) -> u64 {
        self.lock().end()
    }

    /// How many bytes may be added: back-pressure while somebody reads, everything while nobody does.
    pub async fn wait_for_room(&self) -> usize {
        loop {
            let told = self.room.notified();
            {
                let content = self.lock();
                if content.cursors.is_empty() {
                    return CHUNK_BYTES_MAX;
                }
                let limit = if crowded() { CROWDED_RING_BYTES_MAX } else { RING_BYTES_MAX };
                let room = limit.saturating_sub((content.end() - content.needed_from()) as usize);
                if room > 0 {
                    return room.min(CHUNK_BYTES_MAX);
                }
            }
            told.await;
        }
    }

    /// Adds at most what `wait_for_room` allowed; the oldest bytes make way.
    pub fn push(&self, bytes: &[u8]) {
        let mut content = self.lock();
        let over = (content.bytes.len() + bytes.len()).saturating_sub(RING_BYTES_MAX);
        content.drop_front(over);
        content.bytes.extend(bytes);
        RETAINED_BYTES.fetch_add(bytes.len(), Ordering::Relaxed);
    }

    pub fn finish(&self) {
        self.lock().ended = true;
    }

    /// Gives up what no reader needs.
    pub fn give_up_unneeded(&self) {
        let mut content = self.lock();
        let count = content.needed_from().saturating_sub(content.start) as usize;
        content.drop_front(count);
        content.bytes.shrink_to(RING_BYTES_MAX / 8);
    }

    /// A reader from `offset`. None if the stream has not come so far.
    pub fn reader(&self, offset: u64) -> Option<Reader<'_>> {
        let mut content = self.lock();
        if offset > content.end() {
            return None;
        }
        let id = content.next_cursor;
        content.next_cursor += 1;
        content.cursors.insert(id, offset);
        Some(Reader { ring: self, id })
    }
}

/// While it lives, no byte from its position on is lost.
pub struct Reader<'a> {
    ring: &'a Ring,
    id: u64,
}

impl Reader<'_> {
    /// Takes the next chunk. Chunks end between code points of UTF-8 where they can; `incomplete_too` sends what there is.
    pub fn next(&self, incomplete_too: bool) -> Next {
        let mut content = self.ring.lock();
        let Some(&position) = content.cursors.get(&self.id) else { return Next::Ended };
        if position < content.start {
            let to = content.start;
            content.cursors.insert(self.id, to);
            return Next::Gap { from: position, to };
        }
        let skip = (position - content.start) as usize;
        let available = content.bytes.len() - skip;
        if available == 0 {
            return if content.ended { Next::Ended } else { Next::Nothing };
        }
        let mut data: Vec<u8> = content.bytes.range(skip..skip + available.min(CHUNK_BYTES_MAX)).copied().collect();
        let is_last = available <= CHUNK_BYTES_MAX && content.ended;
        let cut = utf8::incomplete_suffix(&data);
        if cut > 0 && !is_last {
            if cut < data.len() {
                data.truncate(data.len() - cut);
            } else if !incomplete_too {
                return Next::Incomplete;
            }
        }
        content.cursors.insert(self.id, position + data.len() as u64);
        drop(content);
        self.ring.room.notify_one();
        Next::Chunk { offset: position, data }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.ring.lock().cursors.remove(&self.id);
        self.ring.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_reader_is_told_of_the_gap_and_gets_the_rest() {
        let ring = Ring::default();
        for _ in 0..10 {
            ring.push(&[b'a'; CHUNK_BYTES_MAX]);
        }
        let lost = (10 * CHUNK_BYTES_MAX - RING_BYTES_MAX) as u64;
        let reader = ring.reader(5).expect("in range");
        assert_eq!(reader.next(false), Next::Gap { from: 5, to: lost });
        assert!(matches!(reader.next(false), Next::Chunk { offset, data } if offset == lost && data.len() == CHUNK_BYTES_MAX));
        assert!(ring.reader(10 * CHUNK_BYTES_MAX as u64 + 1).is_none());
    }

    #[tokio::test]
    async fn a_reader_that_stands_still_holds_the_writer_up() {
        let ring = Ring::default();
        let reader = ring.reader(0).expect("in range");
        let mut pushed = 0;
        while pushed < RING_BYTES_MAX {
            let room = ring.wait_for_room().await;
            ring.push(&vec![b'a'; room]);
            pushed += room;
        }
        let waited = tokio::time::timeout(std::time::Duration::from_millis(50), ring.wait_for_room()).await;
        assert!(waited.is_err());
        assert!(matches!(reader.next(false), Next::Chunk { offset: 0, .. }));
        assert_eq!(ring.wait_for_room().await, CHUNK_BYTES_MAX);
        drop(reader);
        assert_eq!(ring.wait_for_room().await, CHUNK_BYTES_MAX);
    }

    #[test]
    fn chunks_end_between_code_points() {
        let ring = Ring::default();
        let reader = ring.reader(0).expect("in range");
        ring.push("aé".as_bytes().split_at(2).0);
        assert_eq!(reader.next(false), Next::Chunk { offset: 0, data: b"a".to_vec() });
        assert_eq!(reader.next(false), Next::Incomplete);
        ring.push("é".as_bytes().split_at(1).1);
        assert_eq!(reader.next(false), Next::Chunk { offset: 1, data: "é".as_bytes().to_vec() });
        ring.push(&[0xff, 0xe2]);
        assert_eq!(reader.next(false), Next::Chunk { offset: 3, data: vec![0xff] });
        assert_eq!(reader.next(true), Next::Chunk { offset: 4, data: vec![0xe2] });
        ring.push(&[0xf0, 0x9f]);
        ring.finish();
        assert_eq!(reader.next(false), Next::Chunk { offset: 5, data: vec![0xf0, 0x9f] });
        assert_eq!(reader.next(false), Next::Ended);
    }
}

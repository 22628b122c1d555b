//! The input: a tar that may be compressed. Recognised by its first bytes, bounded, and digested while it is read.

use super::failure::{Failure, Result, input_failure};
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

/// Expansion is watched from here on: small inputs may be as repetitive as they like.
const RATIO_FREE_BYTES: u64 = 64 << 20;
/// gzip cannot do better than 1,032; what comes near it holds nothing but one repeated byte.
const RATIO_MAX: u64 = 1_000;

/// The uncompressed tar.
pub struct Input {
    source: Box<dyn Read>,
    compressed_read: Rc<Cell<u64>>,
    digest: Sha256,
    read: u64,
    bytes_max: u64,
}

impl Input {
    /// @param bytes_max - of the uncompressed tar
    pub fn open(raw: impl Read + 'static, bytes_max: u64) -> Result<Self> {
        let compressed_read = Rc::new(Cell::new(0));
        let mut raw = BufReader::with_capacity(256 << 10, Counted { source: raw, read: Rc::clone(&compressed_read) });
        let source: Box<dyn Read> = match first_bytes(&mut raw)? {
            [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(raw)),
            // A frame of its own or a skippable one, which some compressors put first.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Box::new(ZstdFrames::new(raw)),
            [b'B', b'Z', b'h', _] => return Err(Failure::corrupt("compressed with bzip2; layers are plain tar, gzip or zstd")),
            [0xfd, b'7', b'z', b'X'] => return Err(Failure::corrupt("compressed with xz; layers are plain tar, gzip or zstd")),
            _ => Box::new(raw),
        };
        Ok(Self { source, compressed_read, digest: Sha256::new(), read: 0, bytes_max })
    }

    /// `sha256:…` of everything that was read.
    pub fn digest(self) -> String {
        digest_text(self.digest)
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.digest.update(&buffer[..count]);
        self.read += count as u64;
        if self.read > self.bytes_max {
            return Err(Failure::too_large(format!("more than {} bytes uncompressed", self.bytes_max)).into());
        }
        if self.read > RATIO_FREE_BYTES && self.read / RATIO_MAX > self.compressed_read.get() {
            return Err(Failure::too_large(format!("expands more than {RATIO_MAX} times: a compression bomb")).into());
        }
        Ok(count)
    }
}

pub fn digest_text(digest: Sha256) -> String {
    let hex: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// `Counted` hands over fewer than four only at the end of the input.
fn first_bytes(raw: &mut BufReader<impl Read>) -> Result<[u8; 4]> {
    let mut first = [0; 4];
    let have = raw.fill_buf().map_err(input_failure)?;
    let Some(have) = have.first_chunk::<4>() else {
        return Err(Failure::corrupt("the input is too short to be a tar"));
    };
    first.copy_from_slice(have);
    Ok(first)
}

struct Counted<R> {
    source: R,
    read: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // A pipe hands over what its writer wrote, which may be single bytes: gathered here, so that what looks at the beginning sees it whole.
        let mut filled = 0;
        while filled < buffer.len().min(4) {
            match self.source.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.read.set(self.read.get() + filled as u64);
        Ok(filled)
    }
}

/// Any number of frames one after another, skippable ones among them.
struct ZstdFrames<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> ZstdFrames<R> {
    fn new(source: R) -> Self {
        Self { source, decoder: FrameDecoder::new(), in_frame: false }
    }

    /// False at the end of the input.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let skipped = io::copy(&mut (&mut self.source).take(length.into()), &mut io::sink())?;
                    if skipped != u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(zstd_error(error)),
            }
        }
    }

    fn check_checksum(&self) -> io::Result<()> {
        match (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum()) {
            (Some(wanted), Some(found)) if wanted != found => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "zstd: the checksum of a frame does not fit its content"))
            }
            _ => Ok(()),
        }
    }
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame {
                if !self.next_frame()? {
                    return Ok(0);
                }
                self.in_frame = true;
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder.decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1)).map_err(zstd_error)?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            self.check_checksum()?;
            self.in_frame = false;
        }
    }
}

/// The decoder wraps what reading the source failed with; either way the input is not a whole zstd stream.
fn zstd_error(error: FrameDecoderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("zstd: {error}"))
}

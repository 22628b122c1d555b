//! Files of the system that the agent reads where nothing else is served meanwhile. A program may have put anything in their place: a pipe
//! must not hold the agent up, and a device that never ends must not fill its memory.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Of what a usual one holds, all at once.
const USUAL_BYTES: usize = 16 << 10;

/// The first `bytes_max` bytes of a regular file.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "is not a regular file"));
    }
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

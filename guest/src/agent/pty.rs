//! Pseudo terminals.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::proto::sandbox::v1::WindowSize;

pub const TERM_DEFAULT: &str = "xterm-256color";
const COLUMNS_DEFAULT: u16 = 80;
const ROWS_DEFAULT: u16 = 24;
/// Ctrl-D: the end of input for a terminal that reads lines.
pub const END_OF_TRANSMISSION: &[u8] = &[4];

/// A new terminal: (our end, the programs' end). The programs' end belongs to `owner`.
pub fn open(size: Option<&WindowSize>, owner: Option<u32>) -> io::Result<(OwnedFd, OwnedFd)> {
    let open = |path: &str| {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC).open(path).map(OwnedFd::from)
    };
    let ours = open("/dev/ptmx")?;
    let unlocked: libc::c_int = 0;
    let mut number: libc::c_uint = 0;
    // SAFETY: both ioctls take a pointer to an int that lives here.
    unsafe {
        if libc::ioctl(ours.as_raw_fd(), libc::TIOCSPTLCK, &unlocked) < 0 || libc::ioctl(ours.as_raw_fd(), libc::TIOCGPTN, &mut number) < 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    let theirs = open(&format!("/dev/pts/{number}"))?;
    if let Some(uid) = owner {
        // SAFETY: plain fchown on our descriptor; devpts may refuse, then the terminal is still usable through the descriptor.
        unsafe { libc::fchown(theirs.as_raw_fd(), uid, u32::MAX) };
    }
    resize(&ours, size)?;
    Ok((ours, theirs))
}

/// Sets the size, for which Linux sends SIGWINCH to the foreground group.
pub fn resize(terminal: &impl AsRawFd, size: Option<&WindowSize>) -> io::Result<()> {
    let clamp = |asked: u32, default: u16| if asked == 0 { default } else { u16::try_from(asked).unwrap_or(u16::MAX) };
    let (columns, rows) = size.map_or((0, 0), |size| (size.cols, size.rows));
    let size = libc::winsize { ws_col: clamp(columns, COLUMNS_DEFAULT), ws_row: clamp(rows, ROWS_DEFAULT), ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the ioctl reads one winsize.
    if unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

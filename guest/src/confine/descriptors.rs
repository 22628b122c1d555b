//! What the program finds open: null, the log twice, the link, the monitor, the files that it was given, and nothing else.

use super::spec::{Access, GivenFile};
use nix::fcntl::{FcntlArg, fcntl};
use std::fs::{File, OpenOptions};
use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

pub const LINK: RawFd = 3;
pub const MONITOR: RawFd = 4;
/// Above every number that a file can be given: what is kept here cannot be in the way of one.
const SPARE: RawFd = 256;

/// Opened while the host's paths and the launcher's rights are still there.
pub struct Files(Vec<(RawFd, OwnedFd)>);

impl Files {
    pub fn open(files: &[GivenFile]) -> Result<Self, String> {
        let open = |given: &GivenFile| {
            let file = OpenOptions::new().read(true).write(given.access == Access::ReadWrite).open(&given.path);
            let spare = file.and_then(|file| Ok(move_up(&file)?));
            spare.map(|spare| (given.fd, spare)).map_err(|error| format!("open {}: {error}", given.path.display()))
        };
        files.iter().map(open).collect::<Result<_, _>>().map(Self)
    }
}

pub fn open_null() -> Result<File, String> {
    OpenOptions::new().read(true).write(true).open("/dev/null").map_err(|error| format!("open /dev/null: {error}"))
}

/// A copy that ends at the exec, out of the way of the numbers that are given out.
fn move_up(file: impl AsFd) -> nix::Result<OwnedFd> {
    let copy = fcntl(file, FcntlArg::F_DUPFD_CLOEXEC(SPARE))?;
    // SAFETY: a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Stdin (the machine's end of the link) becomes 3, stdout (that of the monitor) 4.
pub fn arrange(files: Files, null: File, reason: &mut PipeWriter) -> Result<(), String> {
    let failed = |error: nix::Error| format!("arrange the descriptors: {error}; raise the limit of open files");
    // What they are copied from is closed here, before its number is given out anew.
    let kept_null = move_up(&null).map_err(failed)?;
    drop(null);
    *reason = PipeWriter::from(move_up(&*reason).map_err(failed)?);
    // Everything but stdio ends at the exec, the spare copies and whatever else this process has. First: the copies below must not.
    // SAFETY: sets a flag; no descriptor is closed.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) } != 0 {
        return Err(format!("close what is not given: {}; Linux 5.12 or newer is needed", io::Error::last_os_error()));
    }
    let (null, log) = (kept_null.as_raw_fd(), libc::STDERR_FILENO);
    for (from, to) in [(libc::STDIN_FILENO, LINK), (libc::STDOUT_FILENO, MONITOR), (null, libc::STDIN_FILENO), (log, libc::STDOUT_FILENO)] {
        copy(from, to).map_err(failed)?;
    }
    for (number, spare) in &files.0 {
        copy(spare.as_raw_fd(), *number).map_err(failed)?;
    }
    // The spare copies are closed by the exec, which must not come from a destructor that could close a number given out anew.
    std::mem::forget(files);
    Ok(())
}

/// The copy stays open across the exec.
fn copy(from: RawFd, to: RawFd) -> nix::Result<()> {
    // SAFETY: plain numbers. What `to` was before is closed: below SPARE nothing is owned any more but stdio, which is replaced in order.
    nix::Error::result(unsafe { libc::dup2(from, to) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::FdFlag;

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let missing = GivenFile { fd: 20, path: "/does/not/exist".into(), access: Access::Read };
        let error = Files::open(&[missing]).err().unwrap();
        assert!(error.contains("/does/not/exist"), "{error}");
    }

    #[test]
    fn a_spare_copy_lies_above_the_numbers_given_out_and_ends_at_the_exec() {
        let spare = move_up(open_null().unwrap()).unwrap();
        assert!(spare.as_raw_fd() >= SPARE);
        let flags = fcntl(&spare, FcntlArg::F_GETFD).unwrap();
        assert!(FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC));
    }
}

//! The few kernel calls that `nix` does not wrap, or wraps with a lifetime that a poll loop cannot keep.

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;

/// What may wait in a socket of the link.
const SOCKET_BYTES: usize = 1 << 20;

/// Closes every descriptor above stderr: what a careless parent left open must not live as long as the machine.
pub fn close_inherited() {
    // SAFETY: called first thing in `main`, when no descriptor above 2 is owned by anything in this process.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
}

/// A handle that stays this process's even when its number is used again.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes plain numbers; a result >= 0 is a new descriptor that nobody else owns.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as RawFd)) }
    }
}

pub fn pidfd_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: plain numbers and a null siginfo, which the call allows.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets more wait in the socket for its other end, as far as the host allows it: what does not fit costs a change of process.
pub fn widen(stream: &UnixStream) {
    let _ = nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::SndBuf, &SOCKET_BYTES);
}

pub fn read(fd: BorrowedFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the buffer is writable for its whole length.
        let count = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        if count >= 0 {
            return Ok(count as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// To a socket, without SIGPIPE when the other end is gone.
pub fn send(fd: BorrowedFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the buffer is readable for its whole length.
        let count = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
        if count >= 0 {
            return Ok(count as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Waits for an event; `timeout_ms` -1 = for ever.
pub fn poll(fds: &mut [libc::pollfd], timeout_ms: i32) -> io::Result<()> {
    // SAFETY: the slice is valid for its length for the duration of the call.
    let count = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
    if count >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

/// `struct page_region` of Linux 6.7.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct PageRegion {
    pub start: u64,
    pub end: u64,
    categories: u64,
}

const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct PageScan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, PageScan);

/// Pages in memory or swap that are not the mapped file's own. Fills `regions`, at most `pages_max` pages in all; how many regions, and where to go
/// on.
pub fn scan_private_pages(pagemap: &File, addresses: Range<u64>, regions: &mut [PageRegion], pages_max: usize) -> io::Result<(usize, u64)> {
    let mut scan = PageScan {
        size: size_of::<PageScan>() as u64,
        start: addresses.start,
        end: addresses.end,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        max_pages: pages_max as u64,
        category_inverted: PAGE_IS_FILE,
        category_mask: PAGE_IS_FILE,
        category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        return_mask: PAGE_IS_FILE,
        ..PageScan::default()
    };
    // SAFETY: the structure is as the kernel knows it, and says itself where `regions` is and how long.
    let count = unsafe { pagemap_scan(pagemap.as_raw_fd(), &mut scan) }?;
    Ok((count as usize, scan.walk_end))
}

/// Fills `buffer` with the memory of another process at `ranges`, one after the other. The caller must be allowed to trace it: be its ancestor with
/// the same user, or hold CAP_SYS_PTRACE.
pub fn read_process(pid: i32, ranges: &[Range<u64>], buffer: &mut [u8]) -> io::Result<()> {
    let remote: Vec<RemoteIoVec> =
        ranges.iter().map(|range| RemoteIoVec { base: range.start as usize, len: (range.end - range.start) as usize }).collect();
    let wanted = buffer.len();
    let count = process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(buffer)], &remote)?;
    if count == wanted { Ok(()) } else { Err(io::Error::other("a part of it is gone")) }
}

/// A file in this process's memory, private: what is written to it is not in the file.
pub struct FileMap {
    address: NonNull<libc::c_void>,
    length: NonZeroUsize,
}

impl FileMap {
    pub fn new(file: &File, length: u64) -> io::Result<Self> {
        let length = usize::try_from(length).ok().and_then(NonZeroUsize::new).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a mapping at an address of the kernel's choice replaces nothing.
        let address = unsafe { mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE, file, 0) }?;
        Ok(Self { address, length })
    }

    pub fn address(&self) -> u64 {
        self.address.as_ptr() as u64
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nothing else has its address any more.
        let _ = unsafe { munmap(self.address, self.length.get()) };
    }
}

#[cfg(test)]
impl FileMap {
    pub fn read(&self, offset: u64) -> u8 {
        assert!((offset as usize) < self.length.get());
        // SAFETY: within the mapping, which is readable.
        unsafe { self.address.as_ptr().cast::<u8>().add(offset as usize).read_volatile() }
    }

    pub fn write(&self, offset: u64, byte: u8) {
        assert!((offset as usize) < self.length.get());
        // SAFETY: within the mapping, which is writable, and no reference to it exists.
        unsafe { self.address.as_ptr().cast::<u8>().add(offset as usize).write_volatile(byte) }
    }

    /// Makes the kernel keep the part from `offset` on as a mapping of its own.
    pub fn divide(&self, offset: usize) {
        // SAFETY: within the mapping, and the advice changes no content.
        let rest = unsafe { self.address.byte_add(offset) };
        // SAFETY: as above.
        unsafe { nix::sys::mman::madvise(rest, self.length.get() - offset, nix::sys::mman::MmapAdvise::MADV_DONTFORK) }.unwrap();
    }
}

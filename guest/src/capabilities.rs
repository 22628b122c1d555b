//! What a thread may do (capabilities(7)), by system calls alone: also for a child that shares its parent's memory.

use std::io;

const SETPCAP: u32 = 8;
const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// Of 32 capabilities; there are two of these, lowest first.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Sets {
    pub effective: u32,
    pub permitted: u32,
    pub inheritable: u32,
}

pub fn read() -> io::Result<[Sets; 2]> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: both point to what the kernel expects for version 3: a header and two sets.
    told(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) })?;
    Ok(sets)
}

pub fn write(sets: &[Sets; 2]) -> io::Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: as above; the sets are only read.
    told(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) })
}

pub fn clear_ambient() -> io::Result<()> {
    // SAFETY: plain numbers.
    told(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) }.into())
}

pub fn may_narrow_bounding_set() -> io::Result<bool> {
    Ok(read()?[0].effective & 1 << SETPCAP != 0)
}

/// Takes from the calling thread, and from all threads and programs that come of it, what none of these may gain again. What the thread can do
/// already it keeps. The error has the capability that stayed.
pub fn narrow_bounding_set(kept: u64) -> Result<(), (u32, io::Error)> {
    for capability in (0..64).filter(|capability| kept & 1 << capability == 0) {
        // SAFETY: plain numbers.
        if let Err(error) = told(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }.into()) {
            // The kernel knows no more of them.
            if error.raw_os_error() == Some(libc::EINVAL) && capability > SETPCAP {
                return Ok(());
            }
            return Err((capability, error));
        }
    }
    Ok(())
}

fn told(answer: libc::c_long) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

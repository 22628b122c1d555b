//! Takes away what the work does not need, before the first byte of input is read.

use super::failure::{Failure, Result};
use super::seccomp;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, chroot, fchdir, getegid, geteuid};
use std::fs;
use std::os::fd::AsFd;

const MEMORY_BYTES_MAX: u64 = 4 << 30;
/// A merge holds two for each layer and one for each folder on its way down.
const OPEN_FILES_MAX: u64 = 4_096;

/// Sets owners and modes, reads and links files whatever their mode is, keeps the bits of set-group programs, and sets file capabilities.
const CAPABILITIES: [u32; 5] = [CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_SETFCAP];
const CAP_CHOWN: u32 = 0;
const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_FOWNER: u32 = 3;
const CAP_FSETID: u32 = 4;
const CAP_SETFCAP: u32 = 31;

/// Confines this process to a folder.
///
/// @param file_bytes_max - longest file that can be written
/// @returns the user and group that will own everything on disk, where owners cannot be set: those of an ordinary user
pub fn confine(folder: impl AsFd, file_bytes_max: u64) -> Result<Option<(u32, u32)>> {
    let (uid, gid) = (geteuid(), getegid());
    // Modes are set as they are wanted.
    umask(Mode::empty());
    limit(Resource::RLIMIT_CORE, 0)?;
    limit(Resource::RLIMIT_AS, MEMORY_BYTES_MAX)?;
    limit(Resource::RLIMIT_NOFILE, OPEN_FILES_MAX)?;
    // The write that would pass the limit fails with EFBIG instead of ending the process.
    // SAFETY: ignoring a signal runs no code.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.map_err(|error| Failure::system("ignore SIGXFSZ", error))?;
    limit(Resource::RLIMIT_FSIZE, file_bytes_max)?;
    // Held until here: all that the caller has. An ordinary user gets the right to chroot in a user namespace of its own, in which it is alone.
    if !uid.is_root() {
        unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| needs_namespaces("make a user namespace", error))?;
        // /proc is gone after the chroot. Groups must be denied before the group is mapped, or the kernel refuses the map.
        for (file, text) in [("setgroups", "deny".into()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))] {
            fs::write(format!("/proc/self/{file}"), text).map_err(|error| Failure::system(&format!("write /proc/self/{file}"), error))?;
        }
    }
    // Needs CAP_SYS_CHROOT, which is also what could lead out again: it is dropped right after.
    fchdir(folder).map_err(|error| Failure::system("enter the folder", error))?;
    // Some systems give a user namespace to everybody and no rights in it.
    chroot(".").map_err(|error| needs_namespaces("chroot", error))?;
    chdir("/").map_err(|error| Failure::system("enter the new root", error))?;
    // Nothing is ever executed from here on; if it were, it would gain nothing.
    nix::sys::prctl::set_no_new_privs().map_err(|error| Failure::system("set no_new_privs", error))?;
    keep_capabilities()?;
    // Last: it would refuse the steps above.
    seccomp::allow_only_files()?;
    Ok((!uid.is_root()).then(|| (uid.as_raw(), gid.as_raw())))
}

fn needs_namespaces(what: &str, error: nix::Error) -> Failure {
    let mut failure = Failure::system(what, error);
    failure.detail.push_str("; allow unprivileged user namespaces, or run the server as root");
    failure
}

fn limit(resource: Resource, most: u64) -> Result<()> {
    let (_, hard) = nix::sys::resource::getrlimit(resource).map_err(|error| Failure::system("read a limit", error))?;
    let most = most.min(hard);
    setrlimit(resource, most, most).map_err(|error| Failure::system("set a limit", error))
}

/// Of those that this process has: a server in a container may lack some, and then fails where it needs them.
fn keep_capabilities() -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: both point to what the kernel expects for version 3: a header and two sets.
    if unsafe { libc::syscall(libc::SYS_capget, &header, data.as_mut_ptr()) } != 0 {
        return Err(Failure::system("read the capabilities", nix::Error::last()));
    }
    let wanted = CAPABILITIES.iter().fold(0_u32, |set, capability| set | 1 << capability) & data[0].permitted;
    let data = [Data { effective: wanted, permitted: wanted, inheritable: 0 }, Data::default()];
    // SAFETY: as above; the kernel only reads.
    if unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) } != 0 {
        return Err(Failure::system("drop the capabilities", nix::Error::last()));
    }
    Ok(())
}

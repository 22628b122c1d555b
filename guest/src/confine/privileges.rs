//! The last steps before the exec: user, capabilities, and what could bring either back.

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};
use std::fs;
use std::io;

const CAP_SETPCAP: u32 = 8;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilitySet {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Held until here: what the launcher has, all capabilities in its user namespace or none. Held afterwards: nothing but the user's own files.
pub fn drop_all(uid: Option<u32>, gid: Option<u32>) -> Result<(), String> {
    umask(Mode::from_bits_truncate(0o077));
    // No core file of a guest's memory on the host.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|error| format!("forbid core files: {error}"))?;
    // Before the user changes: it takes CAP_SETPCAP, which goes with the change. Without them not even root's exec gives capabilities back.
    drop_bounding()?;
    leave_groups()?;
    if let Some(gid) = gid.map(Gid::from_raw) {
        setresgid(gid, gid, gid).map_err(|error| format!("become group {gid}: {error}; only root changes groups"))?;
    }
    if let Some(uid) = uid.map(Uid::from_raw) {
        setresuid(uid, uid, uid).map_err(|error| format!("become user {uid}: {error}; only root changes users"))?;
    }
    empty_capabilities()?;
    nix::sys::prctl::set_no_new_privs().map_err(|error| format!("set no_new_privs: {error}"))
}

/// The groups of whoever starts the machine are not the machine's. In a namespace of an ordinary user they cannot be left.
fn leave_groups() -> Result<(), String> {
    let fixed = fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny");
    match setgroups(&[]) {
        Err(nix::Error::EPERM) if fixed || !geteuid().is_root() => Ok(()),
        other => other.map_err(|error| format!("leave the groups: {error}")),
    }
}

/// Refused to a process without CAP_SETPCAP, for which no_new_privs says the same: nothing that it executes gains anything.
fn drop_bounding() -> Result<(), String> {
    if !may_drop_bounding()? {
        return Ok(());
    }
    for capability in 0..64 {
        // SAFETY: plain numbers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            let error = io::Error::last_os_error();
            // The kernel knows no more of them.
            if error.raw_os_error() == Some(libc::EINVAL) && capability > CAP_SETPCAP {
                return Ok(());
            }
            return Err(format!("drop capability {capability} from the bounding set: {error}"));
        }
    }
    Ok(())
}

fn may_drop_bounding() -> Result<bool, String> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut sets = [CapabilitySet::default(); 2];
    // SAFETY: both point to what the kernel expects for version 3: a header and two sets.
    if unsafe { libc::syscall(libc::SYS_capget, &header, sets.as_mut_ptr()) } != 0 {
        return Err(format!("read the capabilities: {}", io::Error::last_os_error()));
    }
    Ok(sets[0].effective & 1 << CAP_SETPCAP != 0)
}

fn empty_capabilities() -> Result<(), String> {
    // SAFETY: plain numbers.
    if unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) } != 0 {
        return Err(format!("clear the ambient capabilities: {}", io::Error::last_os_error()));
    }
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let sets = [CapabilitySet::default(); 2];
    // SAFETY: as above; the kernel only reads.
    if unsafe { libc::syscall(libc::SYS_capset, &header, sets.as_ptr()) } != 0 {
        return Err(format!("empty the capability sets: {}", io::Error::last_os_error()));
    }
    Ok(())
}

//! The last steps before the exec: user, capabilities, and what could bring either back.

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};
use std::fs;

use crate::capabilities;

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
    if !capabilities::may_narrow_bounding_set().map_err(|error| format!("read the capabilities: {error}"))? {
        return Ok(());
    }
    capabilities::narrow_bounding_set(0)
        .map_err(|(capability, error)| format!("drop capability {capability} from the bounding set: {error}"))
}

fn empty_capabilities() -> Result<(), String> {
    capabilities::clear_ambient().map_err(|error| format!("clear the ambient capabilities: {error}"))?;
    capabilities::write(&Default::default()).map_err(|error| format!("empty the capability sets: {error}"))
}

//! What PID 1 does first: the folders, file systems and environment that programs expect.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{changes, connection, egress, identity, paths, programs, socket, spawn};

const PATH: &str = "/opt/mitos/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Of the agent's own environment; programs do not see them.
const OWN_VARIABLES: [&str; 5] =
    [paths::TEST_ROOT_VARIABLE, TMP_ON_ROOT_VARIABLE, changes::WRITTEN_FD_VARIABLE, connection::PORT_VARIABLE, "MITOS_RLIMIT_NOFILE"];
/// Set where /tmp is to be part of the root file system and not in memory.
const TMP_ON_ROOT_VARIABLE: &str = "MITOS_TMP_ON_ROOT";

/// Failures are logged, not fatal: a machine that can still answer can say what is wrong with it.
pub fn run() {
    // SAFETY: sets our own mask.
    unsafe { libc::umask(0o022) };
    // SAFETY: cannot fail.
    if unsafe { libc::getpid() } == 1 && paths::test_root().is_none() {
        if std::env::var_os(TMP_ON_ROOT_VARIABLE).is_some()
            && let Err(error) = umount2("/tmp", MntFlags::MNT_DETACH)
        {
            eprintln!("init: cannot unmount /tmp: {error}");
        }
        mount_file_systems();
        programs::prepare();
        stand_apart();
        forget_fault_handlers();
        if let Err(error) = spawn::narrow_bounding_set() {
            eprintln!("init: each program has to give up capabilities by itself: {error}");
        }
    }
    close_inherited_on_exec();
    for (path, mode) in [("/tmp", 0o1777), ("/run", 0o755), ("/run/sandbox", 0o755), ("/workspace", 0o755), ("/etc", 0o755)] {
        make_dir(&paths::own(path), mode);
    }
    identity::set_base_environment(base_environment(std::env::vars()));
}

/// A saved user id that no program has. The kernel lets who has all ids of a process change its limits: root's programs would have ours. They get their
/// own back when they are executed.
fn stand_apart() {
    const NOBODY_ELSE: libc::uid_t = 65_533;
    // SAFETY: changes our own ids alone, before there is another thread.
    if unsafe { libc::setresuid(libc::uid_t::MAX, libc::uid_t::MAX, NOBODY_ELSE) } < 0 {
        eprintln!("init: programs of root can change the agent's limits: {}", std::io::Error::last_os_error());
    }
}

/// The standard library's, which tell of a stack that is too small. Two signals at once that programs send would run in them one upon the other, and find
/// their own small stack too small: then a kernel ends its process 1. With the default action none that a program sends reaches it.
fn forget_fault_handlers() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: sets the default action of our own.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// What we were started with is not for programs. All that we open ourselves is closed on exec from the start.
fn close_inherited_on_exec() {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    for number in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).filter(|number| *number > 2) {
        // SAFETY: sets a flag on a descriptor number; at worst it is closed already.
        unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

fn base_environment(inherited: impl Iterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let defaults = [("PATH", PATH), ("HOME", "/root"), ("USER", "root"), ("LOGNAME", "root"), ("LANG", "C.UTF-8"), ("SHELL", "/bin/sh")];
    let mut environment: BTreeMap<String, String> = defaults.map(|(key, value)| (key.into(), value.into())).into();
    environment.extend(egress::environment());
    environment.extend(inherited.filter(|(key, _)| !OWN_VARIABLES.contains(&key.as_str())));
    environment.insert("MITOS_SOCKET".into(), paths::own(socket::PATH).to_string_lossy().into_owned());
    environment
}

fn make_dir(path: &Path, mode: u32) {
    if path.is_dir() {
        return;
    }
    let made = std::fs::create_dir_all(path).and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)));
    if let Err(error) = made {
        eprintln!("init: cannot make {}: {error}", path.display());
    }
}

/// Mounts what nobody has mounted: an OCI runtime has done all of it, a bare virtual machine nothing.
fn mount_file_systems() {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let devices = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    // Proof that it is there, source and type, where, flags, options.
    let wanted: [(&str, &str, &str, MsFlags, Option<&str>); 5] = [
        ("/proc/self/stat", "proc", "/proc", plain, None),
        ("/dev/null", "devtmpfs", "/dev", devices - MsFlags::MS_NOEXEC, Some("mode=0755")),
        ("/dev/pts/ptmx", "devpts", "/dev/pts", devices, Some("newinstance,ptmxmode=0666,mode=0620,gid=5")),
        ("/dev/shm", "tmpfs", "/dev/shm", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=1777")),
        ("/sys/kernel", "sysfs", "/sys", plain, None),
    ];
    for (proof, kind, target, flags, options) in wanted {
        if Path::new(proof).exists() {
            continue;
        }
        make_dir(Path::new(target), 0o755);
        if let Err(error) = mount(Some(kind), target, Some(kind), flags, options) {
            eprintln!("init: cannot mount {kind} on {target}: {error}");
        }
    }
    if !Path::new("/dev/ptmx").exists()
        && let Err(error) = std::os::unix::fs::symlink("pts/ptmx", "/dev/ptmx")
    {
        eprintln!("init: cannot make /dev/ptmx: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_was_started_with_goes_over_the_defaults_and_our_own_variables_stay_ours() {
        let inherited = [("PATH", "/x"), ("A", "1"), (paths::TEST_ROOT_VARIABLE, "/t")];
        let environment = base_environment(inherited.map(|(key, value)| (key.into(), value.into())).into_iter());
        assert_eq!(environment.get("PATH").map(String::as_str), Some("/x"));
        assert_eq!(environment.get("A").map(String::as_str), Some("1"));
        assert_eq!(environment.get("LANG").map(String::as_str), Some("C.UTF-8"));
        assert!(!environment.contains_key(paths::TEST_ROOT_VARIABLE));
    }
}

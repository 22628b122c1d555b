//! How this machine's kernel is to behave, and what programs may not touch of it: a kernel that is ours alone gives the root of its programs
//! more than one that is shared.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};

/// A machine that is out of memory ends as a whole, and its console says so: what would be left after a choice of the kernel's is nothing
/// that anybody could rely on. One that has panicked ends.
///
/// How many files all programs have open together is bound by memory alone, as by systemd's default: the kernel's own figure for a machine of
/// 512 MiB is less than one program may have, which then would leave none for the others.
const SETTINGS: [(&str, &str); 5] = [
    ("/proc/sys/fs/file-max", "9223372036854775807"),
    ("/proc/sys/vm/panic_on_oom", "2"),
    ("/proc/sys/kernel/panic", "-1"),
    ("/proc/sys/kernel/sysrq", "0"),
    ("/proc/sys/kernel/dmesg_restrict", "1"),
];
/// A disk's writes are not held back for the sake of its reads: that is for slow disks, and its timers run ten times a second, also in a machine that has just
/// been forked and is about to answer.
const WRITEBACK_UNTHROTTLED: &str = "0";
/// The kernel's own ceiling is what a machine of its size can bear: limits of programs are set below this.
const OPEN_FILES_MAX: u64 = 1_048_576;
/// The settings of the kernel are files that belong to root, whose programs lack the capabilities but have the user id.
const READ_ONLY: [&str; 6] = ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/sys"];

/// Before there are programs.
pub fn configure() -> Result<(), String> {
    for (path, value) in SETTINGS {
        fs::write(path, value).map_err(|error| format!("set {path}: {error}"))?;
    }
    for disk in fs::read_dir("/sys/block").map_err(|error| format!("list /sys/block: {error}"))?.flatten() {
        // Not every kernel has it.
        let _ = fs::write(disk.path().join("queue/wbt_lat_usec"), WRITEBACK_UNTHROTTLED);
    }
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES_MAX, OPEN_FILES_MAX)
        .map_err(|error| format!("raise the limit of open files: {error}"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|error| format!("forbid core dumps: {error}"))?;
    loopback_up().map_err(|error| format!("bring the loopback interface up: {error}"))
}

/// In the root of programs, when all is set.
pub fn protect() -> Result<(), String> {
    for path in READ_ONLY.into_iter().map(Path::new).filter(|path| path.exists()) {
        let failed = |error: nix::Error| format!("make {} read-only: {error}", path.display());
        mount(Some(path), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(failed)?;
        let flags =
            MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(None::<&str>, path, None::<&str>, flags, None::<&str>).map_err(failed)?;
    }
    Ok(())
}

/// The only network that a machine has of its own.
fn loopback_up() -> std::io::Result<()> {
    // SAFETY: makes a socket, and gives the kernel one ifreq with a name and its flags.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        let set = libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &raw const request);
        let error = std::io::Error::last_os_error();
        libc::close(socket);
        if set < 0 { Err(error) } else { Ok(()) }
    }
}

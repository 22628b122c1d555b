//! From the kernel's first process to the agent: what the initramfs of a virtual machine starts (docs/microvm.md).
//!
//! Loads the kernel's modules, puts the root file system together, moves into it and becomes the agent, with the link as its stdin and stdout
//! and the console as its stderr. A failure ends the machine at once: the last line on the console says why. So does the end of the agent,
//! which the kernel calls a panic.

mod devices;
mod kernel;
mod link;
mod modules;
mod root;

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::unistd::execve;

use crate::agent::{LINK_PORT_VARIABLE, WRITTEN_FD_VARIABLE};

/// Where the program lies in the initramfs and, with the same content, in every machine.
const AGENT: &str = "/opt/mitos/bin/mitos-guest";

/// As process 1 it never returns to the kernel alive, which would be a panic that says less.
pub fn main() -> std::process::ExitCode {
    let Err(error) = boot();
    eprintln!("mitos: cannot boot: {error}");
    // SAFETY: asks the kernel to end the machine; as another process than root's first it is refused.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    std::process::ExitCode::FAILURE
}

fn boot() -> Result<Infallible, String> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        std::fs::create_dir_all(target).map_err(|error| format!("make {target}: {error}"))?;
        let flags = if kind == "devtmpfs" { MsFlags::MS_NOSUID } else { MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC };
        mount(Some(kind), target, Some(kind), flags, None::<&str>).map_err(|error| format!("mount {target}: {error}"))?;
    }
    modules::load_all(Path::new("/modules"))?;
    kernel::configure()?;
    let written = root::enter()?;
    link::open_console()?;
    let vsock_port = link::vsock_port()?;
    if vsock_port.is_none() {
        link::open_port()?;
    }
    devices::narrow()?;
    kernel::protect()?;
    let program = CString::new(AGENT).map_err(|error| error.to_string())?;
    // SAFETY: clears a flag of a descriptor that is ours.
    unsafe { libc::fcntl(written.as_raw_fd(), libc::F_SETFD, 0) };
    let link = vsock_port.map(|port| (LINK_PORT_VARIABLE, port.to_string()));
    let environment = [(WRITTEN_FD_VARIABLE, written.as_raw_fd().to_string())].into_iter().chain(link);
    let environment: Result<Vec<_>, _> = environment.map(|(name, value)| CString::new(format!("{name}={value}"))).collect();
    let environment = environment.map_err(|error| error.to_string())?;
    execve(&program, &[program.clone(), c"agent".into()], &environment).map_err(|error| format!("start {AGENT}: {error}"))
}

/// What follows `name` (with its `=`) on the kernel's command line.
fn parameter(name: &str) -> Result<Option<String>, String> {
    let line = std::fs::read_to_string("/proc/cmdline").map_err(|error| format!("read the kernel's command line: {error}"))?;
    Ok(line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_owned))
}

//! From the kernel's first process to the agent: what the initramfs of a virtual machine starts (docs/microvm.md).
//!
//! Loads the kernel's modules, puts the root file system together, moves into it and becomes the agent, with the link as its stdin and stdout
//! and the console as its stderr. A failure ends the machine at once: the last line on the console says why.

mod devices;
mod modules;
mod root;

use std::convert::Infallible;
use std::ffi::CString;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::unistd::execv;

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
    root::enter()?;
    devices::open_console_and_link()?;
    let program = CString::new(AGENT).map_err(|error| error.to_string())?;
    execv(&program, &[program.clone(), c"agent".into()]).map_err(|error| format!("start {AGENT}: {error}"))
}

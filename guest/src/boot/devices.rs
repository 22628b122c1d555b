//! The devices of programs: those of an ordinary container, and no other. The agent adds terminals and shared memory.

use std::fs;
use std::os::unix::fs::symlink;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A place that is empty before there are programs.
const NEW: &str = "/run/mitos-dev";
const NODES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const LINKS: [(&str, &str); 5] = [
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Puts a folder with these alone in place of the kernel's, which has the disks, the console and the link as well. Each is a mount of its
/// own, so that a node that root makes there, or anywhere else, is of no use.
pub fn narrow() -> Result<(), String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what} the devices of programs: {error}");
    fs::create_dir_all(NEW).map_err(|error| failed("prepare", &error))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), NEW, Some("tmpfs"), flags, Some("mode=0755,size=64k")).map_err(|error| failed("mount", &error))?;
    for name in NODES {
        let node = format!("{NEW}/{name}");
        fs::write(&node, "").map_err(|error| failed("prepare", &error))?;
        mount(Some(format!("/dev/{name}").as_str()), node.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|error| failed("mount", &error))?;
    }
    for (name, target) in LINKS {
        symlink(target, format!("{NEW}/{name}")).map_err(|error| failed("link", &error))?;
    }
    umount2("/dev", MntFlags::MNT_DETACH).map_err(|error| failed("unmount", &error))?;
    mount(Some(NEW), "/dev", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(|error| failed("move", &error))?;
    fs::remove_dir(NEW).map_err(|error| failed("clear up after", &error))
}

//! Namespaces of its own, and a folder as the whole root file system.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, getegid, geteuid, pivot_root};
use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

const DEVICES: [&str; 3] = ["/dev/null", "/dev/zero", "/dev/urandom"];
const DEV_OPTIONS: &str = "size=64k,nr_inodes=64,mode=0755";
const TMP_OPTIONS: &str = "size=16m,nr_inodes=1024,mode=1777";

/// First, while the host's paths are there. The child is born in them, so that not a byte of its memory counts elsewhere.
pub fn join_cgroups(cgroups: &[PathBuf]) -> Result<(), String> {
    for path in cgroups {
        // Not created: in a folder that is no cgroup the file would be an ordinary one, and nothing limited.
        let joined = OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(b"0"));
        joined.map_err(|error| format!("join the cgroup {}: {error}; make it first, with limits that admit a process", path.display()))?;
    }
    Ok(())
}

/// The namespaces that must be there before the child: the one that gives an ordinary user the right to make the others, and that of pids.
pub fn enter_outer_namespaces() -> Result<(), String> {
    let (uid, gid) = (geteuid(), getegid());
    if !uid.is_root() {
        unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| refused("a user", error))?;
        // The kernel wants setgroups denied before an unprivileged gid_map.
        for (file, content) in
            [("setgroups", "deny".to_string()), ("uid_map", format!("{uid} {uid} 1")), ("gid_map", format!("{gid} {gid} 1"))]
        {
            fs::write(format!("/proc/self/{file}"), &content)
                .map_err(|error| format!("write {content:?} to /proc/self/{file}: {error}"))?;
        }
    }
    unshare(CloneFlags::CLONE_NEWPID).map_err(|error| refused("a pid", error))
}

fn refused(which: &str, error: nix::Error) -> String {
    format!("create {which} namespace: {error}; allow user namespaces (sysctl user.max_user_namespaces > 0), or start the server as root")
}

/// Afterwards no path of the host can be reached. Needs CAP_SYS_ADMIN in the user namespace, which `privileges` drops later.
pub fn enter(root: &Path, devices: &[PathBuf]) -> Result<(), String> {
    let inner = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    unshare(inner).map_err(|error| refused("a mount, network, IPC or UTS", error))?;
    // Nothing mounted from here on may show on the host.
    attach(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
    attach(Some(root), root, None, MsFlags::MS_BIND, None)?;
    read_only(root, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV)?;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Of the host's settings and devices nothing shows in it: `subset=pid` leaves processes only, and of those it sees itself.
    attach(Some(Path::new("proc")), &root.join("proc"), Some("proc"), plain, Some("subset=pid"))?;
    attach(Some(Path::new("tmpfs")), &root.join("tmp"), Some("tmpfs"), plain, Some(TMP_OPTIONS))?;
    mount_devices(root, devices)?;
    // The new root over the old one, which is then the upper of the two and taken away.
    chdir(root).map_err(|error| format!("enter {}: {error}", root.display()))?;
    pivot_root(".", ".")
        .map_err(|error| format!("change the root to {}: {error}; is the server's own root a plain mount?", root.display()))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(|error| format!("detach the old root: {error}"))?;
    chdir("/").map_err(|error| format!("enter the new root: {error}"))
}

/// Bound from the host: an ordinary user may not make device files, not even in a namespace.
fn mount_devices(root: &Path, devices: &[PathBuf]) -> Result<(), String> {
    let dev = root.join("dev");
    attach(Some(Path::new("tmpfs")), &dev, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, Some(DEV_OPTIONS))?;
    for device in DEVICES.iter().map(Path::new).chain(devices.iter().map(PathBuf::as_path)) {
        let is_device = fs::metadata(device).is_ok_and(|file| file.file_type().is_char_device());
        let name = device.file_name().filter(|_| is_device).ok_or_else(|| format!("{} is not a character device", device.display()))?;
        let target = dev.join(name);
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&target)
            .map_err(|error| format!("create {}: {error}", target.display()))?;
        attach(Some(device), &target, None, MsFlags::MS_BIND, None)?;
    }
    read_only(&dev, libc::MOUNT_ATTR_RDONLY)
}

fn attach(source: Option<&Path>, target: &Path, kind: Option<&str>, flags: MsFlags, options: Option<&str>) -> Result<(), String> {
    let what = source.map_or_else(String::new, |source| format!("{} on ", source.display()));
    mount(source, target, kind, flags, options)
        .map_err(|error| format!("mount {what}{}: {error}; mounting must be allowed", target.display()))
}

/// Adds to what the mount has: flags that a user namespace has locked must not be given up, which a remount would have to repeat one by one.
fn read_only(target: &Path, attributes: u64) -> Result<(), String> {
    let path = CString::new(target.as_os_str().as_bytes()).map_err(|error| format!("{}: {error}", target.display()))?;
    let change = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path ends with NUL, and the size is that of the structure, which the kernel only reads.
    let result =
        unsafe { libc::syscall(libc::SYS_mount_setattr, libc::AT_FDCWD, path.as_ptr(), 0, &change, size_of::<libc::mount_attr>()) };
    if result == 0 {
        return Ok(());
    }
    Err(format!("make {} read-only: {}; Linux 5.12 or newer is needed", target.display(), io::Error::last_os_error()))
}

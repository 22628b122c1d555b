//! The root file system: the template's read-only image, and what the machine writes over it.

use std::fs::{self, File};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

/// Of ours, in the initramfs: what every root has below the image (folders that programs expect) and above it (the agent, our files in /etc).
const OWN_LOWER: &str = "/own/lower";
const OWN_UPPER: &str = "/own/upper";
const IMAGE: &str = "/image";
/// Holds the folders `data` and `work` of the overlay.
const WRITTEN: &str = "/written";
const ROOT: &str = "/root";
/// Files in /etc that every child of a fork gets anew. In memory they cost it no access to its disk, the first of which is slow.
const IDENTITY: &str = "/identity";
const IDENTITY_FILES: [&str; 3] = ["hostname", "hosts", "machine-id"];

/// Names a block device with what is written; without it, that lies in the machine's memory.
const DISK_PARAMETER: &str = "mitos.disk=";

/// Mounts it and makes it this process's root, as whoever starts an operating system does. What comes back is the folder of what is written,
/// which no path leads to from there.
pub fn enter() -> Result<File, String> {
    for dir in [IMAGE, WRITTEN, ROOT] {
        fs::create_dir_all(dir).map_err(|error| format!("make {dir}: {error}"))?;
    }
    mounted("/dev/vda", IMAGE, "erofs", MsFlags::MS_RDONLY | MsFlags::MS_NODEV, None)?;
    match super::parameter(DISK_PARAMETER)? {
        Some(device) => mounted(&device, WRITTEN, "ext4", MsFlags::MS_NOATIME | MsFlags::MS_NODEV, Some("discard"))?,
        None => mounted("tmpfs", WRITTEN, "tmpfs", MsFlags::MS_NODEV, Some("mode=0755,size=100%"))?,
    }
    let (data, work) = (format!("{WRITTEN}/data"), format!("{WRITTEN}/work"));
    for dir in [&data, &work] {
        fs::create_dir_all(dir).map_err(|error| format!("make {dir}: {error}"))?;
    }
    // The agent tells what was changed by what is in `data`: so each file there is whole, and lies where programs see it.
    let options =
        format!("lowerdir={OWN_UPPER}:{IMAGE}:{OWN_LOWER},upperdir={data},workdir={work},xino=off,metacopy=off,redirect_dir=off,index=off");
    let written = File::open(&data).map_err(|error| format!("open {data}: {error}"))?;
    mounted("overlay", ROOT, "overlay", MsFlags::MS_NODEV, Some(&options))?;
    mounted("tmpfs", &format!("{ROOT}/run"), "tmpfs", MsFlags::MS_NODEV | MsFlags::MS_NOSUID, Some("mode=0755"))?;
    identity_in_memory()?;
    for dir in ["dev", "proc", "sys"] {
        let target = format!("{ROOT}/{dir}");
        let from = format!("/{dir}");
        mount(Some(from.as_str()), target.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .map_err(|error| format!("move {from} into the root: {error}"))?;
    }
    let failed = |error: nix::Error| format!("enter the root: {error}");
    chdir(ROOT).map_err(failed)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(failed)?;
    chroot(".").and_then(|()| chdir("/")).map_err(failed)?;
    Ok(written)
}

fn identity_in_memory() -> Result<(), String> {
    fs::create_dir_all(IDENTITY).map_err(|error| format!("make {IDENTITY}: {error}"))?;
    mounted("tmpfs", IDENTITY, "tmpfs", MsFlags::MS_NODEV | MsFlags::MS_NOSUID, Some("mode=0755,size=1m"))?;
    for name in IDENTITY_FILES {
        let (from, to) = (format!("{IDENTITY}/{name}"), format!("{ROOT}/etc/{name}"));
        fs::copy(&to, &from).map_err(|error| format!("copy {to}: {error}"))?;
        mount(Some(from.as_str()), to.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|error| format!("mount {from} on {to}: {error}"))?;
    }
    Ok(())
}

fn mounted(source: &str, target: &str, kind: &str, flags: MsFlags, options: Option<&str>) -> Result<(), String> {
    mount(Some(source), Path::new(target), Some(kind), flags, options)
        .map_err(|error| format!("mount {kind} {source} on {target}: {error}"))
}

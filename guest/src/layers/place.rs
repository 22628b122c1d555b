//! Files below one folder, reached by handles only: no step follows a symbolic link or leaves the folder.

use super::failure::{Failure, Result};
use super::index::Meta;
use super::names::{self, Bytes};
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

pub struct Place {
    top: OwnedFd,
    /// The folder that was opened last: entries mostly come in the order of their folders.
    last: Option<(Vec<u8>, OwnedFd)>,
}

impl Place {
    pub fn new(top: OwnedFd) -> Self {
        Self { top, last: None }
    }

    /// After a folder was removed, its handle must not be used for a new one of the same name.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// Handle of a folder, for what is named in it.
    pub fn folder(&mut self, parts: &[Bytes]) -> Result<&OwnedFd> {
        if parts.is_empty() {
            return Ok(&self.top);
        }
        let path = names::join(parts);
        if self.last.as_ref().is_none_or(|(known, _)| *known != path) {
            let how = OpenHow::new()
                .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV);
            let folder =
                openat2(&self.top, OsStr::from_bytes(&path), how).map_err(|error| Failure::system("open a folder", error).at(&path))?;
            self.last = Some((path, folder));
        }
        Ok(&self.last.as_ref().expect("it was set above").1)
    }
}

pub fn os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

/// A new file; nothing may be there.
pub fn create_file(folder: &OwnedFd, name: &[u8]) -> Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let made =
        openat(folder, os(name), flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|error| Failure::system("create a file", error).at(name))?;
    Ok(made.into())
}

pub fn open_file(folder: &OwnedFd, name: &[u8]) -> Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    Ok(openat(folder, os(name), flags, Mode::empty()).map_err(|error| Failure::system("open a file", error).at(name))?.into())
}

/// A second handle, independent of the one that a `Place` keeps.
pub fn open_path(folder: &OwnedFd) -> Result<OwnedFd> {
    folder.try_clone().map_err(|error| Failure::system("open a folder", error))
}

pub fn open_folder(folder: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(folder, os(name), flags, Mode::empty()).map_err(|error| Failure::system("open a folder", error).at(name))
}

/// Owner, attributes, mode and time of an open file or folder, in the order in which none undoes another: a new owner clears the set-user bit
/// and file capabilities.
pub fn describe(file: impl AsFd, meta: &Meta, set_owner: bool) -> Result<()> {
    if set_owner {
        nix::unistd::fchown(&file, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))
            .map_err(|error| Failure::system("set an owner", error))?;
    }
    for (name, value) in &meta.xattrs {
        // A file system may not know attributes, or have less room for them: the index keeps them all the same.
        if let Ok(name) = CString::new(&*name.0) {
            // SAFETY: the name ends with a zero, and the value is as long as is said.
            unsafe { libc::fsetxattr(file.as_fd().as_raw_fd(), name.as_ptr(), value.0.as_ptr().cast(), value.0.len(), 0) };
        }
    }
    fchmod(&file, Mode::from_bits_truncate(meta.mode)).map_err(|error| Failure::system("set a mode", error))?;
    let time = TimeSpec::new(meta.mtime.0, i64::from(meta.mtime.1));
    nix::sys::stat::futimens(&file, &time, &time).map_err(|error| Failure::system("set a time", error))
}

pub fn make_symlink(folder: &OwnedFd, name: &[u8], target: &[u8], meta: &Meta, set_owner: bool) -> Result<()> {
    nix::unistd::symlinkat(os(target), folder, os(name)).map_err(|error| Failure::system("make a symbolic link", error))?;
    if set_owner {
        let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
        fchownat(folder, os(name), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|error| Failure::system("set an owner", error))?;
    }
    let time = TimeSpec::new(meta.mtime.0, i64::from(meta.mtime.1));
    utimensat(folder, os(name), &time, &time, UtimensatFlags::NoFollowSymlink).map_err(|error| Failure::system("set a time", error))
}

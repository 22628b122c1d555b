//! Trees of /workspace as tar: `Archive` out, `Upload` in.
//!
//! Programs in the sandbox may swap a directory for a symbolic link at any moment, so both walk by directory handles and never follow a link:
//! nothing outside the workspace is read or written.

use super::call::{Call, Status};
use super::files::{CHUNK_BYTES_MAX, Place, decode, make_directories, reply, status, unnamed_file};
use super::paths;
use crate::proto::sandbox::v1 as sandbox;
use bytes::Bytes;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};
use sandbox::upload_request::Msg as UploadInput;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use tar::{Builder, EntryType, Header};
use tokio::sync::{Semaphore, mpsc};

const TAR_BYTES_MAX: u64 = 64 << 20;
/// Each level holds a descriptor.
const DEPTH_MAX: usize = 128;
/// An archive holds its helper thread as long as its caller reads; more wait.
static ARCHIVES: Semaphore = Semaphore::const_new(4);

pub async fn archive(first: Bytes, call: Call) -> Result<(), Status> {
    archive_below(paths::own("/workspace"), first, call).await
}

pub async fn upload(first: Bytes, call: Call) -> Result<(), Status> {
    upload_below(paths::own("/workspace"), first, call).await
}

/// The tar of a directory (names relative to it) or of one file, then an empty chunk with `eof`.
async fn archive_below(workspace: PathBuf, first: Bytes, call: Call) -> Result<(), Status> {
    let request: sandbox::ArchiveRequest = decode(first)?;
    if request.direction() != sandbox::archive_request::Direction::Download {
        return Err(Status::invalid("archive: the direction must be DOWNLOAD; use Upload to unpack a tar"));
    }
    let place = Place::new(&request.path)?;
    let permit = ARCHIVES.acquire().await.map_err(|_| Status::new("internal", "the agent is ending"))?;
    let (sender, mut chunks) = mpsc::channel(4);
    let task = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        write_tree(&workspace, &place, ChunkWriter { sender, bytes: 0 })
    });
    // Leaving early drops `chunks`, which ends the helper at its next write.
    while let Some(data) = chunks.recv().await {
        call.send(&sandbox::Chunk { data, eof: false }).await?;
    }
    task.await.map_err(|error| Status::new("internal", format!("archive: {error}")))??;
    reply(&call, &sandbox::Chunk { data: Bytes::new(), eof: true }).await
}

/// Unpacks a tar below `dest`, which is made when it is missing. The whole tar is received and checked before the first file is written.
async fn upload_below(workspace: PathBuf, first: Bytes, mut call: Call) -> Result<(), Status> {
    let Some(UploadInput::Open(open)) = decode::<sandbox::UploadRequest>(first)?.msg else {
        return Err(Status::invalid("upload: the first message must be open"));
    };
    let place = Place::new(&open.dest)?;
    require_inside(&workspace, &place)?;
    let mut tar = super::files::step(unnamed_file).await?;
    let mut bytes_written = 0_u64;
    while let Some(message) = call.receive().await? {
        let Some(UploadInput::Chunk(chunk)) = decode::<sandbox::UploadRequest>(message)?.msg else {
            return Err(Status::invalid("upload: every message after the first must be a chunk"));
        };
        bytes_written += chunk.len() as u64;
        if bytes_written > TAR_BYTES_MAX {
            return Err(Status::new("resource_exhausted", "upload: a tar has at most 64 MiB; send it in parts, or with WriteFile"));
        }
        tar = super::files::step(move || {
            tar.write_all(&chunk).map_err(|error| status("collect the tar", &error))?;
            Ok(tar)
        })
        .await?;
    }
    super::files::step(move || {
        check_members(&mut tar)?;
        let root = open_destination(&workspace, &place)?;
        unpack(&mut tar, &root, &place)
    })
    .await?;
    reply(&call, &sandbox::UploadResult { bytes_written: bytes_written as i64 }).await
}

// ---------------------------------------------------------------- out

struct ChunkWriter {
    sender: mpsc::Sender<Bytes>,
    bytes: u64,
}

impl Write for ChunkWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let data = &data[..data.len().min(CHUNK_BYTES_MAX)];
        self.bytes += data.len() as u64;
        if self.bytes > TAR_BYTES_MAX {
            // Told apart from a full disk by nobody: the code is the same and the text says which it is.
            return Err(io::Error::new(
                ErrorKind::QuotaExceeded,
                "the tar would have more than 64 MiB; archive a smaller folder or read the files one by one",
            ));
        }
        self.sender.blocking_send(Bytes::copy_from_slice(data)).map_err(|_| ErrorKind::BrokenPipe)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_tree(workspace: &Path, place: &Place, chunks: ChunkWriter) -> Result<(), Status> {
    let top = open_inside(workspace, place)?;
    let mut builder = Builder::new(BufWriter::with_capacity(CHUNK_BYTES_MAX, chunks));
    let written = if place.check(top.metadata())?.is_dir() {
        append_directory(&mut builder, &top, Path::new(""), DEPTH_MAX)
    } else {
        let name = place.shown.rsplit('/').next().unwrap_or(&place.shown);
        append_file(&mut builder, top, Path::new(name))
    };
    written.and_then(|()| builder.into_inner()?.flush()).map_err(|error| match error.kind() {
        ErrorKind::QuotaExceeded => Status::new("resource_exhausted", format!("{}: {error}", place.shown)),
        _ => status(&place.shown, &error),
    })
}

fn append_directory(builder: &mut Builder<impl Write>, directory: &File, prefix: &Path, depth_left: usize) -> io::Result<()> {
    if depth_left == 0 {
        return Err(io::Error::new(ErrorKind::QuotaExceeded, format!("{}: lies deeper than {DEPTH_MAX} folders", prefix.display())));
    }
    // By handle: the path may lead elsewhere by now.
    for entry in fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))? {
        let name = entry?.file_name();
        let path = prefix.join(&name);
        match append_entry(builder, directory, &name, &path, depth_left) {
            // Gone since the directory was read.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

fn append_entry(builder: &mut Builder<impl Write>, parent: &File, name: &OsStr, path: &Path, depth_left: usize) -> io::Result<()> {
    let kind = File::from(openat(parent, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?).metadata()?;
    if kind.is_symlink() {
        let mut header = Header::new_gnu();
        header.set_metadata(&kind);
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        return builder.append_link(&mut header, path, PathBuf::from(readlinkat(parent, name)?));
    }
    if kind.is_dir() {
        let child = File::from(open_directory(parent, name)?);
        let mut header = Header::new_gnu();
        header.set_metadata(&child.metadata()?);
        header.set_size(0);
        builder.append_data(&mut header, path, io::empty())?;
        return append_directory(builder, &child, path, depth_left - 1);
    }
    if kind.is_file() {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        return append_file(builder, File::from(openat(parent, name, flags, Mode::empty())?), path);
    }
    // Sockets, pipes and devices have no content to keep.
    Ok(())
}

fn append_file(builder: &mut Builder<impl Write>, file: File, path: &Path) -> io::Result<()> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(());
    }
    let mut header = Header::new_gnu();
    header.set_metadata(&metadata);
    // A file that grows or shrinks meanwhile must not shift what follows it in the tar.
    let content = file.chain(io::repeat(0)).take(metadata.len());
    builder.append_data(&mut header, path, content)
}

// ---------------------------------------------------------------- in

/// Every member before the first is written. Names are judged by their text; links are met, not followed, when it is unpacked.
fn check_members(tar: &mut File) -> Result<(), Status> {
    for_each_member(tar, |path, entry| {
        member_path(path)?;
        let kind = entry.header().entry_type();
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::Directory | EntryType::Symlink => Ok(()),
            EntryType::Link => member_path(&link_target(entry)?).map(drop),
            EntryType::XGlobalHeader => Ok(()),
            _ => Err(Status::invalid(format!(
                "upload: member {} is a {kind:?}; only files, directories and links are unpacked",
                path.display()
            ))),
        }
    })
}

fn unpack(tar: &mut File, root: &OwnedFd, place: &Place) -> Result<(), Status> {
    for_each_member(tar, |path, entry| {
        let member = member_path(path)?;
        let told = |error: io::Error| match error.raw_os_error() {
            // The walk met a symbolic link (or a file) where a directory should be.
            Some(libc::ELOOP | libc::ENOTDIR) => {
                Status::new("permission_denied", format!("upload: member {} goes through something that is no directory", path.display()))
            }
            _ => status(&place.below(&path.to_string_lossy()), &error),
        };
        unpack_member(root, &member, entry).map_err(told)
    })
}

fn unpack_member(root: &OwnedFd, member: &[&OsStr], entry: &mut tar::Entry<impl Read>) -> io::Result<()> {
    let mode = Mode::from_bits_truncate(entry.header().mode().unwrap_or(0o644) & 0o777);
    let kind = entry.header().entry_type();
    let Some((name, parents)) = member.split_last() else { return Ok(()) };
    if kind == EntryType::XGlobalHeader {
        return Ok(());
    }
    let parent = make_way(root, parents)?;
    let parent = parent.as_ref().unwrap_or(root);
    if kind == EntryType::Directory {
        if let Some(directory) = make_way(parent, &[name])? {
            fchmod(&directory, mode)?;
        }
        return Ok(());
    }
    match unlinkat(parent, *name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::Error::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match kind {
        EntryType::Symlink => {
            let target = entry.link_name_bytes().ok_or(ErrorKind::InvalidData)?.into_owned();
            symlinkat(OsStr::from_bytes(&target), parent, *name)?;
        }
        EntryType::Link => {
            let target = link_target(entry).map_err(|error| io::Error::new(ErrorKind::InvalidData, error.message))?;
            let target = member_path(&target).map_err(|error| io::Error::new(ErrorKind::InvalidData, error.message))?;
            let Some((target_name, target_parents)) = target.split_last() else { return Err(ErrorKind::InvalidData.into()) };
            let from = make_way(root, target_parents)?;
            linkat(from.as_ref().unwrap_or(root), *target_name, parent, *name, AtFlags::empty())?;
        }
        _ => {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mut file = File::from(openat(parent, *name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
            io::copy(entry, &mut file)?;
            fchmod(&file, mode)?;
            let modified = TimeSpec::new(entry.header().mtime().unwrap_or(0).min(i64::MAX as u64) as i64, 0);
            futimens(&file, &modified, &modified)?;
        }
    }
    Ok(())
}

/// Opens (and makes) one directory after the other, none of them through a link. None: no parts, so it is `root` itself.
fn make_way(root: &OwnedFd, parts: &[&OsStr]) -> io::Result<Option<OwnedFd>> {
    let mut at = None;
    for part in parts {
        let parent = at.as_ref().unwrap_or(root);
        let open = || open_directory(parent, part);
        let next = match open() {
            Err(nix::Error::ENOENT) => {
                match mkdirat(parent, *part, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(nix::Error::EEXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                open()?
            }
            other => other?,
        };
        at = Some(next);
    }
    Ok(at)
}

/// A directory that is no link. runsc follows a link that is opened with O_DIRECTORY, whatever O_NOFOLLOW says: so it is looked at first, and
/// opened by the handle that was looked at.
pub(super) fn open_directory(parent: impl AsFd, name: &OsStr) -> nix::Result<OwnedFd> {
    let found = openat(parent, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    if SFlag::from_bits_truncate(fstat(&found)?.st_mode) & SFlag::S_IFMT != SFlag::S_IFDIR {
        return Err(nix::Error::ENOTDIR);
    }
    openat(&found, ".", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

fn for_each_member(tar: &mut File, mut visit: impl FnMut(&Path, &mut tar::Entry<&mut File>) -> Result<(), Status>) -> Result<(), Status> {
    let broken = |error: io::Error| match error.raw_os_error() {
        Some(_) => status("read the tar", &error),
        None => Status::invalid(format!("upload: this is not a whole tar: {error}")),
    };
    tar.rewind().map_err(broken)?;
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = PathBuf::from(std::ffi::OsString::from_vec(entry.path_bytes().into_owned()));
        visit(&path, &mut entry)?;
    }
    Ok(())
}

fn link_target(entry: &tar::Entry<impl Read>) -> Result<PathBuf, Status> {
    let target = entry.link_name_bytes().ok_or_else(|| Status::invalid("upload: a link has no target"))?;
    Ok(PathBuf::from(std::ffi::OsString::from_vec(target.into_owned())))
}

/// The parts of a member's name. Empty for the top itself (`./`).
fn member_path(path: &Path) -> Result<Vec<&OsStr>, Status> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) if part.as_bytes().contains(&0) => {
                return Err(Status::invalid("upload: the name of a member contains a NUL byte"));
            }
            Component::Normal(part) => parts.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(Status::new(
                    "permission_denied",
                    format!("upload: member {} leads outside of the destination; nothing was written", path.display()),
                ));
            }
        }
    }
    Ok(parts)
}

// ---------------------------------------------------------------- inside /workspace

pub(super) fn outside(place: &Place) -> Status {
    Status::new(
        "permission_denied",
        format!("{}: only /workspace and what lies below it can be archived, unpacked and watched", place.shown),
    )
}

/// By the text of the path.
fn require_inside(workspace: &Path, place: &Place) -> Result<(), Status> {
    let inside = place.real.strip_prefix(workspace).is_ok_and(|rest| rest.components().all(|part| matches!(part, Component::Normal(_))));
    if inside { Ok(()) } else { Err(outside(place)) }
}

/// Opens what a path leads to and then asks the kernel where that is, so that no link and no race leads outside.
pub(super) fn open_inside(workspace: &Path, place: &Place) -> Result<File, Status> {
    let canonical = match fs::canonicalize(&place.real) {
        Ok(path) => path,
        Err(error) => {
            require_inside(workspace, place)?;
            return Err(status(&place.shown, &error));
        }
    };
    let top = place.check(fs::canonicalize(workspace))?;
    if !canonical.starts_with(&top) {
        return Err(outside(place));
    }
    // O_NONBLOCK: the path may be a pipe.
    let mut options = fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::custom_flags(options.read(true), libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = place.check(options.open(&canonical))?;
    let real = place.check(fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())))?;
    if real.starts_with(&top) { Ok(file) } else { Err(outside(place)) }
}

fn open_destination(workspace: &Path, place: &Place) -> Result<OwnedFd, Status> {
    place.check(make_directories(workspace))?;
    let below: Vec<&OsStr> = place.real.strip_prefix(workspace).map_err(|_| outside(place))?.iter().collect();
    let top = OwnedFd::from(place.check(File::open(workspace))?);
    // Links on the way that stay inside are fine when they exist; what has to be made is made without following any.
    if fs::symlink_metadata(&place.real).is_ok() {
        let directory = open_inside(workspace, place)?;
        return if place.check(directory.metadata())?.is_dir() {
            Ok(directory.into())
        } else {
            Err(Status::invalid(format!("{}: is not a directory", place.shown)))
        };
    }
    let made = make_way(&top, &below).map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP | libc::ENOTDIR) => outside(place),
        _ => status(&place.shown, &error),
    })?;
    Ok(made.unwrap_or(top))
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::{Folder, call, exchange};
    use super::*;
    use prost::Message;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    async fn download(workspace: &Folder, path: &str) -> Result<Vec<u8>, Status> {
        let direction = sandbox::archive_request::Direction::Download.into();
        download_with(workspace, sandbox::ArchiveRequest { path: path.into(), direction }).await
    }

    async fn download_with(workspace: &Folder, request: sandbox::ArchiveRequest) -> Result<Vec<u8>, Status> {
        let root = workspace.0.clone();
        let messages = exchange(|first, call| archive_below(root, first, call), vec![request]).await?;
        let chunks: Vec<_> = messages.into_iter().map(|message| sandbox::Chunk::decode(message).unwrap()).collect();
        let (last, rest) = chunks.split_last().unwrap();
        assert!(last.eof && last.data.is_empty() && rest.iter().all(|chunk| !chunk.eof && chunk.data.len() <= CHUNK_BYTES_MAX));
        Ok(rest.iter().flat_map(|chunk| chunk.data.to_vec()).collect())
    }

    async fn send(workspace: &Folder, dest: &str, tar: &[u8]) -> Result<u64, Status> {
        let root = workspace.0.clone();
        let open = sandbox::UploadRequest { msg: Some(UploadInput::Open(sandbox::UploadOpen { dest: dest.into() })) };
        let chunks = tar.chunks(50_000).map(|chunk| sandbox::UploadRequest { msg: Some(UploadInput::Chunk(chunk.to_vec().into())) });
        let replies = exchange(|first, call| upload_below(root, first, call), std::iter::once(open).chain(chunks).collect()).await?;
        Ok(sandbox::UploadResult::decode(replies[0].clone()).unwrap().bytes_written as u64)
    }

    /// Writes the name as it is; the builder's own setters refuse dangerous ones.
    fn raw_member(builder: &mut Builder<Vec<u8>>, name: &str, kind: EntryType, link: &str, content: &[u8]) {
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }

    #[tokio::test]
    async fn a_tree_comes_back_as_it_was() {
        let from = Folder::new();
        fs::create_dir_all(from.path("d/deep/er")).unwrap();
        fs::create_dir(from.path("d/empty")).unwrap();
        let big: Vec<u8> = (0..3_000_000_u32).map(|index| (index % 251) as u8).collect();
        fs::write(from.path("d/deep/er/big"), &big).unwrap();
        let long = "n".repeat(200);
        fs::write(from.path(&format!("d/{long}")), "long").unwrap();
        fs::write(from.path("d/run"), "#!").unwrap();
        fs::set_permissions(from.path("d/run"), fs::Permissions::from_mode(0o751)).unwrap();
        symlink("deep/er/big", from.path("d/link")).unwrap();
        nix::unistd::mkfifo(&from.0.join("d/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let tar = download(&from, &from.path("d")).await.unwrap();

        let to = Folder::new();
        assert_eq!(send(&to, &to.path("new/place"), &tar).await.unwrap(), tar.len() as u64);
        assert!(fs::read(to.path("new/place/deep/er/big")).unwrap() == big);
        assert_eq!(fs::read(to.path(&format!("new/place/{long}"))).unwrap(), b"long");
        assert_eq!(fs::metadata(to.path("new/place/run")).unwrap().mode() & 0o7777, 0o751);
        assert_eq!(fs::read_link(to.path("new/place/link")).unwrap(), Path::new("deep/er/big"));
        assert!(to.0.join("new/place/empty").is_dir() && !to.0.join("new/place/fifo").exists());
        // Again over what is there.
        send(&to, &to.path("new/place"), &tar).await.unwrap();
    }

    #[tokio::test]
    async fn one_file_is_a_tar_with_one_member() {
        let workspace = Folder::new();
        fs::write(workspace.path("f"), "abc").unwrap();
        let tar = download(&workspace, &workspace.path("f")).await.unwrap();
        let mut archive = tar::Archive::new(&tar[..]);
        let names: Vec<_> = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(names, [Path::new("f")]);
    }

    #[tokio::test]
    async fn only_the_workspace_is_archived_whatever_the_path_looks_like() {
        let workspace = Folder::new();
        symlink("/etc", workspace.path("etc")).unwrap();
        for path in ["/etc".to_string(), workspace.path("etc"), workspace.path("../.."), workspace.path("etc/ssl")] {
            assert_eq!(download(&workspace, &path).await.unwrap_err().code, "permission_denied", "{path}");
        }
        assert_eq!(download(&workspace, &workspace.path("missing")).await.unwrap_err().code, "not_found");
        for direction in [0, 2, 9] {
            let request = sandbox::ArchiveRequest { path: workspace.path(""), direction };
            assert_eq!(download_with(&workspace, request).await.unwrap_err().code, "invalid_argument");
        }
    }

    #[tokio::test]
    async fn members_that_lead_outside_are_refused_and_nothing_is_written() {
        for (name, kind, link) in [
            ("../escape.txt", EntryType::Regular, ""),
            ("/tmp/mitos-escape.txt", EntryType::Regular, ""),
            ("a/../../escape.txt", EntryType::Regular, ""),
            ("hard", EntryType::Link, "../secret"),
            ("hard", EntryType::Link, "/etc/passwd"),
        ] {
            let workspace = Folder::new();
            fs::create_dir(workspace.path("in")).unwrap();
            fs::write(workspace.path("secret"), "secret").unwrap();
            let mut builder = Builder::new(Vec::new());
            raw_member(&mut builder, "good.txt", EntryType::Regular, "", b"good");
            raw_member(&mut builder, name, kind, link, if link.is_empty() { b"bad" } else { b"" });
            let error = send(&workspace, &workspace.path("in"), &builder.into_inner().unwrap()).await.unwrap_err();
            assert_eq!(error.code, "permission_denied", "{name}: {error:?}");
            assert!(!workspace.0.join("escape.txt").exists() && !Path::new("/tmp/mitos-escape.txt").exists());
            assert_eq!(fs::read_dir(workspace.path("in")).unwrap().count(), 0, "{name}");
        }
    }

    #[tokio::test]
    async fn a_link_in_the_tar_or_on_disk_is_no_way_out() {
        let outside = Folder::new();
        let target = outside.0.to_str().unwrap();
        let workspace = Folder::new();
        let mut builder = Builder::new(Vec::new());
        raw_member(&mut builder, "way", EntryType::Symlink, target, b"");
        raw_member(&mut builder, "way/out.txt", EntryType::Regular, "", b"bad");
        let tar = builder.into_inner().unwrap();
        assert_eq!(send(&workspace, &workspace.path(""), &tar).await.unwrap_err().code, "permission_denied");

        symlink(target, workspace.path("disk")).unwrap();
        let mut builder = Builder::new(Vec::new());
        raw_member(&mut builder, "disk/out.txt", EntryType::Regular, "", b"bad");
        let tar = builder.into_inner().unwrap();
        assert_eq!(send(&workspace, &workspace.path(""), &tar).await.unwrap_err().code, "permission_denied");
        for dest in ["disk", "disk/new", "../x", "way/new"] {
            assert_eq!(send(&workspace, &workspace.path(dest), &tar).await.unwrap_err().code, "permission_denied", "{dest}");
        }
        // A file replaces a link of its name instead of writing through it.
        symlink(outside.0.join("victim"), workspace.path("file")).unwrap();
        let mut builder = Builder::new(Vec::new());
        raw_member(&mut builder, "file", EntryType::Regular, "", b"mine");
        send(&workspace, &workspace.path(""), &builder.into_inner().unwrap()).await.unwrap();
        assert_eq!(fs::read(workspace.path("file")).unwrap(), b"mine");
        assert_eq!(fs::read_dir(&outside.0).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_is_no_tar_or_too_large_is_refused() {
        let workspace = Folder::new();
        assert_eq!(send(&workspace, &workspace.path(""), &[7; 5000]).await.unwrap_err().code, "invalid_argument");
        let mut builder = Builder::new(Vec::new());
        raw_member(&mut builder, "device", EntryType::Char, "", b"");
        assert_eq!(send(&workspace, &workspace.path(""), &builder.into_inner().unwrap()).await.unwrap_err().code, "invalid_argument");
        let large = vec![0; TAR_BYTES_MAX as usize + 1];
        assert_eq!(send(&workspace, &workspace.path(""), &large).await.unwrap_err().code, "resource_exhausted");
        File::create(workspace.path("sparse")).unwrap().set_len(TAR_BYTES_MAX).unwrap();
        assert_eq!(download(&workspace, &workspace.path("")).await.unwrap_err().code, "resource_exhausted");
    }

    #[tokio::test]
    async fn an_upload_whose_caller_goes_away_writes_nothing() {
        let workspace = Folder::new();
        let mut builder = Builder::new(Vec::new());
        raw_member(&mut builder, "f", EntryType::Regular, "", b"x");
        let tar = builder.into_inner().unwrap();
        let (call, caller) = call();
        let open = sandbox::UploadRequest { msg: Some(UploadInput::Open(sandbox::UploadOpen { dest: workspace.path("") })) };
        let task = tokio::spawn(upload_below(workspace.0.clone(), open.encode_to_vec().into(), call));
        let chunk = sandbox::UploadRequest { msg: Some(UploadInput::Chunk(tar.into())) };
        caller.inbound.as_ref().unwrap().send(chunk.encode_to_vec().into()).await.unwrap();
        caller.cancelled.cancel();
        assert_eq!(task.await.unwrap().unwrap_err().code, "canceled");
        assert_eq!(fs::read_dir(&workspace.0).unwrap().count(), 0);
    }
}

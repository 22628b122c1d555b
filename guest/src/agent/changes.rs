//! What programs have changed in the root file system (docs/link.md): `SetOwners` and `Changes`.
//!
//! A root made of layers lies below what its sandbox writes: what nobody has written is read from the layers, and everything else (new, written,
//! renamed, another owner or mode) from above them. Which of the two it is can be told without reading or remembering a single file: under
//! gVisor they have different device numbers; Linux's overlayfs keeps those of a file that it copies up, but there we hold the folder that it
//! copies to. Folders can be in both, so each is told with what it is now.
//!
//! Programs may run meanwhile and swap a directory for a symbolic link, so this walks by directory handles and never follows a link.

use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::vec;

use bytes::Bytes;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, fstatat};
use nix::unistd::{Gid, Uid, fchownat};
use tar::{Builder, EntryType, Header};
use tokio::sync::{Semaphore, mpsc};

use super::archive::open_directory;
use super::call::{Call, Status, decode};
use super::files::{reply, status, step};
use crate::changes_list::{NOT_TOLD, SAME_RECORD};
use crate::proto::guest::v1 as pb;
use crate::proto::sandbox::v1 as sandbox;

/// Fits into one frame of the link.
const CHUNK_BYTES: usize = 60_000;
/// Each level holds a descriptor and the names that are still to come.
const DEPTH_MAX: usize = 1024;
const ENTRIES_PER_FOLDER_MAX: usize = 1 << 20;
const XATTR_BYTES_MAX: usize = 1 << 20;
/// Of a tar's header; what is longer goes into a record before it.
const NAME_BYTES_MAX: usize = 100;
const OWNERS_MAX: usize = 1 << 22;

/// The number of a descriptor that the agent is started with: the folder to which an overlayfs that is its root writes.
pub const WRITTEN_FD_VARIABLE: &str = "MITOS_WRITTEN_FD";

/// How files that come from below are known. Kept in the memory of this process, as it was before any program could run.
enum Lower {
    /// By their device number, which a saved machine keeps.
    Device(u64),
    /// There is nothing of their name in this folder.
    Unwritten(File),
}

static LOWER: OnceLock<Lower> = OnceLock::new();

/// Once, before any program can run.
pub fn remember_lower_files() {
    let written = std::env::var(WRITTEN_FD_VARIABLE).ok().and_then(|text| text.parse::<i32>().ok());
    if let Some(number) = written.filter(|number| *number > 2) {
        // SAFETY: boot has left it open for us, and nobody else knows of it.
        let _ = LOWER.set(Lower::Unwritten(unsafe { File::from_raw_fd(number) }));
    } else if let Ok(own) = std::fs::metadata("/proc/self/exe") {
        let _ = LOWER.set(Lower::Device(own.dev()));
    }
}

// ---------------------------------------------------------------- owners

/// A file as `SetOwners` has left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    /// Set by every change of owner, mode or name, and by writes, but not by those through a mapping.
    changed: (i64, i64),
    bytes: i64,
    owner: (u32, u32),
    mode: u32,
    /// Of the content of a regular file.
    hash: u64,
}

impl Stamp {
    fn of(found: &FileStat, hash: u64) -> Self {
        Self {
            device: found.st_dev,
            inode: found.st_ino,
            changed: (found.st_ctime, found.st_ctime_nsec),
            bytes: found.st_size,
            owner: (found.st_uid, found.st_gid),
            mode: found.st_mode,
            hash,
        }
    }

    /// Reads no file that is known to have changed.
    fn still_holds(&self, folder: &File, name: &OsStr, found: &FileStat) -> bool {
        *self == Self::of(found, self.hash) && hash(folder, name, found).is_ok_and(|hash| hash == self.hash)
    }
}

/// By path, relative to the root.
fn owned() -> MutexGuard<'static, HashMap<PathBuf, Stamp>> {
    static OWNED: OnceLock<Mutex<HashMap<PathBuf, Stamp>>> = OnceLock::new();
    OWNED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

pub async fn set_owners(first: Bytes, mut call: Call) -> Result<(), Status> {
    let mut request: pb::SetOwnersRequest = decode(first)?;
    let mut room = Room { bytes: if request.copy_bytes_max == 0 { u64::MAX } else { request.copy_bytes_max }, left: 0 };
    loop {
        room = step(move || {
            for entry in &request.owners {
                set_owner(Path::new("/"), entry, &mut room)?;
            }
            Ok(room)
        })
        .await?;
        let Some(bytes) = call.receive().await? else { break };
        request = decode(bytes)?;
    }
    reply(&call, &pb::SetOwnersReply { left: room.left }).await
}

/// A file whose owner is changed is copied, so that a large image of another user than root would fill the memory of its sandbox.
struct Room {
    /// For further copies.
    bytes: u64,
    /// How many files were not copied for want of it.
    left: u64,
}

impl Room {
    /// Whether a file may be copied. One that its owner could not even read otherwise always may.
    fn take(&mut self, found: &FileStat, mode: u32) -> bool {
        let bytes = u64::try_from(found.st_size).unwrap_or(0);
        let is_for_all = mode & 0o004 != 0 && (mode & 0o100 == 0 || mode & 0o001 != 0);
        if bytes > self.bytes && is_for_all {
            self.left += 1;
            return false;
        }
        self.bytes = self.bytes.saturating_sub(bytes);
        true
    }
}

fn set_owner(root: &Path, entry: &pb::OwnerEntry, room: &mut Room) -> Result<(), Status> {
    let path = relative(&entry.path)?;
    if owned().len() >= OWNERS_MAX {
        return Err(Status::new("resource_exhausted", format!("at most {OWNERS_MAX} files can be given owners")));
    }
    match own(root, &path, entry, room) {
        Ok(stamp) => {
            if let Some(stamp) = stamp {
                owned().insert(path, stamp);
            }
            Ok(())
        }
        // Not there, or reached through a link: nothing of the root.
        Err(nix::Error::ENOENT | nix::Error::ENOTDIR | nix::Error::ELOOP) => Ok(()),
        Err(error) => Err(status(&entry.path, &error.into())),
    }
}

fn relative(path: &str) -> Result<PathBuf, Status> {
    let refused = || Status::invalid(format!("{path:?} is not the absolute path of a file of the root"));
    let relative = Path::new(path.strip_prefix('/').ok_or_else(refused)?);
    let plain = |part: Component<'_>| matches!(part, Component::Normal(name) if !name.as_bytes().contains(&0));
    if !relative.components().all(plain) {
        return Err(refused());
    }
    Ok(relative.components().collect())
}

/// None: it stays as it is, since there is no room.
fn own(root: &Path, path: &Path, entry: &pb::OwnerEntry, room: &mut Room) -> nix::Result<Option<Stamp>> {
    let mut folder = open_root(root).map_err(|error| nix::Error::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    // The root itself, which nothing but its own handle leads to.
    let name = path.file_name().unwrap_or(OsStr::new("."));
    for part in path.parent().into_iter().flat_map(Path::components) {
        folder = File::from(open_directory(&folder, part.as_os_str())?);
    }
    let found = fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if kind(&found) == SFlag::S_IFREG && !room.take(&found, entry.mode) {
        return Ok(None);
    }
    fchownat(&folder, name, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let found = fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if kind(&found) == SFlag::S_IFLNK {
        return Ok(Some(Stamp::of(&found, 0)));
    }
    // After the owner: a change of that takes the set-user-id bit away. It is no link, and nothing that could make one of it runs yet.
    fchmodat(&folder, name, Mode::from_bits_truncate(entry.mode & 0o7777), FchmodatFlags::FollowSymlink)?;
    let found = fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let hash = hash(&folder, name, &found).map_err(|error| nix::Error::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    Ok(Some(Stamp::of(&found, hash)))
}

/// 0 for what is not a regular file.
fn hash(folder: &File, name: &OsStr, found: &FileStat) -> io::Result<u64> {
    if kind(found) != SFlag::S_IFREG {
        return Ok(0);
    }
    let mut file = open_file(folder, name)?;
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => hasher.write(&buffer[..count]),
        }
    }
}

fn open_file(folder: &File, name: &OsStr) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    Ok(File::from(openat(folder, name, flags, Mode::empty())?))
}

fn open_root(root: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC).open(root)
}

fn kind(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits())
}

// ---------------------------------------------------------------- changes

pub async fn changes(first: Bytes, call: Call) -> Result<(), Status> {
    static ONE: Semaphore = Semaphore::const_new(1);
    let _: pb::ChangesRequest = decode(first)?;
    let permit = ONE.acquire().await.map_err(|_| Status::new("internal", "the agent is ending"))?;
    let (sender, mut chunks) = mpsc::channel(4);
    let task = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let (root, out) = (Path::new("/"), Chunks { sender });
        match LOWER.get() {
            Some(Lower::Unwritten(written)) => Walk::new(root, Below::Unwritten, Some(handle(written)?), out)?.run(),
            Some(Lower::Device(lower)) => {
                check_device(root, *lower)?;
                Walk::new(root, Below::Found(&|found| found.st_dev == *lower), None, out)?.run()
            }
            None => Err(cannot_tell()),
        }
    });
    // Leaving early drops `chunks`, which ends the helper at its next write.
    while let Some(data) = chunks.recv().await {
        call.send(&sandbox::Chunk { data, eof: false }).await?;
    }
    task.await.map_err(|error| Status::new("internal", format!("changes: {error}")))??;
    reply(&call, &sandbox::Chunk { data: Bytes::new(), eof: true }).await
}

fn handle(folder: &File) -> Result<File, Status> {
    folder.try_clone().map_err(|error| status("/", &error))
}

/// The device number of unchanged files must say what it is to say: a new file has another.
fn check_device(root: &Path, lower: u64) -> Result<(), Status> {
    let probe = root.join(format!(".mitos-{}", std::process::id()));
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&probe).and_then(|file| file.metadata());
    let _ = std::fs::remove_file(&probe);
    let upper = made.map_err(|error| status("/", &error))?.dev();
    if lower == upper { Err(cannot_tell()) } else { Ok(()) }
}

fn cannot_tell() -> Status {
    Status::new("failed_precondition", "the root of this sandbox does not tell changed files from others")
}

struct Chunks {
    sender: mpsc::Sender<Bytes>,
}

impl Write for Chunks {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let data = &data[..data.len().min(CHUNK_BYTES)];
        self.sender.blocking_send(Bytes::copy_from_slice(data)).map_err(|_| ErrorKind::BrokenPipe)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a walk knows what is as the layers have it.
#[derive(Clone, Copy)]
enum Below<'a> {
    Found(&'a dyn Fn(&FileStat) -> bool),
    /// `Level::written` has nothing of its name.
    Unwritten,
}

/// A folder that is being walked.
struct Level {
    folder: File,
    /// The same in what was written, if it is there.
    written: Option<File>,
    names: vec::IntoIter<OsString>,
}

struct Walk<'a, W: Write> {
    below: Below<'a>,
    out: Builder<BufWriter<W>>,
    levels: Vec<Level>,
    /// Of the innermost level, relative to the root.
    path: PathBuf,
    device: u64,
    /// Where a changed file with several names was told first.
    told: HashMap<(u64, u64), PathBuf>,
}

impl<'a, W: Write> Walk<'a, W> {
    fn new(root: &Path, below: Below<'a>, written: Option<File>, out: W) -> Result<Self, Status> {
        let failed = |error: io::Error| status("/", &error);
        let folder = open_root(root).map_err(failed)?;
        let device = folder.metadata().map_err(failed)?.dev();
        let names = names_in(&folder).map_err(failed)?;
        Ok(Self {
            below,
            out: Builder::new(BufWriter::with_capacity(CHUNK_BYTES, out)),
            levels: vec![Level { folder, written, names }],
            path: PathBuf::new(),
            device,
            told: HashMap::new(),
        })
    }

    fn run(mut self) -> Result<(), Status> {
        while let Some(level) = self.levels.last_mut() {
            let Some(name) = level.names.next() else {
                self.levels.pop();
                self.path.pop();
                continue;
            };
            let path = self.path.join(&name);
            if NOT_TOLD.iter().any(|own| path == Path::new(own)) {
                continue;
            }
            match self.entry(&name, &path) {
                // Gone, or another kind of thing, since the folder was read.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {}
                other => other.map_err(|error| match error.kind() {
                    ErrorKind::QuotaExceeded => Status::new("resource_exhausted", format!("/{}: {error}", path.display())),
                    _ => status(&format!("/{}", path.display()), &error),
                })?,
            }
        }
        self.out.into_inner().and_then(|mut out| out.flush()).map_err(|error| status("/", &error))
    }

    /// Nothing of an entry is written before it is certain that all of it can be.
    fn entry(&mut self, name: &OsStr, path: &Path) -> io::Result<()> {
        let Some(Level { folder, written, .. }) = self.levels.last() else { return Ok(()) };
        let found = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        match kind(&found) {
            SFlag::S_IFDIR => {
                let folder = File::from(open_directory(folder, name)?);
                let found = fstat(&folder)?;
                if found.st_dev != self.device {
                    return Ok(()); // another file system is mounted there
                }
                if self.levels.len() >= DEPTH_MAX {
                    return Err(io::Error::new(ErrorKind::QuotaExceeded, format!("it lies deeper than {DEPTH_MAX} folders")));
                }
                let written = match written.as_ref().map(|written| open_directory(written, name)) {
                    Some(Ok(written)) => Some(File::from(written)),
                    // Something that is no folder was, and is removed: nothing of this one was written yet.
                    Some(Err(nix::Error::ENOENT | nix::Error::ENOTDIR | nix::Error::ELOOP)) | None => None,
                    Some(Err(error)) => return Err(error.into()),
                };
                let names = names_in(&folder)?;
                let mut records = Records::default();
                records.xattrs(&folder)?;
                self.write(EntryType::Directory, path, &found, None, records, io::empty())?;
                self.levels.push(Level { folder, written, names });
                self.path = path.to_owned();
                Ok(())
            }
            SFlag::S_IFREG if self.is_same(name, path, &found)? => {
                self.write(EntryType::Regular, path, &found, None, Records::same(), io::empty())
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(folder, name)?;
                let records = if self.is_same(name, path, &found)? { Records::same() } else { Records::default() };
                self.write(EntryType::Symlink, path, &found, Some(Path::new(&target)), records, io::empty())
            }
            SFlag::S_IFREG => {
                let file = open_file(folder, name)?;
                let found = fstat(&file)?;
                if kind(&found) != SFlag::S_IFREG {
                    return Ok(());
                }
                self.file(path, file, &found)
            }
            // Sockets, pipes and devices have no content to keep.
            _ => Ok(()),
        }
    }

    fn file(&mut self, path: &Path, file: File, found: &FileStat) -> io::Result<()> {
        let identity = (found.st_dev, found.st_ino);
        if found.st_nlink > 1 {
            if let Some(first) = self.told.get(&identity).cloned() {
                return self.write(EntryType::Link, path, found, Some(&first), Records::default(), io::empty());
            }
            self.told.insert(identity, path.to_owned());
        }
        let mut records = Records::default();
        records.xattrs(&file)?;
        self.write(EntryType::Regular, path, found, None, records, file)
    }

    fn is_same(&self, name: &OsStr, path: &Path, found: &FileStat) -> io::Result<bool> {
        let Some(Level { folder, written, .. }) = self.levels.last() else { return Ok(false) };
        let is_lower = match self.below {
            Below::Found(is_lower) => is_lower(found),
            Below::Unwritten => match written.as_ref().map(|written| fstatat(written, name, AtFlags::AT_SYMLINK_NOFOLLOW)) {
                Some(Ok(_)) => false,
                Some(Err(nix::Error::ENOENT)) | None => true,
                Some(Err(error)) => return Err(error.into()),
            },
        };
        let stamp = || owned().get(path).copied();
        Ok(is_lower || stamp().is_some_and(|stamp| stamp.still_holds(folder, name, found)))
    }

    fn write(
        &mut self,
        kind: EntryType,
        path: &Path,
        found: &FileStat,
        target: Option<&Path>,
        mut records: Records,
        content: impl Read,
    ) -> io::Result<()> {
        let bytes = if kind == EntryType::Regular && !records.same { u64::try_from(found.st_size).unwrap_or(0) } else { 0 };
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(found.st_mode & 0o7777);
        header.set_uid(u64::from(found.st_uid));
        header.set_gid(u64::from(found.st_gid));
        header.set_mtime(u64::try_from(found.st_mtime).unwrap_or(0));
        header.set_size(bytes);
        let mut name = path.as_os_str().as_bytes().to_vec();
        if kind == EntryType::Directory {
            name.push(b'/');
        }
        if let Some(target) = target.map(|target| target.as_os_str().as_bytes()) {
            put(&mut header.as_old_mut().linkname, target, "linkpath", &mut records);
        }
        put(&mut header.as_old_mut().name, &name, "path", &mut records);
        header.set_cksum();
        self.out.append_pax_extensions(records.pairs.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
        // A file that grows or shrinks meanwhile must not shift what follows it.
        self.out.append(&header, content.chain(io::repeat(0)).take(bytes))
    }
}

/// Into the header as far as there is room, and into a record when there is not enough.
fn put(field: &mut [u8; NAME_BYTES_MAX], text: &[u8], key: &str, records: &mut Records) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
    if text.len() > field.len() {
        records.pairs.push((key.into(), text.to_vec()));
    }
}

/// Of a pax header.
#[derive(Default)]
struct Records {
    pairs: Vec<(String, Vec<u8>)>,
    same: bool,
}

impl Records {
    fn same() -> Self {
        Self { pairs: vec![(SAME_RECORD.into(), b"1".to_vec())], same: true }
    }

    /// Those that an image can carry.
    fn xattrs(&mut self, file: &File) -> io::Result<()> {
        let names = match read_sized(|buffer, size| {
            // SAFETY: writes at most `size` bytes.
            unsafe { libc::flistxattr(file.as_raw_fd(), buffer.cast(), size) }
        }) {
            // Some file systems have none.
            Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => return Ok(()),
            names => names?,
        };
        for name in names.split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.") || *name == b"security.capability") {
            let (Ok(key), Ok(text)) = (CString::new(name), std::str::from_utf8(name)) else { continue };
            let value = read_sized(|buffer, size| {
                // SAFETY: reads a C string, writes at most `size` bytes.
                unsafe { libc::fgetxattr(file.as_raw_fd(), key.as_ptr(), buffer.cast(), size) }
            });
            match value {
                Ok(value) => self.pairs.push((format!("SCHILY.xattr.{text}"), value)),
                // Removed since they were listed.
                Err(error) if error.raw_os_error() == Some(libc::ENODATA) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What a call that first tells a size has to say; it may have grown in between.
fn read_sized(call: impl Fn(*mut libc::c_void, usize) -> isize) -> io::Result<Vec<u8>> {
    loop {
        let size = usize::try_from(call(std::ptr::null_mut(), 0)).map_err(|_| io::Error::last_os_error())?;
        if size > XATTR_BYTES_MAX {
            return Err(io::Error::new(
                ErrorKind::QuotaExceeded,
                format!("its extended attributes have more than {XATTR_BYTES_MAX} bytes"),
            ));
        }
        let mut buffer = vec![0_u8; size];
        if size == 0 {
            return Ok(buffer);
        }
        match usize::try_from(call(buffer.as_mut_ptr().cast(), size)) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::ERANGE) => {}
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
}

/// In the order of their bytes, so that equal folders are told equally.
fn names_in(folder: &File) -> io::Result<vec::IntoIter<OsString>> {
    let mut names = Vec::new();
    // By handle: the path may lead elsewhere by now.
    for entry in std::fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))? {
        if names.len() >= ENTRIES_PER_FOLDER_MAX {
            return Err(io::Error::new(ErrorKind::QuotaExceeded, format!("it has more than {ENTRIES_PER_FOLDER_MAX} entries")));
        }
        names.push(entry?.file_name().into_vec());
    }
    names.sort_unstable();
    Ok(names.into_iter().map(OsString::from_vec).collect::<Vec<_>>().into_iter())
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::Folder;
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn told(root: &Path, is_lower: &dyn Fn(&FileStat) -> bool) -> Vec<(String, EntryType, String)> {
        let mut bytes = Vec::new();
        Walk::new(root, Below::Found(is_lower), None, &mut bytes).unwrap().run().unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            (entry.path().unwrap().to_string_lossy().into_owned(), entry.header().entry_type(), content)
        });
        entries.collect()
    }

    #[test]
    fn a_tree_is_told_in_order_with_what_has_changed_and_without_what_is_ours() {
        let root = Folder::new();
        for name in ["b", "b/c", "a", "etc", "proc", "tmp", "opt", "opt/mitos", "opt/other"] {
            std::fs::create_dir(root.0.join(name)).unwrap();
        }
        for name in ["b/new", "b/c/old", "etc/hosts", "etc/passwd", "proc/x", "tmp/x", "opt/mitos/x", "z"] {
            std::fs::write(root.0.join(name), name).unwrap();
        }
        symlink("/etc", root.0.join("b/link")).unwrap();
        let old = std::fs::metadata(root.0.join("b/c/old")).unwrap().ino();
        let directory = |name: &str| (name.to_owned(), EntryType::Directory, String::new());
        let file = |name: &str, content: &str| (name.to_owned(), EntryType::Regular, content.to_owned());
        let expected = [
            directory("a/"),
            directory("b/"),
            directory("b/c/"),
            file("b/c/old", ""),
            ("b/link".to_owned(), EntryType::Symlink, String::new()),
            file("b/new", "b/new"),
            directory("etc/"),
            file("etc/passwd", "etc/passwd"),
            directory("opt/"),
            directory("opt/other/"),
            file("z", "z"),
        ];
        assert_eq!(told(&root.0, &|found| found.st_ino == old), expected);
    }

    #[test]
    fn what_vanishes_or_turns_into_something_else_while_the_tree_is_read_is_left_out() {
        let root = Folder::new();
        for name in ["1", "2", "3", "4"] {
            std::fs::write(root.0.join(name), "x").unwrap();
        }
        std::fs::create_dir(root.0.join("5")).unwrap();
        let path = root.0.clone();
        let meddle = move |_: &FileStat| {
            let _ = std::fs::remove_file(path.join("2"));
            let _ = std::fs::remove_file(path.join("3")).and_then(|()| symlink("/etc/passwd", path.join("3")));
            let _ = std::fs::remove_dir(path.join("5")).and_then(|()| symlink("/etc", path.join("5")));
            false
        };
        let names: Vec<_> = told(&root.0, &meddle).into_iter().map(|(name, kind, _)| (name, kind)).collect();
        let expected = [("1", EntryType::Regular), ("3", EntryType::Symlink), ("4", EntryType::Regular), ("5", EntryType::Symlink)];
        assert_eq!(names, expected.map(|(name, kind)| (name.to_owned(), kind)));
    }

    #[test]
    fn a_folder_that_lies_too_deep_is_refused_by_name() {
        let root = Folder::new();
        let mut folder = open_root(&root.0).unwrap();
        for _ in 0..=DEPTH_MAX {
            nix::sys::stat::mkdirat(&folder, "d", Mode::S_IRWXU).unwrap();
            folder = File::from(open_directory(&folder, OsStr::new("d")).unwrap());
        }
        let refused = Walk::new(&root.0, Below::Found(&|_| false), None, io::sink()).unwrap().run().unwrap_err();
        assert_eq!(refused.code, "resource_exhausted");
    }

    #[test]
    fn owners_are_set_below_the_root_only_and_links_are_not_followed() {
        let root = Folder::new();
        std::fs::create_dir(root.0.join("folder")).unwrap();
        std::fs::write(root.0.join("folder/file"), "x").unwrap();
        symlink("folder", root.0.join("link")).unwrap();
        // Ours already, so that this also runs as an ordinary user.
        let own = std::fs::metadata(&root.0).unwrap();
        let entry = |path: &str| pb::OwnerEntry { path: path.into(), uid: own.uid(), gid: own.gid(), mode: 0o4711 };
        let mode = |name: &str| std::fs::metadata(root.0.join(name)).unwrap().permissions().mode() & 0o7777;
        let before = mode("folder/file");
        let mut room = Room { bytes: u64::MAX, left: 0 };
        for passed_over in ["/link/file", "/nowhere", "/folder/file/below"] {
            assert_eq!(set_owner(&root.0, &entry(passed_over), &mut room), Ok(()));
            assert_eq!(mode("folder/file"), before);
        }
        for refused in ["folder/file", "", "/folder/../folder/file", "/folder/\0"] {
            assert_eq!(set_owner(&root.0, &entry(refused), &mut room).unwrap_err().code, "invalid_argument", "{refused:?}");
        }
        assert_eq!(set_owner(&root.0, &entry("/folder/file"), &mut room), Ok(()));
        assert_eq!(set_owner(&root.0, &entry("/"), &mut room), Ok(()));
        assert_eq!((mode("folder/file"), mode("")), (0o4711, 0o4711));
    }

    #[test]
    fn large_files_that_all_may_use_stay_as_they_are_when_their_copies_have_no_room() {
        let root = Folder::new();
        let own = std::fs::metadata(&root.0).unwrap();
        let mut room = Room { bytes: 10, left: 0 };
        // Name, bytes, wanted mode, whether it gets that mode.
        let files = [
            ("fits", 6, 0o640, true),
            ("too-large", 6, 0o644, false),
            ("private", 6, 0o600, true),
            ("program", 6, 0o755, false),
            ("private-program", 6, 0o754, true),
            ("empty", 0, 0o644, true),
        ];
        for (name, bytes, wanted, _) in files {
            std::fs::write(root.0.join(name), vec![0; bytes]).unwrap();
            std::fs::set_permissions(root.0.join(name), std::fs::Permissions::from_mode(0o666)).unwrap();
            let entry = pb::OwnerEntry { path: format!("/{name}"), uid: own.uid(), gid: own.gid(), mode: wanted };
            assert_eq!(set_owner(&root.0, &entry, &mut room), Ok(()));
        }
        for (name, _, wanted, gets) in files {
            let mode = std::fs::metadata(root.0.join(name)).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode, if gets { wanted } else { 0o666 }, "{name}");
        }
        assert_eq!(room.left, 2);
    }
}

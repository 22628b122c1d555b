//! Files of the sandbox: read, write, list and change them, as the agent's user, anywhere in the sandbox.
//!
//! Nothing here blocks the link: each step on a file runs on a helper thread, a bounded number at once. Only regular files are read and
//! written, so a FIFO or a device cannot hold a thread for ever.

use super::call::{Call, Gone, Status};
use super::paths;
use crate::proto::guest::v1 as guest;
use crate::proto::sandbox::v1 as sandbox;
use crate::wire::PAYLOAD_BYTES_MAX;
use bytes::Bytes;
use guest::read_file_output::Msg as ReadOutput;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use sandbox::write_file_request::Msg as WriteInput;
use std::fs::{self, File, Metadata, OpenOptions};
use std::future::Future;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Semaphore;

/// Of one message of output (a rule of the published service).
pub(super) const CHUNK_BYTES_MAX: usize = 32 << 10;
/// Of a file in one message of the link, so that the message is one frame and neither end has to put it together.
const DATA_BYTES_MAX: usize = PAYLOAD_BYTES_MAX - HEAD_BYTES_MAX;
/// What stands before the data of a message: a tag and a length.
const HEAD_BYTES_MAX: usize = 8;
/// Messages read in one step, to pay for the change of thread and the system call once.
const READ_MESSAGES: usize = 16;
/// Gathered for one step of writing: gVisor finds memory for all of it at once, and a change of thread is paid once.
const APPEND_BYTES: usize = 1 << 20;
/// A written file up to this size is collected in memory; see `write_file`.
const COLLECT_BYTES_MAX: usize = 1 << 20;
const PATH_BYTES_MAX: usize = 4096;
/// Pieces that one system call takes.
const IOV_MAX: usize = 256;
const ENTRIES_MAX: usize = 200_000;
/// Of all entries of a listing, which is one message: the host ends the session over one above 64 MiB.
const ENTRIES_BYTES_MAX: usize = 48 << 20;
/// Steps on files that run at the same time; more wait.
static STEPS: Semaphore = Semaphore::const_new(16);

/// Streams a file or a part of it: `FileInfo` first, then data. Follows symbolic links.
pub async fn read_file(first: Bytes, call: Call) -> Result<(), Status> {
    let request: guest::ReadFileRange = decode(first)?;
    let place = Place::named(&request.path)?;
    let (file, info) = step(move || {
        let mut file = open_regular(&place, OpenOptions::new().read(true))?;
        let info = info(&place.shown, &place.check(file.metadata())?);
        place.check(file.seek(SeekFrom::Start(request.offset)))?;
        Ok((Arc::new(file), info))
    })
    .await?;
    let mut left = if request.length == 0 { u64::MAX } else { request.length };
    let blocks = Arc::new(Blocks::new(left.min((info.size as u64).saturating_sub(request.offset))));
    call.send(&guest::ReadFileOutput { msg: Some(ReadOutput::Info(info)) }).await?;
    let mut messages = Vec::new();
    loop {
        // While one block is sent the next is read.
        let read = async {
            if left == 0 {
                return Ok(None);
            }
            let (file, blocks) = (file.clone(), blocks.clone());
            step(move || read_block(&file, left, blocks).map_err(|error| status("read the file", &error))).await.map(Some)
        };
        let sent = async {
            for message in messages {
                call.send_bytes(message).await?;
            }
            Ok::<_, Status>(())
        };
        let (read, sent) = tokio::join!(read, sent);
        sent?;
        let Some(next) = read? else { return Ok(()) };
        (messages, left) = next;
    }
}

/// The next part of a file as encoded messages, and how much is left after it.
fn read_block(mut file: &File, left: u64, blocks: Arc<Blocks>) -> io::Result<(Vec<Bytes>, u64)> {
    let mut block = blocks.take();
    let mut unused = left;
    let mut rooms: Vec<IoSliceMut> = Vec::with_capacity(READ_MESSAGES);
    for message in block.bytes.chunks_exact_mut(PAYLOAD_BYTES_MAX) {
        let room = unused.min(DATA_BYTES_MAX as u64) as usize;
        unused -= room as u64;
        if room > 0 {
            rooms.push(IoSliceMut::new(&mut message[HEAD_BYTES_MAX..HEAD_BYTES_MAX + room]));
        }
    }
    let mut rest = &mut rooms[..];
    let mut count = 0;
    while !rest.is_empty() {
        match file.read_vectored(rest) {
            Ok(0) => break,
            Ok(length) => {
                count += length;
                IoSliceMut::advance_slices(&mut rest, length);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let ended = !rest.is_empty();
    let mut ends = Vec::with_capacity(READ_MESSAGES);
    for (index, start) in (0..count).step_by(DATA_BYTES_MAX).enumerate() {
        let length = DATA_BYTES_MAX.min(count - start);
        let mut head = [0; HEAD_BYTES_MAX];
        let mut rest = &mut head[..];
        encode_key(DATA_FIELD, WireType::LengthDelimited, &mut rest);
        encode_varint(length as u64, &mut rest);
        let head_length = HEAD_BYTES_MAX - rest.len();
        let data = index * PAYLOAD_BYTES_MAX + HEAD_BYTES_MAX;
        block.bytes[data - head_length..data].copy_from_slice(&head[..head_length]);
        ends.push(data - head_length..data + length);
    }
    let block = Bytes::from_owner(block);
    Ok((ends.into_iter().map(|range| block.slice(range)).collect(), if ended { 0 } else { left - count as u64 }))
}

/// `data` of `ReadFileOutput`.
const DATA_FIELD: u32 = 2;

/// Memory for the blocks of one file, used again when all messages of a block have gone: new memory is what costs most of a read.
struct Blocks {
    unused: Mutex<Vec<Vec<u8>>>,
    bytes: usize,
}

struct Block {
    bytes: Vec<u8>,
    home: Arc<Blocks>,
}

impl Blocks {
    /// For a file of which so much is expected; it may turn out to be more.
    fn new(expected: u64) -> Self {
        let messages = (expected / DATA_BYTES_MAX as u64 + 1).min(READ_MESSAGES as u64) as usize;
        Self { unused: Mutex::default(), bytes: messages * PAYLOAD_BYTES_MAX }
    }

    fn take(self: Arc<Self>) -> Block {
        let used = self.unused.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Block { bytes: used.unwrap_or_else(|| vec![0; self.bytes]), home: self }
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.home.unused.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.bytes));
    }
}

/// Writes a whole file: missing parents are made, symbolic links followed, an existing file keeps its inode, mode and owner.
///
/// A caller that goes away before the end changes nothing. So the target is touched when the content is complete: up to 1 MiB from memory, a
/// larger one from an unnamed file that is copied over the target. Where there is no old content to lose, a large file is written in place
/// and removed when the caller goes away. (A renamed temporary file would be cheaper, but breaks hard links, mounts and watchers.)
pub async fn write_file(first: Bytes, mut call: Call) -> Result<(), Status> {
    let Some(WriteInput::Open(open)) = decode::<sandbox::WriteFileRequest>(first)?.msg else {
        return Err(Status::invalid("write a file: the first message must be open"));
    };
    let place = Place::named(&open.path)?;
    let mode = if open.mode == 0 { 0o644 } else { open.mode & 0o7777 };
    let mut waiting = Vec::new();
    let mut waiting_bytes = 0;
    let mut bytes_written = 0_i64;
    let mut incoming = None;
    let mut is_large = false;
    let mut appending: Option<Appending> = None;
    // What comes while a step writes is gathered for the next one.
    let received = loop {
        let arrived = tokio::select! {
            biased;
            done = async { appending.as_mut().expect("is there").await }, if appending.is_some() => {
                appending = None;
                match done {
                    Ok(appended) => incoming = Some(appended),
                    Err(error) => break Err(error),
                }
                None
            }
            message = call.receive(), if waiting_bytes < APPEND_BYTES || appending.is_none() => match content(message) {
                Ok(None) => break Ok(()),
                Ok(data) => data,
                Err(error) => break Err(error),
            },
        };
        if let Some(data) = arrived {
            bytes_written += data.len() as i64;
            waiting_bytes += data.len();
            waiting.push(data);
        }
        is_large |= waiting_bytes > COLLECT_BYTES_MAX;
        if is_large && appending.is_none() && waiting_bytes >= APPEND_BYTES {
            waiting_bytes = 0;
            appending = Some(append(incoming.take(), &place, mode, std::mem::take(&mut waiting)));
        }
    };
    // A step that has begun ends before the call does.
    if let Some(appending) = appending {
        incoming = Some(appending.await?);
    }
    received?;
    step(move || {
        if is_large {
            let mut incoming = incoming.map_or_else(|| Incoming::open(place, mode), Ok)?;
            incoming.append(&waiting)?;
            return incoming.commit();
        }
        let file = open_target(&place, mode)?;
        place.check(file.set_len(0).and_then(|()| write_all(&file, &waiting)))
    })
    .await?;
    reply(&call, &sandbox::WriteFileResult { bytes_written }).await
}

type Appending = Pin<Box<dyn Future<Output = Result<Incoming, Status>> + Send>>;

fn append(incoming: Option<Incoming>, place: &Place, mode: u32, parts: Vec<Bytes>) -> Appending {
    let place = place.clone();
    Box::pin(step(move || {
        let mut incoming = incoming.map_or_else(|| Incoming::open(place, mode), Ok)?;
        incoming.append(&parts)?;
        Ok(incoming)
    }))
}

/// Of a message after the first; none at the end.
fn content(message: Result<Option<Bytes>, Gone>) -> Result<Option<Bytes>, Status> {
    let Some(message) = message? else { return Ok(None) };
    match decode::<sandbox::WriteFileRequest>(message)?.msg {
        Some(WriteInput::Data(data)) => Ok(Some(data)),
        _ => Err(Status::invalid("write a file: every message after the first must be data")),
    }
}

/// In as few system calls as can be, from where the file stands.
fn write_all(mut file: &File, parts: &[Bytes]) -> io::Result<()> {
    for some in parts.chunks(IOV_MAX) {
        let mut slices: Vec<_> = some.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = &mut slices[..];
        // Empty ones at the front are passed over.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match file.write_vectored(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut rest, count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// The entries of a directory, unsorted, links not followed. A path that is no directory is answered with its own entry, so that a client
/// which asks by List whether a file exists gets the truth.
pub async fn list(first: Bytes, call: Call) -> Result<(), Status> {
    let request: sandbox::ListRequest = decode(first)?;
    let place = Place::new(&request.parent)?;
    let entries = step(move || {
        if !place.check(fs::metadata(&place.real).or_else(|_| fs::symlink_metadata(&place.real)))?.is_dir() {
            return Ok(vec![info(&place.shown, &place.check(fs::symlink_metadata(&place.real))?)]);
        }
        let mut entries = Vec::new();
        let mut bytes = 0;
        for entry in place.check(fs::read_dir(&place.real))? {
            // Gone, or not ours to look at: left out.
            let Ok(entry) = entry else { continue };
            let Ok(metadata) = entry.metadata() else { continue };
            if entries.len() == ENTRIES_MAX {
                return Err(Status::new("resource_exhausted", format!("{}: has more than {ENTRIES_MAX} entries; use exec", place.shown)));
            }
            let entry = info(&place.below(&entry.file_name().to_string_lossy()), &metadata);
            bytes += entry.encoded_len();
            if bytes > ENTRIES_BYTES_MAX {
                let limit = ENTRIES_BYTES_MAX >> 20;
                return Err(Status::new(
                    "resource_exhausted",
                    format!("{}: its entries take more than {limit} MiB; use exec", place.shown),
                ));
            }
            entries.push(entry);
        }
        Ok(entries)
    })
    .await?;
    reply(&call, &sandbox::ListResponse { entries, next_page_token: String::new() }).await
}

/// Of the path itself: a symbolic link is not followed.
pub async fn stat(first: Bytes, call: Call) -> Result<(), Status> {
    let request: sandbox::StatRequest = decode(first)?;
    let place = Place::new(&request.path)?;
    let info = step(move || Ok(info(&place.shown, &place.check(fs::symlink_metadata(&place.real))?))).await?;
    reply(&call, &info).await
}

/// With all parents, mode 0755. A directory that exists is fine.
pub async fn mkdir(first: Bytes, call: Call) -> Result<(), Status> {
    let request: sandbox::MkdirRequest = decode(first)?;
    let place = Place::named(&request.path)?;
    step(move || place.check(make_directories(&place.real))).await?;
    reply(&call, &sandbox::MkdirResponse {}).await
}

/// A file, a link (not its target) or a whole tree. What is missing already is fine.
pub async fn remove(first: Bytes, call: Call) -> Result<(), Status> {
    let request: sandbox::RemoveRequest = decode(first)?;
    let place = Place::named(&request.path)?;
    step(move || {
        let removed = match fs::symlink_metadata(&place.real) {
            Ok(metadata) if metadata.is_dir() => {
                if place.check(fs::canonicalize(&place.real))? == Path::new("/") {
                    return Err(Status::invalid("/: the root of the sandbox cannot be removed; terminate the sandbox instead"));
                }
                fs::remove_dir_all(&place.real)
            }
            Ok(_) => fs::remove_file(&place.real),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => place.check(other),
        }
    })
    .await?;
    reply(&call, &sandbox::RemoveResponse {}).await
}

/// Within one file system; replaces an existing file.
/// As rename(2): a file replaces a file, a directory an empty directory, in one step.
pub async fn rename(first: Bytes, call: Call) -> Result<(), Status> {
    let request: guest::RenameRequest = decode(first)?;
    let (from, to) = (Place::named(&request.from)?, Place::named(&request.to)?);
    let subject = format!("rename {} to {}", from.shown, to.shown);
    step(move || match fs::rename(&from.real, &to.real) {
        Err(error) if error.raw_os_error() == Some(libc::EXDEV) => Err(Status::new(
            "failed_precondition",
            format!("{subject}: they lie on different file systems of the sandbox; `mv` copies it and removes the original"),
        )),
        renamed => renamed.map_err(|error| status(&subject, &error)),
    })
    .await?;
    reply(&call, &guest::Empty {}).await
}

/// Follows symbolic links.
pub async fn set_mode(first: Bytes, call: Call) -> Result<(), Status> {
    let request: guest::SetModeRequest = decode(first)?;
    let place = Place::named(&request.path)?;
    if request.mode & !0o7777 != 0 {
        return Err(Status::invalid(format!("{}: mode {:#o} has bits above 0o7777", place.shown, request.mode)));
    }
    step(move || place.check(fs::set_permissions(&place.real, fs::Permissions::from_mode(request.mode)))).await?;
    reply(&call, &guest::Empty {}).await
}

/// The target need not exist and is stored as it is given.
pub async fn make_symlink(first: Bytes, call: Call) -> Result<(), Status> {
    let request: guest::MakeSymlinkRequest = decode(first)?;
    let place = Place::named(&request.path)?;
    check_text(&request.target)?;
    if request.target.is_empty() {
        return Err(Status::invalid(format!("{}: the target of a symbolic link cannot be empty", place.shown)));
    }
    step(move || place.check(std::os::unix::fs::symlink(&request.target, &place.real))).await?;
    reply(&call, &guest::Empty {}).await
}

pub async fn read_link(first: Bytes, call: Call) -> Result<(), Status> {
    let request: guest::ReadLinkRequest = decode(first)?;
    let place = Place::named(&request.path)?;
    let target = step(move || place.check(fs::read_link(&place.real))).await?;
    reply(&call, &guest::ReadLinkReply { target: target.to_string_lossy().into_owned() }).await
}

// ---------------------------------------------------------------- shared with archive and watch

/// A path of a request: what the caller sees, and where it is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Absolute, without a slash at the end.
    pub shown: String,
    pub real: PathBuf,
}

impl Place {
    /// Absolute, or relative to /workspace; empty is /workspace itself.
    pub fn new(path: &str) -> Result<Self, Status> {
        check_text(path)?;
        let absolute = if path.starts_with('/') { path.to_string() } else { format!("/workspace/{path}") };
        let trimmed = absolute.trim_end_matches('/');
        let shown = if trimmed.is_empty() { "/" } else { trimmed }.to_string();
        let real = paths::real(&shown);
        Ok(Self { shown, real })
    }

    /// For changes, which must not hit /workspace because somebody forgot a name.
    pub fn named(path: &str) -> Result<Self, Status> {
        if path.is_empty() {
            Err(Status::invalid("the path is empty; give an absolute one, or one relative to /workspace"))
        } else {
            Self::new(path)
        }
    }

    /// How the caller sees an entry of this directory.
    pub fn below(&self, name: &str) -> String {
        format!("{}/{name}", self.shown.trim_end_matches('/'))
    }

    pub fn check<T>(&self, result: io::Result<T>) -> Result<T, Status> {
        result.map_err(|error| status(&self.shown, &error))
    }
}

fn check_text(path: &str) -> Result<(), Status> {
    if path.contains('\0') {
        return Err(Status::invalid(format!("{:?}: a path cannot contain a NUL byte", path.replace('\0', "\\0"))));
    }
    if path.len() > PATH_BYTES_MAX {
        let start: String = path.chars().take(60).collect();
        return Err(Status::invalid(format!("{start}…: a path has at most {PATH_BYTES_MAX} bytes, this one has {}", path.len())));
    }
    Ok(())
}

/// The one place where an errno becomes a code.
pub(super) fn status(subject: &str, error: &io::Error) -> Status {
    let code = match error.raw_os_error() {
        Some(libc::ENOENT) => "not_found",
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => "permission_denied",
        Some(libc::EEXIST | libc::ENOTEMPTY) => "already_exists",
        // A mount point cannot be moved or removed.
        Some(libc::EBUSY) => "failed_precondition",
        Some(libc::ENOTDIR | libc::EISDIR | libc::EINVAL | libc::ENAMETOOLONG | libc::ELOOP | libc::EXDEV) => "invalid_argument",
        Some(libc::ENOSPC | libc::EDQUOT | libc::EMFILE | libc::ENFILE | libc::ENOMEM) => "resource_exhausted",
        _ => match error.kind() {
            ErrorKind::NotFound => "not_found",
            ErrorKind::InvalidInput => "invalid_argument",
            _ => "internal",
        },
    };
    Status::new(code, format!("{subject}: {error}"))
}

/// Runs a step that may block on a helper thread. A caller that goes away does not stop a step that has begun.
pub(super) async fn step<T: Send + 'static>(work: impl FnOnce() -> Result<T, Status> + Send + 'static) -> Result<T, Status> {
    let permit = STEPS.acquire().await.map_err(|_| Status::new("internal", "the agent is ending"))?;
    let task = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work()
    });
    task.await.map_err(|error| Status::new("internal", format!("a step on a file failed: {error}")))?
}

pub(super) fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, Status> {
    M::decode(bytes).map_err(|error| Status::invalid(format!("the message cannot be decoded: {error}")))
}

pub(super) async fn reply(call: &Call, message: &impl Message) -> Result<(), Status> {
    Ok(call.send(message).await?)
}

/// A file without a name, for content that is not complete yet.
pub(super) fn unnamed_file() -> Result<File, Status> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let path = paths::own("/tmp").join(format!(".mitos-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let open = || OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
    let file = match open() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let tmp = paths::own("/tmp");
            fs::DirBuilder::new().recursive(true).mode(0o1777).create(&tmp).and_then(|()| open())
        }
        other => other,
    }
    .map_err(|error| status("collect the content in /tmp", &error))?;
    fs::remove_file(&path).map_err(|error| status("collect the content in /tmp", &error))?;
    Ok(file)
}

pub(super) fn make_directories(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

// ---------------------------------------------------------------- helpers

fn info(path: &str, metadata: &Metadata) -> sandbox::FileInfo {
    let name = path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(path);
    sandbox::FileInfo {
        name: name.to_string(),
        path: path.to_string(),
        is_dir: metadata.is_dir(),
        size: metadata.size() as i64,
        mode: metadata.mode(),
        modified_at_unix: metadata.mtime(),
    }
}

/// Looks before it opens, since opening a device can do something, and again afterwards, since the path may have changed.
fn open_regular(place: &Place, options: &mut OpenOptions) -> Result<File, Status> {
    match fs::metadata(&place.real) {
        Ok(metadata) => require_regular(place, &metadata)?,
        // Whether a missing file is an error is up to `options`.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(status(&place.shown, &error)),
    }
    let file = place.check(options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(&place.real))?;
    require_regular(place, &place.check(file.metadata())?)?;
    Ok(file)
}

fn require_regular(place: &Place, metadata: &Metadata) -> Result<(), Status> {
    match metadata {
        metadata if metadata.is_file() => Ok(()),
        metadata if metadata.is_dir() => Err(Status::invalid(format!("{}: is a directory", place.shown))),
        _ => Err(Status::invalid(format!("{}: is a pipe, socket or device, not a regular file; use exec", place.shown))),
    }
}

/// Not truncated yet.
fn open_target(place: &Place, mode: u32) -> Result<File, Status> {
    if let Some(parent) = place.real.parent() {
        place.check(make_directories(parent))?;
    }
    open_regular(place, OpenOptions::new().write(true).create(true).truncate(false).mode(mode))
}

/// The content of a large file on its way.
enum Incoming {
    /// The target did not exist; dropping removes it again.
    InPlace {
        place: Place,
        file: File,
        complete: bool,
    },
    Aside {
        place: Place,
        file: File,
        mode: u32,
    },
}

impl Incoming {
    fn open(place: Place, mode: u32) -> Result<Self, Status> {
        if fs::symlink_metadata(&place.real).is_ok() {
            return Ok(Self::Aside { place, file: unnamed_file()?, mode });
        }
        let file = open_target(&place, mode)?;
        Ok(Self::InPlace { place, file, complete: false })
    }

    fn append(&mut self, parts: &[Bytes]) -> Result<(), Status> {
        let (Self::InPlace { place, file, .. } | Self::Aside { place, file, .. }) = self;
        write_all(file, parts).map_err(|error| status(&place.shown, &error))
    }

    fn commit(mut self) -> Result<(), Status> {
        match &mut self {
            Self::InPlace { complete, .. } => *complete = true,
            Self::Aside { place, file, mode } => {
                let mut target = open_target(place, *mode)?;
                // Over the old content, whose room is used again, and cut afterwards.
                let copied = file.rewind().and_then(|()| io::copy(file, &mut target)).and_then(|length| target.set_len(length));
                place.check(copied)?;
            }
        }
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Self::InPlace { place, file, complete: false } = self {
            // Only what was made here: somebody else may have put another file there meanwhile.
            let same = |now: Metadata| file.metadata().is_ok_and(|made| (made.dev(), made.ino()) == (now.dev(), now.ino()));
            if fs::symlink_metadata(&place.real).is_ok_and(same) {
                let _ = fs::remove_file(&place.real);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::future::Future;
    use std::os::unix::fs::symlink;
    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    /// A folder of its own, removed at the end.
    pub struct Folder(pub PathBuf);

    impl Folder {
        pub fn new() -> Self {
            static NEXT: AtomicU64 = AtomicU64::new(0);
            let path = std::env::temp_dir().join(format!("mitos-files-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub fn path(&self, name: &str) -> String {
            self.0.join(name).to_str().unwrap().to_string()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    pub struct Caller {
        /// Dropped = half-closed.
        pub inbound: Option<mpsc::Sender<Bytes>>,
        pub outbound: mpsc::Receiver<Bytes>,
        pub cancelled: CancellationToken,
    }

    pub fn call() -> (Call, Caller) {
        let (call, inbound, outbound) = Call::for_test();
        let caller = Caller { inbound: Some(inbound), outbound, cancelled: call.cancelled.clone() };
        (call, caller)
    }

    /// Sends all messages, half-closes, and collects what comes back.
    pub async fn exchange<H, F>(handler: H, messages: Vec<impl Message>) -> Result<Vec<Bytes>, Status>
    where
        H: FnOnce(Bytes, Call) -> F,
        F: Future<Output = Result<(), Status>>,
    {
        let (call, mut caller) = call();
        let mut messages = messages.into_iter().map(|message| Bytes::from(message.encode_to_vec()));
        let first = messages.next().unwrap();
        let rest: Vec<Bytes> = messages.collect();
        let inbound = caller.inbound.take().unwrap();
        let send = async move {
            for message in rest {
                if inbound.send(message).await.is_err() {
                    break;
                }
            }
        };
        let receive = async {
            let mut received = Vec::new();
            while let Some(message) = caller.outbound.recv().await {
                received.push(message);
            }
            received
        };
        let (status, (), received) = tokio::join!(handler(first, call), send, receive);
        status.map(|()| received)
    }

    async fn one<M: Message + Default, H, F>(handler: H, message: impl Message) -> Result<M, Status>
    where
        H: FnOnce(Bytes, Call) -> F,
        F: Future<Output = Result<(), Status>>,
    {
        let replies = exchange(handler, vec![message]).await?;
        assert_eq!(replies.len(), 1);
        Ok(M::decode(replies[0].clone()).unwrap())
    }

    fn open(path: &str, mode: u32) -> sandbox::WriteFileRequest {
        sandbox::WriteFileRequest { msg: Some(WriteInput::Open(sandbox::WriteFileOpen { path: path.into(), mode })) }
    }

    fn data(bytes: impl Into<Bytes>) -> sandbox::WriteFileRequest {
        sandbox::WriteFileRequest { msg: Some(WriteInput::Data(bytes.into())) }
    }

    async fn read(path: &str, offset: u64, length: u64) -> Result<(sandbox::FileInfo, Vec<u8>), Status> {
        let messages = exchange(read_file, vec![guest::ReadFileRange { path: path.into(), offset, length }]).await?;
        assert!(messages.iter().all(|message| message.len() <= PAYLOAD_BYTES_MAX), "a message that is no single frame");
        let mut outputs = messages.into_iter().map(|message| guest::ReadFileOutput::decode(message).unwrap().msg.unwrap());
        let Some(ReadOutput::Info(info)) = outputs.next() else { panic!("the first message is no info") };
        let mut content = Vec::new();
        for output in outputs {
            let ReadOutput::Data(data) = output else { panic!("a second info") };
            assert!(!data.is_empty() && data.len() <= DATA_BYTES_MAX);
            content.extend_from_slice(&data);
        }
        Ok((info, content))
    }

    fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> &'static str {
        result.unwrap_err().code
    }

    #[tokio::test]
    async fn what_is_written_is_read_whatever_its_size() {
        let folder = Folder::new();
        for size in [
            0,
            1,
            11,
            DATA_BYTES_MAX,
            DATA_BYTES_MAX + 1,
            READ_MESSAGES * DATA_BYTES_MAX,
            COLLECT_BYTES_MAX,
            COLLECT_BYTES_MAX + 1,
            5_000_000,
        ] {
            let path = folder.path(&format!("new/parents/{size}"));
            for salt in [1, 7] {
                let content: Vec<u8> = (0..size).map(|index| (index * salt % 251) as u8).collect();
                let mut messages = vec![open(&path, 0)];
                messages.extend(content.chunks(300_000).map(|part| data(part.to_vec())));
                let replies = exchange(write_file, messages).await.unwrap();
                assert_eq!(sandbox::WriteFileResult::decode(replies[0].clone()).unwrap().bytes_written, size as i64);
                let (info, got) = read(&path, 0, 0).await.unwrap();
                assert!(got == content && info.size == size as i64 && info.name == size.to_string());
            }
        }
    }

    #[tokio::test]
    async fn a_part_of_a_file_is_read() {
        let folder = Folder::new();
        fs::write(folder.path("f"), "0123456789").unwrap();
        assert_eq!(read(&folder.path("f"), 3, 4).await.unwrap().1, b"3456");
        assert_eq!(read(&folder.path("f"), 8, 100).await.unwrap().1, b"89");
        assert_eq!(read(&folder.path("f"), 100, 0).await.unwrap().1, b"");
        assert_eq!(code(read(&folder.path("f"), u64::MAX, 0).await), "invalid_argument");
    }

    /// They say that they are empty, and end with no short read.
    #[tokio::test]
    async fn files_of_the_kernel_are_read_to_their_end() {
        let (info, content) = read("/proc/self/status", 0, 0).await.unwrap();
        assert!(info.size == 0 && content.starts_with(b"Name:") && content.ends_with(b"\n"));
    }

    #[tokio::test]
    async fn a_shorter_file_replaces_all_of_a_longer_one() {
        let folder = Folder::new();
        let path = folder.path("f");
        for size in [9, 3, 2] {
            let content: Vec<u8> = (0..size * COLLECT_BYTES_MAX).map(|index| (index * size % 251) as u8).collect();
            let mut messages = vec![open(&path, 0)];
            messages.extend(content.chunks(65_520).map(|part| data(part.to_vec())));
            exchange(write_file, messages).await.unwrap();
            assert!(fs::read(&path).unwrap() == content, "{size}");
        }
    }

    #[tokio::test]
    async fn a_full_disk_ends_a_write_at_once_and_what_was_written_is_removed() {
        let folder = Folder::new();
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let place = Place::named(&folder.path("f")).unwrap();
        fs::write(&place.real, "").unwrap();
        let incoming = Incoming::InPlace { place: place.clone(), file, complete: false };
        let failed = append(Some(incoming), &place, 0o644, vec![Bytes::from_static(b"x")]).await;
        assert_eq!(failed.err().map(|status| status.code), Some("resource_exhausted"));
    }

    #[tokio::test]
    async fn a_mode_is_for_new_files_and_an_existing_file_keeps_its_own_and_its_inode() {
        let folder = Folder::new();
        let path = folder.path("f");
        exchange(write_file, vec![open(&path, 0o600)]).await.unwrap();
        let before = fs::metadata(&path).unwrap();
        assert_eq!(before.mode() & 0o777, 0o600);
        symlink(&path, folder.path("link")).unwrap();
        for size in [5, COLLECT_BYTES_MAX * 2] {
            exchange(write_file, vec![open(&folder.path("link"), 0o644), data(vec![1; size])]).await.unwrap();
            let after = fs::metadata(&path).unwrap();
            assert_eq!((after.mode(), after.ino(), after.len()), (before.mode(), before.ino(), size as u64));
        }
        assert!(fs::symlink_metadata(folder.path("link")).unwrap().is_symlink());
    }

    #[tokio::test]
    async fn a_write_whose_caller_goes_away_changes_nothing() {
        let folder = Folder::new();
        fs::write(folder.path("old"), "old").unwrap();
        for (name, size) in [("old", 10), ("old", COLLECT_BYTES_MAX), ("new", 10), ("new", COLLECT_BYTES_MAX)] {
            let (call, caller) = call();
            let first = open(&folder.path(name), 0).encode_to_vec().into();
            let task = tokio::spawn(write_file(first, call));
            let inbound = caller.inbound.as_ref().unwrap();
            for _ in 0..6 {
                inbound.send(data(vec![1; size]).encode_to_vec().into()).await.unwrap();
            }
            caller.cancelled.cancel();
            assert_eq!(code(task.await.unwrap()), "canceled");
            assert_eq!(fs::read(folder.path("old")).unwrap(), b"old");
            assert!(!folder.0.join("new").exists(), "{size}");
        }
    }

    #[tokio::test]
    async fn a_write_must_begin_with_open() {
        assert_eq!(code(exchange(write_file, vec![data("x")]).await), "invalid_argument");
        let folder = Folder::new();
        assert_eq!(code(exchange(write_file, vec![open(&folder.path("f"), 0), open(&folder.path("f"), 0)]).await), "invalid_argument");
    }

    #[tokio::test]
    async fn a_listing_has_every_entry_and_follows_no_link() {
        let folder = Folder::new();
        fs::write(folder.path("f"), "abc").unwrap();
        fs::create_dir(folder.path("d")).unwrap();
        symlink("nowhere", folder.path("l")).unwrap();
        let parent = format!("{}/", folder.path(""));
        let reply: sandbox::ListResponse =
            one(list, sandbox::ListRequest { parent, page_size: 1, page_token: "x".into(), ..Default::default() }).await.unwrap();
        let mut rows: Vec<_> = reply.entries.iter().map(|e| (e.name.as_str(), e.path.clone(), e.is_dir, e.mode & 0o170_000)).collect();
        rows.sort();
        let expected = [
            ("d", folder.path("d"), true, 0o040_000),
            ("f", folder.path("f"), false, 0o100_000),
            ("l", folder.path("l"), false, 0o120_000),
        ];
        assert_eq!(rows, expected);
    }

    #[tokio::test]
    async fn a_listing_that_would_be_no_message_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let folder = Folder::new();
        let parent = format!("{}{}", folder.path(""), format!("/{}", "d".repeat(240)).repeat(15));
        fs::create_dir_all(&parent).unwrap();
        // Bytes that are no UTF-8 are told with three each.
        for index in 0..13_000 {
            let name = [format!("{index:05}").as_bytes(), &[0xff; 240]].concat();
            File::create(Path::new(&parent).join(std::ffi::OsStr::from_bytes(&name))).unwrap();
        }
        let listed = exchange(list, vec![sandbox::ListRequest { parent, ..Default::default() }]).await;
        assert_eq!(code(listed.map(|replies| replies[0].len())), "resource_exhausted");
    }

    #[tokio::test]
    async fn a_listing_of_a_file_is_its_entry_and_of_nothing_not_found() {
        let folder = Folder::new();
        fs::write(folder.path("f"), "abc").unwrap();
        symlink("nowhere", folder.path("l")).unwrap();
        for name in ["f", "l"] {
            let reply: sandbox::ListResponse =
                one(list, sandbox::ListRequest { parent: folder.path(name), ..Default::default() }).await.unwrap();
            assert_eq!(reply.entries.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), [name]);
        }
        let missing = sandbox::ListRequest { parent: folder.path("x"), ..Default::default() };
        assert_eq!(code(one::<sandbox::ListResponse, _, _>(list, missing).await), "not_found");
    }

    #[tokio::test]
    async fn stat_names_the_path_and_follows_no_link() {
        let info = |path: &str| one::<sandbox::FileInfo, _, _>(stat, sandbox::StatRequest { path: path.into() });
        let root = info("/").await.unwrap();
        assert_eq!((root.name.as_str(), root.path.as_str(), root.is_dir), ("/", "/", true));
        let tmp = info("/tmp/").await.unwrap();
        assert_eq!((tmp.name.as_str(), tmp.path.as_str(), tmp.is_dir), ("tmp", "/tmp", true));
        assert_eq!(code(info("/does/not/exist").await), "not_found");
        assert_eq!(code(info("/etc/passwd/x").await), "invalid_argument");
    }

    #[tokio::test]
    async fn directories_are_made_with_their_parents_and_trees_removed() {
        let folder = Folder::new();
        let request = || sandbox::MkdirRequest { path: folder.path("a/b/c") };
        for _ in 0..2 {
            one::<sandbox::MkdirResponse, _, _>(mkdir, request()).await.unwrap();
        }
        assert_eq!(fs::metadata(folder.path("a/b/c")).unwrap().mode() & 0o777, 0o755);
        fs::write(folder.path("keep"), "").unwrap();
        symlink(folder.path("keep"), folder.path("a/b/link")).unwrap();
        for _ in 0..2 {
            let request = sandbox::RemoveRequest { path: folder.path("a"), recursive: false };
            one::<sandbox::RemoveResponse, _, _>(remove, request).await.unwrap();
        }
        assert!(!folder.0.join("a").exists() && folder.0.join("keep").exists());
        for path in ["", "/", "/tmp/.."] {
            let request = sandbox::RemoveRequest { path: path.into(), recursive: true };
            assert_eq!(code(one::<sandbox::RemoveResponse, _, _>(remove, request).await), "invalid_argument", "{path:?}");
        }
    }

    #[tokio::test]
    async fn links_renames_and_modes() {
        let folder = Folder::new();
        let link = |target: &str| guest::MakeSymlinkRequest { target: target.into(), path: folder.path("l") };
        one::<guest::Empty, _, _>(make_symlink, link("f")).await.unwrap();
        assert_eq!(code(one::<guest::Empty, _, _>(make_symlink, link("f")).await), "already_exists");
        let got: guest::ReadLinkReply = one(read_link, guest::ReadLinkRequest { path: folder.path("l") }).await.unwrap();
        assert_eq!(got.target, "f");
        fs::write(folder.path("g"), "").unwrap();
        assert_eq!(
            code(one::<guest::ReadLinkReply, _, _>(read_link, guest::ReadLinkRequest { path: folder.path("g") }).await),
            "invalid_argument"
        );
        one::<guest::Empty, _, _>(rename, guest::RenameRequest { from: folder.path("g"), to: folder.path("f") }).await.unwrap();
        let mode = |mode: u32| guest::SetModeRequest { path: folder.path("l"), mode };
        one::<guest::Empty, _, _>(set_mode, mode(0o4711)).await.unwrap();
        assert_eq!(fs::metadata(folder.path("f")).unwrap().mode() & 0o7777, 0o4711);
        assert_eq!(code(one::<guest::Empty, _, _>(set_mode, mode(0o100_644)).await), "invalid_argument");
    }

    #[tokio::test]
    async fn a_rename_replaces_what_can_be_replaced_and_names_what_cannot() {
        let folder = Folder::new();
        let to =
            |from: &str, to: &str| one::<guest::Empty, _, _>(rename, guest::RenameRequest { from: folder.path(from), to: folder.path(to) });
        fs::write(folder.path("a"), "a").unwrap();
        fs::write(folder.path("b"), "b").unwrap();
        fs::create_dir_all(folder.path("full/inner")).unwrap();
        fs::create_dir_all(folder.path("empty")).unwrap();
        to("a", "b").await.unwrap();
        assert_eq!(fs::read_to_string(folder.path("b")).unwrap(), "a");
        assert_eq!(code(to("a", "b").await), "not_found");
        assert_eq!(code(to("b", "no/such").await), "not_found");
        assert_eq!(code(to("b", "full").await), "invalid_argument");
        assert_eq!(code(to("full", "b").await), "invalid_argument");
        assert_eq!(code(to("full", "full/inner/x").await), "invalid_argument");
        assert_eq!(code(to("empty", "full").await), "already_exists");
        to("full", "empty").await.unwrap();
        assert!(Path::new(&folder.path("empty/inner")).is_dir());
        for path in ["", "\0"] {
            let request = guest::RenameRequest { from: folder.path("b"), to: path.into() };
            assert_eq!(code(one::<guest::Empty, _, _>(rename, request).await), "invalid_argument");
        }
    }

    #[tokio::test]
    async fn pipes_devices_and_directories_are_refused_at_once() {
        let folder = Folder::new();
        nix::unistd::mkfifo(&folder.0.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [folder.path("fifo"), "/dev/zero".into(), folder.path("")] {
            assert_eq!(code(read(&path, 0, 0).await), "invalid_argument", "{path}");
            assert_eq!(code(exchange(write_file, vec![open(&path, 0), data("x")]).await), "invalid_argument", "{path}");
        }
    }

    #[tokio::test]
    async fn impossible_paths_are_refused_and_named() {
        for path in ["a\0b".to_string(), "x".repeat(4097), "x".repeat(300)] {
            let error = one::<sandbox::FileInfo, _, _>(stat, sandbox::StatRequest { path: path.clone() }).await.unwrap_err();
            assert_eq!(error.code, if path.len() == 300 && !Path::new("/workspace").exists() { "not_found" } else { "invalid_argument" });
            assert!(error.message.len() > 20);
        }
    }
}

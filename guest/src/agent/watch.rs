//! Changes of files below a folder of /workspace, by inotify.

use super::archive::open_inside;
use super::call::{Call, Status};
use super::files::{Place, decode, status, step};
use super::paths;
use crate::proto::sandbox::v1 as sandbox;
use bytes::Bytes;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use prost::Message;
use sandbox::fs_event::Kind;
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Events that wait for a slow caller; above it the call ends with `resource_exhausted`. As many as Linux itself lets wait: a quick caller too has
/// not heard of the first file of an unpacked tree when the last one is there.
const EVENTS_MAX: usize = 16_384;
/// Folders of a recursive watch.
const FOLDERS_MAX: usize = 8192;
/// How long one half of a rename waits for the other. The kernel queues both at once; only an end of its queue can lie between them.
const RENAME_WAIT: Duration = Duration::from_millis(20);

pub async fn watch(first: Bytes, call: Call) -> Result<(), Status> {
    watch_below(paths::own("/workspace"), first, call).await
}

/// Ends when the folder itself is removed, or when the caller does not keep up.
async fn watch_below(workspace: PathBuf, first: Bytes, call: Call) -> Result<(), Status> {
    let request: sandbox::WatchRequest = decode(first)?;
    let place = Place::new(&request.path)?;
    let mut watcher = step(move || Watcher::new(&workspace, place, request.recursive)).await?;
    // SAFETY: the handle holds the descriptor, always the same one, as long as it lives.
    let inotify = unsafe { AsyncFd::register_with_interest(Handle(watcher.inotify.clone()), Interest::READABLE) };
    let inotify = inotify.map_err(|error| status("watch", &error.into()))?;
    loop {
        tokio::select! {
            biased;
            () = call.cancelled.cancelled() => return Ok(()),
            room = call.outbound.reserve(), if !watcher.events.is_empty() => {
                let Ok(room) = room else { return Ok(()) };
                if let Some(event) = watcher.events.pop_front() {
                    room.send(event.encode_to_vec().into());
                }
            }
            ready = inotify.readable(), if !watcher.ended => {
                let mut ready = ready.map_err(|error| status("watch", &error))?;
                // Taken to the end of the queue, then waited for again. The walk through new folders may block.
                ready.clear_ready();
                watcher = step(move || { watcher.take_events()?; Ok(watcher) }).await?;
            }
            () = tokio::time::sleep(RENAME_WAIT), if watcher.moved_from.is_some() => watcher.give_up_rename()?,
        }
        if watcher.ended && watcher.events.is_empty() {
            return Ok(());
        }
    }
}

struct Handle(std::sync::Arc<Inotify>);

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

struct Watcher {
    inotify: std::sync::Arc<Inotify>,
    place: Place,
    recursive: bool,
    /// Relative to the watched folder, which is the empty path.
    folders: HashMap<WatchDescriptor, PathBuf>,
    top: WatchDescriptor,
    /// The first half of a rename: its cookie, path, and whether it is a folder.
    moved_from: Option<(u32, PathBuf, bool)>,
    events: VecDeque<sandbox::FsEvent>,
    ended: bool,
}

impl Watcher {
    fn new(workspace: &Path, place: Place, recursive: bool) -> Result<Self, Status> {
        let folder = open_inside(workspace, &place)?;
        if !place.check(folder.metadata())?.is_dir() {
            return Err(Status::invalid(format!("{}: is not a directory; watch the one that holds it", place.shown)));
        }
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(|error| limit(&error.into()))?;
        // By handle: what was checked is what is watched.
        let top =
            inotify.add_watch(Path::new(&format!("/proc/self/fd/{}", folder.as_raw_fd())), top_mask()).map_err(|e| limit(&e.into()))?;
        let folders = HashMap::from([(top, PathBuf::new())]);
        let inotify = std::sync::Arc::new(inotify);
        let mut watcher = Self { inotify, place, recursive, folders, top, moved_from: None, events: VecDeque::new(), ended: false };
        if recursive {
            watcher.watch_subfolders(Path::new(""), false)?;
        }
        Ok(watcher)
    }

    /// Everything that is in the kernel's queue now.
    fn take_events(&mut self) -> Result<(), Status> {
        loop {
            match self.inotify.read_events() {
                Ok(events) => {
                    for event in events {
                        self.take_event(event)?;
                    }
                }
                Err(nix::Error::EAGAIN) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(status("watch", &error.into())),
            }
        }
    }

    fn take_event(&mut self, event: InotifyEvent) -> Result<(), Status> {
        let mask = event.mask;
        if mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return Err(overflow("the kernel's queue of events is full"));
        }
        let arrives_as_rename =
            mask.contains(AddWatchFlags::IN_MOVED_TO) && self.moved_from.as_ref().is_some_and(|(cookie, ..)| *cookie == event.cookie);
        if !arrives_as_rename {
            self.give_up_rename()?;
        }
        if mask.contains(AddWatchFlags::IN_IGNORED) {
            self.folders.remove(&event.wd);
            self.ended |= event.wd == self.top;
            return Ok(());
        }
        if mask.intersects(AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF) {
            if event.wd == self.top && !self.ended {
                self.ended = true;
                self.push(Kind::Delete, Path::new(""), None)?;
            }
            return Ok(());
        }
        let (Some(folder), Some(name)) = (self.folders.get(&event.wd), event.name) else { return Ok(()) };
        let path = folder.join(name);
        let is_folder = mask.contains(AddWatchFlags::IN_ISDIR);
        if mask.contains(AddWatchFlags::IN_MOVED_FROM) {
            self.moved_from = Some((event.cookie, path, is_folder));
            return Ok(());
        }
        if let Some((_, from, _)) = self.moved_from.take().filter(|_| arrives_as_rename) {
            self.rename_folders(&from, &path);
            return self.push(Kind::Rename, &from, Some(&path));
        }
        if mask.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO) {
            self.push(Kind::Create, &path, None)?;
            if is_folder && self.recursive {
                self.watch_folder(&path)?;
                self.watch_subfolders(&path, true)?;
            }
            return Ok(());
        }
        let kind = if mask.contains(AddWatchFlags::IN_DELETE) { Kind::Delete } else { Kind::Modify };
        self.push(kind, &path, None)
    }

    /// It went out of sight.
    fn give_up_rename(&mut self) -> Result<(), Status> {
        let Some((_, path, is_folder)) = self.moved_from.take() else { return Ok(()) };
        if is_folder {
            self.forget_folders(&path);
        }
        self.push(Kind::Delete, &path, None)
    }

    fn push(&mut self, kind: Kind, path: &Path, new_path: Option<&Path>) -> Result<(), Status> {
        let shown =
            |path: &Path| if path.as_os_str().is_empty() { self.place.shown.clone() } else { self.place.below(&path.to_string_lossy()) };
        let event = sandbox::FsEvent { kind: kind.into(), path: shown(path), new_path: new_path.map(shown).unwrap_or_default() };
        // A file that is being written says so with every write.
        if kind == Kind::Modify && self.events.back() == Some(&event) {
            return Ok(());
        }
        if self.events.len() == EVENTS_MAX {
            return Err(overflow("the caller does not keep up"));
        }
        self.events.push_back(event);
        Ok(())
    }

    // ------------------------------------------------------------ folders of a recursive watch

    fn real(&self, folder: &Path) -> PathBuf {
        self.place.real.join(folder)
    }

    fn watch_folder(&mut self, folder: &Path) -> Result<(), Status> {
        if self.folders.len() == FOLDERS_MAX {
            return Err(overflow(&format!("there are more than {FOLDERS_MAX} folders")));
        }
        match self.inotify.add_watch(&self.real(folder), folder_mask()) {
            Ok(descriptor) => {
                self.folders.insert(descriptor, folder.to_path_buf());
                Ok(())
            }
            // Gone again, or a link by now.
            Err(nix::Error::ENOENT | nix::Error::ENOTDIR | nix::Error::ELOOP) => Ok(()),
            Err(error) => Err(limit(&error.into())),
        }
    }

    /// Everything below `folder`. What was put into a new folder before it was watched is told as created: twice is better than never.
    fn watch_subfolders(&mut self, folder: &Path, tell: bool) -> Result<(), Status> {
        let mut open = vec![folder.to_path_buf()];
        while let Some(folder) = open.pop() {
            let Ok(entries) = fs::read_dir(self.real(&folder)) else { continue };
            for entry in entries.flatten() {
                let path = folder.join(entry.file_name());
                if tell {
                    self.push(Kind::Create, &path, None)?;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    self.watch_folder(&path)?;
                    open.push(path);
                }
            }
        }
        Ok(())
    }

    fn rename_folders(&mut self, from: &Path, to: &Path) {
        for path in self.folders.values_mut() {
            if let Ok(rest) = path.strip_prefix(from) {
                *path = if rest.as_os_str().is_empty() { to.to_path_buf() } else { to.join(rest) };
            }
        }
    }

    fn forget_folders(&mut self, folder: &Path) {
        let gone: Vec<_> = self.folders.iter().filter(|(_, path)| path.starts_with(folder)).map(|(descriptor, _)| *descriptor).collect();
        for descriptor in gone {
            let _ = self.inotify.rm_watch(descriptor);
            self.folders.remove(&descriptor);
        }
    }
}

fn top_mask() -> AddWatchFlags {
    changes() | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_ONLYDIR
}

fn folder_mask() -> AddWatchFlags {
    changes() | AddWatchFlags::IN_ONLYDIR | AddWatchFlags::IN_DONT_FOLLOW
}

fn changes() -> AddWatchFlags {
    AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO
}

fn overflow(why: &str) -> Status {
    Status::new("resource_exhausted", format!("watch: {why}; events are lost, so list the folder and watch again"))
}

fn limit(error: &io::Error) -> Status {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EMFILE | libc::ENOMEM) => Status::new(
            "resource_exhausted",
            format!("watch: the sandbox's limit of inotify watches is reached ({error}); watch fewer folders"),
        ),
        _ => status("watch", error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::{Caller, Folder, call};
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use tokio::task::JoinHandle;

    type Row = (Kind, String, String);

    struct Watch {
        task: JoinHandle<Result<(), Status>>,
        caller: Caller,
        folder: PathBuf,
    }

    /// Watching when this returns, and no event is outstanding: those of the probes come before the end of a file that is made once.
    async fn start(folder: &Folder, recursive: bool) -> Watch {
        let (call, caller) = call();
        let request = sandbox::WatchRequest { path: folder.path(""), recursive };
        let task = tokio::spawn(watch_below(folder.0.clone(), request.encode_to_vec().into(), call));
        let mut watch = Watch { task, caller, folder: folder.0.clone() };
        loop {
            let _ = fs::remove_file(folder.path("probe"));
            File::create(folder.path("probe")).unwrap();
            if tokio::time::timeout(Duration::from_millis(50), watch.caller.outbound.recv()).await.is_ok() {
                break;
            }
        }
        fs::remove_file(folder.path("probe")).unwrap();
        File::create(folder.path("last-probe")).unwrap();
        fs::remove_file(folder.path("last-probe")).unwrap();
        while watch.next().await != (Kind::Delete, "/last-probe".into(), String::new()) {}
        watch
    }

    impl Watch {
        async fn next(&mut self) -> Row {
            let message =
                tokio::time::timeout(Duration::from_secs(2), self.caller.outbound.recv()).await.expect("an event within 2 s").unwrap();
            let event = sandbox::FsEvent::decode(message).unwrap();
            let below = |path: &str| path.strip_prefix(self.folder.to_str().unwrap()).unwrap_or(path).to_string();
            (event.kind(), below(&event.path), below(&event.new_path))
        }

        async fn expect(&mut self, kind: Kind, path: &str, new_path: &str) {
            assert_eq!(self.next().await, (kind, path.to_string(), new_path.to_string()));
        }
    }

    #[tokio::test]
    async fn a_file_is_created_modified_renamed_and_deleted() {
        let folder = Folder::new();
        let mut watch = start(&folder, false).await;
        let mut file = File::create(folder.path("old.txt")).unwrap();
        watch.expect(Kind::Create, "/old.txt", "").await;
        file.write_all(b"x").unwrap();
        watch.expect(Kind::Modify, "/old.txt", "").await;
        fs::rename(folder.path("old.txt"), folder.path("new.txt")).unwrap();
        watch.expect(Kind::Rename, "/old.txt", "/new.txt").await;
        fs::remove_file(folder.path("new.txt")).unwrap();
        watch.expect(Kind::Delete, "/new.txt", "").await;
        watch.caller.cancelled.cancel();
        assert_eq!(watch.task.await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn a_rename_out_of_sight_is_a_delete_and_one_into_sight_a_create() {
        let (folder, elsewhere) = (Folder::new(), Folder::new());
        let mut watch = start(&folder, false).await;
        fs::write(elsewhere.path("f"), "").unwrap();
        fs::rename(elsewhere.path("f"), folder.path("f")).unwrap();
        watch.expect(Kind::Create, "/f", "").await;
        fs::rename(folder.path("f"), elsewhere.path("f")).unwrap();
        watch.expect(Kind::Delete, "/f", "").await;
    }

    #[tokio::test]
    async fn a_recursive_watch_sees_new_folders_and_follows_their_renames() {
        let folder = Folder::new();
        fs::create_dir_all(folder.path("a/b")).unwrap();
        let mut watch = start(&folder, true).await;
        File::create(folder.path("a/b/f")).unwrap();
        watch.expect(Kind::Create, "/a/b/f", "").await;
        fs::create_dir(folder.path("a/new")).unwrap();
        watch.expect(Kind::Create, "/a/new", "").await;
        File::create(folder.path("a/new/g")).unwrap();
        watch.expect(Kind::Create, "/a/new/g", "").await;
        fs::rename(folder.path("a"), folder.path("z")).unwrap();
        watch.expect(Kind::Rename, "/a", "/z").await;
        File::create(folder.path("z/new/h")).unwrap();
        watch.expect(Kind::Create, "/z/new/h", "").await;
    }

    #[tokio::test]
    async fn a_tree_that_is_made_at_once_is_seen_whole() {
        let folder = Folder::new();
        let mut watch = start(&folder, true).await;
        fs::create_dir_all(folder.path("x/y/z")).unwrap();
        File::create(folder.path("x/y/z/f")).unwrap();
        while watch.next().await != (Kind::Create, "/x/y/z/f".into(), String::new()) {}
    }

    #[tokio::test]
    async fn a_tree_that_is_moved_in_at_once_is_seen_whole() {
        let (folder, elsewhere) = (Folder::new(), Folder::new());
        fs::create_dir(elsewhere.path("tree")).unwrap();
        for index in 0..4000 {
            File::create(elsewhere.path(&format!("tree/{index}"))).unwrap();
        }
        let mut watch = start(&folder, true).await;
        fs::rename(elsewhere.path("tree"), folder.path("tree")).unwrap();
        watch.expect(Kind::Create, "/tree", "").await;
        let mut seen = std::collections::HashSet::new();
        for _ in 0..4000 {
            seen.insert(watch.next().await);
        }
        assert_eq!(seen.len(), 4000);
    }

    #[tokio::test]
    async fn a_watch_that_is_not_recursive_is_silent_about_what_lies_deeper() {
        let folder = Folder::new();
        fs::create_dir(folder.path("a")).unwrap();
        let mut watch = start(&folder, false).await;
        File::create(folder.path("a/deep")).unwrap();
        File::create(folder.path("here")).unwrap();
        watch.expect(Kind::Create, "/here", "").await;
    }

    #[tokio::test]
    async fn a_caller_that_does_not_read_is_told_that_events_are_lost() {
        let folder = Folder::new();
        let watch = start(&folder, false).await;
        let mut count = 0;
        while !watch.task.is_finished() {
            File::create(folder.path(&format!("f{count}"))).unwrap();
            count += 1;
            assert!(count < 4 * EVENTS_MAX);
            tokio::task::yield_now().await;
        }
        assert_eq!(watch.task.await.unwrap().unwrap_err().code, "resource_exhausted");
    }

    #[tokio::test]
    async fn the_end_of_the_folder_ends_the_watch() {
        let folder = Folder::new();
        let mut watch = start(&folder, true).await;
        fs::remove_dir_all(&folder.0).unwrap();
        assert_eq!(watch.next().await.0, Kind::Delete);
        assert_eq!(watch.task.await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn only_folders_of_the_workspace_are_watched() {
        let folder = Folder::new();
        File::create(folder.path("f")).unwrap();
        for (path, code) in
            [("/etc".to_string(), "permission_denied"), (folder.path("f"), "invalid_argument"), (folder.path("missing"), "not_found")]
        {
            let (call, _caller) = call();
            let request = sandbox::WatchRequest { path: path.clone(), recursive: false };
            let result = watch_below(folder.0.clone(), request.encode_to_vec().into(), call).await;
            assert_eq!(result.unwrap_err().code, code, "{path}");
        }
    }
}

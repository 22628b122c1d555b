//! Makes one layer: `tree/` and `index` in a new folder. Paths given to it are literal: without symbolic links of this layer.

use super::failure::{Failure, Result};
use super::index::{Footer, Header, Kind as LineKind, Line, Meta, VERSION};
use super::input::digest_text;
use super::lower_links::{self, LowerLink};
use super::names::{self, Bytes};
use super::pack::pack;
use super::place::{self, Place, os};
use super::tarball::{Entry, Part};
use super::tree::{Id, Kind, Node, ROOT, Source, Tree};
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

const COPY_BYTES: usize = 256 << 10;
/// Names, targets and attributes of a layer, all of which are held in memory.
const METADATA_BYTES_MAX: u64 = 512 << 20;

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub bytes_max: u64,
    pub entries_max: u64,
}

pub struct Writer {
    dir: OwnedFd,
    disk: Place,
    pub tree: Tree,
    /// By the number in their `Source`.
    sizes: Vec<u64>,
    /// Whiteouts and opaque folders, which are about lower layers and so have no place in the tree.
    marks: BTreeMap<Vec<u8>, LineKind>,
    limits: Limits,
    entries: u64,
    bytes: u64,
    metadata_bytes: u64,
    pub skipped: u64,
    held_by: Option<(u32, u32)>,
    buffer: Vec<u8>,
}

pub fn parts(path: &[&[u8]]) -> Vec<Bytes> {
    path.iter().map(|part| Bytes::from(*part)).collect()
}

pub fn meta_of(entry: &Entry) -> Meta {
    let mut xattrs: Vec<(Bytes, Bytes)> = entry.xattrs.iter().map(|(name, value)| (Bytes::from(&**name), Bytes::from(&**value))).collect();
    xattrs.sort();
    Meta { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs }
}

impl Writer {
    /// @param dir - empty; this process is confined to it
    pub fn new(dir: OwnedFd, limits: Limits, held_by: Option<(u32, u32)>) -> Result<Self> {
        mkdirat(&dir, "tree", Mode::S_IRWXU).map_err(|error| Failure::system("make the folder tree", error))?;
        let disk = Place::new(place::open_folder(&dir, b"tree")?);
        let nodes_max = usize::try_from(limits.entries_max).unwrap_or(usize::MAX);
        Ok(Self {
            dir,
            disk,
            tree: Tree::new(nodes_max),
            sizes: Vec::new(),
            marks: BTreeMap::new(),
            limits,
            entries: 0,
            bytes: 0,
            metadata_bytes: 0,
            skipped: 0,
            held_by,
            buffer: vec![0; COPY_BYTES],
        })
    }

    /// Every entry of the input, before anything is done about it.
    pub fn count(&mut self, entry: &Entry) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.entries_max {
            return Err(Failure::too_large(format!("more than {} entries", self.limits.entries_max)));
        }
        let attributes: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.metadata_bytes += (entry.path.len() + entry.target.len() + attributes) as u64;
        if self.metadata_bytes > METADATA_BYTES_MAX {
            return Err(Failure::too_large(format!("more than {METADATA_BYTES_MAX} bytes of names and attributes")));
        }
        Ok(())
    }

    pub fn folder(&mut self, path: &[Bytes], meta: Meta) -> Result<()> {
        let meta = Rc::new(meta);
        match self.tree.find(path) {
            Some(id) if self.tree.is_folder(id) => {
                self.tree.set_meta(id, meta);
                return Ok(());
            }
            _ => self.remove(path)?,
        }
        let id = self.folders(path)?;
        self.tree.set_meta(id, meta);
        Ok(())
    }

    /// @param sparse - where the content lies in the file; None = all of it, from the beginning
    pub fn file(&mut self, path: &[Bytes], meta: Meta, size: u64, sparse: Option<&[Part]>, content: &mut impl Read) -> Result<()> {
        let (name, parents) = self.split(path)?;
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.bytes_max {
            return Err(Failure::too_large(format!("more than {} bytes of content", self.limits.bytes_max)));
        }
        self.remove(path)?;
        let parent = self.folders(parents)?;
        let mut file = place::create_file(self.disk.folder(parents)?, &name.0)?;
        match sparse {
            None => copy(content, &mut file, size, &mut self.buffer)?,
            Some(stored) => {
                file.set_len(size).map_err(|error| Failure::system("set the length of a file", error))?;
                for &(offset, length) in stored {
                    file.seek(SeekFrom::Start(offset)).map_err(|error| Failure::system("write a file", error))?;
                    copy(content, &mut file, length, &mut self.buffer)?;
                }
            }
        }
        place::describe(&file, &meta, self.held_by.is_none())?;
        let source = Source { layer: 0, number: self.sizes.len() as u32 };
        self.sizes.push(size);
        self.tree.add(parent, name.clone(), Kind::File(source), Some(Rc::new(meta)))?;
        Ok(())
    }

    pub fn symlink(&mut self, path: &[Bytes], meta: Meta, target: &[u8]) -> Result<()> {
        let (name, parents) = self.split(path)?;
        if target.is_empty() || target.contains(&0) || target.len() > names::PATH_BYTES_MAX {
            return Err(Failure::corrupt("a symbolic link whose target is no path"));
        }
        self.remove(path)?;
        let parent = self.folders(parents)?;
        place::make_symlink(self.disk.folder(parents)?, &name.0, target, &meta, self.held_by.is_none())?;
        self.tree.add(parent, name.clone(), Kind::Symlink(Bytes::from(target)), Some(Rc::new(meta)))?;
        Ok(())
    }

    /// Another name of a file: of this layer when it has it, else of a lower one, which is looked up when layers are merged.
    pub fn link(&mut self, path: &[Bytes], target: &[Bytes]) -> Result<()> {
        let (name, parents) = self.split(path)?;
        if path == target && self.tree.find(path).is_some() {
            return Ok(());
        }
        self.remove(path)?;
        let parent = self.folders(parents)?;
        let Some(id) = self.tree.find(target) else {
            self.tree.add(parent, name.clone(), Kind::LowerLink(names::join(target)), None)?;
            return Ok(());
        };
        let Node { kind, meta, .. } = self.tree.node(id);
        let (kind, meta) = (kind.clone(), meta.clone());
        match &kind {
            Kind::Folder => return Err(Failure::corrupt("a hard link to a folder")),
            Kind::LowerLink(_) => {}
            Kind::File(_) | Kind::Symlink(_) => {
                let (target_name, target_parents) = self.split(target)?;
                let from = place::open_path(self.disk.folder(target_parents)?)?;
                let to = self.disk.folder(parents)?;
                linkat(&from, os(&target_name.0), to, os(&name.0), AtFlags::empty())
                    .map_err(|error| Failure::system("make a hard link", error))?;
            }
        }
        self.tree.add(parent, name.clone(), kind, meta)?;
        Ok(())
    }

    pub fn whiteout(&mut self, path: &[Bytes]) {
        self.marks.insert(names::join(path), LineKind::Whiteout);
    }

    pub fn opaque(&mut self, path: &[Bytes]) {
        self.marks.insert(names::join(path), LineKind::Opaque);
    }

    /// Puts a file into a folder of the name that the file has had.
    pub fn move_into_folder(&mut self, path: &[Bytes], name: &Bytes) -> Result<()> {
        let moved = |error| Failure::system("move a file", error);
        let (old_name, parents) = self.split(path)?;
        let Some(id) = self.tree.find(path) else { return Ok(()) };
        let (kind, meta) = (self.tree.node(id).kind.clone(), self.tree.node(id).meta.clone());
        renameat(self.disk.folder(parents)?, os(&old_name.0), &self.dir, "moving").map_err(moved)?;
        self.tree.remove(path);
        let folder = self.folders(path)?;
        renameat(&self.dir, "moving", self.disk.folder(path)?, os(&name.0)).map_err(moved)?;
        self.tree.add(folder, name.clone(), kind, meta)?;
        Ok(())
    }

    /// As `finish`, for a layer that was not unpacked from a tar: it gets the digest of the one that it is packed into.
    pub fn finish_packed(mut self) -> Result<Footer> {
        let lines = self.lines()?;
        let mut digest = DigestWriter(Sha256::new());
        pack(&lines, &mut self.disk, &mut digest)?;
        self.finish(digest_text(digest.0))
    }

    /// Writes the index. What is on disk then is also there after a crash.
    pub fn finish(self, diff_id: String) -> Result<Footer> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file: File = openat(&self.dir, "index", flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|error| Failure::system("make the index", error))?
            .into();
        let lines = self.lines()?;
        let bytes = lines.iter().filter_map(|line| line.size).sum();
        let footer = Footer { diff_id, entries: lines.len() as u64, bytes, skipped: self.skipped, held_by: self.held_by };
        let mut out = BufWriter::with_capacity(COPY_BYTES, file);
        write_line(&mut out, &Header { version: VERSION })?;
        for line in &lines {
            write_line(&mut out, line)?;
        }
        write_line(&mut out, &footer)?;
        out.flush().map_err(|error| Failure::system("write the index", error))?;
        // SAFETY: the descriptor is open.
        if unsafe { libc::syncfs(self.dir.as_raw_fd()) } != 0 {
            return Err(Failure::system("sync the disk", nix::Error::last()));
        }
        Ok(footer)
    }

    /// Marks, then links to lower layers, then all else in the order of a walk. A folder comes before what it holds. Links to lower layers are first
    /// because this layer may have other files under the names that they mean, and whoever unpacks a tar of it goes by its order.
    fn lines(&self) -> Result<Vec<Line>> {
        let mark = |(path, kind): (&Vec<u8>, &LineKind)| Line { kind: *kind, ..plain_line(path) };
        let mut lines = Lines { lines: self.marks.iter().map(mark).collect(), folders: HashSet::new(), first_names: HashMap::new() };
        let mut links = Vec::new();
        self.find_lower_links(ROOT, &mut Vec::new(), &mut links);
        for link in lower_links::in_order(links)? {
            self.append_folders_above(&link.path, &mut lines);
            lines.lines.push(Line { kind: LineKind::LowerLink, target: Some(Bytes::from(&*link.target)), ..plain_line(&link.path) });
        }
        self.append_lines(ROOT, &mut Vec::new(), &mut lines);
        Ok(lines.lines)
    }

    fn find_lower_links(&self, folder: Id, path: &mut Vec<u8>, links: &mut Vec<LowerLink>) {
        for (name, child) in &self.tree.node(folder).children {
            let length = path.len();
            *path = below(path, name);
            match &self.tree.node(*child).kind {
                Kind::LowerLink(target) => links.push(LowerLink { path: path.clone(), target: target.clone() }),
                Kind::Folder => self.find_lower_links(*child, path, links),
                Kind::File(_) | Kind::Symlink(_) => {}
            }
            path.truncate(length);
        }
    }

    fn append_folders_above(&self, path: &[u8], lines: &mut Lines) {
        let mut id = ROOT;
        self.append_folder(id, &[], lines);
        for (at, _) in path.iter().enumerate().filter(|&(_, &byte)| byte == b'/') {
            let name = path[..at].rsplit(|&byte| byte == b'/').next().unwrap_or_default();
            let Some(&folder) = self.tree.node(id).children.get(name) else { return };
            id = folder;
            self.append_folder(id, &path[..at], lines);
        }
    }

    fn append_lines(&self, id: Id, path: &mut Vec<u8>, lines: &mut Lines) {
        let node = self.tree.node(id);
        let mut line = Line { meta: node.meta.as_deref().cloned(), ..plain_line(path) };
        match &node.kind {
            Kind::Folder => {
                self.append_folder(id, path, lines);
                for (name, child) in &node.children {
                    let length = path.len();
                    *path = below(path, name);
                    self.append_lines(*child, path, lines);
                    path.truncate(length);
                }
                return;
            }
            Kind::File(source) => match lines.first_names.get(source) {
                Some(first) => {
                    line.kind = LineKind::Link;
                    line.target = Some(first.clone());
                    line.meta = None;
                }
                None => {
                    lines.first_names.insert(*source, line.path.clone());
                    line.kind = LineKind::File;
                    line.size = Some(self.sizes[source.number as usize]);
                }
            },
            Kind::Symlink(target) => {
                line.kind = LineKind::Symlink;
                line.target = Some(target.clone());
            }
            // They stand in front.
            Kind::LowerLink(_) => return,
        }
        lines.lines.push(line);
    }

    /// Once, and only if somebody has described it.
    fn append_folder(&self, id: Id, path: &[u8], lines: &mut Lines) {
        if let Some(meta) = self.tree.node(id).meta.as_deref().filter(|_| lines.folders.insert(id)) {
            lines.lines.push(Line { meta: Some(meta.clone()), ..plain_line(path) });
        }
    }

    fn split<'a>(&self, path: &'a [Bytes]) -> Result<(&'a Bytes, &'a [Bytes])> {
        path.split_last().ok_or_else(|| Failure::hostile("the root is no folder"))
    }

    fn folders(&mut self, path: &[Bytes]) -> Result<Id> {
        let Self { tree, disk, .. } = self;
        tree.folders(path, |made| {
            let Some((name, parents)) = made.split_last() else { return Ok(()) };
            mkdirat(disk.folder(parents)?, os(&name.0), Mode::S_IRWXU).map_err(|error| Failure::system("make a folder", error))
        })
    }

    /// What this layer has there so far: of two entries of one name the last one counts.
    fn remove(&mut self, path: &[Bytes]) -> Result<()> {
        let Some(id) = self.tree.find(path) else { return Ok(()) };
        if path.is_empty() {
            return Err(Failure::hostile("the root is no folder"));
        }
        self.remove_on_disk(id, &mut path.to_vec())?;
        self.tree.remove(path);
        Ok(())
    }

    fn remove_on_disk(&mut self, id: Id, path: &mut Vec<Bytes>) -> Result<()> {
        let kind = match self.tree.node(id).kind {
            Kind::LowerLink(_) => return Ok(()),
            Kind::Folder => UnlinkatFlags::RemoveDir,
            _ => UnlinkatFlags::NoRemoveDir,
        };
        let children: Vec<(Bytes, Id)> = self.tree.node(id).children.iter().map(|(name, child)| (name.clone(), *child)).collect();
        for (name, child) in children {
            path.push(name);
            self.remove_on_disk(child, path)?;
            path.pop();
        }
        let Some((name, parents)) = path.split_last() else { return Ok(()) };
        unlinkat(self.disk.folder(parents)?, os(&name.0), kind).map_err(|error| Failure::system("remove what is replaced", error))?;
        if matches!(kind, UnlinkatFlags::RemoveDir) {
            self.disk.forget();
        }
        Ok(())
    }
}

/// An index while it is put together.
struct Lines {
    lines: Vec<Line>,
    /// That have a line.
    folders: HashSet<Id>,
    /// Of files with several names.
    first_names: HashMap<Source, Bytes>,
}

fn plain_line(path: &[u8]) -> Line {
    Line { path: Bytes::from(path), kind: LineKind::Folder, meta: None, size: None, target: None }
}

fn below(folder: &[u8], name: &Bytes) -> Vec<u8> {
    if folder.is_empty() { name.0.to_vec() } else { [folder, b"/", &*name.0].concat() }
}

struct DigestWriter(Sha256);

impl Write for DigestWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn write_line(out: &mut impl Write, value: &impl Serialize) -> Result<()> {
    let failed = |error: std::io::Error| Failure::system("write the index", error);
    serde_json::to_writer(&mut *out, value).map_err(|error| failed(error.into()))?;
    out.write_all(b"\n").map_err(failed)
}

fn copy(content: &mut impl Read, file: &mut File, size: u64, buffer: &mut [u8]) -> Result<()> {
    let mut left = size;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = content.read(&mut buffer[..most]).map_err(super::failure::input_failure)?;
        if count == 0 {
            return Err(Failure::corrupt("the content is shorter than it says"));
        }
        file.write_all(&buffer[..count]).map_err(|error| Failure::system("write a file", error))?;
        left -= count as u64;
    }
    Ok(())
}

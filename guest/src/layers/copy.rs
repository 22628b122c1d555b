//! `copy`: a layer of the files of a context at a place of a root, made without a machine.

use super::failure::{Failure, Result};
use super::index::{self, Footer, Meta};
use super::input::Input;
use super::merge::stack;
use super::names::{self, Bytes};
use super::tarball::{Entry, Kind as EntryKind, Reader};
use super::tree::{Kind, Place, Source, Tree};
use super::unpack::WHITEOUT;
use super::writer::{Limits, Writer, meta_of, parts};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::rc::Rc;

pub struct Destination {
    /// Absolute.
    pub path: Vec<u8>,
    pub uid: u32,
    pub gid: u32,
}

/// What the destination turned out to be.
enum Target {
    Unknown,
    /// Of the only file so far, which has this name in the context.
    File(Bytes),
    Folder,
}

struct Copy {
    /// The root with what was copied so far.
    root: Tree,
    writer: Writer,
    place: Place,
    target: Target,
    uid: u32,
    gid: u32,
}

/// @param dir - empty; this process is confined to it
/// @param base - indexes of the layers below, lowest first
pub fn copy(
    dir: OwnedFd,
    input: impl Read + 'static,
    base: Vec<File>,
    destination: &Destination,
    limits: Limits,
    held_by: Option<(u32, u32)>,
) -> Result<Footer> {
    let (root, _) = stack(base.into_iter().map(index::read))?;
    let named: Vec<&[u8]> = destination.path.split(|&byte| byte == b'/').collect();
    let place = root.resolve(&named, true)?;
    let must_be_folder = matches!(named.last(), Some(&(b"" | b"." | b"..")));
    let target = match place.id {
        Some(id) if root.is_folder(id) => Target::Folder,
        Some(_) if must_be_folder => return Err(Failure::corrupt("the destination is a file in the image").at(&destination.path)),
        _ if must_be_folder => Target::Folder,
        _ => Target::Unknown,
    };
    let writer = Writer::new(dir, limits, held_by)?;
    let mut copy = Copy { root, writer, place, target, uid: destination.uid, gid: destination.gid };
    let mut reader = Reader::new(Input::open(input, limits.bytes_max)?, limits.entries_max, true);
    while let Some(entry) = reader.next()? {
        copy.entry(&entry, &mut reader).map_err(|failure| failure.at(&entry.path))?;
    }
    copy.finish()
}

impl Copy {
    fn entry(&mut self, entry: &Entry, content: &mut impl Read) -> Result<()> {
        self.writer.count(entry)?;
        let names = names::entry_path(&entry.path)?;
        if entry.kind == EntryKind::Special || names.iter().any(|part| part.starts_with(WHITEOUT)) {
            self.writer.skipped += 1;
            return Ok(());
        }
        let path = match (&self.target, &names[..]) {
            (Target::Unknown, [name]) if entry.kind != EntryKind::Folder => {
                self.target = Target::File(Bytes::from(*name));
                return self.put(&self.place.parts.clone(), entry, content);
            }
            (Target::Unknown | Target::File(_), _) if self.place.id.is_some() => {
                return Err(Failure::corrupt("the destination is a file in the image, and the context is none"));
            }
            (Target::Unknown, _) => {
                self.target = Target::Folder;
                self.below(&names)
            }
            (Target::File(first), _) => {
                // There are several, so it is a folder after all.
                let first = first.clone();
                self.writer.move_into_folder(&self.place.parts, &first)?;
                let moved = self.below(&[&first.0]);
                self.root.put(&self.place.parts, Kind::Folder, None)?;
                if let Some(node) = self.writer.tree.find(&moved).map(|id| self.writer.tree.node(id)) {
                    self.root.put(&moved, node.kind.clone(), node.meta.clone())?;
                }
                self.target = Target::Folder;
                self.below(&names)
            }
            (Target::Folder, _) => self.below(&names),
        };
        self.put(&path, entry, content)
    }

    fn below(&self, names: &[&[u8]]) -> Vec<Bytes> {
        let mut path = self.place.parts.clone();
        path.extend(parts(names));
        path
    }

    fn put(&mut self, path: &[Bytes], entry: &Entry, content: &mut impl Read) -> Result<()> {
        let meta = Meta { uid: self.uid, gid: self.gid, ..meta_of(entry) };
        let Place { parts: path, id } = self.root.resolve(path, entry.kind == EntryKind::Folder)?;
        let is_folder = id.is_some_and(|id| self.root.is_folder(id));
        if entry.kind == EntryKind::Folder {
            // A folder that the image has keeps what it is.
            if is_folder {
                return Ok(());
            }
            self.root.put(&path, Kind::Folder, Some(Rc::new(meta.clone())))?;
            return self.writer.folder(&path, meta);
        }
        if is_folder {
            return Err(Failure::corrupt("it is a folder in the image, and none in the context"));
        }
        let kind = match entry.kind {
            EntryKind::Symlink => Kind::Symlink(Bytes::from(&*entry.target)),
            _ => Kind::File(Source { layer: 0, number: 0 }),
        };
        self.root.put(&path, kind, Some(Rc::new(meta.clone())))?;
        match entry.kind {
            EntryKind::Symlink => self.writer.symlink(&path, meta, &entry.target),
            EntryKind::Link => {
                let target = self.root.resolve(&self.below(&names::link_path(&entry.target)?), false)?;
                if self.writer.tree.find(&target.parts).is_none() {
                    return Err(Failure::corrupt("a hard link to what is not in the context before it"));
                }
                self.writer.link(&path, &target.parts)
            }
            _ => self.writer.file(&path, meta, entry.size, entry.sparse.as_deref(), content),
        }
    }

    fn finish(mut self) -> Result<Footer> {
        // Of an empty folder there is nothing but the folder.
        if matches!(self.target, Target::Unknown | Target::Folder) && self.root.find(&self.place.parts).is_none() {
            let meta = Meta { uid: self.uid, gid: self.gid, ..Meta::of_missing_folder() };
            self.root.folders(&self.place.parts, |_| Ok(()))?;
            self.writer.folder(&self.place.parts, meta)?;
        }
        self.writer.finish_packed()
    }
}

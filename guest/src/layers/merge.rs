//! `merge`: a root made of layers. Folders are its own, files are hard links into the layers.

use super::failure::{Failure, Result};
use super::index::{self, Index, Meta};
use super::names::Bytes;
use super::place::{self, Place, os};
use super::tree::{Id, Kind, ROOT, Source, Tree};
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::linkat;
use serde::Serialize;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsRawFd, OwnedFd};

/// Of all layers together.
const NODES_MAX: usize = 4_000_000;

/// A layer to read, opened before the process is confined.
pub struct Layer {
    pub tree: OwnedFd,
    pub index: File,
}

#[derive(Debug, Serialize)]
pub struct Merged {
    pub entries: u64,
    pub bytes: u64,
}

/// What the agent sets inside the machine.
#[derive(Serialize)]
struct Owner<'a> {
    path: &'a str,
    uid: u32,
    gid: u32,
    mode: u32,
}

struct Merge<'a> {
    layers: Vec<(Place, Index)>,
    tree: Tree,
    owners: BufWriter<&'a File>,
    /// Whether something was written there.
    owners_left: bool,
    held_by: Option<(u32, u32)>,
    counted: HashSet<Source>,
    copied: bool,
    merged: Merged,
}

/// Puts layers on top of each other, in memory.
pub fn stack(indexes: impl IntoIterator<Item = Result<Index>>) -> Result<(Tree, Vec<Index>)> {
    let mut tree = Tree::new(NODES_MAX);
    let mut kept = Vec::new();
    for (layer, index) in indexes.into_iter().enumerate() {
        let index = index?;
        tree.apply(layer as u32, &index)?;
        kept.push(index);
    }
    Ok((tree, kept))
}

/// @param root - empty; this process is confined to it
/// @param owners - takes a line for everything whose owner is another than it seems to be inside the machine
/// @returns what was made, and whether `owners` has any lines
pub fn merge(root: OwnedFd, layers: Vec<Layer>, owners: &File, held_by: Option<(u32, u32)>) -> Result<(Merged, bool)> {
    let (trees, indexes): (Vec<OwnedFd>, Vec<File>) = layers.into_iter().map(|layer| (layer.tree, layer.index)).unzip();
    let (tree, indexes) = stack(indexes.into_iter().map(index::read))?;
    let mut merge = Merge {
        layers: trees.into_iter().map(Place::new).zip(indexes).collect(),
        tree,
        owners: BufWriter::with_capacity(64 << 10, owners),
        owners_left: false,
        held_by,
        counted: HashSet::new(),
        copied: false,
        merged: Merged { entries: 0, bytes: 0 },
    };
    merge.folder(ROOT, &root, &mut Vec::new())?;
    merge.owners.flush().map_err(|error| Failure::system("write the owners", error))?;
    // Links need no sync: what they lead to is on disk, and the journal keeps their order. Copies are new content.
    // SAFETY: the descriptor is open.
    if merge.copied && unsafe { libc::syncfs(root.as_raw_fd()) } != 0 {
        return Err(Failure::system("sync the disk", nix::Error::last()));
    }
    Ok((merge.merged, merge.owners_left))
}

impl Merge<'_> {
    fn folder(&mut self, id: Id, folder: &OwnedFd, path: &mut Vec<u8>) -> Result<()> {
        let children: Vec<(Bytes, Id)> = self.tree.node(id).children.iter().map(|(name, child)| (name.clone(), *child)).collect();
        for (name, child) in children {
            let length = path.len();
            path.push(b'/');
            path.extend_from_slice(&name.0);
            self.child(child, folder, &name, path).map_err(|failure| failure.at(path))?;
            path.truncate(length);
        }
        let meta = self.tree.node(id).meta.as_deref().cloned().unwrap_or_else(Meta::of_missing_folder);
        // After its content, which needs a folder that can be written and changes its time.
        place::describe(folder, &meta, self.held_by.is_none())?;
        self.owner(path, &meta, self.held_by)?;
        self.merged.entries += 1;
        Ok(())
    }

    fn child(&mut self, id: Id, folder: &OwnedFd, name: &Bytes, path: &mut Vec<u8>) -> Result<()> {
        let node = self.tree.node(id);
        let meta = node.meta.clone();
        match node.kind.clone() {
            Kind::Folder => {
                mkdirat(folder, os(&name.0), Mode::S_IRWXU).map_err(|error| Failure::system("make a folder", error))?;
                return self.folder(id, &place::open_folder(folder, &name.0)?, path);
            }
            Kind::File(source) => {
                let held_by = self.link(source, folder, name)?;
                let (_, index) = &self.layers[source.layer as usize];
                if self.counted.insert(source) {
                    self.merged.bytes += index.lines[source.number as usize].size.unwrap_or(0);
                }
                if let Some(meta) = meta {
                    self.owner(path, &meta, held_by)?;
                }
            }
            Kind::Symlink(target) => {
                let meta = meta.as_deref().cloned().unwrap_or_else(Meta::of_missing_folder);
                place::make_symlink(folder, &name.0, &target.0, &meta, self.held_by.is_none())?;
                self.owner(path, &meta, self.held_by)?;
            }
            // Looked up when its layer was put on top.
            Kind::LowerLink(_) => return Err(Failure::corrupt("a hard link to a file that no layer has")),
        }
        self.merged.entries += 1;
        Ok(())
    }

    /// @returns who owns the file on disk, where it is not the owner that the index says
    fn link(&mut self, source: Source, folder: &OwnedFd, name: &Bytes) -> Result<Option<(u32, u32)>> {
        let (tree, index) = &mut self.layers[source.layer as usize];
        let line = &index.lines[source.number as usize];
        let held_by = index.footer.held_by;
        let parts = super::tree::split(&line.path.0);
        let Some((from_name, from_parents)) = parts.split_last() else {
            return Err(Failure::corrupt("the root is no folder"));
        };
        let from = tree.folder(from_parents)?;
        match linkat(from, os(&from_name.0), folder, os(&name.0), AtFlags::empty()) {
            Ok(()) => Ok(held_by),
            // Too many names already, another file system, or a file that this user may not link.
            Err(nix::Error::EMLINK | nix::Error::EXDEV | nix::Error::EPERM) => {
                let mut content = place::open_file(from, &from_name.0)?;
                let mut copy = place::create_file(folder, &name.0)?;
                io::copy(&mut content, &mut copy).map_err(|error| Failure::system("copy a file", error))?;
                let meta = line.meta.clone().unwrap_or_else(Meta::of_missing_folder);
                place::describe(&copy, &meta, self.held_by.is_none())?;
                self.copied = true;
                Ok(self.held_by)
            }
            Err(error) => Err(Failure::system("link a file", error)),
        }
    }

    /// An ordinary user's files seem to be root's inside the machine.
    fn owner(&mut self, path: &[u8], meta: &Meta, held_by: Option<(u32, u32)>) -> Result<()> {
        let seems = match (held_by, self.held_by) {
            (None, _) => return Ok(()),
            (Some(_), Some(_)) => (0, 0),
            // Unpacked by an ordinary user, merged by root.
            (Some(held_by), None) => held_by,
        };
        // Names that are no text cannot be told to the agent: they stay root's.
        let (true, Ok(path)) = ((meta.uid, meta.gid) != seems, std::str::from_utf8(path)) else { return Ok(()) };
        let owner = Owner { path: if path.is_empty() { "/" } else { path }, uid: meta.uid, gid: meta.gid, mode: meta.mode };
        let failed = |error: io::Error| Failure::system("write the owners", error);
        serde_json::to_writer(&mut self.owners, &owner).map_err(|error| failed(error.into()))?;
        self.owners.write_all(b"\n").map_err(failed)?;
        self.owners_left = true;
        Ok(())
    }
}

//! A file tree in memory: the names of one layer, or of several on top of each other. Symbolic links are resolved here, inside the root, and
//! nowhere on disk.

use super::failure::{Failure, Result};
use super::index::{Index, Kind as LineKind, Line, Meta};
use super::names::{self, Bytes, PATH_BYTES_MAX};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::rc::Rc;

/// As the kernel has it.
const SYMLINKS_MAX: usize = 40;

pub type Id = usize;
pub const ROOT: Id = 0;

/// Which file: the layer (from 0, the lowest) and the number of its line, or of the file in a layer that is being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    pub layer: u32,
    pub number: u32,
}

#[derive(Debug, Clone)]
pub enum Kind {
    Folder,
    File(Source),
    Symlink(Bytes),
    /// A hard link to a path that a lower layer has.
    LowerLink(Vec<u8>),
}

#[derive(Debug)]
pub struct Node {
    pub kind: Kind,
    /// None: a folder that nobody described.
    pub meta: Option<Rc<Meta>>,
    pub children: BTreeMap<Bytes, Id>,
}

pub struct Tree {
    nodes: Vec<Node>,
    nodes_max: usize,
}

/// Where a path leads: its components without symbolic links, and what is there.
pub struct Place {
    pub parts: Vec<Bytes>,
    pub id: Option<Id>,
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Tree {
    /// @param nodes_max - with the folders that nobody described
    pub fn new(nodes_max: usize) -> Self {
        Self { nodes: vec![Node { kind: Kind::Folder, meta: None, children: BTreeMap::new() }], nodes_max }
    }

    /// Ids are below this; some are of what has been replaced or removed.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id]
    }

    pub fn set_meta(&mut self, id: Id, meta: Rc<Meta>) {
        self.nodes[id].meta = Some(meta);
    }

    pub fn is_folder(&self, id: Id) -> bool {
        matches!(self.nodes[id].kind, Kind::Folder)
    }

    /// By name, following nothing.
    pub fn find(&self, parts: &[impl AsRef<[u8]>]) -> Option<Id> {
        parts.iter().try_fold(ROOT, |id, part| self.nodes[id].children.get(part.as_ref()).copied())
    }

    /// Follows symbolic links inside the root; `..` at the root stays there. What does not exist is taken by its name.
    pub fn resolve(&self, parts: &[impl AsRef<[u8]>], follow_last: bool) -> Result<Place> {
        let mut ahead: VecDeque<Bytes> = parts.iter().map(|part| Bytes::from(part.as_ref())).collect();
        let mut way: Vec<(Bytes, Option<Id>)> = Vec::new();
        let mut followed = 0;
        while let Some(part) = ahead.pop_front() {
            match &*part.0 {
                b"" | b"." => continue,
                b".." => {
                    way.pop();
                    continue;
                }
                _ => {}
            }
            let here = way.last().map_or(Some(ROOT), |(_, id)| *id);
            let child = here.and_then(|id| self.nodes[id].children.get(&part).copied());
            let target = match child.map(|id| &self.nodes[id].kind) {
                Some(Kind::Symlink(target)) if follow_last || !ahead.is_empty() => target,
                _ => {
                    way.push((part, child));
                    continue;
                }
            };
            followed += 1;
            if followed > SYMLINKS_MAX {
                return Err(Failure::corrupt("a symbolic link leads in a circle").at(&names::join(parts)));
            }
            if target.0.starts_with(b"/") {
                way.clear();
            }
            for step in target.0.split(|&byte| byte == b'/').rev() {
                ahead.push_front(Bytes::from(step));
            }
        }
        let id = way.last().map_or(Some(ROOT), |(_, id)| *id);
        let parts: Vec<Bytes> = way.into_iter().map(|(part, _)| part).collect();
        if parts.iter().any(|part| part.0.len() > names::NAME_BYTES_MAX) {
            return Err(Failure::too_large(format!("a symbolic link leads to a name of more than {} bytes", names::NAME_BYTES_MAX)));
        }
        if parts.len() > names::DEPTH_MAX || parts.iter().map(|part| part.0.len() + 1).sum::<usize>() > PATH_BYTES_MAX {
            return Err(Failure::too_large("symbolic links lead to a path that is too long"));
        }
        Ok(Place { parts, id })
    }

    /// Folders up to there; `made` is told of each new one.
    pub fn folders(&mut self, parts: &[Bytes], mut made: impl FnMut(&[Bytes]) -> Result<()>) -> Result<Id> {
        let mut id = ROOT;
        for (at, part) in parts.iter().enumerate() {
            id = match self.nodes[id].children.get(part) {
                Some(&child) if self.is_folder(child) => child,
                Some(_) => return Err(Failure::corrupt("goes through something that is no folder").at(&names::join(parts))),
                None => {
                    let child = self.add(id, part.clone(), Kind::Folder, None)?;
                    made(&parts[..=at])?;
                    child
                }
            };
        }
        Ok(id)
    }

    /// Instead of what is there.
    pub fn add(&mut self, parent: Id, name: Bytes, kind: Kind, meta: Option<Rc<Meta>>) -> Result<Id> {
        if self.nodes.len() > self.nodes_max {
            return Err(Failure::too_large(format!("more than {} entries", self.nodes_max)));
        }
        let id = self.nodes.len();
        self.nodes.push(Node { kind, meta, children: BTreeMap::new() });
        self.nodes[parent].children.insert(name, id);
        Ok(id)
    }

    pub fn remove(&mut self, parts: &[impl AsRef<[u8]>]) {
        let Some((name, parents)) = parts.split_last() else { return };
        if let Some(parent) = self.find(parents) {
            self.nodes[parent].children.remove(name.as_ref());
        }
    }

    pub fn clear(&mut self, folder: Id) {
        self.nodes[folder].children.clear();
    }

    /// Puts a layer on top, as a runtime unpacks it onto the ones below: whiteouts take away what lower layers have, and each entry lands where
    /// its parent leads in the root that is there by then.
    pub fn apply(&mut self, layer: u32, index: &Index) -> Result<()> {
        // Before anything else: the layer's own files may get the names that these mean.
        let lower_links: Vec<(&Line, Kind, Option<Rc<Meta>>)> = index
            .lines
            .iter()
            .filter(|line| line.kind == LineKind::LowerLink)
            .map(|line| self.linked_file(line).map(|(kind, meta)| (line, kind, meta)).map_err(|failure| failure.at(&line.path.0)))
            .collect::<Result<_>>()?;
        let folders: HashSet<&[u8]> = index.lines.iter().filter(|line| line.kind == LineKind::Folder).map(|line| &*line.path.0).collect();
        for line in &index.lines {
            let parts = split(&line.path.0);
            match line.kind {
                LineKind::Whiteout if !self.replaces_symlink(&parts[..parts.len().saturating_sub(1)], &folders) => {
                    let place = self.resolve(&parts, false)?;
                    self.remove(&place.parts);
                }
                LineKind::Opaque if !self.replaces_symlink(&parts, &folders) => {
                    let place = self.resolve(&parts, true)?;
                    if let Some(id) = place.id.filter(|&id| self.is_folder(id)) {
                        self.clear(id);
                    }
                }
                _ => {}
            }
        }
        for (number, line) in index.lines.iter().enumerate() {
            self.apply_line(Source { layer, number: number as u32 }, line).map_err(|failure| failure.at(&line.path.0))?;
        }
        // Their folders are there by now.
        for (line, kind, meta) in lower_links {
            let place = self.resolve(&split(&line.path.0), false)?;
            self.put(&place.parts, kind, meta).map_err(|failure| failure.at(&line.path.0))?;
        }
        Ok(())
    }

    /// What the line of a hard link leads to.
    fn linked_file(&self, line: &Line) -> Result<(Kind, Option<Rc<Meta>>)> {
        let target = self.resolve(&split(line.target.as_ref().map_or(&[][..], |target| &target.0)), false)?;
        match target.id.map(|id| &self.nodes[id]) {
            Some(Node { kind: kind @ (Kind::File(_) | Kind::Symlink(_)), meta, .. }) => Ok((kind.clone(), meta.clone())),
            _ => {
                let target = String::from_utf8_lossy(&names::join(&target.parts)).into_owned();
                Err(Failure::corrupt(format!("a hard link to {target}, which is no file of this image")))
            }
        }
    }

    /// Whether a layer has a folder of its own where a path goes through a symbolic link of lower layers: then it is about what is in that
    /// folder, and not about what the link leads to.
    fn replaces_symlink(&self, parts: &[Bytes], folders: &HashSet<&[u8]>) -> bool {
        let mut id = ROOT;
        for (at, part) in parts.iter().enumerate() {
            match self.nodes[id].children.get(part) {
                Some(&child) if matches!(self.nodes[child].kind, Kind::Symlink(_)) => {
                    return folders.contains(&*names::join(&parts[..=at]));
                }
                Some(&child) => id = child,
                None => return false,
            }
        }
        false
    }

    fn apply_line(&mut self, source: Source, line: &Line) -> Result<()> {
        let parts = split(&line.path.0);
        let meta = line.meta.clone().map(Rc::new);
        if matches!(line.kind, LineKind::Whiteout | LineKind::Opaque | LineKind::LowerLink) {
            return Ok(());
        }
        if parts.is_empty() {
            self.nodes[ROOT].meta = meta;
            return Ok(());
        }
        let place = self.resolve(&parts, false)?;
        let (kind, meta) = match line.kind {
            LineKind::Folder => {
                if let Some(id) = place.id.filter(|&id| self.is_folder(id)) {
                    self.nodes[id].meta = meta;
                    return Ok(());
                }
                (Kind::Folder, meta)
            }
            LineKind::File => (Kind::File(source), meta),
            LineKind::Symlink => (Kind::Symlink(line.target.clone().unwrap_or_else(|| Bytes::from(&b""[..]))), meta),
            _ => self.linked_file(line)?,
        };
        self.put(&place.parts, kind, meta)
    }

    /// Instead of what is there. @param parts - without symbolic links
    pub fn put(&mut self, parts: &[Bytes], kind: Kind, meta: Option<Rc<Meta>>) -> Result<()> {
        let Some((name, parents)) = parts.split_last() else {
            return Err(Failure::hostile("the root is no file"));
        };
        let parent = self.folders(parents, |_| Ok(()))?;
        self.add(parent, name.clone(), kind, meta)?;
        Ok(())
    }
}

pub fn split(path: &[u8]) -> Vec<Bytes> {
    path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()).map(Bytes::from).collect()
}

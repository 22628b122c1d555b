//! `changes`: a layer of what programs have changed in a root, from the list that the agent of that machine tells. Programs there may have had
//! every privilege, so the list is believed in nothing but what it says about their own files.

use super::changes_list::NOT_TOLD;
use super::failure::{Failure, Result};
use super::index::{self, Footer, Meta};
use super::input::Input;
use super::merge::stack;
use super::names::{self, Bytes};
use super::tarball::{Entry, Kind as EntryKind, Reader};
use super::tree::{Id, Kind, ROOT, Tree};
use super::unpack::WHITEOUT;
use super::writer::{Limits, Writer, meta_of, parts};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

struct Changes {
    lower: Tree,
    writer: Writer,
    /// Every path of the list so far, and whether it is a folder.
    told: HashMap<Vec<u8>, bool>,
    /// What lower layers have and the list has not left out.
    there: HashSet<Id>,
}

/// @param dir - empty; this process is confined to it
/// @param base - indexes of the layers that the root was made of, lowest first
pub fn changes(dir: OwnedFd, input: impl Read + 'static, base: Vec<File>, limits: Limits, held_by: Option<(u32, u32)>) -> Result<Footer> {
    let (lower, _) = stack(base.into_iter().map(index::read))?;
    let writer = Writer::new(dir, limits, held_by)?;
    let mut changes = Changes { lower, writer, told: HashMap::new(), there: HashSet::new() };
    // A list that was cut off would delete everything after the cut.
    let mut reader = Reader::new(Input::open(input, limits.bytes_max)?, limits.entries_max, true);
    while let Some(entry) = reader.next()? {
        changes.entry(&entry, &mut reader).map_err(|failure| failure.at(&entry.path))?;
    }
    changes.whiteouts(ROOT, &mut Vec::new());
    changes.writer.finish_packed()
}

impl Changes {
    fn entry(&mut self, entry: &Entry, content: &mut impl Read) -> Result<()> {
        self.writer.count(entry)?;
        let names = names::entry_path(&entry.path)?;
        // A layer cannot carry such names: they would delete others.
        if names.iter().any(|part| part.starts_with(WHITEOUT)) {
            self.writer.skipped += 1;
            return Ok(());
        }
        let path = names::join(&names);
        if path.is_empty() || is_not_told(&path) {
            return Ok(());
        }
        let parent = names::join(&names[..names.len() - 1]);
        if !parent.is_empty() && self.told.get(&parent) != Some(&true) {
            return Err(Failure::corrupt("it is told without its folder"));
        }
        if self.told.insert(path, entry.kind == EntryKind::Folder).is_some() {
            return Err(Failure::corrupt("it is told twice"));
        }
        let path = parts(&names);
        let lower = self.lower.find(&path);
        self.there.extend(lower);
        let lower = lower.map(|id| self.lower.node(id));
        if entry.same {
            return match lower.map(|node| &node.kind) {
                Some(Kind::File(_) | Kind::Symlink(_)) => Ok(()),
                _ => Err(Failure::corrupt("it is told as unchanged, but the layers have no such file")),
            };
        }
        let meta = meta_of(entry);
        match entry.kind {
            EntryKind::Folder => {
                let known = lower.filter(|node| matches!(node.kind, Kind::Folder));
                let known = known.map(|node| node.meta.as_deref().cloned().unwrap_or_else(Meta::of_missing_folder));
                // The time of a folder changes with every name in it, and tells nothing.
                if known.is_some_and(|known| Meta { mtime: meta.mtime, ..known } == meta) {
                    return Ok(());
                }
                self.writer.folder(&path, meta)
            }
            EntryKind::File => self.writer.file(&path, meta, entry.size, entry.sparse.as_deref(), content),
            EntryKind::Symlink => {
                let is_same = lower.is_some_and(|node| {
                    matches!(&node.kind, Kind::Symlink(target) if *target.0 == *entry.target)
                        && node.meta.as_ref().is_some_and(|known| (known.uid, known.gid) == (meta.uid, meta.gid))
                });
                if is_same { Ok(()) } else { self.writer.symlink(&path, meta, &entry.target) }
            }
            EntryKind::Link => self.link(&path, &names::link_path(&entry.target)?),
            EntryKind::Special => {
                self.writer.skipped += 1;
                Ok(())
            }
        }
    }

    fn link(&mut self, path: &[Bytes], target: &[&[u8]]) -> Result<()> {
        if self.told.get(&names::join(target)) != Some(&false) {
            return Err(Failure::corrupt("a hard link to what was not told before"));
        }
        self.writer.link(path, &parts(target))
    }

    /// What lower layers have and the list does not. One for the topmost folder says it for everything in it.
    fn whiteouts(&mut self, folder: Id, path: &mut Vec<Bytes>) {
        let children: Vec<(Bytes, Id)> = self.lower.node(folder).children.iter().map(|(name, id)| (name.clone(), *id)).collect();
        for (name, id) in children {
            path.push(name);
            let joined = names::join(path);
            if !is_not_told(&joined) {
                if !self.there.contains(&id) {
                    self.writer.whiteout(path);
                } else if self.told.get(&joined) == Some(&true) {
                    self.whiteouts(id, path);
                }
            }
            path.pop();
        }
    }
}

fn is_not_told(path: &[u8]) -> bool {
    NOT_TOLD.iter().any(|own| path.strip_prefix(own.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/'))
}

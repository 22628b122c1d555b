//! Where each file of an image lies. All is known from the indexes of the layers, so that the image is then written from its start to its end.

use super::erofs::{self, BLOCK, Entry, FIRST_INODE, INODE_BYTES, SLOT};
use super::failure::{Failure, Result};
use super::index::Index;
use super::names::Bytes;
use super::tree::{Id, Kind, ROOT, Source, Tree};
use std::collections::{BTreeSet, HashMap};

/// Of blocks that are not full yet. More would use little more of the space, and scatter what belongs together.
const GAPS_MAX: usize = 64;

pub struct Inode {
    /// Of a file with several names: the first one.
    pub node: Id,
    /// Of a folder: where `..` leads.
    pub parent: Id,
    pub links: u32,
    pub size: u64,
    /// Offset of the inode in the image.
    pub at: u64,
    /// Whether what is beyond its last whole block follows the inode.
    pub inline: bool,
}

pub struct Plan {
    /// As they lie in the image.
    pub inodes: Vec<Inode>,
    /// By node of the tree; 0 for what the tree has no more.
    numbers: Vec<u64>,
    /// Where the inodes end and whole blocks begin.
    pub blocks_at: u64,
    /// Length of the image.
    pub bytes: u64,
}

impl Plan {
    pub fn new(tree: &Tree, indexes: &[Index]) -> Result<Self> {
        let mut planning = Planning {
            tree,
            indexes,
            inodes: Vec::new(),
            numbers: vec![0; tree.len()],
            files: HashMap::new(),
            places: Places { end: FIRST_INODE, gaps: BTreeSet::new() },
        };
        planning.inode(ROOT, ROOT)?;
        let mut folders = vec![ROOT];
        while let Some(folder) = folders.pop() {
            // What a folder holds lies together; then what its folders hold, the first of them first.
            let children = &tree.node(folder).children;
            for (name, &child) in children {
                planning.inode(child, folder).map_err(|failure| failure.at(&name.0))?;
            }
            folders.extend(children.values().rev().filter(|child| tree.is_folder(**child)));
        }
        let Planning { mut inodes, numbers, places, .. } = planning;
        inodes.sort_unstable_by_key(|inode| inode.at);
        let blocks_at = places.end.next_multiple_of(BLOCK as u64);
        let bytes = inodes.iter().try_fold(blocks_at, |end, inode| end.checked_add(inode.block_bytes()));
        Ok(Self { inodes, numbers, blocks_at, bytes: bytes.unwrap_or(u64::MAX) })
    }

    pub fn number(&self, node: Id) -> u64 {
        self.numbers[node]
    }

    /// What a folder has, in the order in which the kernel searches it.
    pub fn entries<'a>(&self, tree: &'a Tree, folder: Id, parent: Id) -> Vec<Entry<'a>> {
        entries(tree, folder, parent, &self.numbers)
    }
}

impl Inode {
    /// Length of what lies apart from the inode, to the end of its last block.
    pub fn block_bytes(&self) -> u64 {
        if self.inline { self.size - self.size % BLOCK as u64 } else { self.size.next_multiple_of(BLOCK as u64) }
    }

    pub fn inline_bytes(&self) -> usize {
        if self.inline { (self.size % BLOCK as u64) as usize } else { 0 }
    }
}

struct Planning<'a> {
    tree: &'a Tree,
    indexes: &'a [Index],
    inodes: Vec<Inode>,
    numbers: Vec<u64>,
    /// Which of the inodes a file is that has a name already.
    files: HashMap<Source, usize>,
    places: Places,
}

impl Planning<'_> {
    fn inode(&mut self, node: Id, parent: Id) -> Result<()> {
        let of = self.tree.node(node);
        let (size, links) = match &of.kind {
            Kind::Folder => {
                let folders = of.children.values().filter(|child| self.tree.is_folder(**child)).count();
                (erofs::folder_size(&entries(self.tree, node, parent, &self.numbers)), 2 + folders as u32)
            }
            Kind::Symlink(target) => (target.0.len() as u64, 1),
            Kind::File(source) => {
                if let Some(&known) = self.files.get(source) {
                    self.inodes[known].links += 1;
                    self.numbers[node] = self.numbers[self.inodes[known].node];
                    return Ok(());
                }
                self.files.insert(*source, self.inodes.len());
                (self.indexes[source.layer as usize].lines[source.number as usize].size.unwrap_or(0), 1)
            }
            // Looked up when its layer was put on top.
            Kind::LowerLink(_) => return Err(Failure::corrupt("a hard link to a file that no layer has")),
        };
        let own = INODE_BYTES + of.meta.as_ref().map_or(0, |meta| erofs::xattrs(kind_of(&of.kind), meta).len());
        let tail = (size % BLOCK as u64) as usize;
        // The kernel wants the tail in one block; so it lies in one with its inode.
        let inline = tail > 0 && own + tail <= BLOCK;
        let at = self.places.take(own + if inline { tail } else { 0 });
        self.numbers[node] = at / SLOT;
        self.inodes.push(Inode { node, parent, links, size, at, inline });
        Ok(())
    }
}

pub fn kind_of(kind: &Kind) -> erofs::Kind {
    match kind {
        Kind::Folder => erofs::Kind::Folder,
        Kind::Symlink(_) => erofs::Kind::Symlink,
        Kind::File(_) | Kind::LowerLink(_) => erofs::Kind::File,
    }
}

fn entries<'a>(tree: &'a Tree, folder: Id, parent: Id, numbers: &[u64]) -> Vec<Entry<'a>> {
    let entry = |name: &'a [u8], id: Id| Entry { name, inode: numbers[id], kind: kind_of(&tree.node(id).kind) };
    let children = tree.node(folder).children.iter().map(|(Bytes(name), &id)| entry(name, id));
    let mut all: Vec<Entry<'a>> = [entry(b".", folder), entry(b"..", parent)].into_iter().chain(children).collect();
    // Some names are before these two.
    all.sort_unstable_by_key(|entry| entry.name);
    all
}

/// Hands out places for inodes with what follows them. One that is no longer than a block lies in one block; the space that this leaves at the ends
/// of others goes to what fits into it best.
struct Places {
    end: u64,
    /// Length and start.
    gaps: BTreeSet<(usize, u64)>,
}

impl Places {
    fn take(&mut self, bytes: usize) -> u64 {
        let bytes = bytes.next_multiple_of(SLOT as usize);
        if let Some(&(length, at)) = self.gaps.range((bytes, 0)..).next() {
            self.gaps.remove(&(length, at));
            self.keep(length - bytes, at + bytes as u64);
            return at;
        }
        let block_end = self.end.next_multiple_of(BLOCK as u64);
        let room = (block_end - self.end) as usize;
        // An inode itself must not cross the end of a block either: what is longer than a block begins at one.
        if room < bytes {
            self.keep(room, self.end);
            self.end = block_end;
        }
        let at = self.end;
        self.end += bytes as u64;
        at
    }

    fn keep(&mut self, length: usize, at: u64) {
        if length >= INODE_BYTES {
            self.gaps.insert((length, at));
        }
        if self.gaps.len() > GAPS_MAX {
            self.gaps.pop_first();
        }
    }
}

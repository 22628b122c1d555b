//! `image`: a file system image of layers, for machines that have a kernel of their own. The same bytes for the same layers.

use super::erofs::{self, BLOCK, Superblock};
use super::failure::{Failure, Reason, Result};
use super::image_plan::{Inode, Plan, kind_of};
use super::index::{self, Index, Meta};
use super::merge::{Layer, stack};
use super::place::{self, Place};
use super::tree::{Kind, ROOT, Tree, split};
use nix::sys::stat::{Mode, fchmod};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;

const BUFFER_BYTES: usize = 1 << 20;
/// Said with the layers' names, so that an image that is laid out otherwise has another one.
const UUID_DOMAIN: &[u8] = b"mitos image 1";

#[derive(Debug, Serialize)]
pub struct Imaged {
    pub entries: u64,
    /// Length of the image; holes in files of zeros take no room.
    pub bytes: u64,
}

/// @param out - empty; on the disk afterwards, readable by everybody and writable by nobody
/// @param bytes_max - longest image
pub fn image(out: &File, layers: Vec<Layer>, bytes_max: u64) -> Result<Imaged> {
    let (trees, indexes): (Vec<_>, Vec<_>) = layers.into_iter().map(|layer| (layer.tree, layer.index)).unzip();
    let (tree, indexes) = stack(indexes.into_iter().map(index::read))?;
    let plan = Plan::new(&tree, &indexes)?;
    if plan.bytes > bytes_max.min(erofs::IMAGE_BYTES_MAX) {
        return Err(Failure::too_large(format!("an image of more than {bytes_max} bytes")));
    }
    let written = |error| Failure::system("write the image", error);
    out.set_len(plan.bytes).map_err(written)?;
    let mut writing = Writing {
        disks: trees.into_iter().map(Place::new).collect(),
        indexes: &indexes,
        tree: &tree,
        plan: &plan,
        inodes: Area::new(out, erofs::FIRST_INODE),
        blocks: Area::new(out, plan.blocks_at),
    };
    for inode in &plan.inodes {
        writing.inode(inode)?;
    }
    let Writing { mut inodes, mut blocks, .. } = writing;
    inodes.flush().and_then(|()| blocks.flush()).map_err(written)?;
    let superblock = Superblock {
        root: plan.number(ROOT),
        inodes: plan.inodes.len() as u64,
        blocks: (plan.bytes / BLOCK as u64) as u32,
        uuid: uuid(&indexes),
    };
    // Last: without it there is no image.
    out.write_all_at(&erofs::superblock(&superblock), 0).map_err(written)?;
    fchmod(out, Mode::from_bits_truncate(0o444)).map_err(|error| Failure::system("set the mode of the image", error))?;
    out.sync_all().map_err(|error| Failure::system("sync the image", error))?;
    Ok(Imaged { entries: plan.inodes.len() as u64, bytes: plan.bytes })
}

/// An overlay trusts a lower file system only where it has one.
fn uuid(indexes: &[Index]) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(UUID_DOMAIN);
    indexes.iter().for_each(|index| hash.update(format!("\0{}", index.footer.diff_id)));
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hash.finalize()[..16]);
    // Version 8, "of our own making".
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

struct Writing<'a> {
    disks: Vec<Place>,
    indexes: &'a [Index],
    tree: &'a Tree,
    plan: &'a Plan,
    inodes: Area<'a>,
    blocks: Area<'a>,
}

impl Writing<'_> {
    fn inode(&mut self, inode: &Inode) -> Result<()> {
        let node = self.tree.node(inode.node);
        let kind = kind_of(&node.kind);
        let meta = node.meta.as_deref().cloned().unwrap_or_else(Meta::of_missing_folder);
        let xattrs = erofs::xattrs(kind, &meta);
        let header = erofs::inode(&erofs::Inode {
            kind,
            meta: &meta,
            number: self.plan.number(inode.node),
            links: inode.links,
            size: inode.size,
            block: if inode.block_bytes() > 0 { (self.blocks.position() / BLOCK as u64) as u32 } else { 0 },
            inline: inode.inline,
            xattr_bytes: xattrs.len(),
        });
        let written = |error| Failure::system("write the image", error);
        self.inodes.pad_to(inode.at).map_err(written)?;
        self.inodes.write_all(&header).map_err(written)?;
        self.inodes.write_all(&xattrs).map_err(written)?;
        match &node.kind {
            Kind::Folder => self.folder(inode).map_err(written)?,
            Kind::Symlink(target) => self.part(inode.inline, &target.0).map_err(written)?,
            Kind::File(source) => {
                let line = &self.indexes[source.layer as usize].lines[source.number as usize];
                let parts = split(&line.path.0);
                let Some((name, parents)) = parts.split_last() else { return Err(Failure::corrupt("the root is no folder")) };
                // A root has many files without content.
                if inode.size > 0 {
                    let folder = self.disks[source.layer as usize].folder(parents)?;
                    let content = place::open_file(folder, &name.0)?;
                    self.file(inode, content).map_err(|failure| failure.at(&line.path.0))?;
                }
            }
            Kind::LowerLink(_) => return Err(Failure::corrupt("a hard link to a file that no layer has")),
        }
        Ok(())
    }

    fn folder(&mut self, inode: &Inode) -> std::io::Result<()> {
        let entries = self.plan.entries(self.tree, inode.node, inode.parent);
        let mut blocks = erofs::folder_blocks(&entries).peekable();
        while let Some(block) = blocks.next() {
            self.part(inode.inline && blocks.peek().is_none(), &block)?;
        }
        Ok(())
    }

    /// A block, or the part of one that is the last.
    fn part(&mut self, inline: bool, bytes: &[u8]) -> std::io::Result<()> {
        if inline {
            return self.inodes.write_all(bytes);
        }
        self.blocks.write_all(bytes)?;
        self.blocks.pad_to_block()
    }

    fn file(&mut self, inode: &Inode, mut content: File) -> Result<()> {
        let tail = inode.inline_bytes() as u64;
        self.blocks.take(&mut content, inode.size - tail)?;
        self.inodes.take(&mut content, tail)?;
        self.blocks.pad_to_block().map_err(|error| Failure::system("write the image", error))
    }
}

/// A part of the image that is written from its start on.
struct Area<'a> {
    out: &'a File,
    /// Where the buffer's first byte goes.
    at: u64,
    buffer: Vec<u8>,
}

impl<'a> Area<'a> {
    fn new(out: &'a File, at: u64) -> Self {
        Self { out, at, buffer: Vec::with_capacity(BUFFER_BYTES) }
    }

    fn position(&self) -> u64 {
        self.at + self.buffer.len() as u64
    }

    /// Zeros up to there, less than a block.
    fn pad_to(&mut self, position: u64) -> std::io::Result<()> {
        let zeros = position.saturating_sub(self.position()) as usize;
        self.write_all(&[0; BLOCK][..zeros])
    }

    fn pad_to_block(&mut self) -> std::io::Result<()> {
        self.pad_to(self.position().next_multiple_of(BLOCK as u64))
    }

    fn take(&mut self, content: &mut File, bytes: u64) -> Result<()> {
        let mut left = bytes;
        while left > 0 {
            if self.buffer.len() >= BUFFER_BYTES {
                self.flush().map_err(|error| Failure::system("write the image", error))?;
            }
            let held = self.buffer.len();
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER_BYTES - held);
            self.buffer.resize(held + most, 0);
            let count = content.read(&mut self.buffer[held..]).map_err(|error| Failure::system("read a file", error))?;
            self.buffer.truncate(held + count);
            if count == 0 {
                return Err(Failure::new(Reason::Internal, "a file of the layer is shorter than its index says"));
            }
            left -= count as u64;
        }
        Ok(())
    }
}

impl Write for Area<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush()?;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    /// Zeros are there already.
    fn flush(&mut self) -> std::io::Result<()> {
        if self.buffer.iter().any(|&byte| byte != 0) {
            self.out.write_all_at(&self.buffer, self.at)?;
        }
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

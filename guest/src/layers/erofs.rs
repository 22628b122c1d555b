//! The bytes of EROFS, a read-only file system of the kernel (fs/erofs/erofs_fs.h): what of it an uncompressed image needs, all of it known to
//! Linux 5.4 and later.

use super::index::Meta;
use super::names::Bytes;

pub const BLOCK: usize = 4_096;
/// Inodes begin at multiples of this, and the number of an inode counts them from the start of the image.
pub const SLOT: u64 = 32;
pub const INODE_BYTES: usize = 64;
/// The superblock lies in the first block; nothing else does, so that its checksum is about itself alone.
pub const FIRST_INODE: u64 = BLOCK as u64;
/// Block numbers have 32 bits; what is less than a block more would not be reachable.
pub const IMAGE_BYTES_MAX: u64 = (u32::MAX as u64) * BLOCK as u64;

const SUPERBLOCK_AT: usize = 1_024;
const MAGIC: u32 = 0xE0F5_E1E2;
/// The superblock has a checksum; inodes have times of their own.
const COMPATIBLE_FEATURES: u32 = 1 | 2;
const BLOCK_BITS: u8 = 12;
/// An inode of 64 bytes: owners of 32 bits, and a time.
const EXTENDED: u16 = 1;
const PLAIN: u16 = 0 << 1;
/// What is beyond the last whole block follows the inode.
const INLINE: u16 = 2 << 1;
const ENTRY_BYTES: usize = 12;
const XATTR_HEADER_BYTES: usize = 12;
/// An inode tells the length of its attributes in words, from 16 bits, and one more for the header.
const XATTRS_BYTES_MAX: usize = XATTR_HEADER_BYTES + (u16::MAX as usize - 1) * 4;
/// Of the kernel's prefixes those that a layer keeps.
const XATTR_PREFIXES: [(&[u8], u8); 2] = [(b"user.", USER_PREFIX), (b"security.", 6)];
const USER_PREFIX: u8 = 1;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File = 1,
    Folder = 2,
    Symlink = 7,
}

pub struct Superblock {
    pub root: u64,
    pub inodes: u64,
    pub blocks: u32,
    pub uuid: [u8; 16],
}

pub struct Inode<'a> {
    pub kind: Kind,
    pub meta: &'a Meta,
    pub number: u64,
    pub links: u32,
    pub size: u64,
    /// Of its whole blocks, which follow each other.
    pub block: u32,
    pub inline: bool,
    pub xattr_bytes: usize,
}

pub struct Entry<'a> {
    pub name: &'a [u8],
    pub inode: u64,
    pub kind: Kind,
}

/// The first block of an image.
pub fn superblock(of: &Superblock) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let fields = &mut block[SUPERBLOCK_AT..];
    put(fields, 0, &MAGIC.to_le_bytes());
    put(fields, 8, &COMPATIBLE_FEATURES.to_le_bytes());
    fields[12] = BLOCK_BITS;
    // Of 16 bits: the root is the first inode.
    put(fields, 14, &(of.root as u16).to_le_bytes());
    put(fields, 16, &of.inodes.to_le_bytes());
    put(fields, 36, &of.blocks.to_le_bytes());
    put(fields, 48, &of.uuid);
    let checksum = crc32c(fields);
    put(fields, 4, &checksum.to_le_bytes());
    block
}

pub fn inode(of: &Inode<'_>) -> [u8; INODE_BYTES] {
    let mut bytes = [0; INODE_BYTES];
    let kind = match of.kind {
        Kind::File => libc::S_IFREG,
        Kind::Folder => libc::S_IFDIR,
        Kind::Symlink => libc::S_IFLNK,
    };
    // A link has no mode of its own on Linux: whatever a layer says, every file system shows this.
    let permissions = if of.kind == Kind::Symlink { 0o777 } else { of.meta.mode & 0o7777 };
    let mode = kind as u16 | permissions as u16;
    put(&mut bytes, 0, &(EXTENDED | if of.inline { INLINE } else { PLAIN }).to_le_bytes());
    put(&mut bytes, 2, &xattr_count(of.xattr_bytes).to_le_bytes());
    put(&mut bytes, 4, &mode.to_le_bytes());
    put(&mut bytes, 8, &of.size.to_le_bytes());
    put(&mut bytes, 16, &of.block.to_le_bytes());
    // What `stat` tells; the same as a folder's entries tell.
    put(&mut bytes, 20, &(of.number as u32).to_le_bytes());
    put(&mut bytes, 24, &of.meta.uid.to_le_bytes());
    put(&mut bytes, 28, &of.meta.gid.to_le_bytes());
    put(&mut bytes, 32, &of.meta.mtime.0.to_le_bytes());
    put(&mut bytes, 40, &of.meta.mtime.1.to_le_bytes());
    put(&mut bytes, 44, &of.links.to_le_bytes());
    bytes
}

/// Attributes as they follow an inode; empty when there are none. One that has no place in this format is left out, as where a merge sets it on
/// a file system that does not take it: a value of 65,536 bytes, or what is more than 256 KiB for one file.
pub fn xattrs(kind: Kind, meta: &Meta) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (Bytes(name), Bytes(value)) in &meta.xattrs {
        let Some((name, prefix)) = XATTR_PREFIXES.iter().find_map(|(text, number)| Some((name.strip_prefix(*text)?, *number))) else {
            continue;
        };
        // The kernel would tell their names and refuse their values.
        if kind == Kind::Symlink && prefix == USER_PREFIX {
            continue;
        }
        let (Ok(name_length), Ok(value_length)) = (u8::try_from(name.len()), u16::try_from(value.len())) else { continue };
        let length = (4 + name.len() + value.len()).next_multiple_of(4);
        let start = if bytes.is_empty() { XATTR_HEADER_BYTES } else { bytes.len() };
        if start + length > XATTRS_BYTES_MAX {
            continue;
        }
        bytes.resize(start, 0);
        bytes.extend_from_slice(&[name_length, prefix]);
        bytes.extend_from_slice(&value_length.to_le_bytes());
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(value);
        bytes.resize(start + length, 0);
    }
    bytes
}

fn xattr_count(bytes: usize) -> u16 {
    if bytes == 0 { 0 } else { (1 + (bytes - XATTR_HEADER_BYTES) / 4) as u16 }
}

/// Size of a folder. @param entries - in the order of their names, `.` and `..` among them
pub fn folder_size(entries: &[Entry<'_>]) -> u64 {
    let blocks: Vec<usize> = parted(entries).map(|part| part.iter().map(entry_bytes).sum()).collect();
    let last = blocks.last().copied().unwrap_or(0);
    (blocks.len().saturating_sub(1) * BLOCK + last) as u64
}

/// Content of a folder, block by block: the entries of each, then their names. The last block is as long as what is in it.
pub fn folder_blocks<'a>(entries: &'a [Entry<'a>]) -> impl Iterator<Item = Vec<u8>> {
    parted(entries).map(|part| {
        let mut block = Vec::with_capacity(BLOCK);
        let mut name_at = part.len() * ENTRY_BYTES;
        for entry in part {
            block.extend_from_slice(&entry.inode.to_le_bytes());
            block.extend_from_slice(&(name_at as u16).to_le_bytes());
            block.extend_from_slice(&[entry.kind as u8, 0]);
            name_at += entry.name.len();
        }
        part.iter().for_each(|entry| block.extend_from_slice(entry.name));
        block
    })
}

/// As many entries to a block as it has room for.
fn parted<'a>(entries: &'a [Entry<'a>]) -> impl Iterator<Item = &'a [Entry<'a>]> {
    let mut left = entries;
    std::iter::from_fn(move || {
        let mut room = BLOCK;
        let fits = left.iter().take_while(|entry| {
            let bytes = entry_bytes(entry);
            let fits = bytes <= room;
            room = room.saturating_sub(bytes);
            fits
        });
        let (part, rest) = left.split_at(fits.count());
        left = rest;
        (!part.is_empty()).then_some(part)
    })
}

fn entry_bytes(entry: &Entry<'_>) -> usize {
    ENTRY_BYTES + entry.name.len()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// CRC-32C as the kernel has it: begun with all ones, and not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 })
    })
}

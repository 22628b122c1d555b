//! `unpack`: a layer of an image, as it came from a registry.

use super::failure::{Failure, Result};
use super::index::Footer;
use super::input::Input;
use super::names::{self, Bytes};
use super::tarball::{Entry, Kind, Reader};
use super::tree::Tree;
use super::writer::{Limits, Writer, meta_of, parts};
use std::io::Read;
use std::os::fd::OwnedFd;

pub const WHITEOUT: &[u8] = b".wh.";
/// Names of aufs itself, of which only the mark of an opaque folder became part of the format.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// @param dir - empty; this process is confined to it
pub fn unpack(dir: OwnedFd, input: impl Read + 'static, limits: Limits, held_by: Option<(u32, u32)>) -> Result<Footer> {
    let mut reader = Reader::new(Input::open(input, limits.bytes_max)?, limits.entries_max, false);
    let mut writer = Writer::new(dir, limits, held_by)?;
    while let Some(entry) = reader.next()? {
        unpack_entry(&mut writer, &entry, &mut reader).map_err(|failure| failure.at(&entry.path))?;
    }
    writer.finish(reader.into_source().digest())
}

fn unpack_entry(writer: &mut Writer, entry: &Entry, content: &mut impl Read) -> Result<()> {
    writer.count(entry)?;
    let path = names::entry_path(&entry.path)?;
    if path.iter().any(|part| part.starts_with(WHITEOUT)) {
        return whiteout(writer, &path);
    }
    let literal = without_symlinks(&writer.tree, &path)?;
    put(writer, &literal, entry, content)
}

/// Whiteouts are about lower layers only, wherever in the tar they stand; so they are kept apart, by their plain name.
fn whiteout(writer: &mut Writer, path: &[&[u8]]) -> Result<()> {
    let Some((name, parents)) = path.split_last() else { return Ok(()) };
    if path.iter().any(|part| part.starts_with(AUFS) && *part != OPAQUE) {
        writer.skipped += 1;
        return Ok(());
    }
    if parents.iter().any(|part| part.starts_with(WHITEOUT)) {
        return Err(Failure::hostile("something inside a whiteout"));
    }
    if *name == OPAQUE {
        writer.opaque(&parts(parents));
        return Ok(());
    }
    match &name[WHITEOUT.len()..] {
        b"" | b"." | b".." => return Err(Failure::hostile("a whiteout of no name")),
        hidden => {
            let mut path = parts(parents);
            path.push(Bytes::from(hidden));
            writer.whiteout(&path);
        }
    }
    Ok(())
}

/// Where a path leads inside this layer. What its symbolic links lead to in lower layers is not known here: a merge goes on from there.
fn without_symlinks(tree: &Tree, path: &[&[u8]]) -> Result<Vec<Bytes>> {
    Ok(tree.resolve(path, false)?.parts)
}

/// @param path - without symbolic links of this layer
pub fn put(writer: &mut Writer, path: &[Bytes], entry: &Entry, content: &mut impl Read) -> Result<()> {
    match entry.kind {
        Kind::Folder => writer.folder(path, meta_of(entry)),
        Kind::File => writer.file(path, meta_of(entry), entry.size, entry.sparse.as_deref(), content),
        Kind::Symlink => writer.symlink(path, meta_of(entry), &entry.target),
        Kind::Link => {
            let target = without_symlinks(&writer.tree, &names::link_path(&entry.target)?)?;
            writer.link(path, &target)
        }
        // A root has its devices from the machine that it is run in.
        Kind::Special => {
            writer.skipped += 1;
            Ok(())
        }
    }
}

//! `pack`: a layer as an uncompressed tar, ustar with pax records where those do not suffice. The same bytes for the same layer.

use super::failure::{Failure, Result};
use super::index::{Kind, Line, Meta};
use super::names::Bytes;
use super::place::{self, Place};
use super::tarball::BLOCK;
use super::tree::split;
use std::io::{Read, Write};

const NAME_BYTES: usize = 100;
/// What 11 and 7 octal digits can say.
const SIZE_MAX: u64 = 0o77_777_777_777;
const ID_MAX: u32 = 0o7_777_777;
const BUFFER_BYTES: usize = 256 << 10;

/// @param disk - `tree/` of the layer
pub fn pack(lines: &[Line], disk: &mut Place, out: &mut impl Write) -> Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    for line in lines {
        pack_line(line, disk, out, &mut buffer).map_err(|failure| failure.at(&line.path.0))?;
    }
    write(out, &[0; 2 * BLOCK])
}

fn pack_line(line: &Line, disk: &mut Place, out: &mut impl Write, buffer: &mut [u8]) -> Result<()> {
    let unknown = Meta { mode: 0, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() };
    let meta = line.meta.as_ref().unwrap_or(&unknown);
    let path = &*line.path.0;
    let target = line.target.as_ref().map_or(&[][..], |target| &target.0);
    match line.kind {
        Kind::Folder if path.is_empty() => write_header(out, b"./", b'5', target, 0, meta),
        Kind::Folder => write_header(out, &[path, b"/"].concat(), b'5', target, 0, meta),
        Kind::Symlink => write_header(out, path, b'2', target, 0, meta),
        Kind::Link | Kind::LowerLink => write_header(out, path, b'1', target, 0, meta),
        Kind::Whiteout => {
            let at = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
            write_header(out, &[&path[..at], b".wh.", &path[at..]].concat(), b'0', target, 0, meta)
        }
        Kind::Opaque if path.is_empty() => write_header(out, b".wh..wh..opq", b'0', target, 0, meta),
        Kind::Opaque => write_header(out, &[path, b"/.wh..wh..opq"].concat(), b'0', target, 0, meta),
        Kind::File => {
            let size = line.size.unwrap_or(0);
            write_header(out, path, b'0', target, size, meta)?;
            let parts = split(path);
            let Some((name, parents)) = parts.split_last() else { return Ok(()) };
            let content = place::open_file(disk.folder(parents)?, &name.0)?;
            write_content(out, content, size, buffer)
        }
    }
}

fn write_content(out: &mut impl Write, mut content: impl Read, size: u64, buffer: &mut [u8]) -> Result<()> {
    let mut left = size;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = content.read(&mut buffer[..most]).map_err(|error| Failure::system("read a file", error))?;
        if count == 0 {
            return Err(Failure::new(super::failure::Reason::Internal, "a file of the layer is shorter than its index says"));
        }
        write(out, &buffer[..count])?;
        left -= count as u64;
    }
    write(out, &[0; BLOCK][..padding(size)])
}

fn write_header(out: &mut impl Write, path: &[u8], kind: u8, target: &[u8], size: u64, meta: &Meta) -> Result<()> {
    let mut records = Vec::new();
    if path.len() > NAME_BYTES || !path.is_ascii() {
        record(&mut records, b"path", path);
    }
    if target.len() > NAME_BYTES || !target.is_ascii() {
        record(&mut records, b"linkpath", target);
    }
    if size > SIZE_MAX {
        record(&mut records, b"size", size.to_string().as_bytes());
    }
    for (key, id) in [(&b"uid"[..], meta.uid), (b"gid", meta.gid)] {
        if id > ID_MAX {
            record(&mut records, key, id.to_string().as_bytes());
        }
    }
    if meta.mtime.1 != 0 || !(0..=SIZE_MAX as i64).contains(&meta.mtime.0) {
        record(&mut records, b"mtime", time_text(meta.mtime).as_bytes());
    }
    for (name, Bytes(value)) in &meta.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", &*name.0].concat(), value);
    }
    if !records.is_empty() {
        let plain = Meta { mode: 0o644, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() };
        write(out, &header(b"././@PaxHeader", b'x', b"", records.len() as u64, &plain))?;
        write(out, &records)?;
        write(out, &[0; BLOCK][..padding(records.len() as u64)])?;
    }
    write(out, &header(path, kind, target, size, meta))
}

/// `<length> <key>=<value>\n`, where the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    for part in [&b" "[..], key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

fn time_text((seconds, nanoseconds): (i64, u32)) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    let text = format!("{sign}{}.{:09}", total.abs() / 1_000_000_000, total.abs() % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn header(path: &[u8], kind: u8, target: &[u8], size: u64, meta: &Meta) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    // What does not fit stands in a record before this.
    let text = |field: &mut [u8], text: &[u8]| {
        let length = text.len().min(field.len());
        field[..length].copy_from_slice(&text[..length]);
    };
    text(&mut block[..100], path);
    text(&mut block[157..257], target);
    text(&mut block[257..265], b"ustar\x0000");
    let octal = |field: &mut [u8], value: u64| {
        let digits = field.len() - 1;
        field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
    };
    octal(&mut block[100..108], u64::from(meta.mode & 0o7777));
    octal(&mut block[108..116], u64::from(meta.uid.min(ID_MAX)));
    octal(&mut block[116..124], u64::from(meta.gid.min(ID_MAX)));
    octal(&mut block[124..136], size.min(SIZE_MAX));
    octal(&mut block[136..148], meta.mtime.0.clamp(0, SIZE_MAX as i64) as u64);
    block[156] = kind;
    // The checksum counts itself as spaces.
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    octal(&mut block[148..155], sum);
    block
}

fn padding(size: u64) -> usize {
    ((BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64) as usize
}

fn write(out: &mut impl Write, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).map_err(|error| Failure::system("write the tar", error))
}

//! Reads a tar one entry at a time: ustar, GNU and pax, with the limits that the `tar` crate does not know.

use super::changes_list::SAME_RECORD;
use super::failure::{Failure, Result, input_failure};
use std::io::{self, Read};

pub const BLOCK: usize = 512;
/// Of one extended header: everything that it says about one entry.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
const XATTR_BYTES_MAX: usize = 64 << 10;
const XATTR_NAME_BYTES_MAX: usize = 255;
const SPARSE_PARTS_MAX: usize = 100_000;
/// What follows the end of a tar is padding of the writer's record size.
const PADDING_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
    Symlink,
    Link,
    /// A device or pipe.
    Special,
}

/// Of a sparse file: offset and length.
pub type Part = (u64, u64);

#[derive(Debug)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Target of a symbolic or hard link.
    pub target: Vec<u8>,
    /// The 12 low bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Of the content as a program sees it: with the holes of a sparse file.
    pub size: u64,
    /// Where stored content lies; what is between is a hole. None = everything is stored.
    pub sparse: Option<Vec<Part>>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Our own record of a change list: as the layers below have it.
    pub same: bool,
}

pub struct Reader<R> {
    source: R,
    /// Stored content of the current entry that was not read yet, and what fills its last block.
    content_left: u64,
    padding_left: u64,
    headers: u64,
    headers_max: u64,
    /// A list of changes that was cut off would say that everything after the cut was deleted.
    must_have_end: bool,
}

/// What extended headers say about the entry after them.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    same: bool,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_map: Option<Vec<Part>>,
    sparse_in_content: bool,
}

impl<R: Read> Reader<R> {
    pub fn new(source: R, entries_max: u64, must_have_end: bool) -> Self {
        // An entry may have a long name, a long target and a pax header before it.
        let headers_max = entries_max.saturating_mul(4);
        Self { source, content_left: 0, padding_left: 0, headers: 0, headers_max, must_have_end }
    }

    /// The next entry, or None at the end, when everything up to the end of the input was read too.
    pub fn next(&mut self) -> Result<Option<Entry>> {
        self.skip_content()?;
        let mut extension = Extension::default();
        loop {
            let Some(header) = self.next_header()? else { return Ok(None) };
            let size = number(&header[124..136])?;
            match header[156] {
                b'x' | b'X' => {
                    let records = self.extension(size)?;
                    extension.read(&records)?;
                }
                b'g' => {
                    self.extension(size)?;
                }
                b'L' => extension.path = Some(until_zero(&self.extension(size)?).to_vec()),
                b'K' => extension.target = Some(until_zero(&self.extension(size)?).to_vec()),
                b'V' => {
                    self.set_content(size);
                    self.skip_content()?;
                }
                _ => return self.entry(&header, size, extension).map(Some),
            }
        }
    }

    pub fn into_source(self) -> R {
        self.source
    }

    fn entry(&mut self, header: &[u8; BLOCK], size: u64, extension: Extension) -> Result<Entry> {
        let mut path = extension.sparse_name.or(extension.path).unwrap_or_else(|| header_path(header));
        let stored = extension.size.unwrap_or(size);
        let kind = match header[156] {
            // Before POSIX, folders were files whose name ends with a slash.
            0 if path.ends_with(b"/") => Kind::Folder,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::Link,
            b'2' => Kind::Symlink,
            b'3' | b'4' | b'6' => Kind::Special,
            b'5' | b'D' => Kind::Folder,
            other => return Err(Failure::corrupt(format!("an entry of the unknown type {:?}", char::from(other))).at(&path)),
        };
        // The size of anything but a file means nothing, except in the list that GNU tar writes for a folder.
        self.set_content(if kind == Kind::File || header[156] == b'D' { stored } else { 0 });
        let (sparse, size) = self.sparse(header, stored, extension.sparse_map, extension.sparse_size, extension.sparse_in_content)?;
        let target = extension.target.unwrap_or_else(|| until_zero(&header[157..257]).to_vec());
        while kind == Kind::Folder && path.len() > 1 && path.ends_with(b"/") {
            path.pop();
        }
        let field = |range: std::ops::Range<usize>| number(&header[range]).map_err(|failure| failure.at(&path));
        let id = |given: Option<u32>, range| match given {
            Some(id) => Ok(id),
            None => u32::try_from(field(range)?).map_err(|_| Failure::corrupt("an owner that is no user number").at(&path)),
        };
        Ok(Entry {
            mode: (field(100..108)? & 0o7777) as u32,
            uid: id(extension.uid, 108..116)?,
            gid: id(extension.gid, 116..124)?,
            mtime: match extension.mtime {
                Some(mtime) => mtime,
                None => (signed(&header[136..148]).map_err(|failure| failure.at(&path))?, 0),
            },
            size: if kind == Kind::File { size } else { 0 },
            sparse,
            xattrs: extension.xattrs,
            same: extension.same,
            kind,
            target,
            path,
        })
    }

    /// None at the end of the tar.
    fn next_header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        if !self.block(&mut block)? {
            // Some writers leave the end away. For a layer the digest tells whether it is whole.
            if self.must_have_end || self.headers == 0 {
                return Err(Failure::corrupt("the tar has no end: it was cut off"));
            }
            return Ok(None);
        }
        if block.iter().all(|&byte| byte == 0) {
            self.read_end()?;
            return Ok(None);
        }
        self.headers += 1;
        if self.headers > self.headers_max {
            return Err(Failure::too_large("too many headers"));
        }
        let misfit = || Failure::corrupt("a header's checksum does not fit: not a tar, or damaged");
        let wanted = number(&block[148..156]).map_err(|_| misfit())?;
        // Old writers summed signed bytes.
        let (mut unsigned, mut signed) = (0_u64, 0_i64);
        for (at, &byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { byte };
            unsigned += u64::from(byte);
            signed += i64::from(byte as i8);
        }
        if wanted != unsigned && i64::try_from(wanted) != Ok(signed) {
            return Err(misfit());
        }
        Ok(Some(block))
    }

    fn read_end(&mut self) -> Result<()> {
        let mut buffer = [0; 8192];
        let mut total = 0;
        loop {
            let count = self.source.read(&mut buffer).map_err(input_failure)?;
            if count == 0 {
                return Ok(());
            }
            total += count as u64;
            if buffer[..count].iter().any(|&byte| byte != 0) {
                return Err(Failure::corrupt("something follows the end of the tar"));
            }
            if total > PADDING_BYTES_MAX {
                return Err(Failure::too_large("too much padding after the end of the tar"));
            }
        }
    }

    /// False at the end of the input.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.source.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(Failure::corrupt("the tar ends in the middle of a header")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(input_failure(error)),
            }
        }
        Ok(true)
    }

    fn set_content(&mut self, size: u64) {
        self.content_left = size;
        self.padding_left = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn skip_content(&mut self) -> Result<()> {
        let skip = self.content_left + self.padding_left;
        self.content_left = 0;
        self.padding_left = 0;
        let skipped = io::copy(&mut (&mut self.source).take(skip), &mut io::sink()).map_err(input_failure)?;
        if skipped == skip { Ok(()) } else { Err(Failure::corrupt("the tar ends in the middle of an entry")) }
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > EXTENSION_BYTES_MAX {
            return Err(Failure::too_large(format!("an extended header of more than {EXTENSION_BYTES_MAX} bytes")));
        }
        self.set_content(size);
        let mut content = vec![0; size as usize];
        self.read_exact(&mut content).map_err(input_failure)?;
        self.skip_content()?;
        Ok(content)
    }

    /// Where the stored parts lie and how long the file is.
    fn sparse(
        &mut self,
        header: &[u8; BLOCK],
        stored: u64,
        map: Option<Vec<Part>>,
        size: Option<u64>,
        in_content: bool,
    ) -> Result<(Option<Vec<Part>>, u64)> {
        let (map, size) = if header[156] == b'S' {
            (self.gnu_sparse_map(header)?, number(&header[483..495])?)
        } else if in_content {
            (self.pax_sparse_map()?, size.ok_or_else(|| Failure::corrupt("a sparse file without its size"))?)
        } else if let Some(map) = map {
            (map, size.ok_or_else(|| Failure::corrupt("a sparse file without its size"))?)
        } else {
            return Ok((None, stored));
        };
        let mut end = 0_u64;
        let mut sum = 0_u64;
        for &(offset, length) in &map {
            if offset < end {
                return Err(Failure::corrupt("the parts of a sparse file overlap"));
            }
            end = offset
                .checked_add(length)
                .filter(|&end| end <= size)
                .ok_or_else(|| Failure::corrupt("a sparse file's part lies behind its end"))?;
            sum += length;
        }
        if sum != self.content_left {
            return Err(Failure::corrupt("a sparse file's parts do not fit its content"));
        }
        Ok((Some(map), size))
    }

    fn gnu_sparse_map(&mut self, header: &[u8; BLOCK]) -> Result<Vec<Part>> {
        let mut map = Vec::new();
        let mut add = |fields: &[u8]| -> Result<()> {
            for field in fields.chunks_exact(24) {
                if field[0] != 0 && field[12] != 0 {
                    map.push((number(&field[..12])?, number(&field[12..])?));
                }
            }
            if map.len() > SPARSE_PARTS_MAX { Err(Failure::too_large("a sparse file of too many parts")) } else { Ok(()) }
        };
        add(&header[386..482])?;
        let mut more = header[482] != 0;
        while more {
            let mut block = [0; BLOCK];
            if !self.block(&mut block)? {
                return Err(Failure::corrupt("the tar ends in the middle of a header"));
            }
            add(&block[..504])?;
            more = block[504] != 0;
        }
        Ok(map)
    }

    /// Decimal lines in whole blocks before the content: how many, then offset and length of each.
    fn pax_sparse_map(&mut self) -> Result<Vec<Part>> {
        let mut lines = Vec::new();
        let mut line = Vec::new();
        let mut wanted = 1;
        while lines.len() < wanted {
            let mut block = [0; BLOCK];
            self.read_exact(&mut block).map_err(input_failure)?;
            for &byte in &block {
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(Failure::corrupt("a sparse file's map has no numbers"));
                    }
                    continue;
                }
                lines.push(decimal(&line)?);
                line.clear();
                if lines.len() == 1 {
                    let parts = lines[0];
                    if parts > SPARSE_PARTS_MAX as u64 {
                        return Err(Failure::too_large("a sparse file of too many parts"));
                    }
                    wanted = 1 + 2 * parts as usize;
                }
                if lines.len() == wanted {
                    break;
                }
            }
        }
        Ok(lines[1..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }
}

/// Stored content of the current entry.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.content_left).unwrap_or(usize::MAX).min(buffer.len());
        if length == 0 {
            return Ok(0);
        }
        let count = self.source.read(&mut buffer[..length])?;
        if count == 0 {
            return Err(Failure::corrupt("the tar ends in the middle of an entry").into());
        }
        self.content_left -= count as u64;
        Ok(count)
    }
}

impl Extension {
    /// Records `<length> <key>=<value>\n`, where the length counts itself.
    fn read(&mut self, mut records: &[u8]) -> Result<()> {
        let broken = || Failure::corrupt("a pax header that is not well-formed");
        let mut sparse_version = (None, None);
        while !records.is_empty() && records[0] != 0 {
            let space = records.iter().take(20).position(|&byte| byte == b' ').ok_or_else(broken)?;
            let length = usize::try_from(decimal(&records[..space])?).map_err(|_| broken())?;
            if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
                return Err(broken());
            }
            let record = &records[space + 1..length - 1];
            let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(broken)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            // An empty value takes back what a record before it said.
            let given = !value.is_empty();
            match key {
                b"path" => self.path = given.then(|| value.to_vec()),
                b"linkpath" => self.target = given.then(|| value.to_vec()),
                b"size" => self.size = if given { Some(decimal(value)?) } else { None },
                b"uid" => self.uid = if given { Some(user_number(value)?) } else { None },
                b"gid" => self.gid = if given { Some(user_number(value)?) } else { None },
                b"mtime" => self.mtime = if given { Some(time(value)?) } else { None },
                key if key == SAME_RECORD.as_bytes() => self.same = value == b"1",
                b"GNU.sparse.major" => sparse_version.0 = Some(decimal(value)?),
                b"GNU.sparse.minor" => sparse_version.1 = Some(decimal(value)?),
                b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_size = Some(decimal(value)?),
                b"GNU.sparse.map" => self.sparse_map = Some(sparse_list(value)?),
                b"GNU.sparse.offset" => return Err(Failure::corrupt("a sparse file in pax format 0.0, which is not supported")),
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattr(name, value)?;
                    }
                }
            }
            records = &records[length..];
        }
        match sparse_version {
            (None, None) => {}
            (Some(1), Some(0)) => self.sparse_in_content = true,
            (Some(0), Some(1)) => {}
            _ => return Err(Failure::corrupt("a sparse file in a format that is not supported")),
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        if name.len() > XATTR_NAME_BYTES_MAX || value.len() > XATTR_BYTES_MAX {
            return Err(Failure::too_large(format!("an extended attribute of more than {XATTR_BYTES_MAX} bytes")));
        }
        if !is_kept_xattr(name) {
            return Ok(());
        }
        self.xattrs.retain(|(known, _)| known != name);
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }
}

/// What programs set for themselves, and file capabilities. Never what steers a file system (`trusted.*`, `user.overlay.*`) or a security
/// module of the host.
fn is_kept_xattr(name: &[u8]) -> bool {
    if name.contains(&0) {
        return false;
    }
    name == b"security.capability" || (name.starts_with(b"user.") && name.len() > 5 && !name.starts_with(b"user.overlay."))
}

fn header_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_zero(&header[..100]);
    let prefix = until_zero(&header[345..500]);
    // GNU headers have other fields there.
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() { [prefix, b"/", name].concat() } else { name.to_vec() }
}

fn until_zero(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Octal, or binary where the first bit is set. Empty is 0.
fn number(field: &[u8]) -> Result<u64> {
    u64::try_from(signed(field)?).map_err(|_| Failure::corrupt("a negative number in a header"))
}

fn signed(field: &[u8]) -> Result<i64> {
    let broken = || Failure::corrupt("a number in a header cannot be read");
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, &byte) in field.iter().enumerate() {
            let byte = if at == 0 && !negative { byte & 0x7f } else { byte };
            value = value.checked_shl(8).filter(|_| value.abs() < 1 << 100).ok_or_else(broken)? | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| broken());
    }
    let text = until_zero(field).trim_ascii();
    let mut value = 0_i64;
    for &digit in text {
        if !(b'0'..=b'7').contains(&digit) {
            return Err(broken());
        }
        value = value.checked_mul(8).and_then(|value| value.checked_add(i64::from(digit - b'0'))).ok_or_else(broken)?;
    }
    Ok(value)
}

fn decimal(text: &[u8]) -> Result<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let value = std::str::from_utf8(text).ok().filter(|_| digits).and_then(|text| text.parse::<i64>().ok());
    value.map(|value| value as u64).ok_or_else(|| Failure::corrupt("a number in a pax header cannot be read"))
}

fn user_number(text: &[u8]) -> Result<u32> {
    u32::try_from(decimal(text)?).map_err(|_| Failure::corrupt("an owner that is no user number"))
}

/// Decimal seconds, perhaps negative, perhaps with a fraction. Digits after the ninth are cut off.
fn time(text: &[u8]) -> Result<(i64, u32)> {
    let negative = text.first() == Some(&b'-');
    let text = if negative { &text[1..] } else { text };
    let (whole, fraction) = match text.iter().position(|&byte| byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &text[text.len()..]),
    };
    let seconds = decimal(whole)? as i64;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(Failure::corrupt("a time in a pax header cannot be read"));
    }
    let nanoseconds = (0..9).fold(0_u32, |sum, at| sum * 10 + fraction.get(at).map_or(0, |digit| u32::from(digit - b'0')));
    Ok(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

fn sparse_list(text: &[u8]) -> Result<Vec<Part>> {
    let numbers = text.split(|&byte| byte == b',').map(decimal).collect::<Result<Vec<_>>>()?;
    if numbers.len() % 2 != 0 || numbers.len() / 2 > SPARSE_PARTS_MAX {
        return Err(Failure::corrupt("a sparse file's map has no pairs"));
    }
    Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift64*.
    fn next(state: &mut u64) -> u64 {
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    fn header(name: &[u8], kind: u8, size: usize) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        block[..name.len()].copy_from_slice(name);
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        block
    }

    fn sign(block: &mut [u8]) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }

    /// One of everything that has a parser of its own.
    fn sample() -> Vec<Vec<u8>> {
        let record = |key: &str, value: &[u8]| {
            let rest = key.len() + value.len() + 3;
            let length = (rest + 1..).find(|length| *length == rest + length.to_string().len()).unwrap();
            [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
        };
        let records = [
            record("mtime", b"1234567890.123456789"),
            record("GNU.sparse.major", b"1"),
            record("GNU.sparse.minor", b"0"),
            record("GNU.sparse.realsize", b"4096"),
            record("SCHILY.xattr.user.x", b"\0\xff=\n"),
        ]
        .concat();
        let padded = |content: &[u8]| {
            let mut content = content.to_vec();
            content.resize(BLOCK, 0);
            content
        };
        vec![
            header(b"pax", b'x', records.len()),
            padded(&records),
            header(b"sparse", b'0', 1024),
            padded(b"1\n100\n512\n"),
            padded(&[7; BLOCK]),
            header(b"old sparse", b'S', 0),
            header(b"long", b'L', 5),
            padded(b"name\0"),
            header(b"cut", b'0', 5),
            padded(b"12345"),
            header(b"link", b'1', 0),
            header(b"folder/", 0, 0),
        ]
    }

    /// What random bytes in every place do: an entry or a failure, never a panic, and never more than the limits allow.
    #[test]
    fn altered_tars_are_read_or_refused() {
        let given = std::env::var("MITOS_SEED").ok().and_then(|text| text.parse().ok());
        let mut state: u64 =
            given.unwrap_or_else(|| std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64 | 1);
        println!("MITOS_SEED={state}");
        let interesting = [0, 1, b'0', b'7', b'9', b' ', b'=', b'\n', 0x7f, 0x80, 0xff];
        let (mut read, mut refused) = (0, 0);
        for _ in 0..10_000 {
            let mut blocks = sample();
            for _ in 0..=next(&mut state) % 4 {
                let block = (next(&mut state) % blocks.len() as u64) as usize;
                let at = (next(&mut state) % BLOCK as u64) as usize;
                blocks[block][at] = match next(&mut state) % 3 {
                    0 => next(&mut state) as u8,
                    _ => interesting[(next(&mut state) % interesting.len() as u64) as usize],
                };
            }
            for block in &mut blocks {
                if &block[257..262] == b"ustar" {
                    sign(block);
                }
            }
            let mut tar = blocks.concat();
            tar.extend([0; 2 * BLOCK]);
            tar.truncate(tar.len() - (next(&mut state) % 8 / 7 * (next(&mut state) % 3000)) as usize);
            let mut reader = Reader::new(&tar[..], 20, true);
            let mut entries = 0;
            loop {
                match reader.next() {
                    Ok(Some(_)) => entries += 1,
                    Ok(None) => break read += 1,
                    Err(failure) => {
                        assert_ne!(failure.reason, super::super::failure::Reason::Internal, "{failure:?}");
                        break refused += 1;
                    }
                }
                let mut content = [0; 700];
                let _ = reader.read(&mut content);
            }
            assert!(entries <= 20);
        }
        assert!(read > 300 && refused > 300, "{read} read, {refused} refused");
    }
}

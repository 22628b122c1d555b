//! `index` of a layer: a line about the format, one line for every name in the order of a walk (a folder before what it holds), and a last
//! line that says what the layer is. A layer without the last line was not finished.

use super::failure::{Failure, Result};
use super::names::Bytes;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};

pub const VERSION: u32 = 1;
const LINE_BYTES_MAX: u64 = 8 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Folder,
    File,
    Symlink,
    /// Another name of a file of this layer, which comes earlier.
    Link,
    /// Another name of a file that only a lower layer has.
    LowerLink,
    /// What lower layers have here is gone.
    Whiteout,
    /// What lower layers have in this folder is gone.
    Opaque,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<(Bytes, Bytes)>,
}

impl Meta {
    /// Of folders that no layer describes.
    pub fn of_missing_folder() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// Relative to the root, which is the empty path.
    pub path: Bytes,
    pub kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<Meta>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Bytes>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Header {
    pub version: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Footer {
    pub diff_id: String,
    pub entries: u64,
    pub bytes: u64,
    /// Devices, pipes and names that layers cannot carry: left out.
    pub skipped: u64,
    /// Who owns every file on disk because owners could not be set: an ordinary user and group. Null = the owners that the lines say.
    pub held_by: Option<(u32, u32)>,
}

pub struct Index {
    pub lines: Vec<Line>,
    pub footer: Footer,
}

/// Reads a whole index. It is our own, but names in it are an image's.
pub fn read(file: File) -> Result<Index> {
    let broken = |detail: String| Failure::new(super::failure::Reason::Internal, format!("the index of a layer cannot be read: {detail}"));
    let mut reader = BufReader::with_capacity(256 << 10, file);
    let mut text = Vec::new();
    let mut next = |text: &mut Vec<u8>| -> Result<bool> {
        text.clear();
        (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', text).map_err(|error| broken(error.to_string()))?;
        if !text.is_empty() && text.last() != Some(&b'\n') {
            return Err(broken("a line is cut off".into()));
        }
        Ok(!text.is_empty())
    };
    next(&mut text)?;
    let header: Header = serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
    if header.version != VERSION {
        return Err(broken(format!("its version is {}, not {VERSION}", header.version)));
    }
    let mut lines = Vec::new();
    while next(&mut text)? {
        if text.starts_with(b"{\"diff_id\"") {
            let footer = serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
            return Ok(Index { lines, footer });
        }
        lines.push(serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?);
    }
    Err(broken("it has no end".into()))
}

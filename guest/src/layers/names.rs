//! Paths of entries, judged by their text before anything is done with them.

use super::failure::{Failure, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Borrow;

/// A root lies below a folder of the host and together they must fit into the 4,096 bytes that the kernel takes.
pub const PATH_BYTES_MAX: usize = 3_072;
pub const NAME_BYTES_MAX: usize = 255;
pub const DEPTH_MAX: usize = 256;

/// Bytes of one path component, of a link's target or of an attribute: mostly text, but no promise of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Bytes(pub Box<[u8]>);

impl Borrow<[u8]> for Bytes {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

/// Text where it is UTF-8, else an array of numbers.
impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => self.0.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Text(String),
            Raw(Vec<u8>),
        }
        Ok(match Either::deserialize(deserializer)? {
            Either::Text(text) => Self(text.into_bytes().into()),
            Either::Raw(raw) => Self(raw.into()),
        })
    }
}

/// Components of an entry's name; empty for the root itself. `.` and doubled or trailing slashes mean nothing.
pub fn entry_path(name: &[u8]) -> Result<Vec<&[u8]>> {
    // Some builders name the root like this; everything else that begins with a slash is refused.
    if name.first() == Some(&b'/') && name.iter().any(|&byte| byte != b'/') {
        return Err(Failure::hostile("an absolute path").at(name));
    }
    components(name)
}

/// Components of what a hard link names. Builders write absolute ones too: from the root of the image, so nothing is lost by taking them.
pub fn link_path(target: &[u8]) -> Result<Vec<&[u8]>> {
    components(target)
}

fn components(name: &[u8]) -> Result<Vec<&[u8]>> {
    if name.len() > PATH_BYTES_MAX {
        return Err(Failure::too_large(format!("a path of more than {PATH_BYTES_MAX} bytes")).at(&name[..200]));
    }
    if name.contains(&0) {
        return Err(Failure::hostile("a zero byte in a path").at(name));
    }
    let mut parts = Vec::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Failure::hostile("`..` in a path").at(name)),
            part if part.len() > NAME_BYTES_MAX => {
                return Err(Failure::too_large(format!("a name of more than {NAME_BYTES_MAX} bytes")).at(name));
            }
            part => parts.push(part),
        }
    }
    if parts.len() > DEPTH_MAX {
        return Err(Failure::too_large(format!("deeper than {DEPTH_MAX} folders")).at(name));
    }
    Ok(parts)
}

pub fn join(parts: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut path = Vec::new();
    for part in parts {
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part.as_ref());
    }
    path
}

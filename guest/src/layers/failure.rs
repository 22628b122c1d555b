//! Why a command failed, in the words that the engine knows.

use serde::Serialize;
use std::io;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Would reach outside of its folder, or pretends to be what it is not.
    Hostile,
    /// Not what a tar or its compression looks like, or a part of it is missing.
    Corrupt,
    TooLarge,
    DiskFull,
    Internal,
}

#[derive(Debug, Serialize)]
pub struct Failure {
    pub reason: Reason,
    /// Path of the entry, as the tar has it; empty when it is not about one.
    pub entry: String,
    pub detail: String,
}

pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, entry: String::new(), detail: detail.into() }
    }

    pub fn hostile(detail: impl Into<String>) -> Self {
        Self::new(Reason::Hostile, detail)
    }

    pub fn corrupt(detail: impl Into<String>) -> Self {
        Self::new(Reason::Corrupt, detail)
    }

    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(Reason::TooLarge, detail)
    }

    /// What the system refused. `what` names operation and operand.
    pub fn system(what: &str, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        let reason = match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Reason::DiskFull,
            Some(libc::EFBIG) => Reason::TooLarge,
            _ => Reason::Internal,
        };
        Self::new(reason, format!("{what}: {error}"))
    }

    /// Names the entry unless a step further inside has done so.
    pub fn at(mut self, entry: &[u8]) -> Self {
        if self.entry.is_empty() {
            self.entry = String::from_utf8_lossy(entry).into_owned();
        }
        self
    }
}

/// A failure inside a `Read` travels as an `io::Error` and comes out as what it was.
impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        io::Error::other(Carried(failure))
    }
}

#[derive(Debug)]
struct Carried(Failure);

impl std::fmt::Display for Carried {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0.detail)
    }
}

impl std::error::Error for Carried {}

/// What reading the input ended with.
pub fn input_failure(error: io::Error) -> Failure {
    if error.get_ref().is_some_and(|inner| inner.is::<Carried>()) {
        let carried = error.into_inner().and_then(|inner| inner.downcast::<Carried>().ok());
        return carried.map_or_else(|| Failure::corrupt("the input cannot be read"), |carried| carried.0);
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Failure::corrupt("the input ends in the middle"),
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => Failure::corrupt(error.to_string()),
        _ => Failure::system("read the input", error),
    }
}

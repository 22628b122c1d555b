//! How a machine ended, and `exit.json`.

use serde::Serialize;
use std::fs;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exit {
    pub reason: String,
    /// Null when a signal ended it, or when it was not the shim's to wait for.
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub oom: bool,
    /// It ended by itself after the kernel had refused it a process or thread.
    pub process_limit: bool,
    pub at_unix_ms: u64,
}

impl Exit {
    /// Whole or not there at all, and on disk: a server that starts after a crash of the host reads it.
    pub fn write(&self) -> io::Result<()> {
        let mut file = fs::File::create("exit.json.new")?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename("exit.json.new", "exit.json")?;
        fs::File::open(".")?.sync_all()
    }
}

pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

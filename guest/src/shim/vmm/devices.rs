//! A machine's devices as a stream without a page: for one whose memory is all in the file that it maps.

use super::stream::{closing, opening, read_device_state};
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaveDevices {
    memory_bytes: u64,
    /// What `xen-save-devices-state` has written.
    device_state: PathBuf,
    /// Made new, 0600.
    out: PathBuf,
    /// Also on disk when it is done.
    #[serde(default)]
    sync: bool,
}

#[derive(Debug, Serialize)]
pub struct SavedDevices {
    bytes: u64,
}

impl SaveDevices {
    pub fn run(&self) -> Result<SavedDevices, String> {
        let mut bytes = opening(self.memory_bytes);
        bytes.extend(closing(&read_device_state(&self.device_state)?));
        let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.out);
        let mut out = out.map_err(|error| format!("create {}: {error}", self.out.display()))?;
        let written = out.write_all(&bytes).and_then(|()| if self.sync { out.sync_all() } else { Ok(()) });
        written.map_err(|error| {
            let _ = fs::remove_file(&self.out);
            format!("write {}: {error}; is the disk full?", self.out.display())
        })?;
        Ok(SavedDevices { bytes: bytes.len() as u64 })
    }
}

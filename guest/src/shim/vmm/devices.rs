//! A machine's devices as a stream without a page: for one whose memory is all in the file that it maps.

use super::stream::{closing, opening, read_device_state};
use super::timer::postpone;
use serde::{Deserialize, Serialize};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

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
    /// As of `save_memory`.
    #[serde(default)]
    timers_later_ms: u32,
}

#[derive(Debug, Serialize)]
pub struct SavedDevices {
    bytes: u64,
}

impl SaveDevices {
    pub fn run(&self) -> Result<SavedDevices, String> {
        let mut devices = read_device_state(&self.device_state)?;
        postpone(&mut devices, Duration::from_millis(self.timers_later_ms.into()));
        let mut bytes = opening(self.memory_bytes);
        bytes.extend(closing(&devices));
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

//! What to start, and with what. Checked in full before anything is done.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::path::{Component, Path, PathBuf};

const FILES_MAX: usize = 64;
/// 0 to 4 are the standard ones, the link and the monitor.
const FILE_NUMBERS: std::ops::RangeInclusive<i32> = 5..=255;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The program, absolute (in `root` if that is given), and its arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Gets the program's pid as this process sees it; replaced if it is there.
    pub pid_file: PathBuf,
    /// Whom it runs as; absent = as whoever starts it.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// `cgroup.procs` files, joined in this order.
    #[serde(default)]
    pub cgroups: Vec<PathBuf>,
    /// A folder that becomes its whole root file system, read-only, with `proc`, `dev` and `tmp` in it; absent = no namespaces at all.
    pub root: Option<PathBuf>,
    /// Device files besides null, zero and urandom. Only with `root`.
    #[serde(default)]
    pub devices: Vec<PathBuf>,
    #[serde(default)]
    pub files: Vec<GivenFile>,
}

/// A file of the host that the program finds open at a number.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GivenFile {
    pub fd: i32,
    pub path: PathBuf,
    pub access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    Read,
    ReadWrite,
}

impl Spec {
    pub fn parse(text: &str) -> Result<Self, String> {
        let spec: Self =
            serde_json::from_str(text).map_err(|error| format!("read the specification: {error}; docs/shim.md lists its fields"))?;
        spec.check().map_err(|message| format!("the specification: {message}"))?;
        Ok(spec)
    }

    fn check(&self) -> Result<(), String> {
        let program = self.argv.first().ok_or("argv is empty")?;
        if !program.starts_with('/') {
            return Err(format!("argv[0] is {program:?}; give an absolute path"));
        }
        let texts = self.argv.iter().chain(self.env.keys()).chain(self.env.values());
        if texts.clone().any(|text| text.contains('\0')) || self.env.keys().any(|name| name.is_empty() || name.contains('=')) {
            return Err("argv and env hold no NUL, and a name in env no `=`".into());
        }
        if let Some(root) = &self.root {
            absolute("root", root)?;
        } else if !self.devices.is_empty() {
            return Err("devices are for a root of its own; give `root` too".into());
        }
        for device in &self.devices {
            absolute("devices", device)?;
            // Plain names in /dev: no folder has to be made for them.
            if device.parent() != Some(Path::new("/dev")) {
                return Err(format!("devices: {} does not lie in /dev", device.display()));
            }
        }
        for cgroup in &self.cgroups {
            absolute("cgroups", cgroup)?;
        }
        self.check_files()
    }

    fn check_files(&self) -> Result<(), String> {
        if self.files.len() > FILES_MAX {
            return Err(format!("files: at most {FILES_MAX}"));
        }
        let mut numbers = BTreeSet::new();
        for file in &self.files {
            absolute("files", &file.path)?;
            if !FILE_NUMBERS.contains(&file.fd) || !numbers.insert(file.fd) {
                return Err(format!("files: fd {} is taken or not from 5 to 255", file.fd));
            }
        }
        Ok(())
    }

    pub fn program(&self) -> CString {
        c_string(&self.argv[0])
    }

    pub fn arguments(&self) -> Vec<CString> {
        self.argv.iter().map(|text| c_string(text)).collect()
    }

    pub fn environment(&self) -> Vec<CString> {
        self.env.iter().map(|(name, value)| c_string(&format!("{name}={value}"))).collect()
    }
}

fn absolute(field: &str, path: &Path) -> Result<(), String> {
    let plain = path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if plain { Ok(()) } else { Err(format!("{field}: {} is not an absolute path without `..`", path.display())) }
}

fn c_string(text: &str) -> CString {
    CString::new(text).expect("checked for NUL")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn with(fields: Value) -> Result<Spec, String> {
        let mut spec = json!({"argv": ["/usr/bin/vmm", "-S"], "pid_file": "vmm.pid"});
        spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        Spec::parse(&spec.to_string())
    }

    #[test]
    fn a_whole_specification_is_read() {
        let spec = with(json!({
            "env": {"A": "b=c"}, "uid": 1000, "gid": 1000, "cgroups": ["/sys/fs/cgroup/x/cgroup.procs"], "root": "/srv/vmm",
            "devices": ["/dev/kvm"], "files": [{"fd": 20, "path": "/memory", "access": "read_write"}]
        }))
        .unwrap();
        assert_eq!(spec.environment(), [CString::new("A=b=c").unwrap()]);
        assert_eq!(spec.files[0].access, Access::ReadWrite);
    }

    #[test]
    fn what_is_wrong_is_refused_before_anything_is_done() {
        let file = |fd: i32, path: &str| json!({"fd": fd, "path": path, "access": "read"});
        for fields in [
            json!({"argv": []}),
            json!({"argv": ["vmm"]}),
            json!({"argv": ["/vmm", "a\0b"]}),
            json!({"env": {"A=B": "c"}}),
            json!({"root": "vmm"}),
            json!({"root": "/srv/../vmm"}),
            json!({"devices": ["/dev/kvm"]}),
            json!({"root": "/vmm", "devices": ["/dev/net/tun"]}),
            json!({"root": "/vmm", "devices": ["/etc/shadow"]}),
            json!({"cgroups": ["cgroup.procs"]}),
            json!({"files": [file(4, "/a")]}),
            json!({"files": [file(256, "/a")]}),
            json!({"files": [file(-1, "/a")]}),
            json!({"files": [file(20, "/a"), file(20, "/b")]}),
            json!({"files": [file(20, "a")]}),
            json!({"files": (5..100).map(|fd| file(fd, "/a")).collect::<Vec<_>>()}),
            json!({"pidfile": "x"}),
        ] {
            assert!(with(fields.clone()).is_err(), "{fields}");
        }
    }
}

//! Random trees, packed by GNU tar in each of its formats, against what GNU tar unpacks. A failure prints its seed; MITOS_SEED repeats it.

use super::hostile::filter;
use super::tool::{Folder, is_root};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, most: u64) -> u64 {
        (self.next() >> 11) % most
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

pub fn seed() -> u64 {
    let given = std::env::var("MITOS_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64 | 1);
    println!("MITOS_SEED={seed}");
    seed
}

fn make_tree(random: &mut Random, root: &Path) {
    let mut folders = vec![root.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    let mut all: Vec<PathBuf> = Vec::new();
    for number in 0..120 {
        let stem = *random.pick(&["a", "Ä ö", "x.y", "-dash", "with space", "new\nline", "..dots", "wh.x"]);
        let name = if random.below(8) == 0 { format!("{}{number}", stem.repeat(240 / stem.len() - 4)) } else { format!("{stem}{number}") };
        let path = random.pick(&folders).join(name);
        match random.below(10) {
            0..=2 => {
                fs::create_dir(&path).unwrap();
                folders.push(path.clone());
            }
            3 => symlink(random.pick(&["a", "/etc/passwd", "../../..", "nowhere/at all"]), &path).unwrap(),
            4 if !files.is_empty() => fs::hard_link(random.pick(&files), &path).unwrap(),
            5 => {
                let mut file = File::create(&path).unwrap();
                for _ in 0..random.below(6) {
                    let at = random.below(3 << 20);
                    file.seek(SeekFrom::Start(at)).unwrap();
                    file.write_all(&vec![b's'; random.below(9_000) as usize]).unwrap();
                }
                file.set_len(random.below(3 << 20).max(file.metadata().unwrap().len())).unwrap();
                files.push(path.clone());
            }
            _ => {
                let length = *random.pick(&[0, 1, 511, 512, 513, 10_000, 300_000]);
                let content: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
                fs::write(&path, content).unwrap();
                files.push(path.clone());
            }
        }
        all.push(path);
    }
    for path in all.iter().rev() {
        let kind = fs::symlink_metadata(path).unwrap().file_type();
        if is_root() {
            lchown(path, Some(random.below(70_000) as u32), Some(random.below(5) as u32)).unwrap();
        }
        let time = (random.below(4_000_000_000) as i64, random.below(1_000_000_000) as i64);
        if !kind.is_symlink() {
            if random.below(4) == 0 {
                set_xattr(path, "user.mitos", format!("{}\n=\0", random.next()).as_bytes());
            }
            let mode = *random.pick(&[0o644, 0o755, 0o600, 0o4755, 0o2755, 0o1777, 0o700, 0o6711]);
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        set_time(path, time);
    }
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    let (path, name) = (c_string(path), CString::new(name).unwrap());
    // SAFETY: both strings end with a zero, and the value is as long as is said.
    let done = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let (path, name) = (c_string(path), CString::new(name).unwrap());
    let mut value = vec![0_u8; 4096];
    // SAFETY: writes at most what the buffer has.
    let length = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    usize::try_from(length).ok().map(|length| value[..length].to_vec())
}

fn set_time(path: &Path, (seconds, nanoseconds): (i64, i64)) {
    let time = nix::sys::time::TimeSpec::new(seconds, nanoseconds);
    let flag = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
    nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, flag).unwrap();
}

fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// Everything that a layer keeps of a tree.
fn described(root: &Path, whole_seconds: bool, with_xattrs: bool) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut first_names: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut ahead: Vec<PathBuf> = vec![PathBuf::new()];
    while let Some(dir) = ahead.pop() {
        let mut names: Vec<_> = fs::read_dir(root.join(&dir)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let path = dir.join(name);
            let full = root.join(&path);
            let meta = fs::symlink_metadata(&full).unwrap();
            let content = if meta.is_dir() {
                ahead.push(path.clone());
                "folder".into()
            } else if meta.is_symlink() {
                fs::read_link(&full).unwrap().display().to_string()
            } else {
                let bytes = fs::read(&full).unwrap();
                let sum = bytes.iter().fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
                format!("{} bytes {sum:x}", bytes.len())
            };
            let time = if whole_seconds { (meta.mtime(), 0) } else { (meta.mtime(), meta.mtime_nsec()) };
            let xattr = if with_xattrs { xattr(&full, "user.mitos") } else { None };
            let names = if meta.is_file() && meta.nlink() > 1 {
                first_names.entry(meta.ino()).or_insert(path.clone()).clone()
            } else {
                PathBuf::new()
            };
            let owner = if is_root() { (meta.uid(), meta.gid()) } else { (0, 0) };
            found.insert(path, format!("{content} mode {:o} owner {owner:?} time {time:?} xattr {xattr:?} first {names:?}", meta.mode()));
        }
    }
    found
}

/// One hard link into the layer makes every file of a root have one name more; so groups are compared in a copy without the layer.
fn unpacked_by_mitos(folder: &Folder, tar: &[u8], layer: &str) -> PathBuf {
    folder.unpack(layer, tar).unwrap();
    let root = format!("{layer}.root");
    folder.merge(&root, &[layer]).unwrap();
    fs::remove_dir_all(folder.at(layer)).unwrap();
    folder.at(&root)
}

fn gnu_tar(arguments: &[&str], dir: &Path) {
    let status = Command::new("tar").args(arguments).current_dir(dir).status().unwrap();
    assert!(status.success());
}

#[test]
fn random_trees_come_out_as_gnu_tar_unpacks_them() {
    let mut random = Random(seed());
    for round in 0..3 {
        let folder = Folder::new();
        let source = folder.make("source");
        make_tree(&mut random, &source);
        for (format, whole_seconds) in [("pax", false), ("gnu", true)] {
            let sparse: &[&str] = if random.below(2) == 0 { &["--sparse"] } else { &[] };
            let xattrs: &[&str] = if format == "pax" { &["--xattrs"] } else { &[] };
            let file = format!("{format}.tar");
            let flag = format!("--format={format}");
            gnu_tar(&[&["-C", "source", "-cf", &file, &flag], sparse, xattrs, &["."]].concat(), &folder.path);
            let theirs = folder.make(&format!("{format}.theirs"));
            gnu_tar(
                &[&["-C", theirs.to_str().unwrap(), "-xpf", &file, "--same-owner", "--warning=no-timestamp"], xattrs].concat(),
                &folder.path,
            );
            let tar = fs::read(folder.at(&file)).unwrap();
            let packed = match random.below(3) {
                0 => Some(tar.clone()),
                1 => filter("gzip", &["-c", "-1"], &tar),
                _ => filter("zstd", &["-c", "-q"], &tar),
            };
            let ours = unpacked_by_mitos(&folder, &packed.unwrap_or(tar), &format!("{format}.ours"));
            let (ours, theirs) = (described(&ours, whole_seconds, format == "pax"), described(&theirs, whole_seconds, format == "pax"));
            for (path, expected) in &theirs {
                assert_eq!(ours.get(path), Some(expected), "{format} {sparse:?} round {round} {}", path.display());
            }
            assert_eq!(ours.len(), theirs.len());
        }
    }
}

#[test]
fn a_part_of_this_host_comes_out_as_gnu_tar_unpacks_it() {
    let folder = Folder::new();
    let parts = ["usr/share/doc", "usr/share/zoneinfo", "usr/lib/systemd", "usr/share/perl", "etc/ssl"];
    let there: Vec<&str> = parts.into_iter().filter(|part| Path::new("/").join(part).is_dir()).collect();
    assert!(!there.is_empty());
    let file = folder.at("host.tar");
    let status = Command::new("tar")
        .args(["-C", "/", "--ignore-failed-read", "-cf"])
        .arg(&file)
        .args(there)
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.code() == Some(0) || !is_root());
    let theirs = folder.make("theirs");
    gnu_tar(&["-C", "theirs", "-xpf", "host.tar", "--delay-directory-restore"], &folder.path);
    let ours = unpacked_by_mitos(&folder, &fs::read(&file).unwrap(), "ours");
    let (ours, theirs) = (described(&ours, true, false), described(&theirs, true, false));
    // Folders that no entry describes have the time at which they were made.
    let implied = ["etc", "usr", "usr/share", "usr/lib"].map(PathBuf::from);
    for (path, expected) in theirs.iter().filter(|(path, _)| !implied.contains(path)) {
        assert_eq!(ours.get(path), Some(expected), "{}", path.display());
    }
    assert_eq!(ours.len(), theirs.len());
    println!("{} entries", ours.len());
}

//! The program, folders for it, and what lies in them.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// An ordinary user that every system has.
pub const NOBODY: u32 = 65_534;

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A new folder of the user who runs the program. Dropping it removes it, whatever modes are in it.
pub struct Folder {
    pub path: PathBuf,
    /// None: whoever runs the tests.
    user: Option<u32>,
}

impl Folder {
    pub fn new() -> Self {
        Self::of(None, &std::env::temp_dir())
    }

    /// Where the tests run as root, of somebody else; else of who runs them.
    pub fn of_ordinary_user() -> Self {
        Self::of(is_root().then_some(NOBODY), &std::env::temp_dir())
    }

    pub fn on_another_file_system() -> Self {
        Self::of(None, Path::new("/dev/shm"))
    }

    fn of(user: Option<u32>, parent: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mitos-layers-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = Self { path: parent.join(name), user };
        fs::create_dir(&folder.path).unwrap();
        fs::set_permissions(&folder.path, Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(&folder.path, user, user).unwrap();
        // The ordinary user may not reach the one that cargo has built. By another process: a program that is open for writing cannot be run, and
        // a child that some other test starts meanwhile would hold it open for a moment.
        let copied = Command::new("cp").args([env!("CARGO_BIN_EXE_mitos-layers"), "mitos-layers"]).current_dir(&folder.path).status();
        assert!(copied.unwrap().success());
        folder
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn make(&self, name: &str) -> PathBuf {
        let dir = self.at(name);
        fs::create_dir(&dir).unwrap();
        std::os::unix::fs::chown(&dir, self.user, self.user).unwrap();
        dir
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path.join("mitos-layers"));
        command.args(arguments).current_dir(&self.path).env_clear();
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    /// What it answers, or the failure that it names. Anything else fails the test.
    pub fn run(&self, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut child = self.command(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let output = std::thread::scope(|scope| {
            // It may refuse the input before its end.
            scope.spawn(move || stdin.write_all(input));
            child.wait_with_output().unwrap()
        });
        if output.status.success() {
            assert_eq!(String::from_utf8_lossy(&output.stderr), "");
            return Ok(output.stdout);
        }
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stderr).unwrap();
        let said: Value = serde_json::from_str(text.trim_end().lines().last().unwrap()).unwrap();
        let field = |name: &str| said[name].as_str().unwrap().to_owned();
        Err(Failure { reason: field("reason"), entry: field("entry"), detail: field("detail") })
    }

    /// Unpacks into a new folder of that name.
    pub fn unpack(&self, layer: &str, tar: &[u8]) -> Result<Value, Failure> {
        self.make(layer);
        Ok(serde_json::from_slice(&self.run(&["unpack", "--into", layer], tar)?).unwrap())
    }

    /// Merges into a new folder of that name.
    pub fn merge(&self, root: &str, layers: &[&str]) -> Result<Value, Failure> {
        self.make(root);
        let arguments: Vec<&str> =
            ["merge", "--into", root].into_iter().chain(layers.iter().flat_map(|layer| ["--layer", *layer])).collect();
        Ok(serde_json::from_slice(&self.run(&arguments, &[])?).unwrap())
    }

    /// Unpacks each and merges them all, lowest first.
    pub fn root_of(&self, tars: &[Vec<u8>]) -> BTreeMap<String, String> {
        let names: Vec<String> = (0..tars.len()).map(|at| format!("layer-{at}")).collect();
        for (name, tar) in names.iter().zip(tars) {
            self.unpack(name, tar).unwrap();
        }
        self.merge("root", &names.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        tree(&self.at("root"))
    }

    pub fn index(&self, layer: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.at(layer).join("index")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn owners(&self, root: &str) -> Vec<String> {
        fs::read_to_string(self.at(&format!("{root}.owners"))).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        open_up(&self.path);
        fs::remove_dir_all(&self.path).unwrap();
    }
}

fn open_up(dir: &Path) {
    let _ = fs::set_permissions(dir, Permissions::from_mode(0o700));
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
        if entry.file_type().unwrap().is_dir() {
            open_up(&entry.path());
        }
    }
}

#[derive(Debug)]
pub struct Failure {
    pub reason: String,
    pub entry: String,
    pub detail: String,
}

/// Content of every file, `-> target` of every symbolic link and `/` for every folder, by path.
pub fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut ahead = vec![root.to_owned()];
    while let Some(dir) = ahead.pop() {
        for entry in fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap()) {
            let path = entry.path();
            let kind = entry.file_type().unwrap();
            let what = if kind.is_dir() {
                ahead.push(path.clone());
                "/".to_owned()
            } else if kind.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else {
                String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned()
            };
            found.insert(path.strip_prefix(root).unwrap().to_string_lossy().into_owned(), what);
        }
    }
    found
}

pub fn paths(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(path, what)| ((*path).to_owned(), (*what).to_owned())).collect()
}

pub fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

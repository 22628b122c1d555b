//! `mitos-layers`: unpacks, stacks and packs the layers of images. Started by the engine for one piece of work, confined before it reads any.

mod confine;
mod failure;
mod index;
mod input;
mod merge;
mod names;
mod place;
mod tarball;
mod tree;
mod unpack;
mod writer;

use confine::confine;
use failure::{Failure, Result};
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::Serialize;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use writer::Limits;

const USAGE: &str = "usage: mitos-layers unpack --into DIR [--bytes-max N] [--entries-max N]  < tar, tar+gzip or tar+zstd
       mitos-layers merge --into ROOT --layer DIR [--layer DIR ...]";

const BYTES_MAX: u64 = 16 << 30;
const ENTRIES_MAX: u64 = 500_000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(options) = Options::parse(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let done = match arguments[0].as_str() {
        "unpack" => unpack(&options),
        _ => merge(&options),
    };
    match done {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{}", json(&failure));
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Options {
    into: PathBuf,
    layers: Vec<PathBuf>,
    bytes_max: Option<u64>,
    entries_max: Option<u64>,
}

impl Options {
    /// None: they do not fit the command.
    fn parse(arguments: &[String]) -> Option<Self> {
        let (command, rest) = arguments.split_first()?;
        let mut options = Self::default();
        for pair in rest.chunks(2) {
            let [name, value] = pair else { return None };
            match (command.as_str(), name.as_str()) {
                ("unpack" | "merge", "--into") => options.into = value.into(),
                ("unpack", "--bytes-max") => options.bytes_max = Some(value.parse().ok()?),
                ("unpack", "--entries-max") => options.entries_max = Some(value.parse().ok()?),
                ("merge", "--layer") => options.layers.push(value.into()),
                _ => return None,
            }
        }
        (!options.into.as_os_str().is_empty() && (command != "merge" || !options.layers.is_empty())).then_some(options)
    }

    fn limits(&self) -> Limits {
        Limits { bytes_max: self.bytes_max.unwrap_or(BYTES_MAX), entries_max: self.entries_max.unwrap_or(ENTRIES_MAX) }
    }
}

fn unpack(options: &Options) -> Result<String> {
    let limits = options.limits();
    let dir = open_empty(&options.into)?;
    let held_by = confine(&dir, limits.bytes_max)?;
    Ok(json(&unpack::unpack(dir, std::io::stdin(), limits, held_by)?))
}

fn merge(options: &Options) -> Result<String> {
    // Everything outside of the root is opened here; nothing can be opened later.
    let layers = options.layers.iter().map(|dir| open_layer(dir)).collect::<Result<Vec<_>>>()?;
    let root = open_empty(&options.into)?;
    let (parent, owners_name) = owners_place(&options.into)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let owners = openat(&parent, owners_name.as_path(), flags, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(|error| Failure::system(&format!("make {}", owners_name.display()), error))?;
    let held_by = confine(&root, BYTES_MAX)?;
    let (merged, owners_left) = merge::merge(root, layers, &File::from(owners), held_by)?;
    if !owners_left {
        unlinkat(&parent, owners_name.as_path(), UnlinkatFlags::NoRemoveDir).map_err(|error| Failure::system("remove the empty owners", error))?;
    }
    Ok(json(&merged))
}

/// `ROOT.owners` beside the root.
fn owners_place(root: &Path) -> Result<(OwnedFd, PathBuf)> {
    let (Some(parent), Some(name)) = (root.parent(), root.file_name()) else {
        return Err(Failure::new(failure::Reason::Internal, format!("{} has no name", root.display())));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let mut owners = name.to_owned();
    owners.push(".owners");
    Ok((open_folder(parent, OFlag::O_PATH)?, owners.into()))
}

fn open_empty(dir: &Path) -> Result<OwnedFd> {
    let mut entries = std::fs::read_dir(dir).map_err(|error| Failure::system(&format!("read {}", dir.display()), error))?;
    if entries.next().is_some() {
        return Err(Failure::new(failure::Reason::Internal, format!("{} is not empty", dir.display())));
    }
    open_folder(dir, OFlag::O_RDONLY)
}

fn open_layer(dir: &Path) -> Result<merge::Layer> {
    let tree = open_folder(&dir.join("tree"), OFlag::O_PATH)?;
    let index = File::open(dir.join("index")).map_err(|error| Failure::system(&format!("open the index of {}", dir.display()), error))?;
    Ok(merge::Layer { tree, index })
}

fn open_folder(dir: &Path, how: OFlag) -> Result<OwnedFd> {
    open(dir, how | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|error| Failure::system(&format!("open {}", dir.display()), error).at(dir.as_os_str().as_bytes()))
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"reason\":\"internal\",\"entry\":\"\",\"detail\":\"{error}\"}}"))
}

//! `mitos-layers`: unpacks, stacks and packs the layers of images, and makes file systems of them. Started by the engine for one piece of work, confined before it reads any.

mod changes;
#[path = "../changes_list.rs"]
mod changes_list;
mod confine;
mod copy;
mod erofs;
mod failure;
mod image;
mod image_plan;
mod index;
mod input;
mod lower_links;
mod merge;
mod names;
mod pack;
mod place;
mod seccomp;
mod tarball;
mod tree;
mod unpack;
mod writer;

use confine::confine;
use failure::{Failure, Result};
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use writer::Limits;

const USAGE: &str = "usage: mitos-layers unpack --into DIR [--bytes-max N] [--entries-max N]  < tar, tar+gzip or tar+zstd
       mitos-layers changes --into DIR [--base INDEX ...]  < what an agent tells of its root
       mitos-layers copy --into DIR --dest PATH --uid N --gid N [--base INDEX ...]  < tar of a context
       mitos-layers merge --into ROOT --layer DIR [--layer DIR ...]
       mitos-layers image --out FILE DIR ...
       mitos-layers pack --layer DIR  > tar";

const BYTES_MAX: u64 = 16 << 30;
const ENTRIES_MAX: u64 = 500_000;
/// A machine tells every file of its root, whatever layer it is of.
const CHANGES_ENTRIES_MAX: u64 = 2_000_000;
const IMAGE_BYTES_MAX: u64 = 64 << 30;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(options) = Options::parse(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let done = match arguments[0].as_str() {
        "unpack" => unpack(&options),
        "changes" => changes(&options),
        "copy" => copy(&options),
        "merge" => merge(&options),
        "image" => image(&options),
        _ => pack(&options),
    };
    match done {
        Ok(answer) => {
            print!("{answer}");
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
    out: PathBuf,
    layers: Vec<PathBuf>,
    base: Vec<PathBuf>,
    dest: String,
    uid: Option<u32>,
    gid: Option<u32>,
    bytes_max: Option<u64>,
    entries_max: Option<u64>,
}

impl Options {
    /// None: they do not fit the command.
    fn parse(arguments: &[String]) -> Option<Self> {
        let (command, rest) = arguments.split_first()?;
        let mut options = Self::default();
        if command == "image" {
            let ["--out", out, layers @ ..] = &rest.iter().map(String::as_str).collect::<Vec<_>>()[..] else { return None };
            options.out = out.into();
            options.layers = layers.iter().map(PathBuf::from).collect();
            return (!out.is_empty() && !layers.is_empty()).then_some(options);
        }
        for pair in rest.chunks(2) {
            let [name, value] = pair else { return None };
            match (command.as_str(), name.as_str()) {
                ("unpack" | "changes" | "copy" | "merge", "--into") => options.into = value.into(),
                ("unpack", "--bytes-max") => options.bytes_max = Some(value.parse().ok()?),
                ("unpack", "--entries-max") => options.entries_max = Some(value.parse().ok()?),
                ("changes" | "copy", "--base") => options.base.push(value.into()),
                ("copy", "--dest") => options.dest = value.into(),
                ("copy", "--uid") => options.uid = Some(value.parse().ok()?),
                ("copy", "--gid") => options.gid = Some(value.parse().ok()?),
                ("merge" | "pack", "--layer") => options.layers.push(value.into()),
                _ => return None,
            }
        }
        let has_into = !options.into.as_os_str().is_empty();
        let fits = match command.as_str() {
            "unpack" | "changes" => has_into,
            "copy" => has_into && options.dest.starts_with('/') && options.uid.is_some() && options.gid.is_some(),
            "merge" => has_into && !options.layers.is_empty(),
            "pack" => options.layers.len() == 1,
            _ => false,
        };
        fits.then_some(options)
    }

    fn limits(&self) -> Limits {
        Limits { bytes_max: self.bytes_max.unwrap_or(BYTES_MAX), entries_max: self.entries_max.unwrap_or(ENTRIES_MAX) }
    }
}

fn unpack(options: &Options) -> Result<String> {
    let limits = options.limits();
    let dir = open_empty(&options.into)?;
    let held_by = confine(&dir, limits.bytes_max)?;
    Ok(line(&unpack::unpack(dir, std::io::stdin(), limits, held_by)?))
}

fn changes(options: &Options) -> Result<String> {
    let limits = Limits { entries_max: CHANGES_ENTRIES_MAX, ..options.limits() };
    // Opened here; read only when this process is confined, as they hold names of images.
    let base = options.base.iter().map(|index| open_index(index)).collect::<Result<Vec<_>>>()?;
    let dir = open_empty(&options.into)?;
    let held_by = confine(&dir, limits.bytes_max)?;
    Ok(line(&changes::changes(dir, std::io::stdin(), base, limits, held_by)?))
}

fn copy(options: &Options) -> Result<String> {
    let limits = options.limits();
    let destination =
        copy::Destination { path: options.dest.clone().into_bytes(), uid: options.uid.unwrap_or(0), gid: options.gid.unwrap_or(0) };
    let base = options.base.iter().map(|index| open_index(index)).collect::<Result<Vec<_>>>()?;
    let dir = open_empty(&options.into)?;
    let held_by = confine(&dir, limits.bytes_max)?;
    Ok(line(&copy::copy(dir, std::io::stdin(), base, &destination, limits, held_by)?))
}

fn pack(options: &Options) -> Result<String> {
    let merge::Layer { tree, index } = open_layer(&options.layers[0])?;
    // It writes no file; what it says may go into one.
    confine(&tree, u64::MAX)?;
    let index = index::read(index)?;
    let mut out = BufWriter::with_capacity(256 << 10, std::io::stdout().lock());
    pack::pack(&index.lines, &mut place::Place::new(tree), &mut out)?;
    out.flush().map_err(|error| Failure::system("write the tar", error))?;
    Ok(String::new())
}

fn merge(options: &Options) -> Result<String> {
    // Everything outside of the root is opened here; nothing can be opened later.
    let layers = options.layers.iter().map(|dir| open_layer(dir)).collect::<Result<Vec<_>>>()?;
    let root = open_empty(&options.into)?;
    let (parent, owners_name) = beside(&options.into, ".owners")?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let owners = openat(&parent, owners_name.as_path(), flags, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(|error| Failure::system(&format!("make {}", owners_name.display()), error))?;
    let held_by = confine(&root, BYTES_MAX)?;
    let (merged, owners_left) = merge::merge(root, layers, &File::from(owners), held_by)?;
    if !owners_left {
        unlinkat(&parent, owners_name.as_path(), UnlinkatFlags::NoRemoveDir)
            .map_err(|error| Failure::system("remove the empty owners", error))?;
    }
    Ok(line(&merged))
}

fn image(options: &Options) -> Result<String> {
    // Everything is opened here: nothing can be opened later but by these handles.
    let layers = options.layers.iter().map(|dir| open_layer(dir)).collect::<Result<Vec<_>>>()?;
    let (parent, partial) = beside(&options.out, &format!(".partial-{}", std::process::id()))?;
    let name = options.out.file_name().unwrap_or_default();
    // Of a process that was killed and had the same number.
    let _ = unlinkat(&parent, partial.as_path(), UnlinkatFlags::NoRemoveDir);
    let confined_to = layers[0].tree.try_clone().map_err(|error| Failure::system("open a layer", error))?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let out = openat(&parent, partial.as_path(), flags, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(|error| Failure::system(&format!("make {}", partial.display()), error))?;
    let made =
        confine(&confined_to, IMAGE_BYTES_MAX).and_then(|_| image::image(&File::from(out), layers, IMAGE_BYTES_MAX)).and_then(|made| {
            match renameat(&parent, partial.as_path(), &parent, name) {
                Ok(()) => Ok(made),
                Err(error) => Err(Failure::system("give the image its name", error)),
            }
        });
    if made.is_err() {
        // What matters is why there is none; whoever looks after the folder removes what is left half-made.
        let _ = unlinkat(&parent, partial.as_path(), UnlinkatFlags::NoRemoveDir);
    }
    Ok(line(&made?))
}

/// The folder that something is in, and its name with an ending: `ROOT.owners` beside the root.
fn beside(path: &Path, ending: &str) -> Result<(OwnedFd, PathBuf)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Failure::new(failure::Reason::Internal, format!("{} has no name", path.display())));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let mut beside = name.to_owned();
    beside.push(ending);
    Ok((open_folder(parent, OFlag::O_PATH)?, beside.into()))
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
    Ok(merge::Layer { tree, index: open_index(&dir.join("index"))? })
}

fn open_index(index: &Path) -> Result<File> {
    File::open(index).map_err(|error| Failure::system(&format!("open {}", index.display()), error))
}

fn open_folder(dir: &Path, how: OFlag) -> Result<OwnedFd> {
    open(dir, how | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|error| Failure::system(&format!("open {}", dir.display()), error).at(dir.as_os_str().as_bytes()))
}

fn line(answer: &impl Serialize) -> String {
    format!("{}\n", json(answer))
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"reason\":\"internal\",\"entry\":\"\",\"detail\":\"{error}\"}}"))
}

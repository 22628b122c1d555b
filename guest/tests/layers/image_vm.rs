//! File system images as a kernel reads them: in a virtual machine whose first program is this one, since a mount here would need privileges, and a
//! kernel that has the file system.
//!
//! Needs `MITOS_QEMU_ROOT`, `MITOS_VM_KERNEL` and `MITOS_VM_MODULES`, as scripts/test.mjs says them.

use super::image::{layers, xattrs};
use super::tool::{Folder, is_root};
use nix::mount::{MsFlags, mount};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Emulation on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(120);
const ANSWER_BYTES_MAX: u64 = 4 << 20;
const FIRST_PROGRAM: &str = "image_vm::as_the_first_program_of_a_virtual_machine";

#[test]
#[ignore = "needs QEMU and a kernel"]
fn a_kernel_finds_in_an_image_what_a_merge_makes() {
    if !is_root() {
        // The merged root, with which it is compared, would have other owners.
        eprintln!("skipped: needs root");
        return;
    }
    let Some(parts) = Parts::find() else {
        eprintln!("skipped: MITOS_QEMU_ROOT, MITOS_VM_KERNEL and MITOS_VM_MODULES do not say where the parts of a virtual machine are");
        return;
    };
    let folder = Folder::new();
    folder.image_of(&layers());
    folder.merge("root", &["layer-0", "layer-1", "layer-2"]).unwrap();
    let mut expected = describe(&folder.at("root"), Side::Host);
    let attributes = xattrs().into_iter().filter(|(path, ..)| !["v", "s"].contains(path));
    let mut attributes: Vec<String> = attributes
        .map(|(path, name, value)| describe_attribute(Path::new(path), name.strip_prefix("SCHILY.xattr.").unwrap(), &value))
        .collect();
    attributes.sort();
    expected.extend(attributes);
    let found = described_by_a_virtual_machine(&parts, &folder, "image");
    let other: Vec<(&String, &String)> = found.iter().zip(&expected).filter(|(found, expected)| found != expected).collect();
    assert!(other.is_empty(), "{other:#?}");
    assert_eq!(found.len(), expected.len());
}

/// Mounts the first disk, and writes what it finds there to the second one.
#[test]
#[ignore = "the other half of the test above"]
fn as_the_first_program_of_a_virtual_machine() {
    if std::process::id() != 1 {
        return;
    }
    for module in fs::read_to_string("/modules/order").unwrap().lines() {
        let file = File::open(Path::new("/modules").join(module)).unwrap();
        nix::kmod::finit_module(&file, &CString::default(), nix::kmod::ModuleInitFlags::empty()).unwrap();
    }
    let none: Option<&str> = None;
    mount(Some("dev"), "/dev", Some("devtmpfs"), MsFlags::empty(), none).unwrap();
    mount(Some("/dev/vda"), "/image", Some("erofs"), MsFlags::MS_RDONLY, none).unwrap();
    let text = describe(Path::new("/image"), Side::Machine).join("\n");
    let mut answer = File::options().write(true).open("/dev/vdb").unwrap();
    answer.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
    answer.write_all(text.as_bytes()).unwrap();
    answer.sync_all().unwrap();
    // SAFETY: it takes no pointers; QEMU was told to end then.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    /// Files may have names outside of the root, and folders count their links as the file system likes.
    Host,
    /// The kernel must say of each file how many names it has, and it has every attribute.
    Machine,
}

/// A line for every name: kind, owner, mode, time, names and content; in a machine then one for every attribute.
fn describe(root: &Path, side: Side) -> Vec<String> {
    let mut paths = vec![root.to_owned()];
    let mut at = 0;
    while let Some(folder) = paths.get(at).cloned() {
        at += 1;
        if !fs::symlink_metadata(&folder).unwrap().is_dir() {
            continue;
        }
        for entry in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap()) {
            let found = fs::symlink_metadata(entry.path()).unwrap();
            assert_eq!((entry.ino(), entry.file_type().unwrap()), (found.ino(), found.file_type()), "{}", entry.path().display());
            paths.push(entry.path());
        }
        for absent in [" ", "-\t", "m\t", "sizes/4096.", "~~~", "\u{ff}"] {
            assert!(!folder.join(absent).exists(), "{}", folder.display());
        }
    }
    paths.sort();
    let mut names: HashMap<u64, Vec<PathBuf>> = HashMap::new();
    for path in &paths {
        names.entry(fs::symlink_metadata(path).unwrap().ino()).or_default().push(path.clone());
    }
    let mut lines: Vec<String> = paths.iter().map(|path| describe_one(root, path, &names, side)).collect();
    if side == Side::Machine {
        let mut attributes: Vec<String> = paths.iter().flat_map(|path| attributes(root, path)).collect();
        attributes.sort();
        lines.extend(attributes);
    }
    lines
}

fn describe_one(root: &Path, path: &Path, names: &HashMap<u64, Vec<PathBuf>>, side: Side) -> String {
    let found = fs::symlink_metadata(path).unwrap();
    let own_names = &names[&found.ino()];
    let kind = found.file_type();
    let (links, content) = if kind.is_dir() {
        let folders = fs::read_dir(path).unwrap().filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir()).count();
        (2 + folders, String::from("/"))
    } else if kind.is_symlink() {
        (own_names.len(), format!("-> {:?}", fs::read_link(path).unwrap()))
    } else {
        assert!(!kind.is_block_device() && kind.is_file(), "{}", path.display());
        let mut hash = Sha256::new();
        std::io::copy(&mut File::open(path).unwrap(), &mut hash).unwrap();
        (own_names.len(), format!("{} {:x}", found.len(), hash.finalize()))
    };
    if side == Side::Machine {
        assert_eq!(found.nlink(), links as u64, "{}", path.display());
    }
    let first = own_names[0].strip_prefix(root).unwrap();
    format!(
        "{:?} {:o} {}:{} {}.{} {links} {first:?} {content}",
        path.strip_prefix(root).unwrap(),
        found.mode(),
        found.uid(),
        found.gid(),
        found.mtime(),
        found.mtime_nsec(),
    )
}

fn describe_attribute(path: &Path, name: &str, value: &[u8]) -> String {
    format!("{path:?} {name} {} {:x}", value.len(), Sha256::digest(value))
}

fn attributes(root: &Path, path: &Path) -> Vec<String> {
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut list = vec![0_u8; 65_536];
    // SAFETY: both calls write to a buffer at most as much as its length, which they are told.
    let length = unsafe { libc::llistxattr(name.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    assert!(length >= 0, "{}: {}", path.display(), std::io::Error::last_os_error());
    let listed = list[..length as usize].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let described = listed.map(|attribute| {
        let (key, mut value) = (CString::new(attribute).unwrap(), vec![0_u8; 65_536]);
        let length = unsafe { libc::lgetxattr(name.as_ptr(), key.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        assert!(length >= 0, "{} {key:?}: {}", path.display(), std::io::Error::last_os_error());
        describe_attribute(path.strip_prefix(root).unwrap(), key.to_str().unwrap(), &value[..length as usize])
    });
    described.collect()
}

struct Parts {
    vmm: PathBuf,
    kernel: PathBuf,
    modules: PathBuf,
}

impl Parts {
    fn find() -> Option<Self> {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        Some(Self { vmm: variable("MITOS_QEMU_ROOT")?, kernel: variable("MITOS_VM_KERNEL")?, modules: variable("MITOS_VM_MODULES")? })
    }
}

fn described_by_a_virtual_machine(Parts { vmm, kernel, modules }: &Parts, folder: &Folder, image: &str) -> Vec<String> {
    fs::write(folder.at("initramfs"), initramfs(modules)).unwrap();
    File::create(folder.at("answer")).unwrap().set_len(ANSWER_BYTES_MAX).unwrap();
    let mhz = fs::read_to_string("/proc/cpuinfo").unwrap();
    let mhz = mhz.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split_once(':')?.1.trim().parse::<f64>().ok());
    // Told, because the kernel's own measurement sometimes never ends under emulation.
    let khz = mhz.map_or(1_000_000, |mhz| (mhz * 1_000.0) as u64);
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|dir| vmm.join(dir).display().to_string()).join(":");
    let mut machine = Command::new(vmm.join("lib64/ld-linux-x86-64.so.2"))
        .args(["--library-path", &libraries])
        .arg(vmm.join("usr/bin/qemu-system-x86_64"))
        .arg("-L")
        .arg(vmm.join("usr/share/qemu"))
        .args(["-bios", "qboot.rom", "-M", "microvm,x-option-roms=off,pit=off,pic=off,rtc=on,acpi=on,auto-kernel-cmdline=off,usb=off"])
        .args(["-accel", "tcg,tb-size=32", "-cpu", "Nehalem,-spec-ctrl,+rdrand", "-m", "256M", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-no-reboot", "-serial", "stdio", "-initrd", "initramfs", "-kernel"])
        .arg(kernel)
        .args(["-append", &format!("console=ttyS0 rdinit=/init audit=0 cryptomgr.notests loglevel=3 panic=-1 reboot=t tsc_early_khz={khz} -- --exact {FIRST_PROGRAM} --ignored --nocapture")])
        .args(["-drive", &format!("if=none,id=root,format=raw,file={image},read-only=on,auto-read-only=off")])
        .args(["-drive", "if=none,id=answer,format=raw,file=answer", "-device", "virtio-blk-device,drive=root"])
        .args(["-device", "virtio-blk-device,drive=answer"])
        .current_dir(&folder.path)
        .stdin(Stdio::null())
        .stdout(File::create(folder.at("console")).unwrap())
        .stderr(File::create(folder.at("errors")).unwrap())
        .spawn()
        .unwrap();
    let until = Instant::now() + PATIENCE;
    while machine.try_wait().unwrap().is_none() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = machine.kill();
    machine.wait().unwrap();
    let console = ["console", "errors"].map(|name| String::from_utf8_lossy(&fs::read(folder.at(name)).unwrap()).into_owned()).concat();
    let mut answer = File::open(folder.at("answer")).unwrap();
    let mut length = [0; 8];
    answer.read_exact(&mut length).unwrap();
    let length = u64::from_le_bytes(length);
    assert!((1..ANSWER_BYTES_MAX - 8).contains(&length), "it has written nothing: {console}");
    let mut text = vec![0; length as usize];
    answer.read_exact(&mut text).unwrap();
    String::from_utf8(text).unwrap().split('\n').map(str::to_owned).collect()
}

/// This program and the kernel's modules.
fn initramfs(modules: &Path) -> Vec<u8> {
    const FOLDER: u32 = 0o40755;
    const PROGRAM: u32 = 0o100_755;
    let order = fs::read_to_string(modules.join("order")).unwrap();
    let mut entries =
        vec![("dev".into(), FOLDER, Vec::new()), ("image".into(), FOLDER, Vec::new()), ("modules".into(), FOLDER, Vec::new())];
    entries.push(("dev/console".to_owned(), 0o20600, Vec::new()));
    for name in ["order"].into_iter().chain(order.lines()) {
        entries.push((format!("modules/{name}"), 0o100_644, fs::read(modules.join(name)).unwrap()));
    }
    entries.push(("init".into(), PROGRAM, fs::read(std::env::current_exe().unwrap()).unwrap()));
    entries.push(("TRAILER!!!".into(), 0, Vec::new()));
    let mut archive = Vec::new();
    for (number, (name, mode, content)) in entries.into_iter().enumerate() {
        // Of the one device.
        let (major, minor) = if name == "dev/console" { (5, 1) } else { (0, 0) };
        let fields = [number as u32 + 1, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, major, minor, name.len() as u32 + 1, 0];
        archive.extend(format!("070701{}", fields.map(|field| format!("{field:08x}")).concat()).into_bytes());
        archive.extend([name.as_bytes(), b"\0"].concat());
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

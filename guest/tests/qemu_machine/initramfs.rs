//! The archive that a machine boots from, as the driver writes it (drivers/microvm/initramfs.ts).

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const FOLDER: u32 = 0o40755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.entries += 1;
        self.add_link(self.entries, 1, name, mode, content, device);
    }

    fn add_link(&mut self, inode: u32, links: u32, name: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        let fields = [inode, mode, 0, 0, links, 0, content.len() as u32, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        self.bytes.extend(fields.map(|field| format!("{field:08x}")).concat().as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    /// A folder of this host with all that is in it. The first name of a file has its content.
    fn add_tree(&mut self, name: &str, dir: &Path) {
        let mut inodes: HashMap<u64, u32> = HashMap::new();
        let mut waiting = vec![(name.to_owned(), dir.to_owned())];
        while let Some((name, path)) = waiting.pop() {
            let found = fs::symlink_metadata(&path).unwrap();
            if found.is_dir() {
                self.add(&name, found.mode(), b"", (0, 0));
                let entries = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap());
                waiting.extend(entries.map(|entry| (format!("{name}/{}", entry.file_name().to_str().unwrap()), entry.path())));
            } else if found.is_symlink() {
                self.add(&name, found.mode(), fs::read_link(&path).unwrap().as_os_str().as_bytes(), (0, 0));
            } else {
                self.entries += 1;
                let own = self.entries;
                let inode = *inodes.entry(found.ino()).or_insert(own);
                let content = if inode == own { fs::read(&path).unwrap() } else { Vec::new() };
                self.add_link(inode, found.nlink() as u32, &name, found.mode(), &content, (0, 0));
            }
        }
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// `data`, if there is any, becomes `/data` below what the machine writes.
pub fn write(modules: &Path, agent: &Path, data: Option<&Path>) -> Vec<u8> {
    let mut archive = Archive::default();
    let none = (0, 0);
    archive.add("dev", FOLDER, b"", none);
    archive.add("dev/console", 0o20600, b"", (5, 1));
    archive.add("modules", FOLDER, b"", none);
    let order = fs::read_to_string(modules.join("order")).unwrap();
    archive.add("modules/order", FILE, order.as_bytes(), none);
    for name in order.lines() {
        archive.add(&format!("modules/{name}"), FILE, &fs::read(modules.join(name)).unwrap(), none);
    }
    for name in ["own", "own/lower", "own/lower/var", "own/lower/workspace", "own/upper"] {
        archive.add(name, FOLDER, b"", none);
    }
    archive.add("own/lower/root", 0o40700, b"", none);
    archive.add("own/lower/var/tmp", 0o41777, b"", none);
    for name in ["dev", "etc", "opt", "proc", "run", "sys", "opt/mitos", "opt/mitos/bin"] {
        archive.add(&format!("own/upper/{name}"), FOLDER, b"", none);
    }
    archive.add("own/upper/tmp", 0o41777, b"", none);
    archive.add("own/upper/opt/mitos/bin/mitos-guest", PROGRAM, &fs::read(agent).unwrap(), none);
    for (name, content) in [
        ("hostname", "sandbox\n"),
        ("hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost\n"),
        ("machine-id", "00000000000000000000000000000000\n"),
        ("resolv.conf", "nameserver 127.0.0.1\n"),
    ] {
        archive.add(&format!("own/upper/etc/{name}"), FILE, content.as_bytes(), none);
    }
    if let Some(data) = data {
        archive.add_tree("own/upper/data", data);
    }
    archive.add("TRAILER!!!", 0, b"", none);
    archive.bytes
}

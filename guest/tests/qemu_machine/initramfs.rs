//! The archive that a machine boots from, as the driver writes it (drivers/microvm/initramfs.ts).

use std::fs;
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
        let fields = [self.entries, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        self.bytes.extend(fields.map(|field| format!("{field:08x}")).concat().as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

pub fn write(modules: &Path, agent: &Path) -> Vec<u8> {
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
    archive.add("TRAILER!!!", 0, b"", none);
    archive.bytes
}

//! A real monitor under `confine` and the shim: what it can reach, and forks of a machine whose memory changes all the time.
//!
//! The guest is a handful of instructions, so that a machine is there at once and every byte of its memory can be compared. Needs a root folder of
//! QEMU (`MITOS_QEMU_ROOT`, which `mitos setup microvm` makes): `cargo test --test shim_vmm -- --ignored`.

mod counting_guest;
mod shim_client;

use serde_json::{Value, json};
use shim_client::*;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

const MEMORY_BYTES: u64 = 24 << 20;
const PAGE: u64 = 4096;

/// What all machines of a test share.
struct Bench {
    dir: PathBuf,
    qemu: PathBuf,
}

impl Bench {
    fn new(name: &str) -> Self {
        let qemu = PathBuf::from(std::env::var("MITOS_QEMU_ROOT").expect("MITOS_QEMU_ROOT says where QEMU is"));
        let dir = std::env::temp_dir().join(format!("mitos-vmm-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("kernel"), counting_guest::elf()).unwrap();
        File::create(dir.join("memory")).unwrap().set_len(MEMORY_BYTES).unwrap();
        Self { dir, qemu }
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    fn boot(&self) -> Machine {
        Machine::start(&self.specification("share=on", "read_write", &["-kernel", "/proc/self/fd/21"]))
    }

    /// A machine that waits for a stream, and then for `cont`.
    fn waiting(&self) -> Machine {
        Machine::start(&self.specification("share=off,readonly=on,rom=off", "read", &["-incoming", "defer", "-S"]))
    }

    fn child(&self, stream: &str) -> Machine {
        let mut machine = self.waiting();
        let reply = machine.load(self, stream);
        assert_eq!(reply["ok"], true, "{reply}");
        machine
    }

    fn specification(&self, share: &str, access: &str, more: &[&str]) -> Value {
        let memory = format!("memory-backend-file,id=mem,size={MEMORY_BYTES},mem-path=/proc/self/fd/20,{share}");
        let mut argv = vec![
            "/usr/bin/qemu-system-x86_64",
            "-L",
            "/usr/share/qemu",
            "-bios",
            "qboot.rom",
            "-accel",
            "tcg,tb-size=8",
            "-cpu",
            "Nehalem",
        ];
        argv.extend(["-M", "microvm,x-option-roms=off,pit=off,pic=off,rtc=on,acpi=on,auto-kernel-cmdline=off,usb=off,memory-backend=mem"]);
        argv.extend(["-m", "24M", "-object", &memory, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        argv.extend([
            "-chardev",
            "socket,id=link,fd=3",
            "-device",
            "virtio-serial-device",
            "-device",
            "virtserialport,chardev=link,name=mitos.link",
        ]);
        argv.extend(["-chardev", "socket,id=monitor,fd=4", "-mon", "chardev=monitor,mode=control"]);
        argv.extend(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
        argv.extend(more);
        json!({
            "argv": argv, "env": {}, "pid_file": "vmm.pid", "root": self.qemu,
            "files": [
                {"fd": 20, "path": self.path("memory"), "access": access},
                {"fd": 21, "path": self.path("kernel"), "access": "read"},
            ],
        })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

struct Machine {
    server: Server,
    shim: Shim,
    pid: i32,
}

impl Machine {
    fn start(specification: &Value) -> Self {
        let shim = Shim::start();
        let mut server = shim.connect();
        let reply = confine(&mut server, specification);
        assert_eq!(reply["exit_code"], 0, "{reply}");
        let reply = server.request(json!({"op": "watch", "pid_file": "vmm.pid"}));
        assert_eq!(reply["ok"], true, "{reply}");
        let mut machine = Self { pid: reply["pid"].as_i64().unwrap() as i32, server, shim };
        // It answers when all of it is there.
        machine.done(json!([{"execute": "query-status"}]));
        machine
    }

    fn steps(&mut self, steps: Value) -> Value {
        self.server.request(json!({"op": "vmm", "steps": steps, "timeout_ms": 20_000}))
    }

    fn done(&mut self, steps: Value) -> Value {
        let reply = self.steps(steps);
        assert_eq!(reply["ok"], true, "{reply}");
        reply
    }

    /// What of its state a child needs.
    fn save(&mut self, bench: &Bench, name: &str) -> Value {
        self.steps(json!([
            {"add_fd": {"set": 7, "path": bench.path(format!("{name}.state")), "access": "create_write"}},
            {"execute": "stop"},
            {"execute": "xen-save-devices-state", "arguments": {"filename": "/dev/fdset/7"}},
            {"save_memory": {"base": bench.path("memory"), "device_state": bench.path(format!("{name}.state")), "out": bench.path(name)}},
            {"execute": "remove-fd", "arguments": {"fdset-id": 7}, "always": true},
        ]))
    }

    fn load(&mut self, bench: &Bench, stream: &str) -> Value {
        self.steps(json!([
            {"execute": "migrate-set-capabilities", "arguments": {"capabilities": [{"capability": "events", "state": true}]}},
            {"add_fd": {"set": 8, "path": bench.path(stream), "access": "read"}},
            {"execute": "migrate-incoming", "arguments": {"uri": "file:/dev/fdset/8"}},
            {"await": {"event": "MIGRATION", "field": "status", "values": ["completed"], "failures": ["failed"]}},
        ]))
    }

    /// Where its memory lies in its monitor.
    fn memory_at(&self, bench: &Bench) -> u64 {
        let inode = fs::metadata(bench.path("memory")).unwrap().ino().to_string();
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap();
        let line = maps.lines().find(|line| line.split_ascii_whitespace().nth(4) == Some(&inode)).unwrap();
        u64::from_str_radix(line.split_once('-').unwrap().0, 16).unwrap()
    }

    fn memory(&self, bench: &Bench) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY_BYTES as usize];
        File::open(format!("/proc/{}/mem", self.pid)).unwrap().read_exact_at(&mut bytes, self.memory_at(bench)).unwrap();
        bytes
    }

    fn poke(&self, bench: &Bench, page: u64, content: &[u8]) {
        let memory = File::options().write(true).open(format!("/proc/{}/mem", self.pid)).unwrap();
        memory.write_all_at(content, self.memory_at(bench) + page * PAGE).unwrap();
    }

    fn counter(&self, bench: &Bench) -> u32 {
        let mut bytes = [0; 4];
        let memory = File::open(format!("/proc/{}/mem", self.pid)).unwrap();
        memory.read_exact_at(&mut bytes, self.memory_at(bench) + counting_guest::COUNTER).unwrap();
        u32::from_le_bytes(bytes)
    }

    /// It runs: its counter moves on.
    fn moves_on(&self, bench: &Bench) {
        let before = self.counter(bench);
        wait_for("the guest to count on", || (self.counter(bench) != before).then_some(()));
    }

    fn end(self) {
        self.server.end();
        drop(self.shim);
    }
}

fn confine(server: &mut Server, specification: &Value) -> Value {
    let program = env!("CARGO_BIN_EXE_mitos-guest");
    server.request(json!({"op": "run", "argv": [program, "confine", specification.to_string()], "stdio": "vmm", "timeout_ms": 10_000}))
}

fn differing_pages(one: &[u8], other: &[u8]) -> Vec<usize> {
    let pages = one.chunks(PAGE as usize).zip(other.chunks(PAGE as usize));
    pages.enumerate().filter(|(_, (one, other))| one != other).map(|(page, _)| page).collect()
}

/// Boots the guest, lets it count, and makes its file the base of all that follow.
fn with_base(bench: &Bench) {
    let mut machine = bench.boot();
    wait_for("the guest to count", || (machine.counter(bench) > 5_000).then_some(()));
    let reply = machine.save(bench, "base");
    assert_eq!((&reply["ok"], &reply["results"][3]["pages"]), (&json!(true), &json!(0)), "{reply}");
    machine.end();
    fs::set_permissions(bench.path("memory"), fs::Permissions::from_mode(0o444)).unwrap();
}

#[test]
#[ignore = "needs QEMU"]
fn six_generations_have_every_byte_of_their_parent_under_qemu() {
    let mut state = seed();
    let bench = Bench::new("generations");
    with_base(&bench);
    let base = fs::read(bench.path("memory")).unwrap();
    let mut parent = bench.child("base");
    parent.done(json!([{"execute": "cont"}]));
    for generation in 1..=6 {
        parent.moves_on(&bench);
        parent.done(json!([{"execute": "stop"}]));
        // Anything a guest could have written, among it zeroes over what the base has there.
        for _ in 0..40 {
            let page = random(&mut state) % (MEMORY_BYTES / PAGE - 2048) + 2048;
            let byte = if random(&mut state).is_multiple_of(3) { 0 } else { random(&mut state) as u8 };
            parent.poke(&bench, page, &[byte; PAGE as usize]);
        }
        let name = format!("generation-{generation}");
        let reply = parent.save(&bench, &name);
        assert_eq!(reply["ok"], true, "{reply}");
        let saved = &reply["results"][3];
        assert!(saved["pages"].as_u64().unwrap() > 0 && saved["zero_pages"].as_u64().unwrap() > 0, "{saved}");
        assert_eq!(saved["bytes"], fs::metadata(bench.path(&name)).unwrap().len(), "{saved}");
        let mut child = bench.child(&name);
        assert_eq!(
            differing_pages(&child.memory(&bench), &parent.memory(&bench)),
            Vec::<usize>::new(),
            "generation {generation} differs from its parent"
        );
        child.done(json!([{"execute": "cont"}]));
        child.moves_on(&bench);
        // Whatever the child writes is the child's.
        let before = parent.counter(&bench);
        child.moves_on(&bench);
        assert_eq!(parent.counter(&bench), before);
        parent.done(json!([{"execute": "cont"}]));
        parent.moves_on(&bench);
        parent.end();
        parent = child;
    }
    parent.end();
    assert!(fs::read(bench.path("memory")).unwrap() == base, "the base has changed");
}

#[test]
#[ignore = "needs QEMU"]
fn a_stream_that_disagrees_with_the_machine_fails_the_child_and_leaves_the_parent_running_under_qemu() {
    let bench = Bench::new("disagrees");
    with_base(&bench);
    let mut parent = bench.child("base");
    parent.done(json!([{"execute": "cont"}]));
    parent.moves_on(&bench);
    assert_eq!(parent.save(&bench, "whole")["ok"], true);
    parent.done(json!([{"execute": "cont"}]));
    let whole = fs::read(bench.path("whole")).unwrap();
    let at = |part: &[u8]| whole.windows(part.len()).position(|window| window == part).unwrap();
    let mut other_size = whole.clone();
    // The size behind the block's name.
    other_size[at(b"\x03mem") + 8] ^= 1;
    let mut other_block = whole.clone();
    other_block[at(b"\x03mem") + 1] = b'x';
    let mut other_machine = whole.clone();
    other_machine[at(b"microvm")] = b'M';
    for (name, content) in
        [("size", other_size), ("block", other_block), ("machine", other_machine), ("short", whole[..whole.len() / 2].to_vec())]
    {
        fs::write(bench.path(name), content).unwrap();
        let mut child = bench.waiting();
        let reply = child.load(&bench, name);
        assert_eq!((&reply["ok"], &reply["step"]), (&json!(false), &json!(3)), "{name}: {reply}");
        // The monitor has ended itself.
        assert_eq!(child.server.event()["exit_code"], 1, "{name}");
        parent.moves_on(&bench);
    }
    parent.end();
}

#[test]
#[ignore = "needs QEMU"]
fn a_machine_whose_state_cannot_be_saved_runs_on_under_qemu() {
    let bench = Bench::new("runs-on");
    let mut machine = bench.boot();
    wait_for("the guest to count", || (machine.counter(&bench) > 1_000).then_some(()));
    fs::write(bench.path("taken"), "").unwrap();
    fs::write(bench.path("nonsense"), "nonsense").unwrap();
    fs::write(bench.path("elsewhere"), "some other file").unwrap();
    let save = |base: &str, device_state: &str, out: &str| json!({"save_memory": {"base": bench.path(base), "device_state": bench.path(device_state), "out": bench.path(out)}});
    for (step, error) in [
        (save("missing", "nonsense", "new"), "missing"),
        (save("elsewhere", "nonsense", "new"), "does not map"),
        (save("memory", "nonsense", "new"), "device state"),
        (save("memory", "missing", "new"), "missing"),
        (json!({"add_fd": {"set": 1, "path": bench.path("taken"), "access": "create"}}), "taken"),
        (json!({"execute": "migrate", "arguments": {"uri": "nonsense"}}), "migrate"),
    ] {
        let reply = machine.steps(json!([{"execute": "stop"}, step, {"execute": "query-status"}, {"execute": "cont", "always": true}]));
        assert_eq!((&reply["ok"], &reply["step"]), (&json!(false), &json!(1)), "{reply}");
        assert!(reply["error"].as_str().unwrap().contains(error), "{reply}");
        assert_eq!(reply["results"], json!([{}, null, null, {}]), "{reply}");
        assert!(reply["stopped_us"].is_u64(), "{reply}");
        machine.moves_on(&bench);
    }
    assert!(!bench.path("new").exists());
    machine.end();
}

#[test]
#[ignore = "needs QEMU"]
fn a_machine_that_ends_fails_what_is_asked_of_its_monitor_at_once_under_qemu() {
    let bench = Bench::new("ends");
    let mut machine = bench.boot();
    let waiting = machine.server.start_request(json!({"op": "vmm", "steps": [{"await": {"event": "NEVER"}}], "timeout_ms": 600_000}));
    let behind = machine.server.start_request(json!({"op": "vmm", "steps": [{"execute": "query-status"}], "timeout_ms": 600_000}));
    // The link and other requests go on meanwhile.
    assert_eq!(machine.server.request(json!({"op": "meter"}))["ok"], true);
    assert_eq!(machine.server.request(json!({"op": "signal", "signal": "SIGKILL"}))["ok"], true);
    for request in [waiting, behind] {
        let reply = machine.server.reply(request);
        assert_eq!((&reply["ok"], &reply["step"]), (&json!(false), &json!(0)), "{reply}");
        assert!(reply["error"].as_str().unwrap().contains("has ended"), "{reply}");
    }
    assert_eq!(machine.server.event()["reason"], "killed");
}

#[test]
#[ignore = "needs QEMU"]
fn a_confined_monitor_has_nothing_that_it_was_not_given_under_qemu() {
    let bench = Bench::new("confined");
    let root = is_root();
    let mut specification = bench.specification("share=on", "read_write", &["-kernel", "/proc/self/fd/21"]);
    if root {
        let (uid, gid) = (54_321, 54_322);
        specification["uid"] = json!(uid);
        specification["gid"] = json!(gid);
        std::os::unix::fs::chown(bench.path("memory"), Some(uid), Some(gid)).unwrap();
    }
    let mut machine = Machine::start(&specification);
    let pid = machine.pid;
    wait_for("the guest to count", || (machine.counter(&bench) > 0).then_some(()));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("NSpid:"), format!("{pid}\t1"));
    if root {
        assert_eq!((field("Uid:"), field("Gid:")), ("54321\t".repeat(4).trim().into(), "54322\t".repeat(4).trim().into()));
        assert_eq!(field("Groups:"), "");
    }
    for namespace in ["mnt", "net", "ipc", "uts", "pid"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    // Nothing is mounted but its own root, its processes, memory and devices.
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let mounts: BTreeMap<&str, &str> =
        mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).map(|words| (words[4], words[5])).collect();
    assert_eq!(mounts.keys().copied().collect::<Vec<_>>(), ["/", "/dev", "/dev/null", "/dev/urandom", "/dev/zero", "/proc", "/tmp"]);
    for read_only in ["/", "/dev"] {
        assert!(mounts[read_only].starts_with("ro,"), "{mounts:?}");
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core: Vec<&str> = limits.lines().find(|line| line.starts_with("Max core")).unwrap().split_ascii_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"]);
    // Of the host it has open what it was given: whatever else is open lies in its own root or is no file.
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let (Ok(target), name) = (fs::read_link(entry.path()), entry.file_name()) else { continue };
        let given = [bench.path("memory"), bench.path("kernel")].contains(&target) || target == Path::new("/dev/null");
        assert!(given || !target.is_absolute(), "{name:?} is {target:?}");
    }
    let reply = machine.steps(json!([{"execute": "pmemsave", "arguments": {"val": 0, "size": 16, "filename": "/usr/written"}}]));
    assert_eq!(reply["class"], "GenericError", "{reply}");
    machine.end();
}

#[test]
#[ignore = "needs QEMU"]
fn the_meter_tells_a_machines_own_pages_from_those_of_its_base_under_qemu() {
    let bench = Bench::new("meter");
    let mut booted = bench.boot();
    wait_for("the guest to count", || (booted.counter(&bench) > 5_000).then_some(()));
    let meter = |machine: &mut Machine| {
        let reply = machine.server.request(json!({"op": "meter", "shared": true}));
        (reply["memory_bytes"].as_u64().unwrap(), reply["shared_bytes"].as_u64().unwrap())
    };
    // Of the machine that was booted, all of its memory is its own.
    let (own, shared) = meter(&mut booted);
    let memory = booted.memory(&bench).len() as u64;
    let (own_when_read, shared_when_read) = meter(&mut booted);
    assert!(own_when_read >= own && own_when_read > memory / 8, "{own_when_read}");
    assert!(shared.abs_diff(shared_when_read) < memory / 8, "its file is not among what it shares");
    assert_eq!(booted.save(&bench, "base")["ok"], true);
    booted.end();
    fs::set_permissions(bench.path("memory"), fs::Permissions::from_mode(0o444)).unwrap();
    let mut child = bench.child("base");
    let (own, shared) = meter(&mut child);
    // Read by the child, every page of its base is mapped; written to, a page is its own.
    let base = child.memory(&bench);
    let pages = base.len() as u64 / PAGE / 2;
    for page in 0..pages {
        child.poke(&bench, page, &[7; PAGE as usize]);
    }
    let (own_after, shared_after) = meter(&mut child);
    let written = pages * PAGE;
    assert!((own_after - own).abs_diff(written) < written / 4, "{own} {own_after} {written}");
    assert!(shared_after.abs_diff(shared + memory - written) < written / 4, "{shared} {shared_after}");
    child.end();
}

fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

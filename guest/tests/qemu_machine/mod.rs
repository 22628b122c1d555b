//! Virtual machines for tests: QEMU with the processor emulated, so that they run where there is no KVM.

mod initramfs;
mod monitor;

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::link_client::{Host, link_pair};
pub use monitor::Monitor;

/// Emulation on a machine that does other things as well.
pub const BOOT_PATIENCE: Duration = Duration::from_secs(90);
const MEMORY_MIB: u32 = 256;
const LINK_FD: i32 = 3;
const MONITOR_FD: i32 = 4;
const STAGED_FD_MIN: i32 = 20;

/// What set-up has laid ready, as scripts/test.mjs tells it.
pub struct Parts {
    vmm: PathBuf,
    kernel: PathBuf,
    root: PathBuf,
    disk: PathBuf,
    initramfs: PathBuf,
    pub dir: PathBuf,
}

fn variable(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: scripts/test.mjs says what it is")).into()
}

impl Parts {
    pub fn new(name: &str) -> Self {
        Self::lay(name, None)
    }

    /// What `fill` puts into the folder that it is given becomes `/data` of the machines' roots.
    pub fn with_data(name: &str, fill: fn(&Path)) -> Self {
        Self::lay(name, Some(fill))
    }

    fn lay(name: &str, fill: Option<fn(&Path)>) -> Self {
        let dir = std::env::temp_dir().join(format!("mitos-agent-qemu-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let initramfs = dir.join("initramfs");
        let data = dir.join("data");
        let data = fill.map(|fill| {
            fill(&data);
            data.as_path()
        });
        fs::write(&initramfs, initramfs::write(&variable("MITOS_VM_MODULES"), &variable("MITOS_VM_AGENT"), data)).unwrap();
        Self {
            vmm: variable("MITOS_QEMU_ROOT"),
            kernel: variable("MITOS_VM_KERNEL"),
            root: variable("MITOS_VM_ROOT"),
            disk: variable("MITOS_VM_DISK"),
            initramfs,
            dir,
        }
    }

    /// A disk of its own for one machine: a sparse copy of the empty one.
    pub fn new_disk(&self, name: &str) -> PathBuf {
        let copy = self.dir.join(name);
        copy_disk(&self.disk, &copy);
        copy
    }

    /// QEMU with the libraries that lie beside it, or this machine's where it brings none.
    fn qemu(&self) -> Command {
        let loader = self.vmm.join("lib64/ld-linux-x86-64.so.2");
        let libraries: Vec<String> =
            ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|dir| self.vmm.join(dir).display().to_string()).into();
        let program = self.vmm.join("usr/bin/qemu-system-x86_64");
        let mut command = Command::new(&loader);
        command.arg("--library-path").arg(libraries.join(":")).arg(program);
        command.arg("-L").arg(self.vmm.join("usr/share/qemu"));
        command
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[derive(Default)]
pub struct Options<'a> {
    pub disk: Option<&'a Path>,
    /// A state that `Machine::save` has written: the machine goes on from there instead of booting.
    pub from: Option<&'a Path>,
    /// Of the kernel's command line.
    pub parameters: &'a str,
    pub arguments: &'a [&'a str],
}

pub struct Machine {
    pub host: Host,
    pub monitor: Monitor,
    process: Child,
    console: PathBuf,
}

impl Machine {
    /// Starts one. A machine that boots answers its first HELLO late: see `booted`.
    pub fn start(parts: &Parts, options: &Options<'_>) -> Self {
        static MACHINES: AtomicU32 = AtomicU32::new(0);
        let (link, link_in_vmm, _) = link_pair();
        let (monitor, monitor_in_vmm, _) = link_pair();
        let console = parts.dir.join(format!("console-{}", MACHINES.fetch_add(1, Ordering::Relaxed)));
        let mut command = parts.qemu();
        command.args(["-bios", "qboot.rom", "-M", MACHINE, "-accel", "tcg,tb-size=32", "-cpu", "Nehalem,-spec-ctrl,+rdrand"]);
        command.args(["-m", &format!("{MEMORY_MIB}M"), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-smp", "1"]);
        command.arg("-kernel").arg(&parts.kernel).arg("-initrd").arg(&parts.initramfs);
        let disk = if options.disk.is_some() { "mitos.disk=/dev/vdb" } else { "" };
        command.arg("-append").arg(format!("{KERNEL_PARAMETERS} tsc_early_khz={} {disk} {} -- boot", tsc_khz(), options.parameters));
        command.args(["-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial"]);
        command.args(["-chardev", &format!("socket,id=link,fd={LINK_FD}"), "-device", "virtio-serial-device"]);
        command.args(["-device", "virtserialport,chardev=link,name=mitos.link", "-device", "virtio-rng-device"]);
        command.args(["-chardev", &format!("socket,id=monitor,fd={MONITOR_FD}"), "-mon", "chardev=monitor,mode=control"]);
        for (name, file, rest) in [("root", Some(parts.root.as_path()), ",read-only=on,auto-read-only=off"), ("disk", options.disk, "")] {
            let Some(file) = file else { continue };
            command.args(["-drive", &format!("if=none,id={name},format=raw,file={}{rest}", file.display())]);
            command.args(["-device", &format!("virtio-blk-device,drive={name}")]);
        }
        if let Some(state) = options.from {
            command.args(["-incoming", &format!("file:{}", state.display())]);
        }
        command.args(options.arguments);
        command
            .stdin(Stdio::null())
            .stdout(File::create(&console).unwrap())
            .stderr(File::create(console.with_extension("errors")).unwrap());
        let process = with_fds(&mut command, [(link_in_vmm, LINK_FD), (monitor_in_vmm, MONITOR_FD)]);
        let mut machine = Self { host: Host::new(link), monitor: Monitor::new(monitor), process, console };
        if options.from.is_some() {
            // It was saved standing still.
            machine.monitor.until("query-status", |answer| answer["status"] == "paused");
            machine.monitor.execute("cont", serde_json::json!({}));
        }
        machine
    }

    /// One that has booted and answered HELLO.
    pub fn booted(parts: &Parts, options: &Options<'_>) -> Self {
        let mut machine = Self::start(parts, options);
        machine.host.greet("first", false);
        let acknowledged = machine.host.acknowledged("first", BOOT_PATIENCE);
        assert!(acknowledged.is_some(), "it does not boot: {}", machine.console());
        machine
    }

    /// What the kernel and the agent have said.
    pub fn console(&self) -> String {
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        read(&self.console) + &read(&self.console.with_extension("errors"))
    }

    /// Waits until the machine has ended by itself; what its console says then.
    pub fn last_words(&mut self) -> String {
        let until = Instant::now() + BOOT_PATIENCE;
        while self.process.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "the machine does not end: {}", self.console());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.console()
    }

    /// Writes the whole state while the machine stands still, with a copy of its disk if it has one, and lets it go on.
    pub fn save(&mut self, state: &Path, disk: Option<(&Path, &Path)>) {
        self.monitor.execute("stop", serde_json::json!({}));
        self.monitor.execute("migrate-set-parameters", serde_json::json!({ "max-bandwidth": 1_u64 << 40 }));
        self.monitor.execute("migrate", serde_json::json!({ "uri": format!("file:{}", state.display()) }));
        self.monitor.until("query-migrate", |answer| match answer["status"].as_str() {
            Some("completed") => true,
            Some("failed" | "cancelled") => panic!("{answer}"),
            _ => false,
        });
        if let Some((disk, copy)) = disk {
            copy_disk(disk, copy);
        }
        self.monitor.execute("cont", serde_json::json!({}));
    }
}

fn copy_disk(from: &Path, to: &Path) {
    let copied = Command::new("cp").args(["--sparse=always", "--no-preserve=mode"]).arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("console:\n{}", self.console());
        }
    }
}

const MACHINE: &str = "microvm,x-option-roms=off,pit=off,pic=off,rtc=on,acpi=on,auto-kernel-cmdline=off,usb=off";
const KERNEL_PARAMETERS: &str =
    "console=ttyS0 rdinit=/own/upper/opt/mitos/bin/mitos-guest lsm= audit=0 cryptomgr.notests quiet loglevel=3 panic=-1 reboot=t";

/// Told, because the kernel's own measurement sometimes never ends under emulation.
fn tsc_khz() -> u64 {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap();
    let facts: HashMap<&str, &str> =
        text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.trim(), value.trim())).collect();
    facts.get("cpu MHz").and_then(|mhz| mhz.parse::<f64>().ok()).map_or(1_000_000, |mhz| (mhz * 1000.0) as u64)
}

/// Starts `command` with the descriptors under the given numbers.
fn with_fds<const COUNT: usize>(command: &mut Command, fds: [(OwnedFd, i32); COUNT]) -> Child {
    // SAFETY: duplicates descriptors that we own, to numbers above those that the child gets.
    let staged = fds.map(|(fd, number)| (unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, STAGED_FD_MIN) }, number));
    // SAFETY: between fork and exec only dup2 is called.
    unsafe {
        command.pre_exec(move || {
            for (fd, number) in staged {
                if libc::dup2(fd, number) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let child = command.spawn().unwrap();
    for (fd, _) in staged {
        // SAFETY: ours alone.
        unsafe { libc::close(fd) };
    }
    child
}

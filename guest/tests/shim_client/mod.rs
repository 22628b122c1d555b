//! A server of the shim, for tests.

// Each test program uses a part of it.
#![allow(dead_code)]

use serde_json::{Value, json};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub const DATA: u8 = 0x11;
pub const REQUEST: u8 = 0x80;
pub const REPLY: u8 = 0x81;
pub const EVENT: u8 = 0x82;
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A folder and the shim that keeps it. Dropping it checks that the shim and everything it started is gone.
pub struct Shim {
    pub dir: PathBuf,
    pub pid: u32,
}

impl Shim {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn start_with(arguments: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = std::env::temp_dir().join(format!("mitos-shim-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(&dir).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_mitos-guest"))
            .args(["shim", "--dir"])
            .arg(&dir)
            .args(arguments)
            // Marks all that descends from this shim, so that a leaked process is found wherever it went.
            .env("MITOS_TEST_DIR", &dir)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "ready\n", "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success());
        let pid = fs::read_to_string(dir.join("shim.pid")).unwrap().trim().parse().unwrap();
        Self { dir, pid }
    }

    pub fn connect(&self) -> Server {
        self.connect_to("shim.sock")
    }

    pub fn connect_to(&self, socket: &str) -> Server {
        let stream = UnixStream::connect(self.dir.join(socket)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Server { stream, next: 1, events: Vec::new(), data: Vec::new(), replies: Default::default() }
    }

    pub fn exit(&self) -> Value {
        wait_for("exit.json", || fs::read(self.dir.join("exit.json")).ok().map(|text| serde_json::from_slice(&text).unwrap()))
    }

    /// `sh -c` as the machine, on the link, told to the shim by a pid file. It begins when it is watched: a short one would be over before.
    pub fn machine(&self, server: &mut Server, script: &str) -> i32 {
        // In the background, as a runtime would leave it: the command ends, the machine is the shim's child.
        let script = format!("mkfifo gate; ( read _ < gate; {script} ) <&3 3<&- & echo $! > machine.pid");
        let reply = server.request(json!({"op":"run","argv":["sh","-c",format!("exec 3<&0; {script}")],"stdio":"link","timeout_ms":5000}));
        assert_eq!((&reply["ok"], &reply["exit_code"]), (&json!(true), &json!(0)), "{reply}");
        let reply = server.request(json!({"op":"watch","pid_file":"machine.pid"}));
        assert_eq!(reply["ok"], json!(true), "{reply}");
        fs::write(self.dir.join("gate"), "\n").unwrap();
        reply["pid"].as_i64().unwrap() as i32
    }

    pub fn alive(&self) -> bool {
        // Its parent is init by then, which may take its time to wait for it.
        fs::read_to_string(format!("/proc/{}/stat", self.pid)).is_ok_and(|stat| !stat.contains(") Z "))
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = Command::new("kill").arg(self.pid.to_string()).status();
            eprintln!("shim.log: {}", fs::read_to_string(self.dir.join("shim.log")).unwrap_or_default());
            eprintln!("machine.log: {}", fs::read_to_string(self.dir.join("machine.log")).unwrap_or_default());
            return;
        }
        wait_for("the shim to end", || (!self.alive()).then_some(()));
        wait_for("every process to end", || marked(&self.dir).is_empty().then_some(()));
        assert!(!self.dir.join("shim.sock").exists());
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

pub fn marked(dir: &Path) -> Vec<String> {
    let mark = format!("MITOS_TEST_DIR={}\0", dir.display());
    let found = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| fs::read(entry.path().join("environ")).is_ok_and(|environ| String::from_utf8_lossy(&environ).contains(&mark)));
    found.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn frame(kind: u8, channel: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes().to_vec();
    bytes.extend([kind, 0]);
    bytes.extend(channel.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub struct Server {
    pub stream: UnixStream,
    next: u32,
    pub events: Vec<Value>,
    /// Frames of the link that came while something else was waited for.
    pub data: Vec<(u32, Vec<u8>)>,
    /// Replies, and parts of replies, to requests that are not waited for yet.
    replies: std::collections::BTreeMap<u32, (bool, Vec<u8>)>,
}

impl Server {
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn read_frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut header = [0; 10];
        match self.stream.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => return None,
            Err(error) => panic!("read a frame: {error}"),
        }
        let mut payload = vec![0; u32::from_be_bytes(header[..4].try_into().unwrap()) as usize];
        self.stream.read_exact(&mut payload).unwrap();
        Some((header[4], header[5], u32::from_be_bytes(header[6..].try_into().unwrap()), payload))
    }

    pub fn start_request(&mut self, request: Value) -> u32 {
        let channel = self.next;
        self.next += 1;
        self.send(&frame(REQUEST, channel, request.to_string().as_bytes()));
        channel
    }

    pub fn reply(&mut self, wanted: u32) -> Value {
        loop {
            if self.replies.get(&wanted).is_some_and(|(whole, _)| *whole) {
                return serde_json::from_slice(&self.replies.remove(&wanted).unwrap().1).unwrap();
            }
            match self.read_frame().expect("a reply before the connection ends") {
                (REPLY, flags, channel, payload) => {
                    let (whole, text) = self.replies.entry(channel).or_default();
                    text.extend(payload);
                    *whole = flags & 1 == 0;
                }
                (EVENT, _, _, payload) => self.events.push(serde_json::from_slice(&payload).unwrap()),
                (DATA, _, channel, payload) => self.data.push((channel, payload)),
                other => panic!("unexpected frame {other:?}"),
            }
        }
    }

    pub fn request(&mut self, request: Value) -> Value {
        let channel = self.start_request(request);
        self.reply(channel)
    }

    pub fn event(&mut self) -> Value {
        while self.events.is_empty() {
            match self.read_frame().expect("an event before the connection ends") {
                (EVENT, _, _, payload) => self.events.push(serde_json::from_slice(&payload).unwrap()),
                (_, _, channel, payload) => self.data.push((channel, payload)),
            }
        }
        self.events.remove(0)
    }

    pub fn next_data(&mut self) -> (u32, Vec<u8>) {
        if !self.data.is_empty() {
            return self.data.remove(0);
        }
        match self.read_frame().expect("a frame of the link") {
            (DATA, _, channel, payload) => (channel, payload),
            other => panic!("unexpected frame {other:?}"),
        }
    }

    pub fn end(mut self) {
        assert_eq!(self.request(json!({"op":"end","reason":"terminated"})), json!({"ok":true}));
    }
}

pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// Printed, so that a failure can be repeated with MITOS_TEST_SEED.
pub fn seed() -> u64 {
    let seed = std::env::var("MITOS_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(unix_ms);
    println!("MITOS_TEST_SEED={seed}");
    seed
}

pub fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

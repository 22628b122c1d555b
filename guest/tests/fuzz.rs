//! Both parsers of the binary against random and half-right input, as programs: neither ends, hangs or grows. A run prints its seed on failure;
//! `MITOS_FUZZ_SEED` repeats it, `MITOS_FUZZ_ROUNDS` (20) makes it longer.

#[allow(dead_code)]
mod link_client;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use link_client::proto::guest::v1 as pb;
use link_client::wire::{FrameType, HEADER_BYTES, Header};
use link_client::{Host, PATIENCE, spawn_agent};
use prost::Message;
use serde_json::{Value, json};

const MEMORY_BYTES_MAX: u64 = 64 << 20;
const FRAMES_A_ROUND: u64 = 60;
const SHIM_REQUEST: u8 = 0x80;

struct Random(u64);

impl Random {
    fn new() -> Self {
        let given = std::env::var("MITOS_FUZZ_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 | 1);
        println!("MITOS_FUZZ_SEED={seed}"); // shown when the test fails
        Self(seed)
    }

    /// xorshift64*
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize].clone()
    }

    fn bytes(&mut self, longest: u64) -> Vec<u8> {
        (0..self.below(longest + 1)).map(|_| self.next() as u8).collect()
    }
}

fn rounds() -> u64 {
    std::env::var("MITOS_FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

fn memory_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("mitos-fuzz-{name}-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
}

// ---------------------------------------------------------------- the agent

struct Agent {
    root: PathBuf,
    process: Child,
    host: Host,
}

impl Agent {
    fn start(name: &str) -> Self {
        let root = folder(name);
        let (process, host) = spawn_agent(&root, &[]);
        host.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { root, process, host: Host::new(host) }
    }

    /// Whatever is under way, the agent takes a new session and answers in it.
    fn answers(&mut self, session: &str) {
        self.host.control(FrameType::Hello, &pb::Hello { protocol_version: 1, session: session.into(), adopt_follows: false });
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "no HELLO_ACK for {session}");
            let Some(frame) = self.host.read_frame(Duration::from_secs(1)) else { continue };
            let is_ack = frame.header.kind == FrameType::HelloAck;
            if is_ack && pb::HelloAck::decode(&frame.payload[..]).unwrap().session == session {
                break;
            }
        }
    }

    fn drain(&mut self) {
        while self.host.read_frame(Duration::from_millis(1)).is_some() {}
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Methods without an effect outside; the agent of this test runs on the host.
const METHODS: [&str; 6] = ["List", "ListProcesses", "Processes", "Stat", "Nothing", ""];

/// Mostly legal frames, so that a session lives for a while.
fn random_frame(random: &mut Random) -> (FrameType, bool, u32, Vec<u8>) {
    let channel = 2 * (1 + random.below(8)) as u32;
    match random.below(20) {
        0 => {
            let kinds = [FrameType::Hello, FrameType::Quiesce, FrameType::Resume, FrameType::Adopt, FrameType::Ping, FrameType::Pong];
            (random.pick(&kinds), false, 0, random.bytes(80))
        }
        1 => {
            let kinds = [FrameType::HelloAck, FrameType::Quiesced, FrameType::Adopted, FrameType::ShimRequest, FrameType::ShimEvent];
            (random.pick(&kinds), false, random.below(4) as u32, random.bytes(40))
        }
        2 | 3 => (FrameType::End, false, channel, random.bytes(8)),
        4 => (FrameType::Reset, false, channel, random.bytes(20)),
        5 | 6 => {
            let odd = random.bytes(9);
            (FrameType::Credit, false, channel, random.pick(&[vec![], vec![0, 0, 1, 0], vec![255; 4], odd]))
        }
        7..=11 => {
            let open = pb::Open {
                method: random.pick(&METHODS).into(),
                message: random.bytes(200).into(),
                end: random.below(2) == 0,
                ..Default::default()
            };
            let far = 2 * (10 + random.below(2000)) as u32;
            let number = random.pick(&[channel, far, 1, 0]);
            let odd = random.bytes(60);
            (FrameType::Open, false, number, random.pick(&[open.encode_to_vec(), open.encode_to_vec(), odd]))
        }
        _ => (FrameType::Data, random.below(4) == 0, channel, random.bytes(3000)),
    }
}

#[test]
fn random_frames_never_end_the_agent_and_every_new_session_is_answered() {
    let mut random = Random::new();
    let mut agent = Agent::start("agent");
    agent.answers("first");
    let pid = agent.process.id();
    let before = descriptors(pid);
    for round in 0..rounds() {
        for _ in 0..FRAMES_A_ROUND {
            let (kind, more, channel, payload) = random_frame(&mut random);
            agent.host.send(kind, more, channel, &payload);
        }
        agent.drain();
        agent.answers(&format!("round {round}"));
    }
    assert!(memory_bytes(pid) < MEMORY_BYTES_MAX, "{} bytes", memory_bytes(pid));
    assert!(descriptors(pid) <= before + 8, "{} descriptors, {before} before", descriptors(pid));
    let log = fs::read_to_string(agent.root.join("log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn ten_thousand_channels_and_a_message_without_end_are_bounded() {
    let mut agent = Agent::start("channels");
    agent.answers("first");
    let open = pb::Open { method: "Exec".into(), ..Default::default() }.encode_to_vec();
    for number in 1..=10_000 {
        agent.host.send(FrameType::Open, false, 2 * number, &open);
        if number % 64 == 0 {
            agent.drain();
        }
    }
    // Parts of one message, without a last one, as far as there is credit: what is over it ends the session, not the agent.
    for _ in 0..200 {
        agent.host.send(FrameType::Data, true, 2, &[7; 60_000]);
    }
    agent.drain();
    agent.answers("after");
    let pid = agent.process.id();
    assert!(memory_bytes(pid) < MEMORY_BYTES_MAX, "{} bytes", memory_bytes(pid));
}

// ---------------------------------------------------------------- the shim

struct Shim {
    dir: PathBuf,
    pid: u32,
}

impl Shim {
    fn start() -> Self {
        let dir = folder("shim");
        let started =
            Command::new(env!("CARGO_BIN_EXE_mitos-guest")).args(["shim", "--dir"]).arg(&dir).stdin(Stdio::null()).output().unwrap();
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        let pid = fs::read_to_string(dir.join("shim.pid")).unwrap().trim().parse().unwrap();
        Self { dir, pid }
    }

    fn connect(&self, socket: &str) -> UnixStream {
        let stream = UnixStream::connect(self.dir.join(socket)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // SAFETY: a plain signal to the process that we have started.
        unsafe { libc::kill(self.pid as i32, libc::SIGTERM) };
        let deadline = Instant::now() + PATIENCE;
        while Path::new(&format!("/proc/{}", self.pid)).exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A frame of the server's; `kind` may be none that exists.
fn raw_frame(kind: u8, flags: u8, channel: u32, length: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&channel.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn request(channel: u32, payload: &[u8]) -> Vec<u8> {
    raw_frame(SHIM_REQUEST, 0, channel, payload.len() as u32, payload)
}

/// The reply to `channel`, whatever comes before it.
fn reply(stream: &mut UnixStream, channel: u32) -> Value {
    loop {
        let mut head = [0; HEADER_BYTES];
        stream.read_exact(&mut head).unwrap();
        let header = Header::parse(&head).unwrap();
        let mut payload = vec![0; header.length];
        stream.read_exact(&mut payload).unwrap();
        if header.kind == FrameType::ShimReply && header.channel == channel {
            return serde_json::from_slice(&payload).unwrap();
        }
    }
}

/// Never a pid, and no program but `true`: the shim of this test runs on the host, and does what it is asked.
fn random_request(random: &mut Random) -> Vec<u8> {
    let value = |random: &mut Random| {
        random.pick(&[
            json!(null),
            json!(-1),
            json!(1e300),
            json!(""),
            json!([]),
            json!({}),
            json!([[]]),
            json!("SIGNOT"),
            json!(u64::MAX),
            json!(true),
        ])
    };
    let op = random.pick(&["meter", "signal", "deadline", "memory_limit", "watch", "on_end", "run", "nothing"]);
    let mut fields = serde_json::Map::new();
    fields.insert("op".into(), json!(op));
    let names: &[&str] = match op {
        "signal" => &["signal"],
        "deadline" => &["reason"],
        "memory_limit" => &["interval_ms"],
        "watch" => &["pid_file", "cgroup_memory", "cgroup_pids"],
        "on_end" => &["commands"],
        "run" => &["env", "stdio", "timeout_ms"],
        _ => &["channel", "op2"],
    };
    for name in names {
        if random.below(3) > 0 {
            fields.insert((*name).into(), value(random));
        }
    }
    if op == "run" {
        fields.insert("argv".into(), random.pick(&[json!(["true"]), json!([]), json!(["/nowhere"]), json!("true")]));
    }
    let mut text = serde_json::to_vec(&Value::Object(fields)).unwrap();
    if random.below(4) == 0 {
        let at = random.below(text.len() as u64) as usize;
        text.truncate(at);
        text.extend(random.bytes(20));
    }
    text
}

#[test]
fn random_requests_and_broken_frames_never_end_the_shim() {
    let mut random = Random::new();
    let shim = Shim::start();
    let _server = shim.connect("shim.sock"); // without one the shim would end by itself
    let before = {
        let mut control = shim.connect("control.sock");
        control.write_all(&request(1, br#"{"op":"meter"}"#)).unwrap();
        assert_eq!(reply(&mut control, 1)["ok"], json!(false));
        descriptors(shim.pid)
    };
    for _ in 0..rounds() {
        let mut control = shim.connect("control.sock");
        for channel in 1..=FRAMES_A_ROUND as u32 {
            let payload = random_request(&mut random);
            control.write_all(&request(channel, &payload)).unwrap();
            let answer = reply(&mut control, channel);
            assert!(answer["ok"].is_boolean() && (answer["ok"] == json!(true) || answer["error"].is_string()), "{answer}");
        }
        // The connection breaks a rule and is closed; what it does not read is not kept.
        let mut broken = shim.connect("control.sock");
        let payload = random.bytes(300);
        let length = random.pick(&[payload.len() as u32, 65_537, u32::MAX]);
        let frame =
            raw_frame(random.pick(&[0x7f, 0x00, 0x81, 0x82, 0x02]), random.pick(&[0, 2, 255]), random.next() as u32, length, &payload);
        let _ = broken.write_all(&frame);
        let mut rest = Vec::new();
        match broken.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "a broken connection stays open"),
        }
    }
    let mut control = shim.connect("control.sock");
    control.write_all(&request(1, br#"{"op":"run","argv":["true"],"timeout_ms":20000}"#)).unwrap();
    assert_eq!(reply(&mut control, 1)["exit_code"], json!(0));
    assert!(memory_bytes(shim.pid) < MEMORY_BYTES_MAX);
    assert!(descriptors(shim.pid) <= before + 4, "{} descriptors, {before} before", descriptors(shim.pid));
}

//! A host's end of the link, for tests: blocking, one frame at a time, with credit kept by hand.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use prost::Message;

#[path = "../../src/proto.rs"]
pub mod proto;
#[allow(dead_code)]
#[path = "../../src/wire.rs"]
pub mod wire;

use proto::guest::v1 as pb;
use wire::{FrameType, HEADER_BYTES, Header};

/// Enough for a virtual machine whose processor is emulated, on a machine that does other things as well.
pub const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Frame {
    pub header: Header,
    pub payload: Vec<u8>,
}

/// What has arrived on one channel.
#[derive(Default)]
pub struct Inbox {
    pub messages: VecDeque<Vec<u8>>,
    partial: Vec<u8>,
    pub ended: Option<pb::Status>,
    pub reset: Option<pb::Status>,
}

pub struct Host {
    pub stream: UnixStream,
    next_channel: u32,
    pub inboxes: HashMap<u32, Inbox>,
    pub control: VecDeque<Frame>,
    pub opened_by_guest: VecDeque<(u32, pb::Open)>,
    /// Credit is given back at once unless a test keeps it.
    pub give_credit: bool,
    pub data_frames: Vec<(u32, usize)>,
}

/// A socket pair: (the host's end, the machine's end for stdin and stdout).
pub fn link_pair() -> (UnixStream, OwnedFd, OwnedFd) {
    let (host, machine) = UnixStream::pair().unwrap();
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    let second = machine.try_clone().unwrap();
    (host, machine.into(), second.into())
}

/// An agent as a process of this host, with `root` for its files and its complaints in `log` there, and the host's end of its link.
#[allow(dead_code)]
pub fn spawn_agent(root: &Path, environment: &[(&str, &str)]) -> (Child, UnixStream) {
    let (host, stdin, stdout) = link_pair();
    let process = Command::new(env!("CARGO_BIN_EXE_mitos-guest"))
        .arg("agent")
        .env("MITOS_AGENT_TEST_ROOT", root)
        .envs(environment.iter().copied())
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout))
        .stderr(File::create(root.join("log")).unwrap())
        .spawn()
        .unwrap();
    (process, host)
}

impl Host {
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            next_channel: 2,
            inboxes: HashMap::new(),
            control: VecDeque::new(),
            opened_by_guest: VecDeque::new(),
            give_credit: true,
            data_frames: Vec::new(),
        }
    }

    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn send(&mut self, kind: FrameType, more: bool, channel: u32, payload: &[u8]) {
        let mut bytes = Header { length: payload.len(), kind, more, channel }.encode().to_vec();
        bytes.extend_from_slice(payload);
        self.send_raw(&bytes);
    }

    pub fn control(&mut self, kind: FrameType, message: &impl Message) {
        self.send(kind, false, 0, &message.encode_to_vec());
    }

    /// Reads one frame, or None when none comes within the time.
    pub fn read_frame(&mut self, within: Duration) -> Option<Frame> {
        self.stream.set_read_timeout(Some(within.max(Duration::from_millis(1)))).unwrap();
        let mut first = [0; 1];
        match self.stream.read(&mut first) {
            Ok(1) => {}
            Ok(_) => panic!("the machine closed its link"),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => return None,
            Err(error) => panic!("{error}"),
        }
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = [0; HEADER_BYTES - 1];
        self.stream.read_exact(&mut rest).unwrap();
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = first[0];
        bytes[1..].copy_from_slice(&rest);
        let header = Header::parse(&bytes).unwrap();
        let mut payload = vec![0; header.length];
        self.stream.read_exact(&mut payload).unwrap();
        Some(Frame { header, payload })
    }

    /// Takes one frame into the inboxes. False when none comes within the time.
    pub fn step(&mut self, within: Duration) -> bool {
        let Some(frame) = self.read_frame(within) else { return false };
        let number = frame.header.channel;
        match frame.header.kind {
            FrameType::Data => {
                self.data_frames.push((number, frame.payload.len()));
                if self.give_credit && !frame.payload.is_empty() {
                    self.send(FrameType::Credit, false, number, &(frame.payload.len() as u32).to_be_bytes());
                }
                let inbox = self.inboxes.get_mut(&number).expect("DATA on an open channel");
                inbox.partial.extend_from_slice(&frame.payload);
                if !frame.header.more {
                    inbox.messages.push_back(std::mem::take(&mut inbox.partial));
                }
            }
            FrameType::End => {
                let inbox = self.inboxes.get_mut(&number).expect("END on an open channel");
                assert!(inbox.ended.is_none(), "a second END");
                inbox.ended = Some(pb::Status::decode(&frame.payload[..]).unwrap());
            }
            FrameType::Reset => {
                self.inboxes.entry(number).or_default().reset = Some(pb::Status::decode(&frame.payload[..]).unwrap());
            }
            FrameType::Open => {
                self.inboxes.insert(number, Inbox::default());
                self.opened_by_guest.push_back((number, pb::Open::decode(&frame.payload[..]).unwrap()));
            }
            FrameType::Credit => {}
            _ => self.control.push_back(frame),
        }
        true
    }

    /// Reads until `done` gives something; panics when it does not in time.
    pub fn until<R>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<R>) -> R {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(result) = done(self) {
                return result;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for {what}");
            self.step(left);
        }
    }

    pub fn expect_control(&mut self, kind: FrameType) -> Vec<u8> {
        let frame = self.until("a control frame", |host| host.control.pop_front());
        assert_eq!(frame.header.kind, kind);
        frame.payload
    }

    /// Opens a session; frames of an older one are ignored as a server does.
    pub fn hello(&mut self, session: &str) -> pb::HelloAck {
        self.greet(session, false);
        self.acknowledged(session, PATIENCE).expect("a HELLO_ACK")
    }

    /// Sends HELLO; everything of an older session is forgotten.
    pub fn greet(&mut self, session: &str, adopt_follows: bool) {
        self.control(FrameType::Hello, &pb::Hello { protocol_version: 5, session: session.into(), adopt_follows });
        self.inboxes.clear();
        self.control.clear();
        self.opened_by_guest.clear();
        self.next_channel = 2;
    }

    /// The HELLO_ACK of that session, or None when it does not come within the time.
    pub fn acknowledged(&mut self, session: &str, within: Duration) -> Option<pb::HelloAck> {
        let deadline = Instant::now() + within;
        loop {
            let frame = self.read_frame(deadline.saturating_duration_since(Instant::now()))?;
            if frame.header.kind == FrameType::HelloAck {
                let ack = pb::HelloAck::decode(&frame.payload[..]).unwrap();
                if ack.session == session {
                    return Some(ack);
                }
            }
        }
    }

    pub fn quiesce(&mut self, round: u64) {
        self.control(FrameType::Quiesce, &pb::Quiesce { round });
        let quiesced = pb::Quiesced::decode(&self.expect_control(FrameType::Quiesced)[..]).unwrap();
        assert_eq!(quiesced.round, round);
    }

    pub fn adopt(&mut self, adopt: &pb::Adopt) -> pb::Adopted {
        self.control(FrameType::Adopt, adopt);
        pb::Adopted::decode(&self.expect_control(FrameType::Adopted)[..]).unwrap()
    }

    pub fn open(&mut self, method: &str, message: &impl Message, end: bool) -> u32 {
        self.open_traced(method, message, end, "")
    }

    pub fn open_traced(&mut self, method: &str, message: &impl Message, end: bool, traceparent: &str) -> u32 {
        let number = self.next_channel;
        self.next_channel += 2;
        self.inboxes.insert(number, Inbox::default());
        let open = pb::Open { method: method.into(), message: message.encode_to_vec().into(), end, traceparent: traceparent.into() };
        self.send(FrameType::Open, false, number, &open.encode_to_vec());
        number
    }

    pub fn message(&mut self, channel: u32, message: &impl Message) {
        self.send(FrameType::Data, false, channel, &message.encode_to_vec());
    }

    pub fn end(&mut self, channel: u32) {
        self.send(FrameType::End, false, channel, &[]);
    }

    pub fn next<M: Message + Default>(&mut self, channel: u32) -> Option<M> {
        self.until("a message", |host| {
            let inbox = host.inboxes.get_mut(&channel)?;
            match inbox.messages.pop_front() {
                Some(message) => Some(Some(M::decode(&message[..]).unwrap())),
                None if inbox.ended.is_some() || inbox.reset.is_some() => Some(None),
                None => None,
            }
        })
    }

    /// The status a call ends with; its remaining messages are dropped.
    pub fn status(&mut self, channel: u32) -> pb::Status {
        self.until("the end of the call", |host| {
            let inbox = host.inboxes.get_mut(&channel)?;
            inbox.messages.clear();
            inbox.ended.clone().or(inbox.reset.clone())
        })
    }

    pub fn unary<M: Message + Default>(&mut self, method: &str, request: &impl Message) -> Result<M, pb::Status> {
        let channel = self.open(method, request, true);
        let reply = self.next(channel);
        let status = self.status(channel);
        if status.code.is_empty() { Ok(reply.expect("a reply")) } else { Err(status) }
    }

    pub fn start(&mut self, start: pb::ProcessStart) -> u32 {
        self.open("Exec", &pb::ExecInput { msg: Some(pb::exec_input::Msg::Start(start)) }, false)
    }

    pub fn input(&mut self, channel: u32, input: pb::exec_input::Msg) {
        self.message(channel, &pb::ExecInput { msg: Some(input) });
    }

    pub fn exec(&mut self, start: pb::ProcessStart) -> Outcome {
        let channel = self.start(start);
        self.finish(channel)
    }

    pub fn shell(&mut self, command: &str) -> Outcome {
        self.exec(shell(command))
    }

    pub fn next_output(&mut self, channel: u32) -> Option<pb::exec_output::Msg> {
        self.next::<pb::ExecOutput>(channel).and_then(|output| output.msg)
    }

    pub fn started(&mut self, channel: u32) -> i32 {
        match self.next_output(channel) {
            Some(pb::exec_output::Msg::Started(started)) => started.pid,
            other => panic!("not started: {other:?}"),
        }
    }

    /// Reads an exec to its end, checking that offsets are without holes but for what gaps say.
    pub fn finish(&mut self, channel: u32) -> Outcome {
        let mut outcome = Outcome::default();
        self.collect(channel, &mut outcome, |_| false);
        let status = self.status(channel);
        assert_eq!(status.code, "", "{}", status.message);
        outcome
    }

    pub fn collect(&mut self, channel: u32, outcome: &mut Outcome, enough: impl Fn(&Outcome) -> bool) {
        while !enough(outcome) {
            match self.next_output(channel) {
                Some(pb::exec_output::Msg::Started(started)) => outcome.pid = started.pid,
                Some(pb::exec_output::Msg::Output(output)) => {
                    assert!(!output.data.is_empty() && output.data.len() <= 32 * 1024);
                    let (bytes, offset) = outcome.stream(output.stream);
                    assert_eq!(*offset, output.offset, "a hole or a repetition");
                    *offset += output.data.len() as u64;
                    bytes.extend_from_slice(&output.data);
                    outcome.chunks += 1;
                }
                Some(pb::exec_output::Msg::Gap(gap)) => {
                    let (_, offset) = outcome.stream(gap.stream);
                    assert_eq!(*offset, gap.from);
                    *offset = gap.to;
                    outcome.gaps.push(gap);
                }
                Some(pb::exec_output::Msg::Exit(exit)) => outcome.exit = Some(exit),
                None => return,
            }
        }
    }
}

#[derive(Default, Debug)]
pub struct Outcome {
    pub pid: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub stdout_offset: u64,
    pub stderr_offset: u64,
    pub gaps: Vec<pb::Gap>,
    pub chunks: usize,
    pub exit: Option<pb::ProcessExit>,
}

impl Outcome {
    pub fn from_offset(stdout_offset: u64) -> Self {
        Self { stdout_offset, ..Default::default() }
    }

    fn stream(&mut self, stream: i32) -> (&mut Vec<u8>, &mut u64) {
        if stream == pb::Stream::Stdout as i32 {
            (&mut self.stdout, &mut self.stdout_offset)
        } else {
            (&mut self.stderr, &mut self.stderr_offset)
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn code(&self) -> i32 {
        self.exit.as_ref().expect("an exit").exit_code
    }
}

pub fn shell(command: &str) -> pb::ProcessStart {
    pb::ProcessStart { shell_command: command.into(), ..Default::default() }
}

pub fn adopt(generation: u64) -> pb::Adopt {
    pb::Adopt {
        round: generation,
        sandbox_id: format!("sb-{generation}"),
        template_id: "base".into(),
        generation,
        entropy: vec![generation as u8; 32].into(),
        host_name: format!("host-{generation}"),
        machine_id: format!("{generation:032x}"),
        ..Default::default()
    }
}

pub fn attach(pid: i32, stdout_from: u64, follow: bool) -> pb::ExecInput {
    pb::ExecInput { msg: Some(pb::exec_input::Msg::Attach(pb::ProcessAttach { pid, stdout_from, follow, ..Default::default() })) }
}

//! The monitor's protocol: one JSON object a line (QEMU Machine Protocol). The other end is a process that a hostile guest may have taken over, so
//! every length and time is bounded.

use crate::shim::sys;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

pub const LINE_BYTES_MAX: usize = 1 << 20;
const READ_BYTES: usize = 16 << 10;
/// More are forgotten, the oldest first.
const EVENTS_MAX: usize = 256;

pub struct Qmp {
    stream: UnixStream,
    /// What has arrived and is not yet a whole line; `searched` bytes of it hold no line end.
    inbox: Vec<u8>,
    searched: usize,
    greeted: bool,
    negotiated: bool,
    next_id: u64,
    events: VecDeque<Event>,
    /// Why nothing more can be said to it.
    broken: Option<String>,
}

#[derive(Debug, Deserialize)]
pub struct Event {
    #[serde(rename = "event")]
    pub name: String,
    #[serde(default)]
    pub data: Value,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    pub error: String,
    /// The monitor's word for it, when it was the monitor that refused.
    pub class: Option<String>,
}

impl Failure {
    pub fn new(error: impl Into<String>) -> Self {
        Self { error: error.into(), class: None }
    }
}

#[derive(Debug)]
enum Message {
    Greeting,
    Event(Event),
    /// `id` is absent when the monitor could not even read the command.
    Answer {
        id: Option<u64>,
        result: Result<Value, Failure>,
    },
}

impl Qmp {
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            inbox: Vec::new(),
            searched: 0,
            greeted: false,
            negotiated: false,
            next_id: 0,
            events: VecDeque::new(),
            broken: None,
        })
    }

    /// To wait for what `take_unasked` takes; none when nothing will come any more.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.broken.is_none().then(|| self.stream.as_fd())
    }

    /// Takes what the monitor says while nothing is asked of it, lest it fills its memory with it.
    pub fn take_unasked(&mut self) {
        while self.broken.is_none() {
            match self.next_message() {
                Ok(Some(message)) => drop(self.keep(message)),
                Ok(None) => match self.fill() {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(_) => break,
                },
                Err(_) => break,
            }
        }
        self.events.clear();
    }

    pub fn forget_events(&mut self) {
        self.events.clear();
    }

    /// One command and its answer. `file` goes along with it.
    pub fn execute(
        &mut self,
        command: &str,
        arguments: Option<Value>,
        file: Option<BorrowedFd>,
        deadline: Instant,
    ) -> Result<Value, Failure> {
        if !self.negotiated {
            self.negotiate(deadline)?;
        }
        self.ask(command, arguments, file, deadline)
    }

    fn negotiate(&mut self, deadline: Instant) -> Result<(), Failure> {
        while !self.greeted {
            let message = self.wait_for_message(deadline, "the monitor's greeting")?;
            self.keep(message);
        }
        self.ask("qmp_capabilities", None, None, deadline)?;
        self.negotiated = true;
        Ok(())
    }

    fn ask(&mut self, command: &str, arguments: Option<Value>, file: Option<BorrowedFd>, deadline: Instant) -> Result<Value, Failure> {
        self.next_id += 1;
        let id = self.next_id;
        let mut line = json!({"execute": command, "id": id});
        if let Some(arguments) = arguments {
            line["arguments"] = arguments;
        }
        self.send(format!("{line}\n").as_bytes(), file, deadline)?;
        loop {
            let message = self.wait_for_message(deadline, command)?;
            if let Some((answered, result)) = self.keep(message) {
                match answered {
                    Some(answered) if answered == id => return result,
                    None if result.is_err() => return result,
                    // Of a command that nobody waits for any more.
                    _ => {}
                }
            }
        }
    }

    /// The event's data, once it has come. `wanted` judges: none = not this one.
    pub fn wait_for_event<T>(&mut self, what: &str, mut wanted: impl FnMut(&Event) -> Option<T>, deadline: Instant) -> Result<T, Failure> {
        loop {
            while let Some(event) = self.events.pop_front() {
                if let Some(found) = wanted(&event) {
                    return Ok(found);
                }
            }
            let message = self.wait_for_message(deadline, what)?;
            self.keep(message);
        }
    }

    fn keep(&mut self, message: Message) -> Option<(Option<u64>, Result<Value, Failure>)> {
        match message {
            Message::Greeting => self.greeted = true,
            Message::Event(event) => {
                if self.events.len() >= EVENTS_MAX {
                    self.events.pop_front();
                }
                self.events.push_back(event);
            }
            Message::Answer { id, result } => return Some((id, result)),
        }
        None
    }

    fn wait_for_message(&mut self, deadline: Instant, what: &str) -> Result<Message, Failure> {
        loop {
            if let Some(message) = self.next_message()? {
                return Ok(message);
            }
            self.wait(libc::POLLIN, deadline, what)?;
            self.fill()?;
        }
    }

    fn wait(&self, events: i16, deadline: Instant, what: &str) -> Result<(), Failure> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left == Duration::ZERO {
            return Err(Failure::new(format!("{what}: no answer from the machine's monitor in the time given")));
        }
        let mut fds = [libc::pollfd { fd: self.stream.as_raw_fd(), events, revents: 0 }];
        let timeout = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        sys::poll(&mut fds, timeout).map_err(|error| Failure::new(format!("wait for the monitor: {error}")))
    }

    /// The next whole line.
    fn next_message(&mut self) -> Result<Option<Message>, Failure> {
        if let Some(error) = &self.broken {
            return Err(Failure::new(error.clone()));
        }
        let Some(end) = self.inbox[self.searched..].iter().position(|byte| *byte == b'\n').map(|end| self.searched + end) else {
            self.searched = self.inbox.len();
            return if self.searched > LINE_BYTES_MAX {
                Err(self.fail("the monitor sent a line of more than 1 MiB".into()))
            } else {
                Ok(None)
            };
        };
        let message = parse(&self.inbox[..end]);
        self.inbox.drain(..=end);
        self.searched = 0;
        message.map(Some).map_err(|error| self.fail(error))
    }

    /// One read. False when there is nothing now.
    fn fill(&mut self) -> Result<bool, Failure> {
        let mut buffer = [0; READ_BYTES];
        match sys::read(self.stream.as_fd(), &mut buffer) {
            Ok(0) => Err(self.fail("the machine has ended".into())),
            Ok(count) => {
                self.inbox.extend_from_slice(&buffer[..count]);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(self.fail("the machine has ended".into())),
            Err(error) => Err(self.fail(format!("read the monitor: {error}"))),
        }
    }

    fn send(&mut self, line: &[u8], mut file: Option<BorrowedFd>, deadline: Instant) -> Result<(), Failure> {
        if let Some(error) = &self.broken {
            return Err(Failure::new(error.clone()));
        }
        let mut sent = 0;
        while sent < line.len() {
            let descriptors: Vec<_> = file.iter().map(AsRawFd::as_raw_fd).collect();
            let control = [ControlMessage::ScmRights(&descriptors)];
            let control = if descriptors.is_empty() { &[][..] } else { &control[..] };
            match sendmsg::<()>(self.stream.as_raw_fd(), &[IoSlice::new(&line[sent..])], control, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(count) => {
                    sent += count;
                    file = None;
                }
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => {
                    let waited = self.wait(libc::POLLOUT, deadline, "write to the monitor");
                    // Half a line would make nonsense of the next.
                    if waited.is_err() && sent > 0 {
                        self.fail("the monitor does not read".into());
                    }
                    waited?;
                }
                Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => return Err(self.fail("the machine has ended".into())),
                Err(error) => return Err(self.fail(format!("write to the monitor: {error}"))),
            }
        }
        Ok(())
    }

    fn fail(&mut self, error: String) -> Failure {
        self.inbox = Vec::new();
        self.searched = 0;
        self.broken = Some(error.clone());
        Failure::new(error)
    }
}

fn parse(line: &[u8]) -> Result<Message, String> {
    #[derive(Deserialize)]
    struct Line {
        #[serde(rename = "QMP")]
        greeting: Option<Value>,
        event: Option<String>,
        data: Option<Value>,
        // An Option would take `"return": null` for none at all.
        #[serde(rename = "return", default, deserialize_with = "present")]
        returned: Option<Value>,
        error: Option<Refusal>,
        id: Option<Value>,
    }
    #[derive(Deserialize)]
    struct Refusal {
        class: String,
        desc: String,
    }
    fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
        Value::deserialize(deserializer).map(Some)
    }
    let line: Line = serde_json::from_slice(line).map_err(|error| format!("the monitor sent something else than its protocol: {error}"))?;
    let id = line.id.as_ref().and_then(Value::as_u64);
    match line {
        Line { event: Some(name), data, .. } => Ok(Message::Event(Event { name, data: data.unwrap_or_default() })),
        Line { returned: Some(result), .. } => Ok(Message::Answer { id, result: Ok(result) }),
        Line { error: Some(Refusal { class, desc }), .. } => {
            Ok(Message::Answer { id, result: Err(Failure { error: desc, class: Some(class) }) })
        }
        Line { greeting: Some(_), .. } => Ok(Message::Greeting),
        _ => Err("the monitor sent something else than its protocol: neither an answer nor an event".into()),
    }
}

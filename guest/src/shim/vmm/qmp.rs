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

/// What the monitor is told to do.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    pub execute: String,
    pub arguments: Option<Value>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn pair() -> (Qmp, UnixStream) {
        let (ours, monitors) = UnixStream::pair().unwrap();
        (Qmp::new(ours).unwrap(), monitors)
    }

    /// A monitor that says `text` and is gone when it has been told everything.
    fn said(text: &str) -> (Qmp, std::thread::JoinHandle<String>) {
        let (qmp, mut monitor) = pair();
        let text = text.to_owned();
        let thread = std::thread::spawn(move || {
            monitor.write_all(text.as_bytes()).unwrap();
            monitor.shutdown(std::net::Shutdown::Write).unwrap();
            let mut heard = String::new();
            monitor.read_to_string(&mut heard).unwrap();
            heard
        });
        (qmp, thread)
    }

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n{\"return\": {}, \"id\": 1}\r\n";

    #[test]
    fn the_greeting_and_the_capabilities_come_first_and_answers_belong_to_their_command() {
        let answers = "{\"event\": \"RESUME\", \"data\": {\"a\": 1}}\n{\"return\": 1, \"id\": 77}\n{\"return\": null, \"id\": 2}\n{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no\"}, \"id\": 3}\n";
        let (mut qmp, monitor) = said(&format!("{GREETING}{answers}"));
        assert_eq!(qmp.execute("one", Some(json!({"x": 1})), None, soon()), Ok(Value::Null));
        let refused = qmp.execute("two", None, None, soon()).unwrap_err();
        assert_eq!((refused.error.as_str(), refused.class.as_deref()), ("no", Some("CommandNotFound")));
        let data = qmp.wait_for_event("wait", |event| (event.name == "RESUME").then(|| event.data.clone()), soon());
        assert_eq!(data, Ok(json!({"a": 1})));
        assert_eq!(qmp.execute("three", None, None, soon()), Err(Failure::new("the machine has ended")));
        drop(qmp);
        let heard: Vec<Value> = monitor.join().unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(heard[0], json!({"execute": "qmp_capabilities", "id": 1}));
        assert_eq!(heard[1], json!({"execute": "one", "id": 2, "arguments": {"x": 1}}));
    }

    #[test]
    fn no_answer_in_time_is_a_failure_and_a_late_one_is_not_taken_for_the_next() {
        let (mut qmp, mut monitor) = pair();
        monitor.write_all(GREETING.as_bytes()).unwrap();
        let failure = qmp.execute("slow", None, None, Instant::now() + Duration::from_millis(20)).unwrap_err();
        assert!(failure.error.contains("in the time given"), "{failure:?}");
        monitor.write_all(b"{\"return\": \"late\", \"id\": 2}\n{\"return\": \"next\", \"id\": 3}\n").unwrap();
        assert_eq!(qmp.execute("next", None, None, soon()), Ok(json!("next")));
    }

    #[test]
    fn a_line_without_an_end_is_refused_and_events_are_forgotten_before_they_fill_the_memory() {
        let (mut qmp, _monitor) = said(&format!("{GREETING}\"{}", "x".repeat(2 * LINE_BYTES_MAX)));
        assert!(qmp.execute("one", None, None, soon()).unwrap_err().error.contains("more than 1 MiB"));
        assert!(qmp.inbox.capacity() == 0 && qmp.fd().is_none());
        let events = "{\"event\": \"RTC_CHANGE\"}\n".repeat(50_000);
        let (mut qmp, _monitor) = said(&format!("{GREETING}{events}{{\"return\": {{}}, \"id\": 2}}\n"));
        assert_eq!(qmp.execute("one", None, None, soon()), Ok(json!({})));
        assert_eq!(qmp.events.len(), EVENTS_MAX);
    }

    #[test]
    fn whatever_a_monitor_sends_is_an_answer_or_a_failure() {
        let pieces = [
            "{",
            "}",
            "[",
            "\"QMP\"",
            ":",
            "{}",
            ",",
            "\"event\"",
            "\"return\"",
            "\"error\"",
            "\"id\"",
            "2",
            "null",
            "\n",
            "\"a\"",
            "1e999",
            "\\",
            "\u{7f}",
            "{\"event\": \"A\"}",
            "{\"return\": {}, \"id\": 2}",
            "{\"error\": {\"class\": 1}}",
            "{\"error\": {\"class\": \"G\", \"desc\": \"d\"}}",
            "\u{0}",
        ];
        let mut state: u64 = std::env::var("MITOS_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_126);
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for round in 0..3_000 {
            let text: String = (0..random(12)).map(|_| pieces[random(pieces.len())]).collect();
            let (mut qmp, mut monitor) = pair();
            monitor.write_all(format!("{GREETING}{text}\n").as_bytes()).unwrap();
            monitor.shutdown(std::net::Shutdown::Both).unwrap();
            // It cannot be told anything, so what it says unasked is all there is to read.
            qmp.take_unasked();
            assert!(qmp.fd().is_none(), "round {round}: {text:?} left it waiting");
            let _ = parse(text.as_bytes());
        }
        assert!(parse(&b"[".repeat(500_000)).is_err());
    }
}

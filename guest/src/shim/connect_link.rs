//! The link of a machine whose VMM carries vsock: connected by the shim, whenever the machine is new or its VMM has reset its connections.
//!
//! Firecracker listens on a unix socket of its own and takes `CONNECT <port>\n`; it answers `OK <its port>\n` when a program of the guest has taken
//! the connection, and closes it while nobody listens. A guest that is still booting is therefore asked again.

use super::sys;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(10);
const TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// `OK 4294967295\n` and room for a VMM that says more.
const ANSWER_BYTES_MAX: usize = 64;

pub struct LinkConnector {
    path: PathBuf,
    address: UnixAddr,
    request: Vec<u8>,
    until: Instant,
    attempt: Attempt,
    /// Why the last attempt that has ended came to nothing.
    reason: Option<String>,
}

enum Attempt {
    Next(Instant),
    Asking { stream: UnixStream, sent: usize, answer: Vec<u8> },
}

pub enum Progress {
    Waiting,
    Connected(UnixStream),
    Failed(String),
}

impl LinkConnector {
    pub fn new(path: PathBuf, port: u32, timeout: Duration) -> Result<Self, String> {
        let address =
            UnixAddr::new(&path).map_err(|error| format!("connect_link: {}: {error}; give a path of 107 bytes at most", path.display()))?;
        let now = Instant::now();
        let request = format!("CONNECT {port}\n").into_bytes();
        let until = now + timeout.min(TIMEOUT_MAX);
        Ok(Self { path, address, request, until, attempt: Attempt::Next(now), reason: None })
    }

    /// What to wait for, beside the time.
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, bool, bool)> {
        match &self.attempt {
            Attempt::Next(_) => None,
            Attempt::Asking { stream, sent, .. } => Some((stream.as_fd(), true, *sent < self.request.len())),
        }
    }

    /// When `advance` is to be called at the latest.
    pub fn due(&self) -> Instant {
        match &self.attempt {
            Attempt::Next(at) => self.until.min(*at),
            Attempt::Asking { .. } => self.until,
        }
    }

    /// As far as it gets without waiting.
    pub fn advance(&mut self, now: Instant) -> Progress {
        if let Attempt::Next(at) = &self.attempt
            && *at <= now
            && now < self.until
        {
            match self.open() {
                Ok(stream) => self.attempt = Attempt::Asking { stream, sent: 0, answer: Vec::new() },
                Err(error) => self.again(now, error.to_string()),
            }
        }
        match self.ask() {
            Ok(false) => {}
            Ok(true) => {
                if let Attempt::Asking { stream, .. } = std::mem::replace(&mut self.attempt, Attempt::Next(now)) {
                    return Progress::Connected(stream);
                }
            }
            Err(reason) => self.again(now, reason),
        }
        if now < self.until { Progress::Waiting } else { Progress::Failed(self.failure()) }
    }

    /// Not `UnixStream::connect`: that waits for ever on a socket whose owner takes no connections.
    fn open(&self) -> io::Result<UnixStream> {
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
        connect(fd.as_raw_fd(), &self.address)?;
        Ok(fd.into())
    }

    /// True when the guest has taken the connection.
    fn ask(&mut self) -> Result<bool, String> {
        let Attempt::Asking { stream, sent, answer } = &mut self.attempt else { return Ok(false) };
        while *sent < self.request.len() {
            match sys::send(stream.as_fd(), &self.request[*sent..]) {
                Ok(count) => *sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(format!("ask for the port: {error}")),
            }
        }
        // Byte by byte: what follows the line is the machine's.
        let mut byte = [0];
        loop {
            match sys::read(stream.as_fd(), &mut byte) {
                Ok(0) => return Err("nobody in the guest listens".into()),
                Ok(_) if byte[0] == b'\n' => {
                    let line = String::from_utf8_lossy(answer).into_owned();
                    let taken = line.strip_prefix("OK ").is_some_and(|port| port.parse::<u32>().is_ok());
                    return if taken { Ok(true) } else { Err(format!("the VMM answered {line:?}")) };
                }
                Ok(_) if answer.len() < ANSWER_BYTES_MAX => answer.push(byte[0]),
                Ok(_) => return Err("the VMM's answer has no end".into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.raw_os_error() == Some(Errno::ECONNRESET as i32) => return Err("nobody in the guest listens".into()),
                Err(error) => return Err(format!("read the VMM's answer: {error}")),
            }
        }
    }

    fn again(&mut self, now: Instant, reason: String) {
        self.reason = Some(reason);
        self.attempt = Attempt::Next(now + PAUSE);
    }

    fn failure(&self) -> String {
        let reason = match (&self.reason, &self.attempt) {
            (Some(reason), _) => reason.as_str(),
            (None, Attempt::Asking { .. }) => "there was no answer",
            (None, Attempt::Next(_)) => "there was no time to try",
        };
        format!("connect_link: {}: {reason}; the last lines of machine.log say what became of the guest", self.path.display())
    }
}

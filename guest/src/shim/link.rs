//! The socket pair between shim and machine.

use super::connection::Connection;
use super::frames::{Fill, Inbox, Outbox};
use super::sys;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

pub struct Link {
    pub ours: UnixStream,
    /// Given to every command with `stdio: "link"`; kept, since a machine may be made by one command and restored by the next.
    pub machines: OwnedFd,
    inbox: Inbox,
    pub to_machine: Outbox,
    /// Why nothing passes any more.
    pub closed: Option<Closed>,
}

#[derive(Clone)]
pub struct Closed {
    pub error: String,
    /// The machine broke a rule. Otherwise it has shut its end, which gVisor does just before it ends.
    pub by_violation: bool,
}

impl Link {
    pub fn new() -> Result<Self, String> {
        let (ours, machines) = UnixStream::pair()
            .and_then(|(ours, machines)| ours.set_nonblocking(true).map(|()| (ours, machines)))
            .inspect(|(ours, machines)| [ours, machines].into_iter().for_each(sys::widen))
            .map_err(|error| format!("create the socket pair of the link: {error}; raise the limit of open files"))?;
        Ok(Self { ours, machines: machines.into(), inbox: Inbox::new(), to_machine: Outbox::default(), closed: None })
    }

    /// From now on this stream is the link, from its first frame. What had not reached the machine over the old one never will.
    pub fn replace(&mut self, stream: UnixStream) {
        self.ours = stream;
        self.inbox = Inbox::new();
        self.to_machine = Outbox::default();
        self.closed = None;
    }

    /// Nothing passes until it is replaced.
    pub fn disconnect(&mut self) {
        self.close(Closed { error: "it is being connected".into(), by_violation: false });
    }

    /// One read; whole frames go to `server`, or nowhere while there is none. True when the link was closed by it.
    pub fn receive(&mut self, server: Option<&mut Connection>) -> bool {
        let mut by_violation = true;
        let error = match self.inbox.fill(self.ours.as_fd()) {
            Ok(Fill::Some) => {
                let frames = self.inbox.next_of_link();
                if let Some(server) = server {
                    server.pass(frames);
                }
                match self.inbox.next() {
                    Ok(None) => return false,
                    Ok(Some(frame)) => format!("the machine sent {:?}", frame.header.kind),
                    Err(error) => format!("a frame of the machine is malformed: {error:?}"),
                }
            }
            Ok(Fill::Empty) => return false,
            ended => {
                by_violation = false;
                ended.err().map_or("the machine has shut its end".into(), |error| format!("read the link: {error}"))
            }
        };
        self.close(Closed { error, by_violation });
        true
    }

    /// Whole frames to the machine; nowhere while there is none.
    pub fn pass(&mut self, frames: &[u8]) {
        if self.closed.is_none() {
            self.to_machine.pass(frames, self.ours.as_fd());
        }
    }

    /// To the machine. True when the link was closed by it.
    pub fn flush(&mut self) -> bool {
        if self.closed.is_some() {
            // Nobody will ever read it.
            self.to_machine = Outbox::default();
            return false;
        }
        match self.to_machine.flush(self.ours.as_fd()) {
            Ok(()) => false,
            Err(error) => {
                self.close(Closed { error: format!("write the link: {error}"), by_violation: false });
                true
            }
        }
    }

    fn close(&mut self, closed: Closed) {
        let _ = self.ours.shutdown(std::net::Shutdown::Both);
        self.to_machine = Outbox::default();
        self.closed = Some(closed);
    }
}

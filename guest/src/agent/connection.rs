//! What lies behind the two descriptors of the link, where that can change under them: a machine whose link comes by vsock is connected to
//! anew after every save and restore, since neither keeps such connections. The newest connection is the link.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The vsock port on which the agent waits for its link; unset = stdin and stdout are it.
pub const PORT_VARIABLE: &str = "MITOS_LINK_VSOCK_PORT";
const BACKLOG: libc::c_int = 4;
/// After an accept that failed for a reason that may pass.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// Programs of the machine itself are not its host.
const HOST_CID: u32 = libc::VMADDR_CID_HOST;

/// The two descriptors of the link (they stay open for ever) and a count of what has been behind them.
pub struct Connection {
    ends: [RawFd; 2],
    /// Whether the descriptors are never given another file. The threads then wait in read(2) and write(2) alone, without a poll(2) before: a machine
    /// that goes on from a snapshot has so much less to do before it answers, and under gVisor every system call is dear.
    fixed: bool,
    /// An eventfd for each end. A poll(2) that sleeps while its descriptor gets another file is on the list of the old file's sleepers alone,
    /// and looks at the new one whenever it wakes: what then comes to the new file would not wake it.
    wakes: [OwnedFd; 2],
    count: Mutex<u64>,
    changed: Condvar,
}

impl Connection {
    /// Of the descriptors for reading and for writing.
    pub fn new(ends: [RawFd; 2], fixed: bool) -> io::Result<Arc<Connection>> {
        let wakes = [wake()?, wake()?];
        Ok(Arc::new(Connection { ends, fixed, wakes, count: Mutex::default(), changed: Condvar::new() }))
    }

    pub fn input(self: &Arc<Connection>) -> End {
        End { connection: self.clone(), index: 0, known: 0 }
    }

    pub fn output(self: &Arc<Connection>) -> End {
        End { connection: self.clone(), index: 1, known: 0 }
    }

    fn count(&self) -> MutexGuard<'_, u64> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `new` behind the descriptors, and ends what was there.
    fn replace(&self, new: &OwnedFd) -> io::Result<()> {
        let mut count = self.count();
        // SAFETY: duplicates descriptors: the ends are the link's for ever, the copy is ours alone.
        let old = unsafe {
            let old = libc::fcntl(self.ends[0], libc::F_DUPFD_CLOEXEC, 3);
            let old = (old >= 0).then(|| OwnedFd::from_raw_fd(old));
            for end in self.ends {
                if libc::dup2(new.as_raw_fd(), end) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            old
        };
        *count += 1;
        self.changed.notify_all();
        let once = 1u64;
        for wake in &self.wakes {
            // SAFETY: writes the eight bytes of a number to a descriptor that we own.
            unsafe { libc::write(wake.as_raw_fd(), (&raw const once).cast(), mem::size_of_val(&once)) };
        }
        if let Some(old) = old {
            // For the other end: nobody reads here any more.
            // SAFETY: acts on a descriptor that we own.
            unsafe { libc::shutdown(old.as_raw_fd(), libc::SHUT_RDWR) };
        }
        Ok(())
    }
}

/// One of the two descriptors, for the one thread that reads or writes it. What is done through it is of the connection that it knows.
pub struct End {
    connection: Arc<Connection>,
    index: usize,
    known: u64,
}

impl End {
    pub fn fd(&self) -> RawFd {
        self.connection.ends[self.index]
    }

    pub fn is_fixed(&self) -> bool {
        self.connection.fixed
    }

    /// Does it unless the connection is another than the known one, which then is set to the one that it is now. `act` must not wait, unless the
    /// connection is always the same.
    pub fn during<T>(&mut self, act: impl FnOnce(RawFd) -> T) -> Option<T> {
        if self.is_fixed() {
            return Some(act(self.fd()));
        }
        let count = self.connection.count();
        if *count != mem::replace(&mut self.known, *count) {
            let mut woken = 0u64;
            // SAFETY: reads eight bytes into a number of eight bytes, from a descriptor that never blocks.
            unsafe { libc::read(self.wake(), (&raw mut woken).cast(), mem::size_of_val(&woken)) };
            return None;
        }
        Some(act(self.fd()))
    }

    /// Waits until one of the events of poll(2) is there, which it returns, or the connection is another.
    pub fn wait(&self, events: i16) -> i16 {
        let mut polls = [(self.fd(), events), (self.wake(), libc::POLLIN)].map(|(fd, events)| libc::pollfd { fd, events, revents: 0 });
        // SAFETY: as many as there are. An interruption is answered by trying to read or write, which is harmless.
        unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, -1) };
        polls[0].revents
    }

    /// Waits for that time, or until the connection is another.
    pub fn pause(&self, time: Duration) {
        let connection = &self.connection;
        drop(connection.changed.wait_timeout_while(connection.count(), time, |count| *count == self.known));
    }

    fn wake(&self) -> RawFd {
        self.connection.wakes[self.index].as_raw_fd()
    }
}

fn wake() -> io::Result<OwnedFd> {
    // SAFETY: makes a descriptor that is ours alone.
    unsafe {
        let wake = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        if wake < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(wake)) }
    }
}

/// Listens on the port that the agent was told, if it was, and makes each connection of the host the link.
pub fn open(ends: [RawFd; 2]) -> io::Result<Arc<Connection>> {
    let port = std::env::var(PORT_VARIABLE).ok().and_then(|text| text.parse().ok());
    let connection = Connection::new(ends, port.is_none())?;
    if let Some(port) = port {
        accept_in_background(listen(port)?, connection.clone())?;
    }
    Ok(connection)
}

fn listen(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: makes a socket and binds it to an address of the size that is told.
    unsafe {
        let socket = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        let mut address: libc::sockaddr_vm = mem::zeroed();
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_port = port;
        address.svm_cid = libc::VMADDR_CID_ANY;
        if libc::bind(socket.as_raw_fd(), (&raw const address).cast(), mem::size_of_val(&address) as libc::socklen_t) < 0
            || libc::listen(socket.as_raw_fd(), BACKLOG) < 0
        {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }
}

fn accept_in_background(listener: OwnedFd, connection: Arc<Connection>) -> io::Result<()> {
    // Until the first connection there is one that says nothing.
    let (nobody, other) = std::os::unix::net::UnixStream::pair()?;
    connection.replace(&nobody.into())?;
    let accept_for_ever = move || {
        let _other = other;
        loop {
            match accept(&listener) {
                Ok(Some(new)) => {
                    if let Err(error) = connection.replace(&new) {
                        eprintln!("link: cannot take a connection: {error}");
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    eprintln!("link: cannot accept: {error}");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    };
    std::thread::Builder::new().name("link-accept".into()).stack_size(64 * 1024).spawn(accept_for_ever)?;
    Ok(())
}

/// None: it was not the host.
fn accept(listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    // SAFETY: the kernel writes at most `length` bytes of an address; what comes back is ours alone.
    unsafe {
        let mut address: libc::sockaddr_vm = mem::zeroed();
        let mut length = mem::size_of_val(&address) as libc::socklen_t;
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let new = libc::accept4(listener.as_raw_fd(), (&raw mut address).cast(), &mut length, flags);
        if new < 0 {
            return Err(io::Error::last_os_error());
        }
        let new = OwnedFd::from_raw_fd(new);
        let is_foreign = i32::from(address.svm_family) == libc::AF_VSOCK && address.svm_cid != HOST_CID;
        Ok((!is_foreign).then_some(new))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::super::link::{self, Outgoing, Received};
    use super::*;
    use crate::wire::{FrameType, HEADER_BYTES, Header};

    fn frame(channel: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Header { length: payload.len(), kind: FrameType::Data, more: false, channel }.encode().to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Of the next read that has brought one, which brings no other here.
    fn next_frame(received: &mut tokio::sync::mpsc::Receiver<Vec<Received>>) -> (u32, Vec<u8>) {
        loop {
            for event in received.blocking_recv().unwrap() {
                match event {
                    Received::Frame(header, payload) => return (header.channel, payload.to_vec()),
                    Received::Lost => {}
                    Received::Answered { .. } => unreachable!("nothing is answered here"),
                    Received::Broken(error) => panic!("{error:?}"),
                }
            }
        }
    }

    #[test]
    fn the_newest_connection_is_the_link_and_never_gets_the_rest_of_another_ones_frame() {
        let dir = std::env::temp_dir().join(format!("mitos-connection-{}", std::process::id()));
        let listener = UnixListener::bind(&dir).unwrap();
        // Two descriptors that stand for stdin and stdout, which tests need themselves.
        let ends = [0, 1].map(|_| {
            let (end, _) = UnixStream::pair().unwrap();
            std::os::fd::IntoRawFd::into_raw_fd(end)
        });
        let connection = Connection::new(ends, false).unwrap();
        accept_in_background(listener.into(), connection.clone()).unwrap();
        let (mut received, outgoing) = link::start(&connection, |_, _, _| None).unwrap();
        let room = outgoing.clone();
        let send = move |payload: Vec<u8>| {
            let frame = Outgoing { kind: FrameType::Data, more: false, channel: 1, payload: payload.into() };
            outgoing.blocking_send(frame).unwrap();
        };

        let mut first = UnixStream::connect(&dir).unwrap();
        first.write_all(&frame(2, b"first")).unwrap();
        assert_eq!(next_frame(&mut received), (2, b"first".to_vec()));
        // Half a frame each way: the first end reads a part, and no more than the socket holds is under way.
        let whole = frame(4, &[7; 60_000]);
        first.write_all(&whole[..30_000]).unwrap();
        for _ in 0..16 {
            send(vec![9; 60_000]);
            if room.capacity() == 0 {
                break;
            }
        }
        let mut part = vec![0; 100];
        first.read_exact(&mut part).unwrap();

        let mut second = UnixStream::connect(&dir).unwrap();
        second.write_all(&frame(6, b"second")).unwrap();
        assert_eq!(next_frame(&mut received), (6, b"second".to_vec()));
        // What waits to be written is more than the socket holds: somebody else waits for its turn.
        let last = std::thread::spawn(move || send(b"last".to_vec()));
        loop {
            let mut header = [0; HEADER_BYTES];
            second.read_exact(&mut header).unwrap();
            let header = Header::parse(&header).unwrap();
            let mut payload = vec![0; header.length];
            second.read_exact(&mut payload).unwrap();
            if payload == b"last" {
                break;
            }
            assert!(header.length == 60_000 && payload.iter().all(|byte| *byte == 9));
        }
        last.join().unwrap();
        std::fs::remove_file(&dir).unwrap();
    }

    #[test]
    fn a_thread_that_waits_in_a_read_of_a_fixed_link_holds_up_no_write() {
        let (ours, mut host) = UnixStream::pair().unwrap();
        let end = std::os::fd::IntoRawFd::into_raw_fd(ours);
        let connection = Connection::new([end, end], true).unwrap();
        let (mut received, outgoing) = link::start(&connection, |_, _, _| None).unwrap();
        // Until the thread reads nothing is proven: it has read one frame, and waits for the next.
        host.write_all(&frame(2, b"first")).unwrap();
        assert_eq!(next_frame(&mut received), (2, b"first".to_vec()));
        host.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        for turn in 0..3_u8 {
            let payload = vec![turn; 10];
            outgoing.blocking_send(Outgoing { kind: FrameType::Data, more: false, channel: 1, payload: payload.clone().into() }).unwrap();
            let mut written = [0; HEADER_BYTES + 10];
            host.read_exact(&mut written).unwrap();
            assert_eq!(written[HEADER_BYTES..], payload);
            host.write_all(&frame(4, &payload)).unwrap();
            assert_eq!(next_frame(&mut received), (4, payload));
        }
    }
}

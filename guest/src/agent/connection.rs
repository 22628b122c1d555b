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

/// Counts the connections. What is read or written while the count is known is of that connection alone.
#[derive(Default)]
pub struct Connection {
    count: Mutex<u64>,
    changed: Condvar,
}

impl Connection {
    fn count(&self) -> MutexGuard<'_, u64> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does it unless the connection is another than the `known` one, which then is set to the one that it is now. `act` must not wait.
    pub fn during<T>(&self, known: &mut u64, act: impl FnOnce() -> T) -> Option<T> {
        let count = self.count();
        if *count != mem::replace(known, *count) {
            return None;
        }
        Some(act())
    }

    /// Waits for that time, or until the connection is another.
    pub fn pause(&self, known: u64, time: Duration) {
        drop(self.changed.wait_timeout_while(self.count(), time, |count| *count == known));
    }

    /// Puts `new` behind the descriptors, and ends what was there.
    fn replace(&self, new: &OwnedFd, ends: [RawFd; 2]) -> io::Result<()> {
        let mut count = self.count();
        // SAFETY: duplicates descriptors: the ends are the link's for ever, the copy is ours alone.
        let old = unsafe {
            let old = libc::fcntl(ends[0], libc::F_DUPFD_CLOEXEC, 3);
            let old = (old >= 0).then(|| OwnedFd::from_raw_fd(old));
            for end in ends {
                if libc::dup2(new.as_raw_fd(), end) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            old
        };
        *count += 1;
        self.changed.notify_all();
        if let Some(old) = old {
            // Wakes whoever still waits for it.
            // SAFETY: acts on a descriptor that we own.
            unsafe { libc::shutdown(old.as_raw_fd(), libc::SHUT_RDWR) };
        }
        Ok(())
    }
}

/// Listens on the port that the agent was told, if it was, and makes each connection of the host the link.
pub fn open(ends: [RawFd; 2]) -> io::Result<Arc<Connection>> {
    let connection = Arc::new(Connection::default());
    if let Some(port) = std::env::var(PORT_VARIABLE).ok().and_then(|text| text.parse().ok()) {
        accept_in_background(listen(port)?, ends, connection.clone())?;
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

fn accept_in_background(listener: OwnedFd, ends: [RawFd; 2], connection: Arc<Connection>) -> io::Result<()> {
    // Until the first connection there is one that says nothing.
    let (nobody, other) = std::os::unix::net::UnixStream::pair()?;
    connection.replace(&nobody.into(), ends)?;
    let accept_for_ever = move || {
        let _other = other;
        loop {
            match accept(&listener) {
                Ok(Some(new)) => {
                    if let Err(error) = connection.replace(&new, ends) {
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

    fn next_frame(received: &mut tokio::sync::mpsc::Receiver<Received>) -> (u32, Vec<u8>) {
        loop {
            match received.blocking_recv().unwrap() {
                Received::Frame(header, payload) => return (header.channel, payload.to_vec()),
                Received::Lost => {}
                Received::Broken(error) => panic!("{error:?}"),
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
        let connection = Arc::new(Connection::default());
        accept_in_background(listener.into(), ends, connection.clone()).unwrap();
        let (mut received, outgoing) = link::start(ends[0], ends[1], connection).unwrap();
        let send = |payload: Vec<u8>| {
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
            if outgoing.capacity() == 0 {
                break;
            }
        }
        let mut part = vec![0; 100];
        first.read_exact(&mut part).unwrap();

        let mut second = UnixStream::connect(&dir).unwrap();
        second.write_all(&frame(6, b"second")).unwrap();
        assert_eq!(next_frame(&mut received), (6, b"second".to_vec()));
        send(b"last".to_vec());
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
        std::fs::remove_file(&dir).unwrap();
    }
}

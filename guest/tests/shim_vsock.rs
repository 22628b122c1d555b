//! The link of a machine whose VMM carries vsock, against a socket that answers as Firecracker's does.

mod shim_client;

use serde_json::json;
use shim_client::*;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

/// A VMM's vsock socket, as Firecracker makes it.
fn vsock(shim: &Shim, name: &str) -> UnixListener {
    UnixListener::bind(shim.dir.join(name)).unwrap()
}

/// The next connection, after its request.
fn vsock_request(listener: &UnixListener) -> (UnixStream, String) {
    let mut stream = listener.accept().unwrap().0;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    (stream, String::from_utf8(line).unwrap())
}

fn read_link_frame(stream: &mut UnixStream) -> Vec<u8> {
    let mut header = [0; 10];
    stream.read_exact(&mut header).unwrap();
    let mut payload = vec![0; u32::from_be_bytes(header[..4].try_into().unwrap()) as usize];
    stream.read_exact(&mut payload).unwrap();
    payload
}

#[test]
fn a_link_over_vsock_is_connected_when_the_guest_listens_and_again_when_it_was_reset() {
    let shim = Shim::start();
    let mut server = shim.connect();
    shim.machine(&mut server, "exec sleep 1000");
    let request = json!({"op":"connect_link","path":"vsock.sock","port":53,"timeout_ms":20_000});
    let channel = server.start_request(request.clone());
    assert_eq!(server.request(request.clone())["ok"], json!(false), "a second one at once");
    let listener = vsock(&shim, "vsock.sock");
    // The guest still boots: the VMM hangs up.
    let (refused, line) = vsock_request(&listener);
    assert_eq!(line, "CONNECT 53\n");
    drop(refused);
    let (mut first, _) = vsock_request(&listener);
    // What the guest says at once belongs to the link.
    first.write_all(&[b"OK 1073741824\n".to_vec(), frame(DATA, 7, b"early")].concat()).unwrap();
    assert_eq!(server.reply(channel), json!({"ok":true}));
    assert_eq!(server.next_data(), (7, b"early".to_vec()));
    server.send(&frame(DATA, 8, b"down"));
    assert_eq!(read_link_frame(&mut first), b"down");

    // Half a frame of the old link must not reach into the new one.
    first.write_all(&frame(DATA, 9, b"half")[..12]).unwrap();
    let channel = server.start_request(request);
    let (mut second, _) = vsock_request(&listener);
    assert_eq!(first.read(&mut [0]).unwrap(), 0, "the old link is closed");
    second.write_all(b"OK 1073741825\n").unwrap();
    assert_eq!(server.reply(channel), json!({"ok":true}));
    second.write_all(&frame(DATA, 10, b"up")).unwrap();
    assert_eq!(server.next_data(), (10, b"up".to_vec()));
    server.end();
}

#[test]
fn a_link_over_vsock_that_cannot_be_connected_is_an_error_with_the_reason() {
    let shim = Shim::start();
    let mut server = shim.connect();
    shim.machine(&mut server, "exec sleep 1000");
    let mut refused = |path: &str| {
        let reply = server.request(json!({"op":"connect_link","path":path,"port":53,"timeout_ms":300}));
        assert_eq!(reply["ok"], json!(false), "{reply}");
        reply["error"].as_str().unwrap().to_string()
    };
    assert!(refused(&"a".repeat(200)).contains("107 bytes"));
    assert!(refused("absent.sock").contains("No such file"));
    for (name, answer, reason) in [
        ("mute.sock", None, "no answer"),
        ("odd.sock", Some(b"HELLO\n".to_vec()), "\"HELLO\""),
        ("negative.sock", Some(b"OK -1\n".to_vec()), "\"OK -1\""),
        ("endless.sock", Some(vec![b'x'; 4096]), "no end"),
    ] {
        let listener = vsock(&shim, name);
        let vmm = std::thread::spawn(move || {
            listener.set_nonblocking(false).unwrap();
            let mut kept = Vec::new();
            // Until the shim gives up and its folder's socket is connected to by nobody but the test.
            loop {
                let (mut stream, _) = listener.accept().unwrap();
                let mut first = [0];
                if stream.read(&mut first).unwrap() == 0 {
                    return kept.len();
                }
                if let Some(answer) = &answer {
                    let _ = stream.write_all(answer);
                }
                kept.push(stream);
            }
        });
        let error = refused(name);
        assert!(error.contains(reason), "{name}: {error}");
        drop(UnixStream::connect(shim.dir.join(name)).unwrap());
        assert!(vmm.join().unwrap() > 0);
    }
    server.end();
}

#[test]
fn a_link_that_is_being_connected_ends_with_its_machine() {
    let shim = Shim::start();
    let mut server = shim.connect();
    let pid = shim.machine(&mut server, "exec sleep 1000");
    let channel = server.start_request(json!({"op":"connect_link","path":"absent.sock","port":53,"timeout_ms":600_000}));
    assert_eq!(server.request(json!({"op":"signal","signal":18})), json!({"ok":true}), "others are served meanwhile");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert!(server.reply(channel)["error"].as_str().unwrap().contains("ended"));
    assert_eq!(server.event()["reason"], "killed");
}

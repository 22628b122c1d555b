//! The console and the link, as stdio.

use std::fs::{self, OpenOptions};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

/// The name that the host gives the port.
const PORT_NAME: &str = "mitos.link";
/// Ports announce themselves after their driver is loaded.
const PORT_TIMEOUT: Duration = Duration::from_secs(20);
const PORT_PAUSE: Duration = Duration::from_millis(1);
/// Of the kernel: the link comes by vsock, to the port that is named. Without it, it is a virtio-serial port.
const VSOCK_PARAMETER: &str = "mitos.link=vsock:";

/// The vsock port on which the agent is to wait for its link, if it is.
pub fn vsock_port() -> Result<Option<u32>, String> {
    match super::parameter(VSOCK_PARAMETER)? {
        Some(port) => port.parse().map(Some).map_err(|_| format!("{VSOCK_PARAMETER}{port} names no port")),
        None => Ok(None),
    }
}

pub fn open_console() -> Result<(), String> {
    let console = OpenOptions::new().write(true).open("/dev/console").map_err(|error| format!("open the console: {error}"))?;
    dup2_stderr(console.as_fd()).map_err(|error| format!("keep the console: {error}"))
}

/// The virtio-serial port. It is there as long as the machine, whoever has its other end.
pub fn open_port() -> Result<(), String> {
    let until = Instant::now() + PORT_TIMEOUT;
    let port = loop {
        if let Some(port) = find_port() {
            break port;
        }
        if Instant::now() >= until {
            return Err(format!("there is no port named {PORT_NAME}"));
        }
        std::thread::sleep(PORT_PAUSE);
    };
    let link = OpenOptions::new().read(true).write(true).open(&port).map_err(|error| format!("open {}: {error}", port.display()))?;
    dup2_stdin(link.as_fd()).and_then(|()| dup2_stdout(link.as_fd())).map_err(|error| format!("keep the link: {error}"))
}

fn find_port() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let port = ports.flatten().find(|port| fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim_end() == PORT_NAME))?;
    Some(PathBuf::from("/dev").join(port.file_name()))
}

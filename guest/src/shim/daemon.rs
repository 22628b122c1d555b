//! Leaving the server behind: user namespace, double fork, own session, sockets that listen before anybody is told.

use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, dup, dup2_stderr, dup2_stdin, dup2_stdout, fork, getgid, getuid, setsid};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// What the shim keeps open in its folder.
pub struct Files {
    pub link_socket: UnixListener,
    pub control_socket: UnixListener,
    log: File,
    /// Locked as long as the shim lives, so a second shim for this folder is refused and "is it alive" has an exact answer.
    pid: Flock<File>,
}

impl Files {
    /// Also makes `dir` the working directory: a socket path may have 107 bytes only, and a relative one always fits.
    pub fn open(dir: &Path) -> Result<Self, String> {
        std::env::set_current_dir(dir)
            .map_err(|error| format!("enter {}: {error}; make the folder before the shim is started", dir.display()))?;
        let old_umask = umask(Mode::from_bits_truncate(0o077));
        let files = Self::open_here(dir);
        umask(old_umask);
        files
    }

    fn open_here(dir: &Path) -> Result<Self, String> {
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what} in {}: {error}; is the folder writable?", dir.display());
        let open = |name: &str, append: bool| {
            let mut options = OpenOptions::new();
            options.create(true).mode(0o600);
            if append {
                options.append(true)
            } else {
                options.write(true).truncate(false)
            };
            options.open(name).map_err(|error| failed(&format!("open {name}"), &error))
        };
        let log = open("shim.log", true)?;
        let pid = Flock::lock(open("shim.pid", false)?, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| format!("lock {}/shim.pid: {error}; another shim runs in this folder, end it first", dir.display()))?;
        let listen = |name: &str| {
            match fs::remove_file(name) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(&format!("replace {name}"), &error)),
                _ => {}
            }
            let socket = UnixListener::bind(name).map_err(|error| failed(&format!("listen on {name}"), &error))?;
            socket.set_nonblocking(true).map_err(|error| failed(&format!("listen on {name}"), &error))?;
            Ok(socket)
        };
        Ok(Self { link_socket: listen("shim.sock")?, control_socket: listen("control.sock")?, log, pid })
    }
}

/// Root inside, the caller outside. Privilege held afterwards: that of root in the new namespace only.
/// Must come before the first thread and before the fork: `unshare` of a user namespace is refused to a process with threads.
pub fn enter_user_namespace() -> Result<(), String> {
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| {
        format!(
            "create a user namespace: {error}; allow them (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces>0, \
                 kernel.apparmor_restrict_unprivileged_userns=0) or start the server as root"
        )
    })?;
    // The kernel wants setgroups denied before an unprivileged gid_map.
    for (file, content) in [("setgroups", "deny".to_string()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))] {
        fs::write(format!("/proc/self/{file}"), &content)
            .map_err(|error| format!("write {content:?} to /proc/self/{file}: {error}; start the server as root instead"))?;
    }
    Ok(())
}

pub enum Role {
    /// The process that was started: it exits at once.
    Launcher,
    Shim {
        files: Files,
        ready: Ready,
    },
}

/// The stdout of the process that was started, kept until the sockets are served.
pub struct Ready(OwnedFd);

impl Ready {
    /// Nobody may be listening any more; the shim then ends for want of a connection.
    pub fn tell(self) {
        let _ = File::from(self.0).write_all(b"ready\n");
    }
}

pub fn detach(files: Files) -> Result<Role, String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}; are processes or memory exhausted?");
    // SAFETY: no thread exists yet, so the child may do anything.
    if let ForkResult::Parent { child } = unsafe { fork() }.map_err(|error| failed("fork the shim", &error))? {
        let _ = waitpid(child, None);
        // Dropping the lock would release it for the shim too, which shares it.
        std::mem::forget(files);
        return Ok(Role::Launcher);
    }
    setsid().map_err(|error| failed("start a session", &error))?;
    // The second fork: no session leader, so no terminal can become ours, and init (or the subreaper above) is the parent.
    // SAFETY: as above.
    if let ForkResult::Parent { .. } = unsafe { fork() }.map_err(|error| failed("fork the shim", &error))? {
        std::process::exit(0);
    }
    let ready = Ready(dup(std::io::stdout()).map_err(|error| failed("keep stdout", &error))?);
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(|error| failed("open /dev/null", &error))?;
    dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).and_then(|()| dup2_stderr(&files.log)).map_err(|e| failed("redirect stdio", &e))?;
    let mut pid: &File = &files.pid;
    pid.set_len(0).and_then(|()| writeln!(pid, "{}", std::process::id())).map_err(|error| failed("write shim.pid", &error))?;
    Ok(Role::Shim { files, ready })
}

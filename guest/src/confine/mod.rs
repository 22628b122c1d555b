//! Starts a virtual machine monitor with as little as it needs, and ends (docs/shim.md § confine).
//!
//! ```text
//! launcher: check SPEC ─ open files ─ join cgroups ─ user and pid namespace ─ fork ─ wait for the exec ─ write the pid ─ exit 0
//!                                                                              └─ other namespaces ─ root ─ descriptors ─ privileges ─ exec
//! ```
//!
//! Two processes, since only a child is in a new pid namespace. It is the child of this one, which ends at once: then it is the shim's.

mod descriptors;
mod privileges;
mod root;
mod spec;

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::{ForkResult, Pid, execve, fork, setsid};
use spec::Spec;
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{self, PipeWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;

/// The reason that the child gives; a bound, since it is hostile once it has executed the monitor.
const REASON_BYTES_MAX: u64 = 4 << 10;

pub fn main(arguments: &[String]) -> ExitCode {
    let [text] = arguments else {
        eprintln!("mitos-guest confine: give one argument, the specification as JSON (docs/shim.md)");
        return ExitCode::from(2);
    };
    match Spec::parse(text).and_then(|spec| launch(&spec)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("mitos-guest confine: {message}");
            ExitCode::FAILURE
        }
    }
}

fn launch(spec: &Spec) -> Result<(), String> {
    let mut pid_file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&spec.pid_file)
        .map_err(|error| format!("create {}: {error}; is its folder there and writable?", spec.pid_file.display()))?;
    let files = descriptors::Files::open(&spec.files)?;
    root::join_cgroups(&spec.cgroups)?;
    if spec.root.is_some() {
        root::enter_outer_namespaces()?;
    }
    let (mut reasons, reason) = io::pipe().map_err(|error| format!("create a pipe: {error}; raise the limit of open files"))?;
    // SAFETY: this process has no second thread, so the child may do anything.
    let child = match unsafe { fork() }.map_err(|error| format!("fork: {error}; are processes or memory exhausted?"))? {
        ForkResult::Child => {
            drop((reasons, pid_file));
            become_monitor(spec, files, reason)
        }
        ForkResult::Parent { child } => child,
    };
    drop(reason);
    let started = wait_for_exec(&mut reasons).and_then(|()| {
        writeln!(pid_file, "{child}").map_err(|error| format!("write {}: {error}; is the disk full?", spec.pid_file.display()))
    });
    started.inspect_err(|_| end(child, spec))
}

/// The pipe is closed without a word by the exec.
fn wait_for_exec(reasons: &mut impl Read) -> Result<(), String> {
    let mut text = String::new();
    match reasons.take(REASON_BYTES_MAX).read_to_string(&mut text) {
        Ok(0) => Ok(()),
        Ok(_) => Err(text),
        Err(error) => Err(format!("wait for the program to start: {error}")),
    }
}

fn end(child: Pid, spec: &Spec) {
    let _ = kill(child, Signal::SIGKILL);
    let _ = std::fs::remove_file(&spec.pid_file);
}

fn become_monitor(spec: &Spec, files: descriptors::Files, mut reason: PipeWriter) -> ! {
    let Err(message) = confine_and_exec(spec, files, &mut reason);
    let _ = reason.write_all(message.as_bytes());
    // SAFETY: ends this process without running what its parent has registered for its own end.
    unsafe { libc::_exit(1) }
}

/// Held at first: all that the launcher has. Each step takes something away, so their order matters: mounts need the capabilities that
/// `privileges` drops, and `descriptors` uses the host's /dev/null, which is gone after `root`.
fn confine_and_exec(spec: &Spec, files: descriptors::Files, reason: &mut PipeWriter) -> Result<Infallible, String> {
    let null: File = descriptors::open_null()?;
    if let Some(root) = &spec.root {
        root::enter(root, &spec.devices)?;
    }
    descriptors::arrange(files, null, reason)?;
    // Rust ignores it, and an ignored signal stays ignored across exec.
    // SAFETY: the default action runs no code of ours.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.map_err(|error| format!("reset SIGPIPE: {error}"))?;
    // Until here it is in the process group of the launcher, so that a time-out of the launcher reaches it.
    setsid().map_err(|error| format!("start a session: {error}"))?;
    privileges::drop_all(spec.uid, spec.gid)?;
    let failed =
        |error: nix::Error| format!("execute {}: {error}; it must be an executable file, in `root` if that is given", spec.argv[0]);
    execve(&spec.program(), &spec.arguments(), &spec.environment()).map_err(failed)
}

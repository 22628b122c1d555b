//! The shim: one small host process per machine, which owns its life and outlives the server (docs/shim.md).
//!
//! One thread and one `poll` loop, and a second thread for the monitor of a virtual machine. `daemon` leaves the server behind, `keeper` is the
//! loop and the life cycle, the others are its parts.

mod cgroup;
mod command;
mod connect_link;
mod connection;
mod daemon;
mod exit;
mod frames;
mod keeper;
mod link;
mod log;
mod machine;
mod meter;
mod protocol;
mod sys;
mod vmm;

use std::path::PathBuf;
use std::process::ExitCode;

struct Options {
    dir: PathBuf,
    user_namespace: bool,
}

pub fn main(arguments: &[String]) -> ExitCode {
    let options = match parse(arguments) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("mitos-guest shim: {message}; usage: mitos-guest shim --dir DIR [--user-namespace]");
            return ExitCode::from(2);
        }
    };
    match start(&options) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("mitos-guest shim: {message}");
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: &[String]) -> Result<Options, String> {
    let mut dir = None;
    let mut user_namespace = false;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--dir" => dir = Some(PathBuf::from(rest.next().ok_or("--dir needs a folder")?)),
            "--user-namespace" => user_namespace = true,
            other => return Err(format!("unknown argument {other:?}")),
        }
    }
    Ok(Options { dir: dir.ok_or("--dir is missing")?, user_namespace })
}

/// Everything that can fail for a reason the caller can change is done before the fork, so that it ends in an exit code and a message.
fn start(options: &Options) -> Result<ExitCode, String> {
    sys::close_inherited();
    if options.user_namespace {
        daemon::enter_user_namespace()?;
    }
    let files = daemon::Files::open(&options.dir)?;
    match daemon::detach(files)? {
        daemon::Role::Launcher => Ok(ExitCode::SUCCESS),
        daemon::Role::Shim { files, ready } => {
            let keeper = keeper::Keeper::new(files)?;
            ready.tell();
            Ok(keeper.run())
        }
    }
}

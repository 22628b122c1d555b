//! The agent: PID 1 of a sandbox. It reads the link on stdin and writes it on stdout (docs/link.md).

pub mod archive;
pub mod call;
pub mod dispatch;
pub mod files;
pub mod identity;
pub mod kernel;
pub mod paths;
pub mod process;
pub mod proctable;
pub mod reaper;
pub mod spawn;
pub mod tunnel;
pub mod user;
pub mod vitals;
pub mod watch;

use std::process::ExitCode;

pub fn main() -> ExitCode {
    ExitCode::FAILURE
}

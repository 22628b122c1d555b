//! The agent: PID 1 of a sandbox. It reads the link on stdin and writes it on stdout (docs/link.md).

pub mod call;

use std::process::ExitCode;

pub fn main() -> ExitCode {
    ExitCode::FAILURE
}

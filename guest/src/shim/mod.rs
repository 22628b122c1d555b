//! The shim: one small host process per machine, which owns its life and outlives the server (docs/shim.md).

use std::process::ExitCode;

pub fn main(_arguments: &[String]) -> ExitCode {
    ExitCode::FAILURE
}

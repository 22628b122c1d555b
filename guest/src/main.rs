//! One binary, four roles: the agent (PID 1 of every sandbox), the shim (its keeper on the host), the launcher of a virtual machine's monitor,
//! and the first program of a virtual machine, which becomes the agent.

mod agent;
mod boot;
mod changes_list;
mod confine;
mod proto;
mod shim;
mod wire;

use std::process::ExitCode;

const USAGE: &str = "usage: mitos-guest agent | mitos-guest boot | mitos-guest confine SPEC | mitos-guest shim --dir DIR [--user-namespace] | mitos-guest version";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("agent") => agent::main(),
        Some("boot") => boot::main(),
        Some("confine") => confine::main(&arguments[1..]),
        Some("shim") => shim::main(&arguments[1..]),
        Some("version") => {
            println!("mitos-guest {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

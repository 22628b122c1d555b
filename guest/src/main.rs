//! One binary, several roles: the agent (PID 1 of every sandbox), the shim (its keeper on the host), the launcher of a virtual machine's monitor,
//! the first program of a virtual machine, which becomes the agent, and the probe that times KVM.

mod agent;
mod boot;
mod capabilities;
mod changes_list;
mod confine;
mod kvm_probe;
mod proto;
mod shim;
mod wire;

use std::process::ExitCode;

const USAGE: &str = "usage: mitos-guest agent | boot | confine SPEC | shim --dir DIR [--user-namespace] | kvm-probe | version";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("agent") => agent::main(),
        Some("boot") => boot::main(),
        Some("confine") => confine::main(&arguments[1..]),
        Some("shim") => shim::main(&arguments[1..]),
        Some("kvm-probe") => kvm_probe::main(),
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

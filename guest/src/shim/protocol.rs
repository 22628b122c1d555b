//! The JSON between server and shim.

use super::exit::Exit;
use super::vmm::{Outcome, Step};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Run {
        argv: Vec<String>,
        /// The whole environment of the command; absent = that of the shim.
        env: Option<BTreeMap<String, String>>,
        stdio: Option<Stdio>,
        timeout_ms: u64,
    },
    Watch {
        pid: Option<i32>,
        pid_file: Option<PathBuf>,
        cgroup_memory: Option<PathBuf>,
        cgroup_pids: Option<PathBuf>,
    },
    OnEnd {
        commands: Vec<Vec<String>>,
    },
    Signal {
        signal: Signal,
        #[serde(default)]
        descendants: bool,
    },
    /// SIGSTOP to the machine and all its descendants, if none of their threads runs just now.
    Freeze {},
    Deadline {
        unix_ms: Option<u64>,
        #[serde(default = "deadline_reason")]
        reason: String,
    },
    MemoryLimit {
        /// Null = no limit any more.
        bytes: Option<u64>,
        #[serde(default = "memory_interval_ms")]
        interval_ms: u64,
    },
    Meter {
        /// Also what it shares, which takes longer.
        #[serde(default)]
        shared: bool,
    },
    ConnectLink {
        /// Of the socket on which the VMM takes connections to the guest's vsock ports; relative to the shim's folder.
        path: PathBuf,
        port: u32,
        timeout_ms: u64,
    },
    Vmm {
        steps: Vec<Step>,
        timeout_ms: u64,
    },
    End {
        reason: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdio {
    Null,
    /// The link for both.
    Link,
    /// Stdin is the link, stdout the monitor.
    Vmm,
}

/// `"SIGSTOP"` or its number.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Signal {
    Name(String),
    Number(i32),
}

impl Signal {
    pub fn known(&self) -> Result<nix::sys::signal::Signal, String> {
        let signal = match self {
            Self::Name(name) => name.parse::<nix::sys::signal::Signal>(),
            Self::Number(number) => nix::sys::signal::Signal::try_from(*number),
        };
        signal.map_err(|_| format!("signal {self:?} is unknown; give a number from 1 to 31 or a name like \"SIGSTOP\""))
    }
}

fn deadline_reason() -> String {
    "deadline".into()
}

fn memory_interval_ms() -> u64 {
    1000
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Reply {
    Done {
        ok: bool,
    },
    Failed {
        ok: bool,
        error: String,
    },
    Ran {
        ok: bool,
        exit_code: Option<i32>,
        signal: Option<i32>,
        stdout: String,
        stderr: String,
        timed_out: bool,
    },
    Watching {
        ok: bool,
        pid: i32,
    },
    Frozen {
        ok: bool,
        /// False: something ran, and nothing was stopped.
        frozen: bool,
    },
    Metered {
        ok: bool,
        memory_bytes: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        shared_bytes: Option<u64>,
        cpu_ms: u64,
    },
    Stepped(Outcome),
}

impl Reply {
    pub fn done() -> Self {
        Self::Done { ok: true }
    }

    pub fn failed(error: impl Into<String>) -> Self {
        Self::Failed { ok: false, error: error.into() }
    }
}

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Exit {
        #[serde(flatten)]
        exit: Exit,
    },
    /// The machine broke a rule of the link; it runs on, but nothing passes any more.
    LinkClosed { error: String },
}

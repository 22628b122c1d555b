//! Whether KVM is worth using: that its device opens and makes machines proves nothing, since some hosts answer it by emulating every
//! instruction (docs/microvm.md). So a small loop is run in a machine, and timed.
//!
//! Prints one line of JSON: `{"usable", "micros", "why", "detail"}`. A child does the work, so that a KVM that never answers cannot hold us up.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, fork};
use serde::{Deserialize, Serialize};

mod machine;

/// Hardware needs some tens of microseconds, nested hardware some more; emulation needs about half a microsecond for each instruction.
const MICROS_MAX: u64 = 5_000;
/// In which all of it must be done, in milliseconds.
const ANSWER_MS_MAX: u16 = 2_000;
const ANSWER_BYTES_MAX: u64 = 4 << 10;

/// Why KVM is of no use here, for programs to tell apart.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Why {
    /// There is no device.
    Absent,
    /// It is not for this user.
    Denied,
    /// It runs programs as an emulator would.
    Slow,
    /// It refuses or never answers.
    Failed,
    /// Machines of this processor cannot be run by us.
    Processor,
}

#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Answer {
    usable: bool,
    /// What the loop took, if it ran.
    micros: Option<u64>,
    /// Null when it is usable.
    why: Option<Why>,
    detail: String,
}

struct Failure {
    why: Why,
    detail: String,
}

pub fn main() -> ExitCode {
    let answer = in_child(probe, ANSWER_MS_MAX).unwrap_or_else(|detail| no(Why::Failed, None, detail));
    println!("{}", serde_json::to_string(&answer).expect("an answer is plain data"));
    ExitCode::SUCCESS
}

fn probe() -> Answer {
    match machine::time_loop() {
        Ok(micros) => judge(micros),
        Err(Failure { why, detail }) => no(why, None, detail),
    }
}

fn judge(micros: u64) -> Answer {
    let ran = format!("{} rounds of a loop took {micros} µs in a machine of KVM", machine::ROUNDS);
    if micros <= MICROS_MAX {
        return Answer { usable: true, micros: Some(micros), why: None, detail: ran };
    }
    no(Why::Slow, Some(micros), format!("{ran}, where hardware needs less than {MICROS_MAX}: this KVM is emulated"))
}

fn no(why: Why, micros: Option<u64>, detail: String) -> Answer {
    Answer { usable: false, micros, why: Some(why), detail }
}

/// What `work` answers, or why it did not. A child that cannot even be killed is left behind: it ends when its system call does.
fn in_child(work: fn() -> Answer, answer_ms_max: u16) -> Result<Answer, String> {
    let (mut reading, mut writing) = std::io::pipe().map_err(|error| format!("make a pipe: {error}"))?;
    // SAFETY: this process has one thread.
    let child = match unsafe { fork() }.map_err(|error| format!("start a process: {error}"))? {
        ForkResult::Child => {
            drop(reading);
            let text = serde_json::to_vec(&work()).expect("an answer is plain data");
            let written = writing.write_all(&text).is_ok();
            // SAFETY: ends the process without running what its parent has registered.
            unsafe { libc::_exit(i32::from(!written)) }
        }
        ForkResult::Parent { child } => child,
    };
    drop(writing);
    let answered = poll(&mut [PollFd::new(reading.as_fd(), PollFlags::POLLIN)], PollTimeout::from(answer_ms_max));
    let mut text = Vec::new();
    let result = match answered {
        Ok(0) => Err(format!("KVM has not run a loop in {answer_ms_max} ms")),
        Ok(_) => reading.by_ref().take(ANSWER_BYTES_MAX).read_to_end(&mut text).map(|_| ()).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let _ = kill(child, Signal::SIGKILL);
    // Only looked at: it may be stuck in KVM.
    let _ = waitpid(child, Some(WaitPidFlag::WNOHANG));
    result?;
    serde_json::from_slice(&text).map_err(|_| "the process that tried KVM ended without an answer".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kvm_that_takes_as_long_as_an_emulator_is_of_no_use() {
        assert!(judge(40).usable && judge(MICROS_MAX).usable);
        let slow = judge(MICROS_MAX + 1);
        assert_eq!((slow.usable, slow.why, slow.micros), (false, Some(Why::Slow), Some(MICROS_MAX + 1)));
        assert!(slow.detail.ends_with("this KVM is emulated"), "{}", slow.detail);
    }

    #[test]
    fn a_child_that_never_answers_or_dies_is_a_failure_that_says_so() {
        let forever = || -> Answer {
            loop {
                std::thread::park();
            }
        };
        assert_eq!(in_child(forever, 10), Err("KVM has not run a loop in 10 ms".to_owned()));
        // SAFETY: it ends the child alone.
        let dead = in_child(|| unsafe { libc::_exit(7) }, ANSWER_MS_MAX);
        assert_eq!(dead, Err("the process that tried KVM ended without an answer".to_owned()));
    }
}

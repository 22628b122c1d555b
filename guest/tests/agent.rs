//! The agent as a program: a host's end of the link on one side, real little programs on the other.

#[allow(dead_code)]
mod link_client;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use link_client::proto::guest::v1 as pb;
use link_client::proto::guest::v1::exec_input::Msg as Input;
use link_client::proto::sandbox::v1 as sandbox;
use link_client::wire::FrameType;
use link_client::{Host, Outcome, adopt, attach, shell, spawn_agent};
use prost::Message;

/// An agent with a folder for its root and a session on its link. Dropping it ends everything and checks that nothing is left.
struct Agent {
    root: PathBuf,
    process: Child,
    host: Host,
}

impl Agent {
    fn start() -> Self {
        let mut agent = Self::without_session();
        agent.host.hello("test");
        agent
    }

    fn without_session() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = std::env::temp_dir().join(format!("mitos-agent-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(&root).unwrap();
        let (process, host) = spawn_agent(&root, &[]);
        Self { root, process, host: Host::new(host) }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.root.join("log")).unwrap()
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    fn memory_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    }

    /// One request on $MITOS_SOCKET.
    fn socket(&self) -> UnixStream {
        let path = self.root.join("run/mitos.sock");
        let stream = wait_for("the socket", || UnixStream::connect(&path).ok());
        stream.set_read_timeout(Some(link_client::PATIENCE)).unwrap();
        stream
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Processes of the sandbox are in sessions of their own; the machine's end would end them.
        if !std::thread::panicking() {
            let list: pb::ListProcessesReply = {
                self.host.hello("teardown");
                self.host.unary("ListProcesses", &pb::ListProcessesRequest {}).unwrap()
            };
            for row in list.processes.iter().filter(|row| row.state == "running") {
                let signal = pb::SignalProcessRequest { pid: row.pid, signal: libc::SIGKILL, group: true };
                let _ = self.host.unary::<pb::Empty>("SignalProcess", &signal);
            }
        } else {
            eprintln!("{}", self.log());
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn wait_for<R>(what: &str, mut ready: impl FnMut() -> Option<R>) -> R {
    let deadline = Instant::now() + link_client::PATIENCE;
    loop {
        if let Some(result) = ready() {
            return result;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn seq(count: usize) -> String {
    (1..=count).map(|number| format!("{number}\n")).collect()
}

fn argv(argv: &[&str]) -> pb::ProcessStart {
    pb::ProcessStart { argv: argv.iter().map(|text| (*text).into()).collect(), ..Default::default() }
}

fn variable(key: &str, value: &str) -> sandbox::EnvVar {
    sandbox::EnvVar { key: key.into(), value: value.into() }
}

fn terminal(command: &str) -> pb::ProcessStart {
    let size = sandbox::WindowSize { cols: 80, rows: 24 };
    pb::ProcessStart { pty: Some(sandbox::PtyOptions { term: String::new(), size: Some(size) }), timeout_ms: 10_000, ..shell(command) }
}

// ---------------------------------------------------------------- exec

#[test]
fn exec_separates_output_and_reports_the_exit_code() {
    let mut agent = Agent::start();
    let outcome = agent.host.exec(pb::ProcessStart { cwd: "/tmp".into(), ..shell("printf hello; printf err >&2; exit 42") });
    assert_eq!((outcome.text().as_str(), &outcome.stderr[..], outcome.code()), ("hello", &b"err"[..], 42));
    let exit = outcome.exit.unwrap();
    assert_eq!((exit.stdout_bytes, exit.stderr_bytes, exit.signal, exit.timed_out), (5, 3, 0, false));
    assert!(exit.exec_time_ms > 0.0);
}

#[test]
fn argv_runs_without_a_shell_and_is_found_on_the_path() {
    let mut agent = Agent::start();
    assert_eq!(agent.host.exec(argv(&["printf", "%s|", "$HOME", "a b"])).text(), "$HOME|a b|");
    assert_eq!(agent.host.exec(argv(&["/usr/bin/printf", "x"])).text(), "x");
}

#[test]
fn the_working_directory_is_the_workspace_and_the_environment_has_its_order() {
    let mut agent = Agent::start();
    assert_eq!(agent.host.shell("pwd").text(), format!("{}\n", agent.root.join("workspace").display()));
    let env = [("A", "configured"), ("B", "configured"), ("C", "configured")].map(|(key, value)| (key.into(), value.into())).into();
    let secrets = [("B", "secret"), ("C", "secret")].map(|(key, value)| (key.into(), value.into())).into();
    assert_eq!(agent.host.adopt(&pb::Adopt { env, secrets, ..adopt(1) }).error, "");
    let print = pb::ProcessStart { env: vec![variable("C", "request")], ..shell("echo $A $B $C") };
    assert_eq!(agent.host.exec(print.clone()).text(), "configured secret request\n");
    agent.host.adopt(&pb::Adopt { forget_secrets: true, ..adopt(2) });
    assert_eq!(agent.host.exec(print).text(), "configured configured request\n");
}

#[test]
fn a_program_that_cannot_be_started_is_a_result_with_an_error() {
    let mut agent = Agent::start();
    for (start, says) in [
        (argv(&["no-such-program"]), "no-such-program"),
        (argv(&["/"]), "Permission denied"),
        (pb::ProcessStart { cwd: "/no/such/folder".into(), ..shell("true") }, "/no/such/folder"),
        (pb::ProcessStart { env: vec![variable("A=B", "")], ..shell("true") }, "A=B"),
        (pb::ProcessStart { env: vec![variable("A", "x\0y")], ..shell("true") }, "NUL"),
    ] {
        let outcome = agent.host.exec(start);
        let exit = outcome.exit.unwrap();
        assert_eq!(exit.exit_code, 1);
        assert!(exit.error.contains(says), "{}", exit.error);
    }
    assert_eq!(agent.host.shell("echo fine").text(), "fine\n");
}

#[test]
fn a_malformed_start_is_invalid_argument() {
    let mut agent = Agent::start();
    for first in [
        pb::ExecInput { msg: Some(Input::Stdin("x".into())) },
        pb::ExecInput { msg: None },
        pb::ExecInput { msg: Some(Input::Start(pb::ProcessStart::default())) },
        pb::ExecInput { msg: Some(Input::Start(pb::ProcessStart { shell_command: "true".into(), ..argv(&["true"]) })) },
    ] {
        assert_eq!(agent.host.unary::<pb::ExecOutput>("Exec", &first).unwrap_err().code, "invalid_argument");
    }
    assert_eq!(agent.host.unary::<pb::Empty>("NoSuchMethod", &pb::Empty {}).unwrap_err().code, "unimplemented");
}

#[test]
fn a_timeout_kills_the_whole_group_and_is_exit_124() {
    let mut agent = Agent::start();
    let start = Instant::now();
    let outcome = agent.host.exec(pb::ProcessStart { timeout_ms: 300, ..shell("echo before; sleep 1000 & echo $!; sleep 1000") });
    assert!(start.elapsed() < Duration::from_secs(5));
    let exit = outcome.exit.clone().unwrap();
    assert_eq!((exit.exit_code, exit.timed_out), (124, true));
    let text = outcome.text();
    let background = text.lines().nth(1).unwrap().parse().unwrap();
    wait_for("the background process to end", || (!alive(background)).then_some(()));
}

#[test]
fn a_background_child_that_holds_the_pipe_keeps_the_exec_open_until_the_deadline() {
    let mut agent = Agent::start();
    let outcome = agent.host.exec(pb::ProcessStart { timeout_ms: 400, ..shell("sleep 1000 &") });
    assert_eq!(outcome.code(), 124);
    // One that left the group cannot be killed with it; the exec ends after the grace all the same.
    let start = Instant::now();
    let outcome = agent.host.exec(pb::ProcessStart { timeout_ms: 200, ..shell("setsid sleep 3 & echo $!") });
    assert_eq!(outcome.code(), 124);
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn an_end_by_signal_is_exit_minus_one_with_the_signal() {
    let mut agent = Agent::start();
    let exit = agent.host.shell("kill -TERM $$").exit.unwrap();
    assert_eq!((exit.exit_code, exit.signal), (-1, 15));
}

#[test]
fn stdin_is_null_unless_asked_for_and_ends_with_the_callers_half() {
    let mut agent = Agent::start();
    assert_eq!(agent.host.shell("cat; echo end").text(), "end\n");
    let channel = agent.host.start(pb::ProcessStart { stdin: true, ..shell("cat; echo end") });
    agent.host.input(channel, Input::Stdin("one ".into()));
    agent.host.input(channel, Input::Stdin("two\n".into()));
    agent.host.end(channel);
    assert_eq!(agent.host.finish(channel).text(), "one two\nend\n");
    let channel = agent.host.start(pb::ProcessStart { stdin: true, ..shell("cat; echo end") });
    agent.host.input(channel, Input::Stdin("x".into()));
    agent.host.input(channel, Input::StdinClose(true));
    assert_eq!(agent.host.finish(channel).text(), "xend\n");
}

#[test]
fn stdin_of_a_megabyte_comes_back_whole() {
    let mut agent = Agent::start();
    let data: Vec<u8> = (0..1_000_000_u32).map(|index| (index % 251) as u8).collect();
    let channel = agent.host.start(pb::ProcessStart { stdin: true, ..argv(&["cat"]) });
    let mut outcome = Outcome::default();
    for (index, part) in data.chunks(50_000).enumerate() {
        agent.host.input(channel, Input::Stdin(part.to_vec().into()));
        // Our own credit towards the agent is 256 KiB: what has come back was taken, which makes room for more.
        agent.host.collect(channel, &mut outcome, |outcome| outcome.stdout.len() >= (index + 1) * 50_000);
    }
    agent.host.end(channel);
    agent.host.collect(channel, &mut outcome, |_| false);
    assert!(outcome.stdout == data);
    assert_eq!(outcome.code(), 0);
}

#[test]
fn programs_get_no_descriptor_of_the_agent_and_default_signals() {
    let mut agent = Agent::start();
    for start in [shell("ls /proc/self/fd"), terminal("ls /proc/self/fd"), pb::ProcessStart { stdin: true, ..shell("ls /proc/self/fd") }] {
        let channel = agent.host.start(start);
        let outcome = agent.host.finish(channel);
        assert_eq!(outcome.text().split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    }
    let outcome = agent
        .host
        .shell("grep -E 'SigBlk|SigIgn|NoNewPrivs|CapInh' /proc/self/status; umask; ulimit -Sn; cut -d' ' -f 1,5,6 /proc/self/stat");
    let text = outcome.text();
    let zero = "0000000000000000";
    assert!(text.contains(&format!("SigBlk:\t{zero}\nSigIgn:\t{zero}\n")), "{text}");
    assert!(text.contains(&format!("CapInh:\t{zero}\n")), "{text}");
    assert!(text.contains("\n0022\n"), "{text}");
    let pid = outcome.pid.to_string();
    assert!(text.lines().last().unwrap().ends_with(&format!(" {pid} {pid}")), "leader of its own session and group: {text}");
}

#[test]
fn the_agents_own_descriptors_do_not_grow() {
    let mut agent = Agent::start();
    agent.host.shell("true");
    let before = agent.descriptors();
    for _ in 0..30 {
        agent.host.shell("true");
        agent.host.exec(terminal("true"));
        agent.host.exec(argv(&["no-such-program"]));
    }
    // Every process has ended, and what is kept of it is memory.
    wait_for("descriptors to be closed", || (agent.descriptors() <= before).then_some(()));
}

#[test]
fn a_reset_kills_the_group_of_what_the_call_started_and_a_hello_does_not() {
    let mut agent = Agent::start();
    let channel = agent.host.start(shell("sleep 1000 & echo $!; wait"));
    let mut outcome = Outcome::default();
    agent.host.collect(channel, &mut outcome, |outcome| outcome.text().ends_with('\n'));
    let background: i32 = outcome.text().trim().parse().unwrap();
    agent.host.send(FrameType::Reset, false, channel, &[]);
    wait_for("the group to end", || (!alive(background) && !alive(outcome.pid)).then_some(()));

    let channel = agent.host.start(shell("read x < /dev/zero | true; sleep 1000"));
    let pid = agent.host.started(channel);
    let detached = agent.host.start(pb::ProcessStart { detached: true, ..shell("sleep 1000") });
    let detached_pid = agent.host.finish(detached).pid;
    agent.host.hello("another server");
    // An answer proves that HELLO has been dealt with.
    agent.host.shell("true");
    assert!(alive(pid) && alive(detached_pid));
    // A reset of an attachment only ends the attachment.
    let attached = agent.host.open("Exec", &attach(pid, 0, true), true);
    agent.host.started(attached);
    agent.host.send(FrameType::Reset, false, attached, &[]);
    agent.host.shell("true");
    assert!(alive(pid));
}

// ---------------------------------------------------------------- output by offset

#[test]
fn a_hundred_megabytes_arrive_whole_and_a_slow_reader_holds_the_program_up() {
    let mut agent = Agent::start();
    agent.host.give_credit = false;
    let channel = agent.host.start(shell("head -c 100000000 /dev/zero; echo end >&2"));
    let mut bytes = 0;
    // Without credit exactly the window is sent, then nothing.
    while agent.host.step(Duration::from_millis(300)) {}
    let window: usize = agent.host.data_frames.iter().map(|(_, length)| length).sum();
    assert_eq!(window, 262_144);
    agent.host.give_credit = true;
    agent.host.send(FrameType::Credit, false, channel, &262_144_u32.to_be_bytes());
    let mut largest = 0;
    loop {
        match agent.host.next_output(channel) {
            Some(pb::exec_output::Msg::Output(output)) if output.stream == pb::Stream::Stdout as i32 => {
                assert_eq!(output.offset, bytes);
                bytes += output.data.len() as u64;
            }
            Some(pb::exec_output::Msg::Exit(exit)) => {
                assert_eq!((exit.exit_code, exit.stdout_bytes), (0, 100_000_000));
                break;
            }
            Some(pb::exec_output::Msg::Gap(gap)) => panic!("{gap:?}"),
            Some(_) => {}
            None => panic!("no exit"),
        }
        if bytes % (1 << 22) < 32_768 {
            largest = largest.max(agent.memory_bytes());
        }
    }
    assert_eq!(bytes, 100_000_000);
    assert!(largest < 64 << 20, "{largest} bytes of memory");
}

#[test]
fn quiesce_and_resume_in_mid_stream_lose_and_repeat_nothing() {
    let mut agent = Agent::start();
    let count = 300_000;
    let channel = agent.host.start(shell(&format!("seq 1 {count}")));
    let mut outcome = Outcome::default();
    for round in 1..=5 {
        agent.host.collect(channel, &mut outcome, |outcome| outcome.stdout.len() > round * 60_000);
        agent.host.quiesce(round as u64);
        assert!(!agent.host.step(Duration::from_millis(60)), "something was sent while quiesced");
        // A RESUME of another round is not ours.
        agent.host.control(FrameType::Resume, &pb::Resume { round: 99, ..Default::default() });
        assert!(!agent.host.step(Duration::from_millis(30)));
        agent.host.control(FrameType::Resume, &pb::Resume { round: round as u64, ..Default::default() });
    }
    agent.host.collect(channel, &mut outcome, |outcome| outcome.exit.is_some());
    assert!(outcome.text() == seq(count));
    assert_eq!(outcome.code(), 0);
}

#[test]
fn what_is_sent_before_quiesce_is_kept_for_resume() {
    let mut agent = Agent::start();
    let channel = agent.host.start(pb::ProcessStart { stdin: true, ..argv(&["cat"]) });
    agent.host.started(channel);
    agent.host.input(channel, Input::Stdin("kept".into()));
    agent.host.end(channel);
    agent.host.quiesce(1);
    agent.host.control(FrameType::Resume, &pb::Resume { round: 1, ..Default::default() });
    assert_eq!(agent.host.finish(channel).text(), "kept");
}

#[test]
fn a_hello_ends_quiesce_and_the_process_can_be_attached_at_an_offset() {
    let mut agent = Agent::start();
    let channel = agent.host.start(pb::ProcessStart { stdin: true, ..shell("printf 0123456789; read line; printf $line") });
    let mut outcome = Outcome::default();
    agent.host.collect(channel, &mut outcome, |outcome| outcome.stdout.len() == 10);
    agent.host.quiesce(1);
    agent.host.hello("child");
    let attached = agent.host.open("Exec", &attach(outcome.pid, 6, true), false);
    agent.host.input(attached, Input::Stdin("abc\n".into()));
    let mut second = Outcome::from_offset(6);
    agent.host.collect(attached, &mut second, |outcome| outcome.exit.is_some());
    assert_eq!((second.text().as_str(), second.code()), ("6789abc", 0));
    // Ended, and still readable, by several.
    for from in [0, 13] {
        let again = agent.host.open("Exec", &attach(outcome.pid, from, false), true);
        let mut third = Outcome::from_offset(from);
        agent.host.collect(again, &mut third, |outcome| outcome.exit.is_some());
        assert_eq!(third.text(), "0123456789abc"[from as usize..]);
    }
    let beyond = agent.host.unary::<pb::ExecOutput>("Exec", &attach(outcome.pid, 14, true)).unwrap_err();
    assert_eq!(beyond.code, "out_of_range");
    assert_eq!(agent.host.unary::<pb::ExecOutput>("Exec", &attach(999_999_999, 0, true)).unwrap_err().code, "not_found");
}

#[test]
fn a_detached_process_keeps_its_newest_output_and_the_rest_is_reported_as_a_gap() {
    let mut agent = Agent::start();
    let count = 200_000;
    let channel = agent.host.start(pb::ProcessStart { detached: true, ..shell(&format!("seq 1 {count}")) });
    let started = agent.host.finish(channel);
    assert!(started.exit.is_none());
    let total = seq(count).len() as u64;
    wait_for("its end", || {
        let list: pb::ListProcessesReply = agent.host.unary("ListProcesses", &pb::ListProcessesRequest {}).unwrap();
        let row = list.processes.into_iter().find(|row| row.pid == started.pid).unwrap();
        (row.state == "exited").then(|| assert_eq!((row.stdout_bytes, row.exit.unwrap().exit_code), (total, 0)))
    });
    let attached = agent.host.open("Exec", &attach(started.pid, 0, true), true);
    let mut outcome = Outcome::default();
    agent.host.collect(attached, &mut outcome, |outcome| outcome.exit.is_some());
    let kept = 256 * 1024;
    assert_eq!(outcome.gaps, [pb::Gap { stream: pb::Stream::Stdout.into(), from: 0, to: total - kept }]);
    assert!(outcome.text() == seq(count)[(total - kept) as usize..]);
}

#[test]
fn chunks_do_not_split_code_points() {
    let mut agent = Agent::start();
    let channel = agent.host.start(shell("i=0; while [ $i -lt 20000 ]; do printf 'a€é𝄞'; i=$((i+1)); done"));
    let mut text = String::new();
    while let Some(message) = agent.host.next_output(channel) {
        if let pb::exec_output::Msg::Output(output) = message {
            text.push_str(std::str::from_utf8(&output.data).expect("a whole code point"));
        }
    }
    assert!(text == "a€é𝄞".repeat(20_000));
}

#[test]
fn a_busy_channel_does_not_starve_others() {
    let mut agent = Agent::start();
    let busy = agent.host.start(argv(&["yes"]));
    let mut outcome = Outcome::default();
    agent.host.collect(busy, &mut outcome, |outcome| outcome.stdout.len() > 1_000_000);
    for _ in 0..10 {
        let start = Instant::now();
        assert_eq!(agent.host.shell("echo here").text(), "here\n");
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}

// ---------------------------------------------------------------- terminals

#[test]
fn a_terminal_has_type_size_and_takes_input_resize_and_end() {
    let mut agent = Agent::start();
    let channel = agent.host.start(terminal("printf PTYMARKER; echo $TERM; stty size; tty"));
    let outcome = agent.host.finish(channel);
    assert!(outcome.text().starts_with("PTYMARKERxterm-256color\r\n24 80\r\n/dev/pts/"), "{}", outcome.text());
    assert_eq!((outcome.code(), outcome.stderr.len()), (0, 0));
    // The shell runs its trap when sed has ended: a `read` of its own would be broken off by the signal.
    let channel = agent.host.start(terminal("trap 'stty size' WINCH; echo ready; sed -u 's/^/got /'; echo over"));
    let mut outcome = Outcome::default();
    agent.host.collect(channel, &mut outcome, |outcome| outcome.text().contains("ready"));
    agent.host.input(channel, Input::Resize(sandbox::WindowSize { cols: 120, rows: 40 }));
    agent.host.input(channel, Input::Stdin("line\n".into()));
    agent.host.collect(channel, &mut outcome, |outcome| outcome.text().contains("got line"));
    agent.host.input(channel, Input::StdinClose(true));
    agent.host.collect(channel, &mut outcome, |outcome| outcome.exit.is_some());
    assert!(outcome.text().contains("40 120"), "{}", outcome.text());
    assert!(outcome.text().ends_with("over\r\n"), "{}", outcome.text());
    assert_eq!(outcome.code(), 0);
    // Ctrl-C reaches the foreground group: the terminal controls it.
    let channel = agent.host.start(terminal("echo ready; exec sleep 1000"));
    let mut outcome = Outcome::default();
    agent.host.collect(channel, &mut outcome, |outcome| outcome.text().contains("ready"));
    agent.host.input(channel, Input::Stdin("\x03".into()));
    agent.host.collect(channel, &mut outcome, |outcome| outcome.exit.is_some());
    assert_eq!(outcome.exit.unwrap().signal, libc::SIGINT);
}

#[test]
fn fifty_terminals_in_a_row_all_answer() {
    let mut agent = Agent::start();
    for round in 0..50 {
        let channel = agent.host.start(terminal("/bin/sh"));
        agent.host.input(channel, Input::Stdin("echo X''Y\n".into()));
        agent.host.input(channel, Input::Resize(sandbox::WindowSize { cols: 120, rows: 40 }));
        agent.host.input(channel, Input::StdinClose(true));
        let outcome = agent.host.finish(channel);
        assert!(outcome.text().contains("XY"), "round {round}");
        assert_eq!(outcome.code(), 0, "round {round}");
    }
}

// ---------------------------------------------------------------- processes, signals, vitals, tunnels

#[test]
fn signals_reach_processes_and_bad_ones_are_refused_by_cause() {
    let mut agent = Agent::start();
    let channel = agent.host.start(argv(&["sleep", "1000"]));
    let pid = agent.host.started(channel);
    let own = agent.process.id() as i32;
    let mut signal = |pid, signal, group| agent.host.unary::<pb::Empty>("SignalProcess", &pb::SignalProcessRequest { pid, signal, group });
    for (target, number, code) in [
        (1, 15, "invalid_argument"),
        (0, 15, "invalid_argument"),
        (-1, 15, "invalid_argument"),
        (own, 15, "invalid_argument"),
        (pid, 0, "invalid_argument"),
        (pid, 65, "invalid_argument"),
        (pid, -9, "invalid_argument"),
        (2_147_483_647, 15, "not_found"),
    ] {
        assert_eq!(signal(target, number, false).unwrap_err().code, code, "signal {number} to {target}");
    }
    assert_eq!(signal(2_147_483_647, 15, true).unwrap_err().code, "not_found");
    signal(pid, 15, false).unwrap();
    assert_eq!(agent.host.finish(channel).exit.unwrap().signal, 15);
    let again = pb::SignalProcessRequest { pid, signal: 15, group: true };
    assert_eq!(agent.host.unary::<pb::Empty>("SignalProcess", &again).unwrap_err().code, "not_found");
}

#[test]
fn stdin_and_terminal_size_can_be_set_by_number() {
    let mut agent = Agent::start();
    let channel = agent.host.start(pb::ProcessStart { stdin: true, ..argv(&["cat"]) });
    let pid = agent.host.started(channel);
    let write = |data: &str, close| pb::WriteStdinRequest { pid, data: data.to_owned().into(), close };
    agent.host.unary::<pb::Empty>("WriteStdin", &write("abc", false)).unwrap();
    agent.host.unary::<pb::Empty>("WriteStdin", &write("def", true)).unwrap();
    let mut outcome = Outcome::default();
    agent.host.collect(channel, &mut outcome, |outcome| outcome.exit.is_some());
    assert_eq!(outcome.text(), "abcdef");
    assert_eq!(agent.host.unary::<pb::Empty>("WriteStdin", &write("x", false)).unwrap_err().code, "failed_precondition");
    let size = Some(sandbox::WindowSize { cols: 1, rows: 1 });
    let resize = pb::ResizeTerminalRequest { pid, size };
    assert_eq!(agent.host.unary::<pb::Empty>("ResizeTerminal", &resize).unwrap_err().code, "failed_precondition");
}

#[test]
fn processes_are_listed_by_name_only() {
    let mut agent = Agent::start();
    let channel = agent.host.start(argv(&["sleep", "1000.0012345"]));
    let pid = agent.host.started(channel);
    let list: sandbox::ProcessList = agent.host.unary("Processes", &sandbox::ProcessesRequest {}).unwrap();
    let row = list.processes.iter().find(|process| process.pid == pid).unwrap();
    assert_eq!((row.command.as_str(), row.ppid), ("sleep", agent.process.id() as i32));
    assert!(!format!("{list:?}").contains("0012345"));
    assert!(list.processes.iter().all(|process| process.pid > 0 && !process.state.is_empty() && process.rss_bytes >= 0));
}

#[test]
fn vitals_are_one_sample_or_a_stream() {
    let mut agent = Agent::start();
    let sample: sandbox::GuestVitals = agent.host.unary("Vitals", &sandbox::VitalsRequest { interval_seconds: 0 }).unwrap();
    assert!(sample.mem_total_bytes > 0 && sample.mem_used_bytes > 0 && sample.process_count > 0 && sample.sampled_at_unix > 1_600_000_000);
    assert!((0.0..=100.0).contains(&sample.cpu_percent));
    let channel = agent.host.open("Vitals", &sandbox::VitalsRequest { interval_seconds: 1 }, true);
    for _ in 0..2 {
        assert!(agent.host.next::<sandbox::GuestVitals>(channel).is_some());
    }
    agent.host.send(FrameType::Reset, false, channel, &[]);
    let bad = agent.host.unary::<sandbox::GuestVitals>("Vitals", &sandbox::VitalsRequest { interval_seconds: -1 });
    assert_eq!(bad.unwrap_err().code, "invalid_argument");
}

#[test]
fn a_tunnel_carries_bytes_both_ways_with_half_closes() {
    let mut agent = Agent::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = u32::from(listener.local_addr().unwrap().port());
    let server = std::thread::spawn(move || {
        // Reads to the end before it answers, then closes while the other end could still send.
        let (mut first, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        first.read_to_end(&mut request).unwrap();
        first.write_all(&request.repeat(2)).unwrap();
        drop(first);
        let (mut second, _) = listener.accept().unwrap();
        second.write_all(b"greeting").unwrap();
    });
    let channel = agent.host.open("Tunnel", &pb::TunnelOpen { port }, false);
    agent.host.next::<pb::TunnelOpened>(channel).unwrap();
    agent.host.send(FrameType::Data, false, channel, &[7; 50_000]);
    agent.host.end(channel);
    let raw = |host: &mut Host, channel: u32| {
        host.until("the end of the tunnel", |host| host.inboxes[&channel].ended.clone().map(|_| ()));
        host.inboxes.get_mut(&channel).unwrap().messages.drain(..).flatten().collect::<Vec<u8>>()
    };
    assert!(raw(&mut agent.host, channel) == [7; 100_000]);
    let channel = agent.host.open("Tunnel", &pb::TunnelOpen { port }, false);
    agent.host.next::<pb::TunnelOpened>(channel).unwrap();
    assert_eq!(raw(&mut agent.host, channel), b"greeting");
    server.join().unwrap();
    agent.host.end(channel);
    for (port, code) in [(0, "invalid_argument"), (65_536, "invalid_argument"), (port, "unavailable")] {
        assert_eq!(agent.host.unary::<pb::TunnelOpened>("Tunnel", &pb::TunnelOpen { port }).unwrap_err().code, code);
    }
}

// ---------------------------------------------------------------- identity and the socket

#[test]
fn adopt_renews_files_and_refuses_what_does_not_follow() {
    let mut agent = Agent::start();
    assert_eq!(agent.host.hello("first").generation, 0);
    assert_eq!(agent.host.adopt(&adopt(3)).error, "");
    let read = |path: &str| fs::read_to_string(agent.root.join(path)).unwrap();
    assert_eq!(read("run/sandbox/fork-generation"), "3\n");
    assert_eq!(read("etc/hostname"), "host-3\n");
    assert_eq!(read("etc/machine-id"), format!("{:032x}\n", 3));
    assert!(read("etc/hosts").contains("127.0.1.1\thost-3\n"));
    for refused in [adopt(3), adopt(2), pb::Adopt { host_name: "a/b".into(), ..adopt(4) }] {
        assert_ne!(agent.host.adopt(&refused).error, "");
    }
    assert_eq!(read("run/sandbox/fork-generation"), "3\n");
    assert_eq!(agent.host.hello("second").generation, 3);
}

fn ask(agent: &Agent, request: &str) -> BufReader<UnixStream> {
    let mut stream = agent.socket();
    stream.write_all(request.as_bytes()).unwrap();
    stream.write_all(b"\n").unwrap();
    BufReader::new(stream)
}

fn line(reader: &mut BufReader<UnixStream>) -> serde_json::Value {
    let mut text = String::new();
    reader.read_line(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn the_socket_tells_who_we_are_and_of_every_generation() {
    let mut agent = Agent::start();
    agent.host.adopt(&pb::Adopt { secrets: [("TOKEN".into(), "hunter2".into())].into(), ..adopt(1) });
    let info = line(&mut ask(&agent, r#"{"type":"info"}"#));
    assert_eq!((&info["ok"], &info["info"]["identity"]["sandboxId"]), (&true.into(), &"sb-1".into()));
    assert!(!info.to_string().contains("hunter2"));
    let mut watch = ask(&agent, r#"{"type":"watch_generation"}"#);
    assert_eq!(line(&mut watch)["generation"], 1);
    agent.host.adopt(&adopt(2));
    assert_eq!(line(&mut watch)["sandbox_id"], "sb-2");
    for bad in ["", "[]", "{", r#"{"type":"x"}"#, r#"{"type":"fork","fork":{"n":-1}}"#, r#"{"type":"fork"}"#] {
        assert_eq!(line(&mut ask(&agent, bad))["ok"], false);
    }
    let refused = line(&mut ask(&agent, r#"{"type":"fork","fork":{"n":1,"label":""}}"#));
    assert!(refused["error"].as_str().unwrap().contains("budget is 0"));
}

#[test]
fn a_fork_of_itself_is_answered_by_the_host_in_the_parent_and_from_adopt_in_the_child() {
    let mut agent = Agent::start();
    agent.host.adopt(&pb::Adopt { fork_budget: 5, ..adopt(1) });
    let mut parent = ask(&agent, r#"{"type":"fork","fork":{"n":2,"label":"x"}}"#);
    let (number, open) = agent.host.until("ForkSelf", |host| host.opened_by_guest.pop_front());
    let request = pb::ForkSelfRequest::decode(&open.message[..]).unwrap();
    assert_eq!((open.method.as_str(), open.end, request.count, request.label.as_str()), ("ForkSelf", true, 2, "x"));
    // Pending, it does not stand in the way.
    agent.host.quiesce(1);
    agent.host.control(FrameType::Resume, &pb::Resume { round: 1, ..Default::default() });
    agent.host.message(number, &pb::ForkSelfReply { children: vec!["a".into(), "b".into()] });
    agent.host.end(number);
    let answer = line(&mut parent);
    assert_eq!(answer["fork"]["children"], serde_json::json!(["a", "b"]));
    let budget = serde_json::json!({ "maxForks": 5, "maxCheckpoints": 0, "forksUsed": 2 });
    assert_eq!(line(&mut ask(&agent, r#"{"type":"info"}"#))["info"]["budget"], budget);
    let too_many = line(&mut ask(&agent, r#"{"type":"fork","fork":{"n":4}}"#));
    assert_eq!(too_many["code"], "budget_exhausted");
    assert!(too_many["error"].as_str().unwrap().contains("3 are left of the fork budget of 5"));

    let mut refused = ask(&agent, r#"{"type":"fork"}"#);
    let (number, _) = agent.host.until("ForkSelf", |host| host.opened_by_guest.pop_front());
    let (code, error_code) = ("resource_exhausted".into(), "quota_exceeded".into());
    let status = pb::Status { code, error_code, message: "no room".into(), ..Default::default() };
    agent.host.send(FrameType::End, false, number, &status.encode_to_vec());
    let refused = line(&mut refused);
    assert_eq!(refused["code"], "quota_exceeded");
    assert!(refused["error"].as_str().unwrap().contains("no room"));
    assert_eq!(line(&mut ask(&agent, r#"{"type":"info"}"#))["info"]["budget"], budget);

    let mut child = ask(&agent, r#"{"type":"fork","fork":{"n":1,"label":""}}"#);
    agent.host.until("ForkSelf", |host| host.opened_by_guest.pop_front());
    agent.host.quiesce(2);
    agent.host.hello("child");
    agent.host.adopt(&adopt(2));
    assert_eq!(line(&mut child), serde_json::json!({ "ok": true, "fork": { "children": [] }, "sandbox_id": "sb-2" }));
    // The number of the dropped call is free again in the new session.
    agent.host.adopt(&pb::Adopt { fork_budget: 1, ..adopt(3) });
    let _again = ask(&agent, r#"{"type":"fork"}"#);
    let (number, _) = agent.host.until("ForkSelf", |host| host.opened_by_guest.pop_front());
    assert_eq!(number, 1);
}

// ---------------------------------------------------------------- hostile and broken links

#[test]
fn a_broken_rule_ends_the_session_and_the_next_hello_opens_one() {
    let too_long = {
        let mut bytes = vec![0, 1, 0, 1, 0x11, 0, 0, 0, 0, 2];
        bytes.extend_from_slice(&[0; 100]);
        bytes
    };
    let frame = |kind: FrameType, more: bool, channel: u32, payload: &[u8]| {
        let mut bytes = link_client::wire::Header { length: payload.len(), kind, more, channel }.encode().to_vec();
        bytes.extend_from_slice(payload);
        bytes
    };
    let open = pb::Open { method: "ListProcesses".into(), end: true, ..Default::default() }.encode_to_vec();
    let held = pb::Open { method: "Tunnel".into(), end: false, ..Default::default() }.encode_to_vec();
    let start = pb::ExecInput { msg: Some(Input::Start(pb::ProcessStart { stdin: true, ..argv(&["sleep", "1000"]) })) }.encode_to_vec();
    let unread = pb::Open { method: "Exec".into(), message: start.into(), end: false, ..Default::default() }.encode_to_vec();
    // Input waits for a program that does not read it, until the window is used up.
    let mut over_credit = frame(FrameType::Open, false, 2, &unread);
    let input = pb::ExecInput { msg: Some(Input::Stdin(vec![0; 60_000].into())) }.encode_to_vec();
    for _ in 0..40 {
        over_credit.extend(frame(FrameType::Data, false, 2, &input));
    }
    for (what, bytes) in [
        ("a payload that is too long", too_long),
        ("an unknown type", vec![0, 0, 0, 0, 0x77, 0, 0, 0, 0, 0]),
        ("an unknown flag", vec![0, 0, 0, 0, 0x11, 6, 0, 0, 0, 2]),
        ("a frame for the shim", frame(FrameType::ShimRequest, false, 0, b"{}")),
        ("a guest's frame", frame(FrameType::HelloAck, false, 0, b"")),
        ("DATA on a channel never opened", frame(FrameType::Data, false, 44, b"x")),
        ("CREDIT on a channel never opened", frame(FrameType::Credit, false, 44, &[0, 0, 0, 1])),
        ("a guest's channel number", frame(FrameType::Open, false, 3, &open)),
        ("channel 0", frame(FrameType::Open, false, 0, &open)),
        ("a payload that cannot be decoded", frame(FrameType::Open, false, 2, &[0xff; 9])),
        ("a number used twice", [frame(FrameType::Open, false, 2, &open), frame(FrameType::Open, false, 2, &open)].concat()),
        (
            "END within a message",
            [frame(FrameType::Open, false, 2, &held), frame(FrameType::Data, true, 2, b"x"), frame(FrameType::End, false, 2, b"")].concat(),
        ),
        ("more DATA than credit", over_credit),
        ("a PING that is too long", frame(FrameType::Ping, false, 0, &[0; 65])),
        ("a CREDIT of three bytes", [frame(FrameType::Open, false, 2, &held), frame(FrameType::Credit, false, 2, &[0; 3])].concat()),
        ("a HELLO without a session", frame(FrameType::Hello, false, 0, &[8, 1])),
    ] {
        let mut agent = Agent::start();
        let channel = agent.host.start(shell("sleep 1000"));
        let pid = agent.host.started(channel);
        agent.host.hello("before");
        agent.host.send_raw(&bytes);
        agent.host.send(FrameType::Ping, false, 0, b"answered?");
        agent.host.inboxes.insert(2, Default::default());
        let mut answered = false;
        while let Some(frame) = agent.host.read_frame(Duration::from_millis(60)) {
            answered |= frame.header.kind == FrameType::Pong;
        }
        assert!(!answered, "{what} did not end the session");
        agent.host.hello("after");
        assert!(alive(pid), "{what}");
        assert_eq!(agent.host.shell("echo served").text(), "served\n", "{what}");
    }
}

#[test]
fn nothing_is_answered_before_hello_and_pings_are_answered_after() {
    let mut agent = Agent::without_session();
    agent.host.send(FrameType::Ping, false, 0, b"x");
    assert!(!agent.host.step(Duration::from_millis(100)));
    agent.host.hello("s");
    agent.host.send(FrameType::Ping, false, 0, b"opaque");
    assert_eq!(agent.host.expect_control(FrameType::Pong), b"opaque");
}

#[test]
fn the_five_hundred_and_thirteenth_call_is_refused_and_the_others_go_on() {
    let mut agent = Agent::start();
    let channels: Vec<u32> =
        (0..512).map(|_| agent.host.open("Vitals", &sandbox::VitalsRequest { interval_seconds: 3600 }, false)).collect();
    let refused = agent.host.open("ListProcesses", &pb::ListProcessesRequest {}, true);
    assert_eq!(agent.host.status(refused).code, "resource_exhausted");
    agent.host.send(FrameType::Reset, false, channels[7], &[]);
    assert_eq!(agent.host.shell("echo room").text(), "room\n");
}

#[test]
fn large_messages_are_cut_and_put_together() {
    let mut agent = Agent::start();
    // 3 MB in one message, in parts, after an empty first message.
    let text = "x".repeat(3_000_000);
    let start = pb::ExecInput { msg: Some(Input::Start(pb::ProcessStart { stdin: true, ..argv(&["wc", "-c"]) })) };
    let channel = agent.host.open("Exec", &pb::Empty {}, false);
    agent.host.message(channel, &start);
    agent.host.started(channel);
    let message = pb::ExecInput { msg: Some(Input::Stdin(text.into())) }.encode_to_vec();
    let parts: Vec<&[u8]> = message.chunks(65_536).collect();
    for (index, part) in parts.iter().enumerate() {
        agent.host.send(FrameType::Data, index + 1 < parts.len(), channel, part);
        // Keeps within the credit: parts are credited when they arrive.
        while index % 2 == 1 && agent.host.step(Duration::from_millis(2)) {}
    }
    agent.host.end(channel);
    assert_eq!(agent.host.finish(channel).text().trim(), "3000000");
}

#[test]
fn the_log_holds_no_content() {
    let mut agent = Agent::start();
    agent.host.adopt(&pb::Adopt { secrets: [("TOKEN".into(), "needle-secret".into())].into(), ..adopt(1) });
    agent.host.exec(pb::ProcessStart { env: vec![variable("E", "needle-env")], ..shell("echo needle-output $TOKEN; exit 1") });
    agent.host.exec(argv(&["needle-argv"]));
    agent.host.send(FrameType::Data, false, 4000, b"needle-frame");
    agent.host.hello("after");
    assert!(!agent.log().contains("needle"), "{}", agent.log());
    assert!(agent.log().lines().count() < 10);
}

fn traced_exec(agent: &mut Agent, start: pb::ProcessStart, traceparent: &str) -> (Outcome, Option<pb::CallTiming>) {
    let first = pb::ExecInput { msg: Some(Input::Start(start)) };
    let channel = agent.host.open_traced("Exec", &first, false, traceparent);
    let outcome = agent.host.finish(channel);
    (outcome, agent.host.status(channel).timing)
}

#[test]
fn a_traced_program_gets_its_trace_context_and_a_recorded_one_is_timed() {
    let mut agent = Agent::start();
    let recorded = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let (outcome, timing) = traced_exec(&mut agent, shell("sleep 0.05; printf %s \"$TRACEPARENT\""), recorded);
    assert_eq!(outcome.text(), recorded);
    let timing = timing.expect("a timing");
    // The program has slept before its output; its start is told as soon as somebody gets to it.
    assert!(0 < timing.first_message_us && 50_000 <= timing.second_message_us, "{timing:?}");
    assert!(timing.first_message_us <= timing.second_message_us && timing.second_message_us <= timing.end_us, "{timing:?}");

    let ignored = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let (outcome, timing) = traced_exec(&mut agent, shell("printf %s \"$TRACEPARENT\""), ignored);
    assert_eq!((outcome.text().as_str(), timing), (ignored, None));
}

#[test]
fn a_program_of_an_untraced_call_has_no_trace_context_and_one_of_its_own_stays() {
    let mut agent = Agent::start();
    let (outcome, timing) = traced_exec(&mut agent, shell("echo \"${TRACEPARENT-none}\""), "");
    assert_eq!((outcome.text().as_str(), timing), ("none\n", None));
    let own = sandbox::EnvVar { key: "TRACEPARENT".into(), value: "mine".into() };
    let start = pb::ProcessStart { env: vec![own], ..shell("echo $TRACEPARENT") };
    let (outcome, _) = traced_exec(&mut agent, start, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_eq!(outcome.text(), "mine\n");
}

//! RunCode and WarmKernel, through the agent as a program and with the machine's own interpreters.

#[allow(dead_code)]
mod link_client;

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use link_client::proto::guest::v1 as pb;
use link_client::proto::sandbox::v1::run_code_response::Msg as Output;
use link_client::proto::sandbox::v1::{RunCodeResponse, RunError, RunResult};
use link_client::wire::FrameType;
use link_client::{Host, adopt, spawn_agent};

/// An agent with a folder for its root, and Debian's interpreters first on its PATH.
struct Agent {
    root: PathBuf,
    process: Child,
    host: Host,
}

impl Agent {
    fn start() -> Self {
        Self::with_path("/usr/bin:/bin")
    }

    fn with_path(path: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let root = std::env::temp_dir().join(format!("mitos-kernels-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(&root).unwrap();
        let (process, host) = spawn_agent(&root, &[("PATH", path)]);
        let mut agent = Self { root, process, host: Host::new(host) };
        agent.host.hello("test");
        agent
    }

    fn open(&mut self, language: &str, code: &str, timeout_ms: i64) -> u32 {
        self.open_in("", language, code, timeout_ms)
    }

    fn open_in(&mut self, context: &str, language: &str, code: &str, timeout_ms: i64) -> u32 {
        let open = pb::RunCodeOpen { code: code.into(), language: language.into(), timeout_ms, context: context.into() };
        self.host.open("RunCode", &pb::RunCodeInput { msg: Some(pb::run_code_input::Msg::Open(open)) }, true)
    }

    fn create(&mut self, id: &str, language: &str, cwd: &str) -> Result<pb::Context, pb::Status> {
        self.host.unary("CreateContext", &pb::CreateContextRequest { id: id.into(), language: language.into(), cwd: cwd.into() })
    }

    fn restart(&mut self, id: &str) -> Result<pb::Context, pb::Status> {
        self.host.unary("RestartContext", &pb::RestartContextRequest { id: id.into() })
    }

    fn remove(&mut self, id: &str) -> Result<pb::Empty, pb::Status> {
        self.host.unary("RemoveContext", &pb::RemoveContextRequest { id: id.into() })
    }

    /// Id, and whether it is a default one.
    fn listed(&mut self) -> Vec<(String, bool)> {
        let reply: pb::ListContextsReply = self.host.unary("ListContexts", &pb::ListContextsRequest {}).unwrap();
        reply.contexts.into_iter().map(|context| (context.id, context.is_default)).collect()
    }

    fn finish(&mut self, channel: u32) -> Execution {
        let mut execution = Execution::default();
        while let Some(response) = self.host.next::<RunCodeResponse>(channel) {
            execution.take(response);
        }
        assert_eq!(self.host.status(channel).code, "");
        execution
    }

    /// Reads until the cell has printed `marker`.
    fn await_output(&mut self, channel: u32, marker: &str) -> Execution {
        let mut execution = Execution::default();
        while !execution.stdout().contains(marker) {
            execution.take(self.host.next(channel).expect("it ended before it had printed that"));
        }
        execution
    }

    fn run(&mut self, language: &str, code: &str) -> Execution {
        let channel = self.open(language, code, 0);
        self.finish(channel)
    }

    fn text(&mut self, language: &str, code: &str) -> String {
        let execution = self.run(language, code);
        assert_eq!(execution.exit_code, Some(0), "{execution:?}");
        execution.results.last().map(|result| result.text.clone()).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The machine's end would end the kernels. Here they end with their commands, which end with the agent.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.root);
    }
}

#[derive(Debug, Default)]
struct Execution {
    stdout: Vec<Vec<u8>>,
    stderr: Vec<Vec<u8>>,
    results: Vec<RunResult>,
    error: Option<RunError>,
    exit_code: Option<i32>,
}

impl Execution {
    fn take(&mut self, response: RunCodeResponse) {
        assert_eq!(self.exit_code, None, "something came after the exit code");
        match response.msg.expect("an empty message") {
            Output::Stdout(data) => self.stdout.push(data.to_vec()),
            Output::Stderr(data) => self.stderr.push(data.to_vec()),
            Output::Result(result) => self.results.push(result),
            Output::Error(error) => assert!(self.error.replace(error).is_none(), "two errors"),
            Output::ExitCode(code) => self.exit_code = Some(code),
        }
    }

    fn stdout(&self) -> String {
        String::from_utf8(self.stdout.concat()).unwrap()
    }

    fn stderr(&self) -> String {
        String::from_utf8(self.stderr.concat()).unwrap()
    }

    fn error_name(&self) -> &str {
        self.error.as_ref().map_or("", |error| &error.name)
    }
}

/// A language, code that prints `begun` and never ends, and the same followed by nothing that could be interrupted.
const ENDLESS: [(&str, &str); 3] = [
    ("python", "print('begun')\nwhile True: pass"),
    ("javascript", "console.log('begun'); for (;;) {}"),
    ("bash", "echo begun; sleep 1000"),
];

#[test]
fn a_cell_gives_output_result_and_exit_code_and_its_state_stays() {
    let mut agent = Agent::start();
    let execution = agent.run("", "import sys\nprint('hi')\nprint('err', file=sys.stderr)\nx = 41\nx + 1");
    assert_eq!((execution.stdout().as_str(), execution.stderr().as_str(), execution.exit_code), ("hi\n", "err\n", Some(0)));
    assert_eq!(execution.results[0].text, "42");
    assert_eq!(&execution.results[0].data["text/plain"][..], b"42");
    assert_eq!(agent.text("python", "x + 2"), "43");
    agent.run("javascript", "let x = 1");
    assert_eq!(agent.text("javascript", "x + 1"), "2");
    agent.run("bash", "x=5");
    assert_eq!(
        agent.run("bash", "echo $x $PWD").stdout(),
        "5 /workspace\n".replace("/workspace", &format!("{}/workspace", agent.root.display()))
    );
}

#[test]
fn an_error_of_the_code_is_a_result_with_exit_code_one() {
    let mut agent = Agent::start();
    let execution = agent.run("", "undefined_variable_xyz_conformance");
    assert_eq!((execution.error_name(), execution.exit_code), ("NameError", Some(1)));
    assert_eq!(agent.run("javascript", "throw new TypeError('x')").error_name(), "TypeError");
    assert_eq!(agent.run("bash", "false").error_name(), "ExitError");
}

#[test]
fn a_language_without_a_kernel_or_an_interpreter_is_unavailable() {
    let mut agent = Agent::with_path("/nonexistent");
    for language in ["ruby", "python", "javascript", "bash"] {
        let execution = agent.run(language, "1");
        assert_eq!((execution.error_name(), execution.exit_code), ("KernelUnavailable", Some(127)), "{language}");
        assert!(execution.error.unwrap().value.contains(language));
        let warmed: pb::WarmKernelReply = agent.host.unary("WarmKernel", &pb::WarmKernelRequest { language: language.into() }).unwrap();
        assert!(!warmed.available && warmed.detail.contains(language));
    }
}

#[test]
fn the_first_message_must_open() {
    let mut agent = Agent::start();
    let stdin = pb::RunCodeInput { msg: Some(pb::run_code_input::Msg::Stdin(vec![1].into())) };
    let channel = agent.host.open("RunCode", &stdin, true);
    assert_eq!(agent.host.status(channel).code, "invalid_argument");
}

#[test]
fn a_kernel_can_be_warmed_before_its_first_cell() {
    let mut agent = Agent::start();
    for language in ["python", "javascript", "bash", ""] {
        let reply: pb::WarmKernelReply = agent.host.unary("WarmKernel", &pb::WarmKernelRequest { language: language.into() }).unwrap();
        assert_eq!((reply.available, reply.detail.as_str()), (true, ""), "{language}");
    }
}

#[test]
fn a_timeout_interrupts_every_language_and_keeps_the_state() {
    let mut agent = Agent::start();
    for (language, endless) in ENDLESS {
        let (set, show) = if language == "bash" {
            ("kept=7", "echo $kept")
        } else {
            ("kept = 7", if language == "python" { "print(kept)" } else { "console.log(kept)" })
        };
        agent.run(language, set);
        let channel = agent.open(language, endless, 1500);
        let execution = agent.finish(channel);
        let error = execution.error.as_ref().unwrap();
        assert_eq!(
            (error.name.as_str(), error.value.as_str()),
            ("TimeoutError", "execution exceeded the 1.5s timeout budget"),
            "{language}"
        );
        assert!(error.traceback.is_empty());
        assert_eq!((execution.stdout().as_str(), execution.exit_code), ("begun\n", Some(1)));
        assert_eq!(agent.run(language, show).stdout(), "7\n", "{language}");
    }
}

#[test]
fn a_cell_that_cannot_be_interrupted_is_killed_and_the_loss_is_told() {
    let mut agent = Agent::start();
    agent.run("python", "lost = 1");
    let begun = Instant::now();
    let channel = agent.open("python", "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", 500);
    let execution = agent.finish(channel);
    assert_eq!((execution.error_name(), execution.exit_code), ("TimeoutError", Some(1)));
    assert!(execution.stderr().contains("state is gone"), "{execution:?}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(agent.run("python", "lost").error_name(), "NameError");
}

#[test]
fn a_kernel_that_dies_is_reported_and_started_again() {
    let mut agent = Agent::start();
    for (language, exit) in [
        ("python", "import os; print('last'); os._exit(3)"),
        ("javascript", "console.log('last'); process.exit(3)"),
        ("bash", "echo last; exit 3"),
    ] {
        let execution = agent.run(language, exit);
        assert_eq!(
            (execution.error_name(), execution.exit_code, execution.stdout().as_str()),
            ("KernelDied", Some(1), "last\n"),
            "{language}"
        );
        assert!(execution.error.unwrap().value.contains("exit status 3"));
        let next = agent.run(
            language,
            if language == "python" {
                "print('on')"
            } else if language == "bash" {
                "echo on"
            } else {
                "console.log('on')"
            },
        );
        assert_eq!((next.stdout().as_str(), next.stderr().as_str(), next.exit_code), ("on\n", "", Some(0)), "{language}");
    }
}

#[test]
fn a_kernel_that_died_between_two_calls_is_told_by_the_next_one_which_runs() {
    let mut agent = Agent::start();
    let pid: i32 = agent.text("python", "import os; os.getpid()").parse().unwrap();
    // SAFETY: a plain system call.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    let begun = Instant::now();
    loop {
        let execution = agent.run("python", "1 + 1");
        match execution.error_name() {
            "" if execution.stderr().contains("ended between two calls") => break assert_eq!(execution.results[0].text, "2"),
            // The signal can arrive while the next call runs already.
            "KernelDied" => break,
            _ => assert!(begun.elapsed() < link_client::PATIENCE),
        }
    }
}

#[test]
fn a_reset_interrupts_the_cell_and_the_kernel_stays() {
    let mut agent = Agent::start();
    for (language, endless) in ENDLESS {
        let channel = agent.open(language, endless, 0);
        agent.await_output(channel, "begun");
        agent.host.send(FrameType::Reset, false, channel, &[]);
        let next = agent.run(
            language,
            if language == "bash" {
                "echo on"
            } else if language == "python" {
                "print('on')"
            } else {
                "console.log('on')"
            },
        );
        assert_eq!((next.stdout().as_str(), next.exit_code), ("on\n", Some(0)), "{language} {next:?}");
        assert!(!next.stderr().contains("state is gone"), "{language} {next:?}");
    }
}

#[test]
fn a_lost_link_lets_the_cell_go_on_and_an_adopt_reaches_it_while_it_runs() {
    let mut agent = Agent::start();
    let code =
        "import os, time\nprint('begun', flush=True)\nwhile 'ADOPTED' not in os.environ: time.sleep(0.01)\nfound = os.environ['ADOPTED']";
    let channel = agent.open("python", code, 0);
    agent.await_output(channel, "begun");
    agent.host.hello("another");
    let mut request = adopt(7);
    request.env.insert("ADOPTED".into(), "yes".into());
    agent.host.adopt(&request);
    assert_eq!(agent.text("python", "found"), "'yes'");
}

#[test]
fn an_adopt_renews_every_kernel_before_its_next_cell() {
    let mut agent = Agent::start();
    agent.run("python", "import random; random.seed(1); expected = [random.random() for _ in range(3)]; random.seed(1)");
    agent.run("bash", "true");
    agent.run("javascript", "0");
    let mut request = adopt(8);
    request.env.insert("FRESH".into(), "v".into());
    agent.host.hello("child");
    agent.host.adopt(&request);
    assert_eq!(agent.text("python", "import os; (random.random() in expected, os.environ['FRESH'])"), "(False, 'v')");
    assert_eq!(agent.text("javascript", "process.env.FRESH"), "'v'");
    assert_eq!(agent.run("bash", "echo $FRESH").stdout(), "v\n");
}

#[test]
fn calls_of_one_kernel_are_served_in_order_and_contexts_are_apart() {
    let mut agent = Agent::start();
    let first = agent.open("python", "import time; time.sleep(0.3); order = ['a']", 0);
    let second = agent.open("python", "order.append('b')", 0);
    let third = agent.open("python", "order", 0);
    assert_eq!(agent.finish(third).results[0].text, "['a', 'b']");
    agent.finish(first);
    agent.finish(second);
    agent.create("other", "python", "").unwrap();
    let other = agent.open_in("other", "python", "order", 0);
    assert_eq!(agent.finish(other).error_name(), "NameError");
}

#[test]
fn contexts_have_a_state_and_a_folder_of_their_own_and_are_listed_in_order() {
    let mut agent = Agent::start();
    let folder = agent.root.join("elsewhere");
    fs::create_dir(&folder).unwrap();
    assert_eq!(agent.listed(), Vec::<(String, bool)>::new());
    agent.run("bash", "n=default");
    agent.create("b", "bash", "").unwrap();
    let created = agent.create("a", "bash", folder.to_str().unwrap()).unwrap();
    assert_eq!((created.language.as_str(), created.cwd.as_str(), created.is_default), ("bash", folder.to_str().unwrap(), false));
    for (context, language) in [("a", "bash"), ("b", ""), ("bash", "bash"), ("", "bash")] {
        let channel = agent.open_in(context, language, &format!("echo \"$n in ${{PWD##*/}}\"; n={context}"), 0);
        let before = if context.is_empty() {
            "bash"
        } else if context == "bash" {
            "default"
        } else {
            ""
        };
        assert!(agent.finish(channel).stdout().starts_with(&format!("{before} in ")), "{context}");
    }
    let channel = agent.open_in("a", "", "echo \"$n in ${PWD##*/}\"", 0);
    assert_eq!(agent.finish(channel).stdout(), "a in elsewhere\n");
    assert_eq!(agent.listed(), [("bash".to_owned(), true), ("b".to_owned(), false), ("a".to_owned(), false)]);
}

#[test]
fn what_is_wrong_with_a_context_is_told_and_leaves_none_behind() {
    let mut agent = Agent::with_path("/bin:/usr/bin");
    fs::write(agent.root.join("file"), "").unwrap();
    let file = agent.root.join("file").to_string_lossy().into_owned();
    for (id, language, cwd, code) in [
        ("x", "ruby", "", "invalid_argument"),
        ("x", "", "", "invalid_argument"),
        ("python", "python", "", "invalid_argument"),
        ("", "python", "", "invalid_argument"),
        ("x", "bash", "/does/not/exist", "not_found"),
        ("x", "bash", file.as_str(), "invalid_argument"),
    ] {
        assert_eq!(agent.create(id, language, cwd).unwrap_err().code, code, "{id} {language} {cwd}");
    }
    agent.create("x", "bash", "").unwrap();
    assert_eq!(agent.create("x", "bash", "").unwrap_err().code, "already_exists");
    for (context, language, code) in
        [("y", "bash", "not_found"), ("x", "python", "invalid_argument"), ("bash", "python", "invalid_argument")]
    {
        let channel = agent.open_in(context, language, "echo", 0);
        assert!(agent.host.next::<RunCodeResponse>(channel).is_none());
        assert_eq!(agent.host.status(channel).code, code, "{context} {language}");
    }
    for id in ["y", "bash"] {
        assert_eq!(agent.restart(id).unwrap_err().code, "not_found", "{id}");
        assert_eq!(agent.remove(id).unwrap_err().code, "not_found", "{id}");
    }
    assert_eq!(agent.listed(), [("x".to_owned(), false)]);
}

#[test]
fn a_context_without_an_interpreter_is_refused_with_the_reason() {
    let mut agent = Agent::with_path("/nowhere");
    let refused = agent.create("x", "javascript", "").unwrap_err();
    assert_eq!(refused.code, "failed_precondition");
    assert!(refused.message.contains("node is not on the PATH"), "{}", refused.message);
    assert_eq!(agent.listed(), []);
}

#[test]
fn there_are_sixteen_contexts_at_most_and_a_removed_one_makes_room() {
    let mut agent = Agent::start();
    for number in 0..16 {
        agent.create(&format!("c{number}"), "bash", "").unwrap();
    }
    assert_eq!(agent.create("more", "bash", "").unwrap_err().code, "resource_exhausted");
    assert_eq!(agent.run("bash", "echo default ones do not count").exit_code, Some(0));
    agent.remove("c3").unwrap();
    agent.create("more", "bash", "").unwrap();
}

#[test]
fn a_restart_ends_what_runs_and_what_waits_and_gives_an_empty_kernel() {
    let mut agent = Agent::start();
    agent.create("x", "python", "").unwrap();
    let running = agent.open_in("x", "python", "import subprocess; print('runs', flush=True); subprocess.run(['sleep', '97531'])", 0);
    agent.await_output(running, "runs");
    let waiting = agent.open_in("x", "python", "1", 0);
    agent.restart("x").unwrap();
    let ended = agent.finish(running);
    assert_eq!((ended.error_name(), ended.exit_code), ("KernelDied", Some(1)));
    assert!(ended.error.unwrap().value.contains("was restarted while the code ran"));
    assert!(agent.finish(waiting).error.unwrap().value.contains("was restarted before the code ran"));
    let after = agent.open_in("x", "python", "'subprocess' in globals()", 0);
    let after = agent.finish(after);
    assert_eq!((after.results[0].text.as_str(), after.stderr()), ("False", String::new()));
    let sleeping = std::process::Command::new("pgrep").args(["-f", "^sleep 97531"]).output().unwrap();
    assert!(sleeping.stdout.is_empty(), "what the cell had started lives on");
}

#[test]
fn a_removed_context_is_gone_with_its_interpreter_and_a_default_one_starts_anew() {
    let mut agent = Agent::start();
    agent.create("x", "python", "").unwrap();
    let pid = agent.open_in("x", "python", "import os; os.getpid()", 0);
    let pid = agent.finish(pid).results[0].text.clone();
    let running = agent.open_in("x", "python", "import time; print('runs', flush=True); time.sleep(100)", 0);
    agent.await_output(running, "runs");
    agent.remove("x").unwrap();
    assert!(agent.finish(running).error.unwrap().value.contains("was removed while the code ran"));
    assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
    let gone = agent.open_in("x", "python", "1", 0);
    assert!(agent.host.next::<RunCodeResponse>(gone).is_none());
    assert_eq!(agent.host.status(gone).code, "not_found");

    agent.run("python", "y = 1");
    agent.remove("python").unwrap();
    assert_eq!(agent.listed(), []);
    assert_eq!(agent.text("python", "'y' in globals()"), "False");
}

#[test]
fn a_context_whose_kernel_died_has_a_new_one_and_says_that_the_state_is_gone() {
    let mut agent = Agent::start();
    agent.create("x", "python", "").unwrap();
    let dies = agent.open_in("x", "python", "import os; os._exit(3)", 0);
    assert_eq!(agent.finish(dies).error_name(), "KernelDied");
    assert_eq!(agent.listed(), [("x".to_owned(), false)]);
    let after = agent.open_in("x", "python", "6 * 7", 0);
    assert_eq!(agent.finish(after).results[0].text, "42");
}

#[test]
fn much_output_is_complete_in_order_and_cut_between_characters() {
    let mut agent = Agent::start();
    let execution = agent.run("python", "import os\nfor i in range(200):\n    os.write(1, ('%03d' % i + 'é€😀' * 3000).encode())\n'end'");
    let expected: String = (0..200).map(|i| format!("{i:03}") + &"é€😀".repeat(3000)).collect();
    assert_eq!(execution.stdout(), expected);
    assert!(execution.stdout.iter().all(|chunk| chunk.len() <= 32 * 1024 && std::str::from_utf8(chunk).is_ok()));
    assert_eq!(execution.results[0].text, "'end'");
}

#[test]
fn results_come_after_the_output_before_them() {
    let mut agent = Agent::start();
    let channel = agent.open(
        "python",
        "import os\nfor i in range(50):\n    os.write(1, b'%d;' % i)\n    display({'text/plain': str(i)}, raw=True)",
        0,
    );
    let (mut printed, mut shown) = (String::new(), 0);
    while let Some(response) = agent.host.next::<RunCodeResponse>(channel) {
        match response.msg.unwrap() {
            Output::Stdout(data) => printed += std::str::from_utf8(&data).unwrap(),
            Output::Result(_) => {
                assert!(format!(";{printed}").contains(&format!(";{shown};")), "{shown} before {printed}");
                shown += 1;
            }
            _ => {}
        }
    }
    assert_eq!(shown, 50);
}

#[test]
fn output_between_two_calls_comes_with_the_next_and_a_gap_is_named() {
    let mut agent = Agent::start();
    agent.run("python", "import threading, os, time\ngo = threading.Event()\ndone = threading.Event()\ndef late():\n    go.wait()\n    time.sleep(0.2)\n    os.write(1, b'x' * 200000)\n    open('finished', 'w')\nthreading.Thread(target=late).start()\ngo.set()");
    let marker = agent.root.join("workspace/finished");
    let begun = Instant::now();
    while !marker.exists() {
        assert!(begun.elapsed() < link_client::PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    }
    let execution = agent.run("python", "print('next')");
    assert!(execution.stdout().ends_with("xnext\n"));
    let kept = execution.stdout().len() - "next\n".len();
    assert!(kept >= 64 * 1024);
    if kept < 200_000 {
        assert!(execution.stderr().contains("bytes of output written between two calls were dropped"));
    }
}

#[test]
fn garbage_on_the_event_pipe_ends_that_kernel_only() {
    let mut agent = Agent::start();
    let write_to_events = "import os\nfor fd in range(3, 400):\n    try:\n        if os.readlink('/proc/self/fd/%d' % fd).startswith('pipe:'): os.write(fd, b'{]\\n')\n    except OSError: pass";
    let execution = agent.run("python", write_to_events);
    assert_eq!((execution.error_name(), execution.exit_code), ("KernelStreamError", Some(1)));
    assert_eq!(agent.text("python", "1 + 1"), "2");
}

#[test]
fn a_caller_that_does_not_read_holds_back_the_code_and_not_its_timeout() {
    let mut agent = Agent::start();
    let channel = agent.open("python", "while True: print('x' * 1000)", 1000);
    // Nothing is taken from the channel, so there is no more credit; another call works and gets its turn.
    let other = agent.open("python", "1 + 1", 0);
    assert_eq!(agent.finish(other).results[0].text, "2");
    let execution = agent.finish(channel);
    assert_eq!((execution.error_name(), execution.exit_code), ("TimeoutError", Some(1)));
}

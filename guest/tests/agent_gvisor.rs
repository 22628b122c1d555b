//! The agent as PID 1 under gVisor: its link survives checkpoint and restore, in the parent and in children.
//!
//! Needs `runsc` ($MITOS_RUNSC, else on PATH) and root, if only in a user namespace, so it runs when asked for, as `npm test` does:
//! `cargo test --test agent_gvisor -- --ignored`, without root after `unshare --user --map-root-user`.

mod changed_root;
#[allow(dead_code)]
mod link_client;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use link_client::proto::guest::v1 as pb;
use link_client::proto::sandbox::v1 as sandbox;
use link_client::wire::FrameType;
use link_client::{Host, Outcome, adopt, attach, link_pair, shell};

struct Machines {
    dir: PathBuf,
    ids: Vec<String>,
}

impl Machines {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mitos-agent-gvisor-{name}-{}", std::process::id()));
        let root = dir.join("bundle/rootfs");
        for folder in ["proc", "dev", "sys", "tmp", "etc", "root", "usr", "opt"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{name}"), root.join(name)).unwrap();
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n").unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nstaff:x:50:nobody\n").unwrap();
        fs::copy(env!("CARGO_BIN_EXE_mitos-guest"), root.join("mitos-guest")).unwrap();
        let capabilities = [
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FOWNER",
            "CAP_FSETID",
            "CAP_KILL",
            "CAP_SETGID",
            "CAP_SETUID",
            "CAP_SETPCAP",
            "CAP_NET_BIND_SERVICE",
            "CAP_NET_RAW",
            "CAP_SYS_CHROOT",
            "CAP_MKNOD",
            "CAP_AUDIT_WRITE",
            "CAP_SETFCAP",
            "CAP_SYS_ADMIN",
        ];
        let config = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": 0, "gid": 0 }, "args": ["/mitos-guest", "agent"], "env": [], "cwd": "/",
                "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
                "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1048576, "soft": 1024 }],
            },
            "root": { "path": "rootfs", "readonly": false },
            "hostname": "template",
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts" },
                { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] },
                { "destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"] },
            ],
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }] },
        });
        fs::write(dir.join("bundle/config.json"), config.to_string()).unwrap();
        Self { dir, ids: Vec::new() }
    }

    fn runsc(&self) -> Command {
        let mut command = Command::new(runsc_path());
        command.args(own_flags()).arg("--root").arg(self.dir.join("state"));
        command.args(["--network=none", "--overlay2=all:memory", "--ignore-cgroups"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log")).unwrap());
        command
    }

    fn check(&self, command: &mut Command) {
        let status = command.status().unwrap();
        assert!(status.success(), "{command:?}: {status}\n{}", fs::read_to_string(self.dir.join("log")).unwrap_or_default());
    }

    fn with_link(&mut self, command: &mut Command, id: &str) -> Host {
        let (host, stdin, stdout): (_, OwnedFd, OwnedFd) = link_pair();
        self.ids.push(id.into());
        self.check(command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Host::new(host)
    }

    fn run(&mut self, id: &str) -> Host {
        let mut command = self.runsc();
        command.args(["run", "--detach", "--bundle"]).arg(self.dir.join("bundle")).arg(id);
        self.with_link(&mut command, id)
    }

    fn checkpoint(&self, id: &str, image: &str) {
        let mut command = self.runsc();
        command.args(["checkpoint", "--leave-running", "--compression=none", "--exclude-committed-zero-pages", "--image-path"]);
        self.check(command.arg(self.dir.join(image)).arg(id));
    }

    fn restore(&mut self, id: &str, image: &str) -> Host {
        let mut command = self.runsc();
        command
            .args(["restore", "--detach", "--image-path"])
            .arg(self.dir.join(image))
            .arg("--bundle")
            .arg(self.dir.join("bundle"))
            .arg(id);
        self.with_link(&mut command, id)
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for id in &self.ids {
            let _ = self.runsc().args(["kill", id, "KILL"]).status();
            let deadline = Instant::now() + Duration::from_secs(10);
            while Instant::now() < deadline && !self.runsc().args(["delete", "--force", id]).status().is_ok_and(|status| status.success()) {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.dir.join("log")).unwrap_or_default());
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn runsc_path() -> String {
    std::env::var("MITOS_RUNSC").unwrap_or_else(|_| "runsc".into())
}

/// Newer builds would leave a network namespace mounted in the folder of their state.
fn own_flags() -> &'static [&'static str] {
    static FLAGS: OnceLock<&'static [&'static str]> = OnceLock::new();
    const NEW_NAMESPACES: &[&str] = &["--gofer-network-namespace=new"];
    FLAGS.get_or_init(|| {
        let help = Command::new(runsc_path()).arg("flags").output().unwrap();
        let text = String::from_utf8_lossy(&[help.stdout, help.stderr].concat()).into_owned();
        if text.contains("gofer-network-namespace") { NEW_NAMESPACES } else { &[] }
    })
}

/// Prints each number up to n, so that a lost or repeated byte shows.
fn numbers(count: usize) -> String {
    (1..=count).map(|number| format!("{number}\n")).collect()
}

#[test]
#[ignore = "needs runsc, and root of a user namespace"]
fn a_live_fork_under_gvisor_carries_the_link_and_every_process_into_parent_and_children() {
    let mut machines = Machines::new("fork");
    let clock = Instant::now();
    let step = |what: &str| eprintln!("{:>7.1} ms  {what}", clock.elapsed().as_secs_f64() * 1000.0);
    let mut parent = machines.run("parent-01");
    step("runsc run");
    parent.hello("first");
    let adopted = parent.adopt(&adopt(1));
    assert_eq!(adopted.error, "");
    step("HELLO and ADOPT answered");
    eprintln!("{adopted:?}");
    for _ in 0..3 {
        assert_eq!(parent.shell("true").code(), 0);
        step("exec true");
    }
    let facts = parent.shell(
        "id; hostname; pwd; cat /etc/machine-id /run/sandbox/fork-generation /etc/hosts; ulimit -n; umask; ls -l /proc/self/fd; grep -E 'Cap|NoNew|Sig' /proc/self/status; env",
    );
    eprintln!("{}{}", facts.text(), String::from_utf8_lossy(&facts.stderr));
    let nobody = parent.exec(pb::ProcessStart { user: "nobody".into(), ..shell("id; grep Cap /proc/self/status; echo $HOME $USER") });
    eprintln!("{}", nobody.text());
    assert!(nobody.text().starts_with("uid=65534(nobody)"));

    // In flight over the fork: a talkative process, one that waits for input, a terminal with a shell variable.
    let count = 400_000;
    let talkative = parent.start(shell(&format!("seq 1 {count}")));
    let waiting = parent.start(pb::ProcessStart { stdin: true, ..shell("while read line; do echo got $line; done") });
    let waiting_pid = parent.started(waiting);
    let size = sandbox::WindowSize { cols: 100, rows: 30 };
    let terminal = parent.start(pb::ProcessStart {
        shell_command: "/bin/sh".into(),
        pty: Some(sandbox::PtyOptions { term: String::new(), size: Some(size) }),
        ..Default::default()
    });
    let terminal_pid = parent.started(terminal);
    parent.input(terminal, pb::exec_input::Msg::Stdin("LIVE=before; echo ma''rk\n".into()));
    let mut seen = Outcome::default();
    parent.collect(terminal, &mut seen, |outcome| outcome.text().contains("mark"));
    parent.shell("sleep 1000 >/dev/null 2>&1 & echo written > /tmp/file");

    let mut talked = Outcome::default();
    parent.collect(talkative, &mut talked, |outcome| outcome.stdout.len() > 100_000);
    parent.quiesce(7);
    step("QUIESCED");
    assert!(!parent.step(Duration::from_millis(100)), "nothing is sent while quiesced");
    let paused = Instant::now();
    machines.checkpoint("parent-01", "image");
    eprintln!("checkpoint: {:?}", paused.elapsed());
    parent.control(FrameType::Resume, &pb::Resume { round: 7, ..Default::default() });

    for (id, generation) in [("child-001", 2), ("child-002", 3)] {
        let restore = Instant::now();
        let mut child = machines.restore(id, "image");
        eprintln!("restore: {:?}", restore.elapsed());
        let hello = child.hello(id);
        assert_eq!(hello.generation, 1);
        let adopted = child.adopt(&adopt(generation));
        assert_eq!(adopted.error, "");
        eprintln!("restore to ADOPTED: {:?} {adopted:?}", restore.elapsed());
        assert_eq!(child.adopt(&adopt(generation)).error, format!("generation {generation} does not follow {generation}"));
        let facts = child.shell("hostname; cat /etc/machine-id /run/sandbox/fork-generation /tmp/file");
        assert_eq!(facts.text(), format!("host-{generation}\n{generation:032x}\n{generation}\nwritten\n"));
        eprintln!("restore to first exec: {:?}", restore.elapsed());
        let list: pb::ListProcessesReply = child.unary("ListProcesses", &pb::ListProcessesRequest {}).unwrap();
        assert!(list.processes.iter().any(|row| row.pid == waiting_pid && row.state == "running"));
        // The process that waits goes on with input given in the child.
        let attached = child.open("Exec", &attach(waiting_pid, 0, true), false);
        child.input(attached, pb::exec_input::Msg::Stdin(format!("child {generation}\n").into()));
        let mut outcome = Outcome::default();
        child.collect(attached, &mut outcome, |outcome| outcome.text().ends_with('\n'));
        assert_eq!(outcome.text(), format!("got child {generation}\n"));
        let write = pb::WriteStdinRequest { pid: waiting_pid, close: true, ..Default::default() };
        child.unary::<pb::Empty>("WriteStdin", &write).unwrap();
        assert_eq!(child.finish(attached).code(), 0);
        // So does the terminal, with its variable and its size, and it can still be resized.
        let attached = child.open("Exec", &attach(terminal_pid, seen.stdout_offset, true), false);
        child.input(attached, pb::exec_input::Msg::Resize(sandbox::WindowSize { cols: 120, rows: 40 }));
        child.input(attached, pb::exec_input::Msg::Stdin("echo $LIVE-$(stty size)\nexit 3\n".into()));
        let mut outcome = Outcome::from_offset(seen.stdout_offset);
        child.collect(attached, &mut outcome, |outcome| outcome.exit.is_some());
        assert!(outcome.text().contains("before-40 120"), "{}", outcome.text());
        assert_eq!(outcome.code(), 3);
        // Zombies are reaped: no defunct process remains.
        let zombies = child.shell("cat /proc/[0-9]*/stat | grep -c ') Z '");
        assert_eq!(zombies.text(), "0\n");
    }

    // The parent went on: what was in flight lost and repeated nothing.
    parent.collect(talkative, &mut talked, |outcome| outcome.exit.is_some());
    assert_eq!(talked.text(), numbers(count));
    assert_eq!(talked.code(), 0);
    parent.input(waiting, pb::exec_input::Msg::Stdin("parent\n".into()));
    parent.end(waiting);
    let outcome = parent.finish(waiting);
    assert_eq!((outcome.text().as_str(), outcome.code()), ("got parent\n", 0));
    parent.input(terminal, pb::exec_input::Msg::Stdin("echo $LIVE-$(stty size)\nexit 4\n".into()));
    parent.collect(terminal, &mut seen, |outcome| outcome.exit.is_some());
    assert!(seen.text().contains("before-30 100"), "{}", seen.text());
    assert_eq!(parent.shell("hostname").text(), "host-1\n");
    step("end");
}

#[test]
#[ignore = "needs runsc, and root of a user namespace"]
fn fifty_terminals_under_gvisor_all_answer() {
    let mut machines = Machines::new("terminals");
    let mut host = machines.run("terminals");
    host.hello("s");
    for round in 0..50 {
        let terminal = host.start(pb::ProcessStart {
            shell_command: "/bin/sh".into(),
            pty: Some(sandbox::PtyOptions::default()),
            timeout_ms: 10_000,
            ..Default::default()
        });
        host.input(terminal, pb::exec_input::Msg::Stdin("echo X''Y\n".into()));
        host.input(terminal, pb::exec_input::Msg::Resize(sandbox::WindowSize { cols: 120, rows: 40 }));
        host.input(terminal, pb::exec_input::Msg::StdinClose(true));
        let outcome = host.finish(terminal);
        assert!(outcome.text().contains("XY"), "round {round}: {}", outcome.text());
        assert_eq!(outcome.code(), 0, "round {round}");
    }
}

#[test]
#[ignore = "needs runsc, and root of a user namespace"]
fn changes_of_the_root_are_told_and_nothing_else_also_after_a_restore() {
    let mut machines = Machines::new("changes");
    changed_root::lay(&machines.dir.join("bundle/rootfs/data"));
    let mut parent = machines.run("parent-01");
    parent.hello("first");
    assert_eq!(parent.adopt(&adopt(1)).error, "");
    changed_root::change(&mut parent);
    parent.quiesce(7);
    machines.checkpoint("parent-01", "image");
    parent.control(FrameType::Resume, &pb::Resume { round: 7, ..Default::default() });
    let mut child = machines.restore("child-001", "image");
    child.hello("child");
    assert_eq!(child.adopt(&adopt(2)).error, "");
    let told = changed_root::changes(&mut parent);
    assert_eq!(changed_root::changes(&mut child), told, "a child is told apart from its root as its parent is");
    changed_root::check(&told);
}

//! The agent as the first program of a virtual machine.
//!
//! Needs QEMU and what a machine is booted from, in variables that scripts/test.mjs sets, so it runs when asked for, as `npm test` does:
//! `cargo test --test agent_qemu -- --ignored`.

mod changed_root;
#[allow(dead_code)]
mod link_client;
#[allow(dead_code)]
mod qemu_machine;

use std::collections::BTreeSet;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use link_client::proto::guest::v1 as pb;
use link_client::proto::sandbox::v1 as sandbox;
use link_client::wire::FrameType;
use link_client::{Host, adopt, shell};
use qemu_machine::{BOOT_PATIENCE, Machine, Options, Parts};

/// Writes a line whenever it runs: the generation, eight random bytes, the time.
const TICKER: &str = r#"
import os, time
ticks = open("/tmp/ticks", "a", buffering=1)
while True:
    generation = open("/run/sandbox/fork-generation").read().strip()
    ticks.write(f"{generation} {os.urandom(8).hex()} {time.time_ns()}\n")
    time.sleep(0.001)
"#;
/// Never waits, beside one that is stopped. It ends in children, which have enough to do.
const BUSY: &str = "sh -c 'kill -STOP $$' & while read generation </run/sandbox/fork-generation && [ $generation = 1 ]; do :; done";
const CHILDREN: u64 = 12;
const HOUR_NANOS: i64 = 3_600_000_000_000;

fn now_nanos() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64
}

/// Empty when it is not there. The agent itself reads it, so it can be had while programs stand still.
fn read_file(host: &mut Host, path: &str) -> String {
    let channel = host.open("ReadFile", &pb::ReadFileRange { path: path.into(), ..Default::default() }, true);
    let mut bytes = Vec::new();
    while let Some(output) = host.next::<pb::ReadFileOutput>(channel) {
        if let Some(pb::read_file_output::Msg::Data(data)) = output.msg {
            bytes.extend_from_slice(&data);
        }
    }
    let code = host.status(channel).code;
    assert!(code.is_empty() || code == "not_found", "{code}");
    String::from_utf8(bytes).unwrap()
}

/// Whole lines of the ticker after the first `known` bytes, once there are some.
fn new_ticks(host: &mut Host, known: usize) -> Vec<(String, String, i64)> {
    let until = Instant::now() + BOOT_PATIENCE;
    let lines = loop {
        let text = read_file(host, "/tmp/ticks").split_off(known);
        match text.rsplit_once('\n') {
            Some((whole, _)) if whole.lines().count() > 1 => break whole.to_owned(),
            _ => assert!(Instant::now() < until, "no tick"),
        }
    };
    let tick = |line: &str| {
        let mut fields = line.split(' ').map(str::to_owned);
        (fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap().parse().unwrap())
    };
    lines.lines().map(tick).collect()
}

#[test]
#[ignore = "needs QEMU"]
fn no_program_of_a_child_runs_with_what_its_parent_was_under_qemu() {
    let parts = Parts::new("fork");
    let mut parent = Machine::booted(&parts, &Options::default());
    let adopted = parent.host.adopt(&pb::Adopt { wall_clock_unix_nanos: now_nanos(), ..adopt(1) });
    assert!(adopted.error.is_empty() && adopted.entropy_credited, "{adopted:?}");
    let ticker = ["python3", "-c", TICKER].map(Into::into).into();
    parent.host.exec(pb::ProcessStart { argv: ticker, detached: true, ..Default::default() });
    let busy = parent.host.exec(pb::ProcessStart { detached: true, ..shell(BUSY) });
    new_ticks(&mut parent.host, 0);

    // A program whose start comes with QUIESCE does not stand in its way, and is not lost.
    let late = parent.host.start(shell("echo late"));
    parent.host.quiesce(7);
    let state = parts.dir.join("state");
    parent.save(&state, None);
    let resumed_at = now_nanos() + HOUR_NANOS;
    parent.host.control(FrameType::Resume, &pb::Resume { round: 7, wall_clock_unix_nanos: resumed_at });
    assert_eq!(parent.host.finish(late).text(), "late\n");
    let date = parent.host.shell("date +%s%N").text();
    assert!(date.trim().parse::<i64>().unwrap() >= resumed_at, "the parent's clock is behind: {date}");

    let mut random = BTreeSet::new();
    let mut standing_still = BTreeSet::new();
    for generation in 2..2 + CHILDREN {
        let mut child = Machine::start(&parts, &Options { from: Some(&state), ..Options::default() });
        child.host.greet("child", true);
        child.host.acknowledged("child", BOOT_PATIENCE).expect("a HELLO_ACK");
        let inherited = read_file(&mut child.host, "/tmp/ticks");
        let states = child.host.unary::<sandbox::ProcessList>("Processes", &sandbox::ProcessesRequest {}).unwrap();
        assert!(states.processes.iter().any(|process| process.pid == busy.pid), "{states:?}");
        assert_eq!(read_file(&mut child.host, "/tmp/ticks"), inherited, "programs run before ADOPT");
        standing_still.insert(inherited.clone());

        let wall_clock_unix_nanos = now_nanos() + HOUR_NANOS * generation as i64;
        let adopted = child.host.adopt(&pb::Adopt { wall_clock_unix_nanos, ..adopt(generation) });
        assert!(adopted.error.is_empty() && adopted.entropy_credited && adopted.clock_step_nanos > HOUR_NANOS / 2, "{adopted:?}");
        let ticks = new_ticks(&mut child.host, inherited.len());
        // What was under way when the machine stood still may end as it began.
        let first_whole = usize::from(ticks[0].0 != generation.to_string());
        for (of, _, at) in &ticks[first_whole..] {
            assert!(*of == generation.to_string() && *at >= wall_clock_unix_nanos, "{ticks:?}");
        }
        random.insert(ticks[1].1.clone());
        let own =
            "od -An -N8 -tx8 /dev/urandom; for file in /proc/sys/kernel/hostname /etc/machine-id; do read line <$file; echo $line; done";
        let own = child.host.shell(own).text();
        let (own_random, names) = own.split_once('\n').unwrap();
        random.insert(own_random.trim().to_owned());
        assert_eq!(names, format!("host-{generation}\n{generation:032x}\n"));
    }
    assert_eq!(random.len() as u64, 2 * CHILDREN, "children have the same randomness: {random:?}");
    assert_eq!(standing_still.len(), 1);

    // The parent never was another.
    let known = read_file(&mut parent.host, "/tmp/ticks").len();
    assert!(new_ticks(&mut parent.host, known).iter().all(|(generation, ..)| generation == "1"));
    // A server that comes back to a machine that stands still finds it running.
    parent.host.quiesce(8);
    parent.host.hello("next");
    let known = read_file(&mut parent.host, "/tmp/ticks").len();
    new_ticks(&mut parent.host, known);
}

#[test]
#[ignore = "needs QEMU"]
fn changes_of_the_root_are_told_and_nothing_else_also_in_a_child_under_qemu() {
    let parts = Parts::with_data("changes", changed_root::lay);
    let (disk, copy, state) = (parts.new_disk("disk"), parts.dir.join("copy"), parts.dir.join("state"));
    let mut parent = Machine::booted(&parts, &Options { disk: Some(&disk), ..Options::default() });
    assert_eq!(parent.host.adopt(&adopt(1)).error, "");
    changed_root::change(&mut parent.host);
    let told = changed_root::changes(&mut parent.host);
    changed_root::check(&told);
    parent.host.quiesce(7);
    parent.save(&state, Some((&disk, &copy)));
    let mut child = Machine::start(&parts, &Options { disk: Some(&copy), from: Some(&state), ..Options::default() });
    child.host.greet("child", true);
    child.host.acknowledged("child", BOOT_PATIENCE).expect("a HELLO_ACK");
    assert_eq!(child.host.adopt(&adopt(2)).error, "");
    assert_eq!(changed_root::changes(&mut child.host), told, "a child is told apart from its root as its parent is");
}

/// What root must not be able to do, each as a shell command that fails.
const REFUSED: [&str; 8] = [
    "echo 0 > /proc/sys/vm/panic_on_oom",
    "echo '|/bin/true' > /proc/sys/kernel/core_pattern",
    "echo c > /proc/sysrq-trigger",
    "echo /bin/true > /sys/kernel/uevent_helper",
    "mknod /tmp/console c 5 1 && echo x > /tmp/console",
    "mknod /dev/disk b 254 0 && head -c 1 /dev/disk",
    "mkdir /tmp/cgroup && mount -t cgroup2 cgroup2 /tmp/cgroup",
    "readlink /proc/1/fd/0",
];
const PROCESSES_MAX: u32 = 30;
/// Starts what can be started, as root and as somebody else.
const FORK_BOMB: &str = r#"
import os, time
for user in (0, 65534):
    if os.fork() == 0:
        os.setuid(user)
        try:
            for _ in range(200):
                if os.fork() == 0:
                    time.sleep(1000)
        except BlockingIOError:
            pass
        time.sleep(1000)
time.sleep(1000)
"#;
const ALL_MEMORY: &str = "held = []\nwhile True: held.append(bytearray(4 << 20))";

#[test]
#[ignore = "needs QEMU"]
fn a_guest_keeps_its_programs_within_their_limits_and_ends_as_a_whole_without_memory_under_qemu() {
    let parts = Parts::new("limits");
    let mut machine = Machine::booted(&parts, &Options::default());
    assert_eq!(machine.host.adopt(&pb::Adopt { processes_max: PROCESSES_MAX, ..adopt(1) }).error, "");
    let host = &mut machine.host;
    assert_eq!(
        host.shell("cat /proc/self/cgroup; ls /dev; ls /sys/fs/cgroup; ls /modules 2>&1").text(),
        "0::/programs\nfd\nfull\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n\
         ls: cannot access '/modules': No such file or directory\n"
    );
    for refused in REFUSED {
        assert_ne!(host.shell(refused).code(), 0, "{refused}");
    }
    let loopback =
        "import socket; s = socket.create_server(('127.0.0.1', 80)); socket.create_connection(('localhost', 80)); open('/dev/shm/x', 'w')";
    let outcome = host.exec(pb::ProcessStart { argv: ["python3", "-c", loopback].map(Into::into).into(), ..Default::default() });
    assert_eq!(outcome.code(), 0, "{}", String::from_utf8_lossy(&outcome.stderr));

    let program =
        |code: &str| pb::ProcessStart { argv: ["python3", "-c", code].map(Into::into).into(), detached: true, ..Default::default() };
    host.exec(program(FORK_BOMB));
    let until = Instant::now() + BOOT_PATIENCE;
    loop {
        let processes = host.unary::<sandbox::ProcessList>("Processes", &sandbox::ProcessesRequest {}).unwrap().processes;
        let count = processes.iter().filter(|process| process.command.starts_with("python")).count();
        assert!(count <= PROCESSES_MAX as usize, "{count} processes");
        if count == PROCESSES_MAX as usize {
            break;
        }
        assert!(Instant::now() < until, "{count} processes");
    }
    // A program that the host starts still starts.
    assert_eq!(host.exec(pb::ProcessStart { argv: vec!["true".into()], ..Default::default() }).code(), 0);

    host.exec(program(ALL_MEMORY));
    let words = machine.last_words();
    assert!(words.contains("Kernel panic - not syncing: Out of memory"), "{words}");
}

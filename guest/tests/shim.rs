//! The shim against real little programs. Each test counts what it has left behind.

mod shim_client;

use serde_json::{Value, json};
use shim_client::*;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

#[test]
fn a_frame_goes_to_the_machine_and_back() {
    let shim = Shim::start();
    let mut server = shim.connect();
    shim.machine(&mut server, "exec cat");
    server.send(&frame(DATA, 7, b"hello"));
    assert_eq!(server.next_data(), (7, b"hello".to_vec()));
    server.end();
    let exit = shim.exit();
    assert_eq!((&exit["reason"], &exit["signal"], &exit["oom"]), (&json!("terminated"), &json!(9), &json!(false)));
}

#[test]
fn a_machine_that_ends_by_itself_is_reported_after_on_end() {
    let shim = Shim::start();
    let mut server = shim.connect();
    server.request(json!({"op":"on_end","commands":[["sh","-c","echo one >> ended"],["/does/not/exist"],["sh","-c","echo two >> ended"]]}));
    shim.machine(&mut server, "sleep 0.05; exit 3");
    let event = server.event();
    assert_eq!(event["event"], "exit");
    assert_eq!((&event["reason"], &event["exit_code"], &event["signal"]), (&json!("exited"), &json!(3), &Value::Null));
    assert_eq!(fs::read_to_string(shim.dir.join("ended")).unwrap(), "one\ntwo\n");
    assert_eq!(shim.exit()["exit_code"], json!(3));
}

#[test]
fn a_machine_that_somebody_kills_is_reported_as_killed() {
    let shim = Shim::start();
    let mut server = shim.connect();
    let pid = shim.machine(&mut server, "exec sleep 1000");
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    let event = server.event();
    assert_eq!((&event["reason"], &event["signal"], &event["oom"]), (&json!("killed"), &json!(9), &json!(false)));
}

#[test]
fn run_answers_with_output_code_signal_and_time_out() {
    let shim = Shim::start();
    let mut server = shim.connect();
    let reply = server.request(json!({"op":"run","argv":["sh","-c","echo out; echo err >&2; exit 4"],"stdio":null,"timeout_ms":5000}));
    assert_eq!(reply, json!({"ok":true,"exit_code":4,"signal":null,"stdout":"out\n","stderr":"err\n","timed_out":false}));
    let reply = server.request(json!({"op":"run","argv":["sh","-c","kill -TERM $$"],"timeout_ms":5000}));
    assert_eq!((&reply["exit_code"], &reply["signal"]), (&Value::Null, &json!(15)));
    let reply = server.request(json!({"op":"run","argv":["sh","-c","sleep 100 & sleep 100"],"timeout_ms":50}));
    assert_eq!((&reply["timed_out"], &reply["signal"]), (&json!(true), &json!(9)));
    let reply = server.request(json!({"op":"run","argv":["/does/not/exist"],"timeout_ms":50}));
    assert!(reply["error"].as_str().unwrap().starts_with("run /does/not/exist: "), "{reply}");
    let reply = server.request(json!({"op":"run","argv":["/usr/bin/env"],"env":{"ONLY":"this"},"timeout_ms":5000}));
    assert_eq!(reply["stdout"], "ONLY=this\n");
    let reply = server.request(json!({"op":"run","argv":["sh","-c","head -c 1000000 /dev/zero | tr '\\0' a; echo end"],"timeout_ms":5000}));
    let stdout = reply["stdout"].as_str().unwrap();
    assert!(stdout.len() == 64 << 10 && stdout.ends_with("aaaend\n"));
    server.end();
}

#[test]
fn requests_run_concurrently() {
    let shim = Shim::start();
    let mut server = shim.connect();
    let slow = server.start_request(json!({"op":"run","argv":["sh","-c","until test -e go; do sleep 0.01; done"],"timeout_ms":10000}));
    let fast = server.request(json!({"op":"run","argv":["touch","go"],"timeout_ms":5000}));
    assert_eq!(fast["exit_code"], json!(0));
    assert_eq!(server.reply(slow)["exit_code"], json!(0));
    server.end();
}

#[test]
fn a_command_has_no_descriptor_but_its_stdio_and_no_blocked_signal() {
    let shim = Shim::start();
    let mut server = shim.connect();
    let reply = server.request(json!({"op":"run","argv":["ls","/proc/self/fd"],"timeout_ms":5000}));
    assert_eq!(reply["stdout"], "0\n1\n2\n3\n", "3 is the folder that ls reads");
    // No shell in between: it would clear the mask.
    let reply = server.request(json!({"op":"run","argv":["grep","SigBlk","/proc/self/status"],"timeout_ms":5000}));
    assert_eq!(reply["stdout"], "SigBlk:\t0000000000000000\n");
    server.end();
}

#[test]
fn a_deadline_ends_the_machine_though_no_server_lives() {
    let shim = Shim::start();
    let mut server = shim.connect();
    shim.machine(&mut server, "exec sleep 1000");
    let at = unix_ms() + 300;
    server.request(json!({"op":"deadline","unix_ms":at,"reason":"deadline"}));
    drop(server);
    let exit = shim.exit();
    assert_eq!(exit["reason"], "deadline");
    assert!(exit["at_unix_ms"].as_u64().unwrap() >= at);
}

#[test]
fn a_server_that_dies_in_mid_frame_leaves_a_clean_stream() {
    let mut state = seed();
    let shim = Shim::start();
    let mut server = shim.connect();
    shim.machine(&mut server, "exec cat");
    for round in 0..200_u32 {
        let payload = vec![round as u8; (random(&mut state) % 65_537) as usize];
        let bytes = frame(DATA, round, &payload);
        let cut = (random(&mut state) as usize) % bytes.len();
        server.send(&bytes[..cut]);
        if random(&mut state).is_multiple_of(2) {
            drop(server);
            server = shim.connect();
        } else {
            // The old one is still there: the new connection replaces it.
            let successor = shim.connect();
            assert!(server.read_frame().is_none());
            server = successor;
        }
        let probe = vec![!(round as u8); (random(&mut state) % 3000) as usize];
        server.send(&frame(DATA, 1_000_000 + round, &probe));
        assert_eq!(server.next_data(), (1_000_000 + round, probe), "round {round}, cut at {cut} of {}", bytes.len());
    }
    server.end();
}

#[test]
fn a_server_that_connects_in_mid_frame_gets_the_next_whole_frame_first() {
    let shim = Shim::start();
    let mut server = shim.connect();
    // Sends the first part of a frame, waits, sends the rest and a second frame: 3 + 2 bytes of "aaaaa", then "b".
    let script = r"printf '\0\0\0\5\21\0\0\0\0\1aaa'; until test -e go; do sleep 0.01; done; printf 'aa\0\0\0\1\21\0\0\0\0\2b'; touch sent; exec sleep 1000";
    shim.machine(&mut server, script);
    drop(server);
    fs::write(shim.dir.join("go"), "").unwrap();
    wait_for("the rest of the frame", || shim.dir.join("sent").exists().then_some(()));
    let mut server = shim.connect();
    // Whether the frames were dropped or not yet read, what comes is whole.
    let reply = server.request(json!({"op":"meter"}));
    assert_eq!(reply["ok"], true);
    assert!(server.data.iter().all(|frame| *frame == (1, b"aaaaa".to_vec()) || *frame == (2, b"b".to_vec())), "{:?}", server.data);
    server.end();
}

#[test]
fn a_server_that_does_not_read_stops_the_machine_and_nothing_is_lost() {
    let shim = Shim::start();
    let mut server = shim.connect();
    shim.machine(&mut server, "exec cat");
    let mut writer = server.stream.try_clone().unwrap();
    let total = 400_u32;
    let sender = std::thread::spawn(move || {
        for channel in 0..total {
            writer.write_all(&frame(DATA, channel, &vec![channel as u8; 50_000])).unwrap();
        }
    });
    // 20 MB are more than all buffers on the way hold, so the writer must still wait although nothing is read here.
    let mut control = shim.connect_to("control.sock");
    let rss = wait_for("the stream to stand still", || {
        let before = control.request(json!({"op":"meter"}))["cpu_ms"].as_u64();
        std::thread::sleep(Duration::from_millis(100));
        (before == control.request(json!({"op":"meter"}))["cpu_ms"].as_u64()).then(|| private_kib(shim.pid))
    });
    assert!(!sender.is_finished());
    assert!(rss < 4096, "the shim holds {rss} KiB");
    for channel in 0..total {
        let (got, payload) = server.next_data();
        assert_eq!(got, channel);
        assert!(payload.len() == 50_000 && payload.iter().all(|byte| *byte == channel as u8));
    }
    sender.join().unwrap();
    server.end();
}

#[test]
fn a_stopped_machine_with_a_full_link_is_still_reached_by_control() {
    let shim = Shim::start();
    let mut server = shim.connect();
    shim.machine(&mut server, "exec cat");
    let mut control = shim.connect_to("control.sock");
    assert_eq!(control.request(json!({"op":"signal","signal":"SIGSTOP"})), json!({"ok":true}));
    server.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let block = frame(DATA, 1, &[0; 60_000]);
    // Counts the bytes, since a time-out may cut a frame: the rest is sent below.
    let mut sent = 0;
    loop {
        match server.stream.write(&block[sent % block.len()..]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(control.request(json!({"op":"signal","signal":"SIGCONT"})), json!({"ok":true}));
    for _ in 0..sent / block.len() {
        assert_eq!(server.next_data().1.len(), 60_000);
    }
    server.send(&block[sent % block.len()..]);
    assert_eq!(server.next_data().1.len(), 60_000);
    server.end();
}

#[test]
fn a_signal_for_descendants_too_stops_them_and_lets_them_go_on() {
    let shim = Shim::start();
    let mut server = shim.connect();
    let machine = shim.machine(&mut server, "sleep 1000 & sh -c 'sleep 1000 & exec sleep 1000' & wait");
    let descendants = || -> Vec<i32> {
        let mut found = vec![machine];
        let mut at = 0;
        while at < found.len() {
            let list = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", found[at])).unwrap();
            found.extend(list.split_ascii_whitespace().map(|pid| pid.parse::<i32>().unwrap()));
            at += 1;
        }
        found
    };
    let all = wait_for("they run", || Some(descendants()).filter(|found| found.len() == 4));
    let stopped = || all.iter().filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ")).count();
    assert_eq!(server.request(json!({"op":"signal","signal":"SIGSTOP","descendants":true})), json!({"ok":true}));
    wait_for("all stand still", || (stopped() == 4).then_some(()));
    assert_eq!(server.request(json!({"op":"signal","signal":"SIGCONT","descendants":true})), json!({"ok":true}));
    wait_for("all go on", || (stopped() == 0).then_some(()));
    server.end();
}

#[test]
fn a_machine_is_frozen_only_while_nothing_of_it_runs() {
    let state = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat[stat.rfind(')').unwrap() + 2..].chars().next().unwrap()
    };
    for (script, frozen) in [("sleep 1000 & wait", true), ("while :; do :; done & wait", false)] {
        let shim = Shim::start();
        let mut server = shim.connect();
        let machine = shim.machine(&mut server, script);
        let child = wait_for("its child runs", || {
            let list = std::fs::read_to_string(format!("/proc/{machine}/task/{machine}/children")).unwrap();
            list.split_ascii_whitespace().next().map(|pid| pid.parse::<i32>().unwrap())
        });
        let (at_rest, after) = if frozen { (['S', 'S'], ['T', 'T']) } else { (['S', 'R'], ['S', 'R']) };
        let states = || [state(machine), state(child)];
        wait_for("they do what they do", || (states() == at_rest).then_some(()));
        assert_eq!(server.request(json!({"op":"freeze"})), json!({"ok":true,"frozen":frozen}));
        wait_for("it is as it should be", || (states() == after).then_some(()));
        server.end();
    }
}

#[test]
fn a_machine_that_breaks_the_rules_loses_its_link_but_not_its_life() {
    let bad = [r"\0\0\0\2\202\0\0\0\0\0{}", r"\0\2\0\0\21\0\0\0\0\2", r"\0\0\0\0\21\4\0\0\0\2", r"\0\0\0\0\177\0\0\0\0\2"];
    for script in bad {
        let shim = Shim::start();
        let mut server = shim.connect();
        shim.machine(&mut server, &format!("printf '{script}'; exec sleep 1000"));
        let event = server.event();
        assert_eq!(event["event"], "link_closed", "{script}: {event}");
        let mut successor = shim.connect();
        assert_eq!(successor.event()["event"], "link_closed");
        assert_eq!(successor.request(json!({"op":"signal","signal":18})), json!({"ok":true}));
        successor.end();
    }
}

#[test]
fn a_machine_that_shuts_its_link_is_reported_by_its_end_or_when_it_lives_on() {
    let shut = "import socket,sys,time; socket.socket(fileno=0).shutdown(2); time.sleep(float(sys.argv[1]))";
    let shim = Shim::start();
    let mut server = shim.connect();
    shim.machine(&mut server, &format!("exec python3 -c '{shut}' 0.2"));
    assert_eq!(server.event()["event"], "exit");
    let shim = Shim::start();
    let mut server = shim.connect();
    shim.machine(&mut server, &format!("exec python3 -c '{shut}' 1000"));
    assert_eq!(server.event()["event"], "link_closed");
    server.end();
}

#[test]
fn the_memory_limit_ends_the_machine_as_oom_killed() {
    let shim = Shim::start();
    let mut server = shim.connect();
    let eat = "import time; block = bytearray(200_000_000); block[::4096] = b'x' * len(block[::4096]); time.sleep(1000)";
    shim.machine(&mut server, &format!("exec python3 -c \"{eat}\""));
    server.request(json!({"op":"memory_limit","bytes":100_000_000,"interval_ms":50}));
    let event = server.event();
    assert_eq!((&event["reason"], &event["oom"]), (&json!("oom_killed"), &json!(true)));
}

#[test]
fn the_kernel_running_out_of_memory_in_the_cgroup_is_told_from_a_kill() {
    let Some(cgroup) = Cgroup::make(40 << 20) else {
        assert!(std::env::var_os("MITOS_TEST_REQUIRE_CGROUPS").is_none(), "no memory cgroup can be made here");
        return println!("skipped: no memory cgroup can be made here (root needed)");
    };
    let shim = Shim::start();
    let mut server = shim.connect();
    let procs = cgroup.0.join("cgroup.procs");
    let eat = "until test -e go; do sleep 0.01; done; exec python3 -c \"block = b'x' * 200_000_000; input()\"";
    let script = format!("( {eat} ) <&3 3<&- & echo $! > {} && echo $! > machine.pid", procs.display());
    let reply = server.request(json!({"op":"run","argv":["sh","-c",format!("exec 3<&0; {script}")],"stdio":"link","timeout_ms":5000}));
    assert_eq!(reply["exit_code"], json!(0), "{reply}");
    let reply = server.request(json!({"op":"watch","pid_file":"machine.pid","cgroup_memory":cgroup.0}));
    assert_eq!(reply["ok"], json!(true), "{reply}");
    fs::write(shim.dir.join("go"), "").unwrap();
    let event = server.event();
    assert_eq!((&event["reason"], &event["oom"], &event["signal"]), (&json!("oom_killed"), &json!(true), &json!(9)), "{event}");
}

/// A memory cgroup of version 1 or 2, removed at the end.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(bytes: u64) -> Option<Self> {
        let name = format!("mitos-shim-test-{}", std::process::id());
        let v1 = Path::new("/sys/fs/cgroup/memory").join(&name);
        let v2 = Path::new("/sys/fs/cgroup").join(&name);
        let (folder, limit) = if Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists() {
            (v1, "memory.limit_in_bytes")
        } else {
            (v2, "memory.max")
        };
        fs::create_dir(&folder).ok()?;
        let cgroup = Self(folder);
        fs::write(cgroup.0.join(limit), bytes.to_string()).ok()?;
        // Where swap is accounted for, it must not help out.
        let _ = fs::write(cgroup.0.join("memory.memsw.limit_in_bytes"), bytes.to_string());
        let _ = fs::write(cgroup.0.join("memory.swap.max"), "0");
        Some(cgroup)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        wait_for("the cgroup to be empty", || fs::remove_dir(&self.0).is_ok().then_some(()));
    }
}

#[test]
fn the_meter_counts_a_memfd_that_two_processes_map_once() {
    let shim = Shim::start();
    let mut server = shim.connect();
    let program = "import os,mmap,time; fd=os.memfd_create('runsc-memory'); os.ftruncate(fd,10**8); m=mmap.mmap(fd,10**8); m[:64<<20]=bytes(64<<20); os.fork(); open('full','w'); time.sleep(1000)";
    shim.machine(&mut server, &format!("exec python3 -c \"{program}\""));
    wait_for("the memory to be filled", || shim.dir.join("full").exists().then_some(()));
    let reply = server.request(json!({"op":"meter","shared":true}));
    let mib = reply["memory_bytes"].as_u64().unwrap() >> 20;
    assert!((64..64 + 40).contains(&mib), "{mib} MiB");
    // Two of python3, with its libraries: what they map of one file counts once, and the memfd not at all.
    let shared = reply["shared_bytes"].as_u64().unwrap() >> 10;
    assert!((1 << 10..32 << 10).contains(&shared), "{shared} KiB");
    assert!(server.request(json!({"op":"meter"})).get("shared_bytes").is_none());
    assert!(reply["cpu_ms"].as_u64().unwrap() > 0);
    server.end();
}

#[test]
fn a_shim_without_a_machine_ends_with_its_server() {
    let shim = Shim::start();
    let mut server = shim.connect();
    server.start_request(json!({"op":"run","argv":["sh","-c","setsid sleep 1000 & touch started; wait"],"timeout_ms":60000}));
    wait_for("the command to start", || shim.dir.join("started").exists().then_some(()));
    drop(server);
    assert_eq!(shim.exit()["reason"], "abandoned");
}

#[test]
fn processes_that_a_machine_leaves_behind_are_ended() {
    let shim = Shim::start();
    let mut server = shim.connect();
    shim.machine(&mut server, "for i in 1 2 3; do setsid sh -c 'sleep 1000 & sleep 1000' & done; sleep 0.2; exit 0");
    assert_eq!(server.event()["reason"], "exited");
}

#[test]
fn a_command_that_ends_the_machine_may_finish_and_is_answered() {
    let shim = Shim::start();
    let mut server = shim.connect();
    let pid = shim.machine(&mut server, "exec sleep 1000");
    let script = format!("kill -9 {pid}; sleep 0.3; echo saved");
    let reply = server.request(json!({"op":"run","argv":["sh","-c",script],"timeout_ms":5000}));
    assert_eq!((&reply["exit_code"], &reply["stdout"]), (&json!(0), &json!("saved\n")));
    assert_eq!(server.event()["reason"], "killed");
}

#[test]
fn stderr_of_the_machine_is_kept_within_its_limit() {
    let shim = Shim::start();
    let mut server = shim.connect();
    shim.machine(&mut server, "echo first >&2; head -c 3000000 /dev/zero >&2; echo last >&2");
    assert_eq!(server.event()["reason"], "exited");
    let log = fs::read(shim.dir.join("machine.log")).unwrap();
    assert!(log.starts_with(b"first\n") && log.ends_with(b"last\n") && log.len() < (512 << 10) + 100, "{} bytes", log.len());
}

#[test]
fn a_user_namespace_makes_the_commands_root_in_it() {
    let shim = Shim::start_with(&["--user-namespace"]);
    let mut server = shim.connect();
    let reply = server
        .request(json!({"op":"run","argv":["sh","-c","id -u; cat /proc/self/setgroups; readlink /proc/self/ns/user"],"timeout_ms":5000}));
    let stdout = reply["stdout"].as_str().unwrap();
    assert!(stdout.starts_with("0\ndeny\n"), "{stdout}");
    assert!(!stdout.contains(&*fs::read_link("/proc/self/ns/user").unwrap().to_string_lossy()));
    server.end();
}

#[test]
fn a_second_shim_for_a_folder_is_refused() {
    let shim = Shim::start();
    let server = shim.connect();
    let output = Command::new(env!("CARGO_BIN_EXE_mitos-guest")).args(["shim", "--dir"]).arg(&shim.dir).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("another shim"));
    server.end();
}

#[test]
fn descriptors_do_not_grow_with_connections_and_commands() {
    let shim = Shim::start();
    let mut server = shim.connect();
    shim.machine(&mut server, "exec cat");
    let count = || fs::read_dir(format!("/proc/{}/fd", shim.pid)).unwrap().count();
    let before = count();
    for _ in 0..100 {
        assert_eq!(server.request(json!({"op":"run","argv":["true"],"timeout_ms":5000}))["exit_code"], json!(0));
        server = shim.connect();
        assert_eq!(shim.connect_to("control.sock").request(json!({"op":"meter"}))["ok"], json!(true));
    }
    wait_for("the descriptors to be closed", || (count() <= before).then_some(()));
    let private = private_kib(shim.pid);
    assert!(private <= 3072, "the shim holds {private} KiB");
    server.end();
}

fn private_kib(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let field = |name: &str| -> u64 {
        rollup.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap()
    };
    // The program's text is the same page cache for every shim, and large in a debug build.
    field("Anonymous:")
}

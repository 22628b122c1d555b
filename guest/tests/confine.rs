//! The launcher of monitors with an ordinary program in the monitor's place, without a root of its own. With one: shim_vmm.rs.

mod shim_client;

use serde_json::{Value, json};
use shim_client::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn confine(server: &mut Server, specification: &Value) -> Value {
    let program = env!("CARGO_BIN_EXE_mitos-guest");
    server.request(json!({"op": "run", "argv": [program, "confine", specification.to_string()], "stdio": "vmm", "timeout_ms": 10_000}))
}

fn shell(script: &str) -> Value {
    json!({"argv": ["/bin/sh", "-c", script], "env": {"PATH": "/usr/bin:/bin"}, "pid_file": "vmm.pid"})
}

fn log(shim: &Shim) -> String {
    wait_for("the program's last line", || fs::read_to_string(shim.dir.join("machine.log")).ok().filter(|log| log.ends_with("last\n")))
}

#[test]
fn a_confined_program_finds_the_link_the_monitor_and_its_files_open_and_nothing_else() {
    let shim = Shim::start();
    let mut server = shim.connect();
    fs::write(shim.dir.join("given"), "content of a file\n").unwrap();
    // Stopped, it opens and closes nothing any more: one that is being executed has its libraries open for a moment.
    let mut specification = shell("cat /proc/self/fd/20; grep -E 'Cap|NoNew' /proc/$$/status; umask; env; echo last; kill -STOP $$");
    specification["files"] = json!([{"fd": 20, "path": shim.dir.join("given"), "access": "read"}]);
    let reply = confine(&mut server, &specification);
    assert_eq!(reply["exit_code"], 0, "{reply}");
    let reply = server.request(json!({"op": "watch", "pid_file": "vmm.pid"}));
    assert_eq!(reply["ok"], true, "{reply}");
    let (log, pid) = (log(&shim), reply["pid"].as_i64().unwrap());
    let mut lines = log.lines();
    assert_eq!(lines.next(), Some("content of a file"));
    let descriptors: BTreeMap<i32, String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .map(|entry| {
            (entry.file_name().to_str().unwrap().parse().unwrap(), fs::read_link(entry.path()).unwrap().to_string_lossy().into_owned())
        })
        .collect();
    let found: Vec<(i32, &str)> = descriptors.iter().map(|(number, target)| (*number, target.split(':').next().unwrap())).collect();
    let given = shim.dir.join("given").to_string_lossy().into_owned();
    assert_eq!(found, [(0, "/dev/null"), (1, "pipe"), (2, "pipe"), (3, "socket"), (4, "socket"), (20, &*given)]);
    assert_ne!(descriptors[&3], descriptors[&4], "the link and the monitor are two sockets");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let value = lines.next().unwrap();
        // Without CAP_SETPCAP the bounding set stays, and no_new_privs is what holds.
        let ordinary = set == "CapBnd" && !is_root();
        assert!(value == format!("{set}:\t0000000000000000") || ordinary, "{value}");
    }
    assert_eq!(lines.next(), Some("NoNewPrivs:\t1"));
    assert_eq!(lines.next(), Some("0077"));
    let environment: Vec<&str> = lines.filter(|line| *line != "last" && !line.starts_with("PWD=") && !line.starts_with('_')).collect();
    assert_eq!(environment, ["PATH=/usr/bin:/bin"]);
    // A session of its own, and the shim's child.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    assert_eq!(fields[1..4], [shim.pid.to_string(), pid.to_string(), pid.to_string()]);
    server.end();
}

fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap()) == 0
}

#[test]
fn what_cannot_be_started_is_told_and_leaves_nothing() {
    let shim = Shim::start();
    let mut server = shim.connect();
    let with = |field: &str, value: Value| {
        let mut specification = shell("exec sleep 1000");
        specification[field] = value;
        specification
    };
    for (specification, reason) in [
        (with("argv", json!(["/does/not/exist"])), "execute /does/not/exist"),
        (with("argv", json!(["relative"])), "absolute"),
        (with("files", json!([{"fd": 20, "path": "/does/not/exist", "access": "read"}])), "open /does/not/exist"),
        (with("cgroups", json!(["/does/not/exist/cgroup.procs"])), "join the cgroup"),
        (with("pid_file", json!("no/such/folder/pid")), "create no/such/folder/pid"),
        (with("root", json!("/does/not/exist")), "/does/not/exist"),
        (with("root", json!(shim.dir)), "mount"),
        (with("unknown", json!(1)), "unknown"),
    ] {
        let reply = confine(&mut server, &specification);
        assert_eq!(reply["exit_code"], 1, "{specification}: {reply}");
        assert!(reply["stderr"].as_str().unwrap().contains(reason), "{reply}");
        assert!(!shim.dir.join("vmm.pid").exists() || fs::read(shim.dir.join("vmm.pid")).unwrap().is_empty(), "{specification}");
    }
    assert!(!Path::new("/does").exists());
    server.end();
}

#[test]
fn a_program_that_speaks_no_protocol_fails_what_is_asked_of_it() {
    let shim = Shim::start();
    let mut server = shim.connect();
    assert_eq!(server.request(json!({"op": "vmm", "steps": [{"execute": "stop"}], "timeout_ms": 1000}))["ok"], false);
    let reply = confine(&mut server, &shell("echo nonsense >&4; exec sleep 1000"));
    assert_eq!(reply["exit_code"], 0, "{reply}");
    server.request(json!({"op": "watch", "pid_file": "vmm.pid"}));
    for _ in 0..2 {
        let reply =
            server.request(json!({"op": "vmm", "steps": [{"execute": "stop"}, {"execute": "cont", "always": true}], "timeout_ms": 10_000}));
        assert_eq!((&reply["ok"], &reply["step"], &reply["results"]), (&json!(false), &json!(0), &json!([null, null])), "{reply}");
        assert!(reply["error"].as_str().unwrap().contains("something else than its protocol"), "{reply}");
    }
    for steps in [json!([]), json!(vec![json!({"execute": "stop"}); 129])] {
        let reply = server.request(json!({"op": "vmm", "steps": steps, "timeout_ms": 1000}));
        assert_eq!(reply["ok"], false, "{reply}");
    }
    server.end();
}

//! What the program holds while it reads input.

use super::tar::{file, header};
use super::tool::{Folder, is_root};
use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Status of a program that waits for more input.
fn while_it_reads(folder: &Folder) -> (String, std::path::PathBuf) {
    folder.make("layer");
    let mut child = folder.command(&["unpack", "--into", "layer"]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&header(&file("a", ""), 1 << 20)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !folder.at("layer/tree/a").exists() {
        assert!(Instant::now() < deadline, "it has not begun to unpack");
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let root = fs::read_link(format!("/proc/{}/root", child.id())).unwrap();
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    (status, root)
}

#[test]
fn it_has_no_other_folder_and_few_privileges_while_it_reads() {
    // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETFCAP.
    let kept = 1_u64 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 31;
    for folder in [Folder::new(), Folder::of_ordinary_user()] {
        let (status, root) = while_it_reads(&folder);
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        if is_root() {
            assert_eq!(root, folder.at("layer"));
        }
        assert_eq!(field("NoNewPrivs:"), "1");
        assert_eq!(field("Seccomp:"), "2");
        assert_eq!(field("Threads:"), "1");
        for set in ["CapEff:", "CapPrm:"] {
            let held = u64::from_str_radix(&field(set), 16).unwrap();
            assert_eq!(held & !kept, 0, "{set} {held:x}");
        }
        assert_eq!(u64::from_str_radix(&field("CapInh:"), 16).unwrap(), 0);
    }
}

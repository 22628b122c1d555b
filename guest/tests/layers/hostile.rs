//! What must not be unpacked, and that nothing of it lands anywhere.

use super::tar::{Entry, entry, file, folder, header, link, open_tar, symlink, tar, with};
use super::tool::{Folder, paths, tree};
use std::io::Write;
use std::process::Command;

/// Runs both users' programs and asserts that nothing appeared beside the layer.
fn refused(tar: &[u8], reason: &str, hint: &str) {
    for folder in [Folder::new(), Folder::of_ordinary_user()] {
        let failure = folder.unpack("layer", tar).expect_err(hint);
        assert_eq!(failure.reason, reason, "{failure:?}");
        assert!(failure.detail.contains(hint), "{failure:?}");
        let beside: Vec<_> = std::fs::read_dir(&folder.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(beside.len(), 2, "{beside:?}");
        assert!(!folder.at("layer/index").exists());
    }
}

#[test]
fn paths_that_lead_out_are_refused() {
    let long = "n".repeat(256);
    let deep = "d/".repeat(257);
    for (bad, reason, hint) in [
        (file("/etc/passwd", "x"), "hostile", "absolute"),
        (file("../escape", "x"), "hostile", "`..`"),
        (file("a/../../escape", "x"), "hostile", "`..`"),
        (folder(".."), "hostile", "`..`"),
        (with(file("plain", "x"), "path", "/etc/passwd"), "hostile", "absolute"),
        (with(file("plain", "x"), "path", "a/../b"), "hostile", "`..`"),
        (with(file("plain", "x"), "path", b"a\0b".to_vec()), "hostile", "zero byte"),
        (with(file("plain", "x"), "path", long), "too_large", "a name of more than 255 bytes"),
        (with(file("plain", "x"), "path", deep + "x"), "too_large", "deeper than 256"),
        (with(file("plain", "x"), "path", "p/".repeat(3000)), "too_large", "a path of more than 3072 bytes"),
        (link("hard", "../secret"), "hostile", "`..`"),
        (file(".", "x"), "hostile", "the root"),
        (symlink("./", "/etc"), "hostile", "the root"),
        (file(".wh.", ""), "hostile", "whiteout of no name"),
        (file("a/.wh...", ""), "hostile", "whiteout of no name"),
        (file(".wh.a/b", ""), "hostile", "inside a whiteout"),
    ] {
        refused(&tar(&[file("good", "good"), bad]), reason, hint);
    }
}

#[test]
fn a_failure_names_the_entry() {
    let folder = Folder::new();
    let failure = folder.unpack("layer", &tar(&[file("good", ""), file("a/../b", "")])).unwrap_err();
    assert_eq!(failure.entry, "a/../b");
}

#[test]
fn what_is_written_through_a_symbolic_link_of_the_layer_stays_in_it() {
    for target in ["/etc", "../../../../../etc", "/", "..", "etc", "/nowhere/../etc"] {
        for folder in [Folder::new(), Folder::of_ordinary_user()] {
            let root =
                folder.root_of(&[tar(&[symlink("way", target), file("way/mitos-test", "mine"), link("way/other", "way/mitos-test")])]);
            let files: Vec<&String> = root.iter().filter(|(_, what)| *what == "mine").map(|(path, _)| path).collect();
            assert_eq!(files.len(), 2, "{target}: {root:?}");
            assert!(!std::path::Path::new("/etc/mitos-test").exists() && !folder.at("mitos-test").exists());
        }
    }
    // The link is replaced by what comes under its own name.
    let folder = Folder::new();
    let root = folder.root_of(&[tar(&[symlink("way", "/etc/passwd"), file("way", "mine")])]);
    assert_eq!(root, paths(&[("way", "mine")]));
}

#[test]
fn links_in_circles_and_through_files_are_refused() {
    refused(&tar(&[symlink("a", "b"), symlink("b", "a"), file("a/x", "")]), "corrupt", "in a circle");
    refused(&tar(&[file("a", ""), file("a/x", "")]), "corrupt", "no folder");
    refused(&tar(&[folder("a"), link("b", "a")]), "corrupt", "a hard link to a folder");
    let long = "n".repeat(256);
    let to_long = with(symlink("way", ""), "linkpath", long);
    refused(&tar(&[to_long, file("way/x", "")]), "too_large", "a name of more than 255 bytes");
    // Each is twice as long as the one before it.
    let names: Vec<String> = (0..45).map(|at| format!("l{at}")).collect();
    let targets: Vec<String> = (0..45_usize).map(|at| if at == 0 { "x/y".into() } else { format!("{0}/{0}", names[at - 1]) }).collect();
    let mut entries: Vec<Entry<'_>> = names.iter().zip(&targets).map(|(name, target)| symlink(name, target)).collect();
    entries.push(file("l44/x", ""));
    refused(&tar(&entries), "corrupt", "in a circle");
}

#[test]
fn a_hard_link_reaches_files_of_its_image_only() {
    let folder = Folder::new();
    folder.unpack("layer", &tar(&[link("hard", "/etc/passwd")])).unwrap();
    let failure = folder.merge("root", &["layer"]).unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.entry.as_str()), ("corrupt", "hard"));
    assert!(failure.detail.contains("etc/passwd"), "{failure:?}");
    assert_eq!(tree(&folder.at("root")), paths(&[]));
}

#[test]
fn what_is_damaged_is_refused() {
    let good = tar(&[file("a", "content"), file("b", "content")]);
    let mut flipped = good.clone();
    flipped[3] ^= 1;
    refused(&flipped, "corrupt", "checksum");
    refused(&good[..512 + 3], "corrupt", "in the middle");
    refused(&good[..1024 + 100], "corrupt", "in the middle");
    refused(b"", "corrupt", "too short");
    refused(&[7; 5000], "corrupt", "checksum");
    refused(&[good.clone(), vec![0; 512], b"more".to_vec()].concat(), "corrupt", "follows the end");
    refused(&tar(&[entry("odd", b'Z')]), "corrupt", "unknown type");
    refused(&tar(&[with(file("a", ""), "size", "minus")]), "corrupt", "number");
    refused(&tar(&[with(file("a", ""), "uid", "4294967296")]), "corrupt", "user number");
    refused(&tar(&[Entry { content: b"999 path=x\n".to_vec(), ..entry("pax", b'x') }, file("a", "")]), "corrupt", "pax");
    let promised = [&header(&file("a", ""), 5000)[..], &[1; 1024]].concat();
    refused(&promised, "corrupt", "in the middle");
    let mut xz = good;
    xz[..6].copy_from_slice(b"\xfd7zXZ\0");
    refused(&xz, "corrupt", "xz");
}

#[test]
fn damaged_compression_is_refused() {
    let content: String = (0..200_000_u64).map(|at| char::from(b'a' + (at * at % 23) as u8)).collect();
    let good = tar(&[file("a", &content)]);
    for (program, flags) in [("gzip", &["-c"][..]), ("zstd", &["-c", "-q", "--check"])] {
        let Some(packed) = filter(program, flags, &good) else { continue };
        let mut flipped = packed.clone();
        let at = flipped.len() - 3;
        flipped[at] ^= 0x55;
        for bad in [&packed[..packed.len() / 2], &packed[..packed.len() - 1], &flipped, &[&packed[..], b"garbage!"].concat()] {
            let folder = Folder::new();
            assert_eq!(folder.unpack("layer", bad).unwrap_err().reason, "corrupt", "{program}");
        }
    }
}

#[test]
fn bombs_are_refused_early() {
    let folder = Folder::new();
    let zeros = vec![0_u8; 256 << 20];
    let Some(bomb) = filter("zstd", &["-c", "-q", "-19"], &[&header(&file("zeros", ""), 8 << 30)[..], &zeros].concat()) else { return };
    assert!(bomb.len() < 100_000);
    let failure = folder.unpack("layer", &bomb).unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.entry.as_str()), ("too_large", "zeros"));
    assert!(failure.detail.contains("bomb"), "{failure:?}");
    assert!(std::fs::metadata(folder.at("layer/tree/zeros")).unwrap().len() < 80 << 20);
}

#[test]
fn more_than_the_limits_is_refused() {
    let many: Vec<Entry<'_>> = (0..101).map(|_| file("same", "")).collect();
    let folder = Folder::new();
    folder.make("layer");
    let failure = folder.run(&["unpack", "--into", "layer", "--entries-max", "100"], &tar(&many)).unwrap_err();
    assert_eq!(failure.reason, "too_large");
    // Folders that only paths imply are counted as well.
    folder.make("implied");
    let failure = folder.run(
        &["unpack", "--into", "implied", "--entries-max", "100"],
        &tar(&[file(&"d/".repeat(49), ""), { Entry { records: vec![("path", "e/".repeat(60).into_bytes())], ..file("x", "") } }]),
    );
    assert_eq!(failure.unwrap_err().reason, "too_large");
    folder.make("bytes");
    let failure = folder.run(&["unpack", "--into", "bytes", "--bytes-max", "4096"], &tar(&[file("a", &"x".repeat(5000))])).unwrap_err();
    assert_eq!(failure.reason, "too_large");
    // 8 EiB in one header.
    let mut sparse = header(&entry("huge", b'S'), 0);
    sparse[483..495].copy_from_slice(b"\x80\0\0\0\x70\0\0\0\0\0\0\0");
    sparse[148..156].fill(b' ');
    let sum: u32 = sparse.iter().map(|byte| u32::from(*byte)).sum();
    sparse[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let failure = folder.unpack("sparse", &[&sparse[..], &[0; 1024]].concat()).unwrap_err();
    assert_eq!(failure.reason, "too_large", "{failure:?}");
    refused(&tar(&[with(file("a", ""), "comment", vec![b'x'; 2 << 20])]), "too_large", "extended header");
    refused(&tar(&[with(file("a", ""), "SCHILY.xattr.user.x", vec![b'x'; 70_000])]), "too_large", "extended attribute");
    let name = Entry { content: vec![b'n'; 2 << 20], ..entry("long", b'L') };
    refused(&tar(&[name, file("a", "")]), "too_large", "extended header");
    let endless: Vec<Entry<'_>> = (0..500).map(|_| Entry { content: b"11 x=abcde\n".to_vec(), ..entry("g", b'g') }).collect();
    folder.make("headers");
    let failure = folder.run(&["unpack", "--into", "headers", "--entries-max", "100"], &tar(&endless)).unwrap_err();
    assert_eq!(failure.reason, "too_large");
}

#[test]
fn a_million_entries_are_refused() {
    let folder = Folder::new();
    let one = open_tar(&[super::tar::folder("same")]);
    let mut all = one.repeat(1_000_000);
    all.extend([0; 1024]);
    let failure = folder.unpack("layer", &all).unwrap_err();
    assert_eq!(failure.reason, "too_large");
    assert!(failure.detail.contains("500000"), "{failure:?}");
}

#[test]
fn a_full_disk_is_told_as_such() {
    if !super::tool::is_root() {
        eprintln!("skipped: only root can mount a small disk");
        return;
    }
    let folder = Folder::new();
    folder.make("small");
    let script = "mount -t tmpfs -o size=1m none small && mkdir small/layer && exec ./mitos-layers unpack --into small/layer";
    let mut child = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .current_dir(&folder.path)
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(&tar(&[file("big", &"x".repeat(3 << 20))]));
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("{\"reason\":\"disk_full\",\"entry\":\"big\""), "{text}");
}

/// None where the program is missing, which is said.
pub fn filter(program: &str, flags: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let child = Command::new(program).args(flags).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        eprintln!("skipped: there is no {program}");
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success());
    Some(output.stdout)
}

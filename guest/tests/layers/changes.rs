//! Layers of what a machine has changed.

use super::tar::{Entry, entry, file, folder, link, open_tar, symlink, tar, with};
use super::tool::{Failure, Folder, paths, tree};
use serde_json::Value;
use std::collections::BTreeMap;

fn same(name: &str) -> Entry<'_> {
    with(file(name, ""), "MITOS.same", "1")
}

struct Machine(Folder);

/// What its agent tells while nothing has changed.
fn unchanged() -> Vec<Entry<'static>> {
    vec![
        folder("etc/"),
        same("etc/passwd"),
        folder("usr/"),
        folder("usr/lib/"),
        same("usr/lib/a"),
        same("usr/lib/b"),
        with(symlink("lib", "usr/lib"), "MITOS.same", "1"),
    ]
}

impl Machine {
    fn new() -> Self {
        let folder_ = Folder::new();
        let lower =
            tar(&[folder("etc"), file("etc/passwd", "root"), file("etc/hosts", ""), folder("tmp"), file("tmp/x", ""), file("proc/x", "")]);
        let upper = tar(&[folder("usr"), folder("usr/lib"), file("usr/lib/a", "a"), file("usr/lib/b", "b"), symlink("lib", "usr/lib")]);
        folder_.unpack("lower", &lower).unwrap();
        folder_.unpack("upper", &upper).unwrap();
        Self(folder_)
    }

    fn send(&self, list: &[u8]) -> Result<Value, Failure> {
        self.0.make("layer");
        let arguments = ["changes", "--into", "layer", "--base", "lower/index", "--base", "upper/index"];
        Ok(serde_json::from_slice(&self.0.run(&arguments, list)?).unwrap())
    }

    fn changed(&self, list: &[Entry<'_>]) -> Vec<(String, String)> {
        self.send(&tar(list)).unwrap();
        let lines = self.0.index("layer");
        let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
        lines[1..lines.len() - 1].iter().map(|line| (text(line, "kind"), text(line, "path"))).collect()
    }

    fn root(&self) -> BTreeMap<String, String> {
        self.0.merge("root", &["lower", "upper", "layer"]).unwrap();
        tree(&self.0.at("root"))
    }
}

fn lines(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(kind, path)| ((*kind).to_owned(), (*path).to_owned())).collect()
}

#[test]
fn nothing_changed_is_the_empty_layer() {
    let machine = Machine::new();
    let answer = machine.send(&tar(&unchanged())).unwrap();
    // Of 1,024 zeros, which every builder has for it.
    assert_eq!(answer["diff_id"], "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef");
    assert_eq!(answer["entries"], 0);
}

#[test]
fn a_layer_has_what_was_added_changed_and_removed() {
    let machine = Machine::new();
    let list = [
        Entry { mode: 0o700, ..folder("etc/") },
        file("etc/passwd", "mine"),
        folder("home/"),
        file("home/new", "new"),
        link("home/other", "home/new"),
        folder("usr/"),
        Entry { mtime: 5, ..folder("usr/lib/") },
        same("usr/lib/a"),
        link("usr/lib/c", "usr/lib/a"),
    ];
    let expected = [
        ("whiteout", "lib"),
        ("whiteout", "usr/lib/b"),
        ("lower_link", "usr/lib/c"),
        ("folder", "etc"),
        ("file", "etc/passwd"),
        ("folder", "home"),
        ("file", "home/new"),
        ("link", "home/other"),
    ];
    assert_eq!(machine.changed(&list), lines(&expected));
    let root = machine.root();
    assert_eq!((root["etc/passwd"].as_str(), root["home/other"].as_str(), root["usr/lib/c"].as_str()), ("mine", "new", "a"));
    assert!(!root.contains_key("lib") && !root.contains_key("usr/lib/b") && root.contains_key("etc/hosts"));
}

#[test]
fn a_removed_folder_is_one_whiteout_and_what_is_ours_is_none() {
    let machine = Machine::new();
    assert_eq!(machine.changed(&[]), lines(&[("whiteout", "etc"), ("whiteout", "lib"), ("whiteout", "usr")]));
}

#[test]
fn a_folder_that_became_a_file_and_a_file_that_became_a_folder_are_replaced() {
    let machine = Machine::new();
    let list = [folder("etc/"), folder("etc/passwd/"), file("etc/passwd/x", "x"), file("usr", "u"), symlink("lib", "elsewhere")];
    let expected = [("folder", "etc/passwd"), ("file", "etc/passwd/x"), ("symlink", "lib"), ("file", "usr")];
    assert_eq!(machine.changed(&list), lines(&expected));
    let root = machine.root();
    assert_eq!((root["usr"].as_str(), root["lib"].as_str(), root["etc/passwd/x"].as_str()), ("u", "-> elsewhere", "x"));
    assert!(!root.contains_key("usr/lib"));
}

#[test]
fn a_link_that_is_told_in_full_but_is_the_same_is_no_change() {
    let machine = Machine::new();
    let mut list = unchanged();
    *list.last_mut().unwrap() = symlink("lib", "usr/lib");
    assert_eq!(machine.changed(&list), lines(&[]));
}

#[test]
fn names_of_whiteouts_and_places_of_ours_are_not_taken_over() {
    let machine = Machine::new();
    let mut list = unchanged();
    list.extend([file(".wh.etc", ""), file("etc/.wh.passwd", ""), file("usr/.wh..wh..opq", ""), entry("fifo", b'6')]);
    list.extend([
        file("etc/hosts", "hostile"),
        folder("tmp/"),
        file("tmp/new", ""),
        folder("opt/"),
        folder("opt/mitos/"),
        file("opt/mitos/x", ""),
    ]);
    let answer = machine.send(&tar(&list)).unwrap();
    assert_eq!((answer["skipped"].as_u64(), answer["entries"].as_u64()), (Some(4), Some(1)));
    let root = machine.root();
    assert_eq!((root["etc/passwd"].as_str(), root["etc/hosts"].as_str()), ("root", ""));
    assert!(!root.contains_key("opt/mitos") && !root.contains_key("tmp/new"));
}

#[test]
fn a_list_that_lies_is_refused() {
    for (reason, list) in [
        ("corrupt", vec![same("nowhere")]),
        ("corrupt", vec![folder("etc/"), with(folder("usr/"), "MITOS.same", "1")]),
        ("corrupt", vec![file("etc/new", "")]),
        ("corrupt", vec![file("etc", ""), file("etc/new", "")]),
        ("corrupt", vec![folder("etc/"), same("etc/passwd"), file("etc/passwd", "")]),
        ("corrupt", vec![symlink("way", "/etc"), file("way/passwd", "")]),
        ("corrupt", vec![folder("etc/"), link("mine", "etc/passwd")]),
        ("hostile", vec![file("../x", "")]),
        ("hostile", vec![file("/etc/x", "")]),
        ("hostile", vec![folder("etc/"), link("x", "../../etc/passwd")]),
    ] {
        let machine = Machine::new();
        let failure = machine.send(&tar(&list)).unwrap_err();
        assert_eq!(failure.reason, reason, "{failure:?}");
    }
}

#[test]
fn a_list_that_was_cut_off_deletes_nothing() {
    let machine = Machine::new();
    let failure = machine.send(&open_tar(&unchanged())).unwrap_err();
    assert_eq!(failure.reason, "corrupt");
    assert!(failure.detail.contains("cut off"), "{failure:?}");
}

#[test]
fn a_layer_of_changes_unpacks_from_its_own_tar() {
    let machine = Machine::new();
    let answer = machine.send(&tar(&[folder("etc/"), file("etc/passwd", "mine"), file("new", "n")])).unwrap();
    let packed = machine.0.run(&["pack", "--layer", "layer"], &[]).unwrap();
    let again = machine.0.unpack("again", &packed).unwrap();
    assert_eq!(again, answer);
    assert_eq!(tree(&machine.0.at("again/tree")), paths(&[("etc", "/"), ("etc/passwd", "mine"), ("new", "n")]));
}

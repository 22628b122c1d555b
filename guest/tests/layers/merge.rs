//! Layers on top of each other, as runtimes put them.

use super::tar::{Entry, file, folder, link, symlink, tar};
use super::tool::{Folder, is_root, mode, paths, tree};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

#[test]
fn upper_layers_win_and_folders_are_joined() {
    let folder_ = Folder::new();
    let lower = tar(&[
        Entry { mode: 0o700, ..folder("d") },
        file("d/a", "lower"),
        file("d/b", "lower"),
        file("f", "lower"),
        folder("g"),
        file("g/x", ""),
    ]);
    let upper = tar(&[Entry { mode: 0o750, ..folder("d") }, file("d/a", "upper"), folder("f"), file("f/y", "upper"), file("g", "upper")]);
    let root = folder_.root_of(&[lower, upper]);
    let expected = [("d", "/"), ("d/a", "upper"), ("d/b", "lower"), ("f", "/"), ("f/y", "upper"), ("g", "upper")];
    assert_eq!(root, paths(&expected));
    assert_eq!(mode(&folder_.at("root/d")), 0o750);
}

#[test]
fn whiteouts_hide_what_lower_layers_have_wherever_they_stand() {
    let folder_ = Folder::new();
    let lower = tar(&[file("d/a", "lower"), file("d/b", "lower"), file("e/x", ""), file("e/y/z", ""), file("f", ""), symlink("l", "f")]);
    let upper = tar(&[
        file("d/a", "upper"),
        file("d/.wh.a", ""),
        file("d/.wh.b", ""),
        file("d/.wh.never", ""),
        file("e/new", ""),
        file("e/.wh..wh..opq", ""),
        file(".wh.l", ""),
        file("nowhere/.wh.x", ""),
    ]);
    let root = folder_.root_of(&[lower, upper]);
    assert_eq!(root, paths(&[("d", "/"), ("d/a", "upper"), ("e", "/"), ("e/new", ""), ("f", "")]));
}

#[test]
fn a_whiteout_of_the_root_empties_it() {
    let folder = Folder::new();
    assert_eq!(
        folder.root_of(&[tar(&[file("a/b", ""), file("c", "")]), tar(&[file(".wh..wh..opq", ""), file("d", "")])]),
        paths(&[("d", "")])
    );
}

#[test]
fn entries_land_where_a_link_of_a_lower_layer_leads() {
    let folder = Folder::new();
    let lower = tar(&[file("usr/lib/a", "lower"), symlink("lib", "usr/lib"), symlink("lib64", "/usr/../lib"), file("usr/lib/gone", "")]);
    let upper = tar(&[file("lib/a", "upper"), file("lib64/b", "upper"), file("lib/.wh.gone", ""), link("c", "lib/a")]);
    let root = folder.root_of(&[lower, upper]);
    let expected = [
        ("usr", "/"),
        ("usr/lib", "/"),
        ("usr/lib/a", "upper"),
        ("usr/lib/b", "upper"),
        ("c", "upper"),
        ("lib", "-> usr/lib"),
        ("lib64", "-> /usr/../lib"),
    ];
    assert_eq!(root, paths(&expected));
}

#[test]
fn a_folder_of_its_own_replaces_a_link_of_a_lower_layer() {
    let lower = tar(&[file("usr/lib/a", "lower"), symlink("lib", "usr/lib")]);
    for mark in ["lib/.wh.a", "lib/.wh..wh..opq"] {
        let folder_ = Folder::new();
        let root = folder_.root_of(&[lower.clone(), tar(&[folder("lib"), file("lib/b", "upper"), file(mark, "")])]);
        let expected = [("usr", "/"), ("usr/lib", "/"), ("usr/lib/a", "lower"), ("lib", "/"), ("lib/b", "upper")];
        assert_eq!(root, paths(&expected));
    }
}

#[test]
fn a_link_that_leads_out_leads_to_the_same_place_of_the_root() {
    let folder = Folder::new();
    let root = folder.root_of(&[tar(&[symlink("way", "../../../../etc")]), tar(&[file("way/mine", "x")])]);
    assert_eq!(root, paths(&[("way", "-> ../../../../etc"), ("etc", "/"), ("etc/mine", "x")]));
}

#[test]
fn hard_links_reach_files_of_lower_layers() {
    let folder = Folder::new();
    let root = folder.root_of(&[tar(&[file("usr/a", "x"), symlink("way", "usr")]), tar(&[link("b", "way/a"), link("c", "b")])]);
    assert_eq!((root["b"].as_str(), root["c"].as_str()), ("x", "x"));
    let inode = |name: &str| fs::metadata(folder.at("root").join(name)).unwrap().ino();
    assert!(inode("usr/a") == inode("b") && inode("b") == inode("c"));
}

#[test]
fn a_hard_link_means_the_file_that_was_there_before_its_layer() {
    let folder_ = Folder::new();
    let lower = tar(&[file("a", "lower"), file("gone", "kept by its other name"), symlink("d", "elsewhere")]);
    let upper = tar(&[link("z", "a"), file("a", "upper"), link("y", "gone"), file(".wh.gone", ""), link("d/x", "a"), folder("d")]);
    let root = folder_.root_of(&[lower.clone(), upper]);
    let expected = [("a", "upper"), ("z", "lower"), ("y", "kept by its other name"), ("d", "/"), ("d/x", "upper")];
    assert_eq!(root, paths(&expected));
    // The same from a tar of that layer.
    let packed = folder_.run(&["pack", "--layer", "layer-1"], &[]).unwrap();
    assert_eq!(Folder::new().root_of(&[lower, packed]), paths(&expected));
}

#[test]
fn hard_links_that_take_the_names_of_others_targets_mean_the_same_in_a_tar_of_their_layer() {
    let folder_ = Folder::new();
    let lower = tar(&[file("a", "of a"), file("b", "of b"), file("x", "of x")]);
    // `b` becomes another file and `a` a folder after what links to them; in a walk both come before.
    let upper = tar(&[link("c", "b"), link("b", "x"), link("z", "a"), folder("a"), link("a/y", "x")]);
    let root = folder_.root_of(&[lower.clone(), upper]);
    assert_eq!(root, paths(&[("a", "/"), ("a/y", "of x"), ("b", "of x"), ("c", "of b"), ("x", "of x"), ("z", "of a")]));
    let packed = folder_.run(&["pack", "--layer", "layer-1"], &[]).unwrap();
    assert_eq!(Folder::new().root_of(&[lower, packed]), root);
}

#[test]
fn a_root_shares_the_files_of_its_layers_and_has_folders_of_its_own() {
    let folder = Folder::new();
    folder.unpack("layer", &tar(&[Entry { mode: 0o4711, ..file("d/tool", "x") }])).unwrap();
    folder.merge("root", &["layer"]).unwrap();
    folder.merge("other", &["layer"]).unwrap();
    let found = fs::metadata(folder.at("root/d/tool")).unwrap();
    assert_eq!((found.nlink(), found.mode() & 0o7777), (3, 0o4711));
    assert_eq!(found.ino(), fs::metadata(folder.at("layer/tree/d/tool")).unwrap().ino());
    assert!(!folder.at("root.owners").exists() || !is_root());
}

#[test]
fn files_are_copied_where_they_cannot_be_linked() {
    let folder = Folder::new();
    let other = Folder::on_another_file_system();
    folder.unpack("layer", &tar(&[Entry { mode: 0o640, mtime: 77, ..file("d/a", "content") }, symlink("l", "d/a")])).unwrap();
    let root = other.make("root");
    if fs::metadata(&root).unwrap().dev() == fs::metadata(&folder.path).unwrap().dev() {
        eprintln!("skipped: /dev/shm is the same file system");
        return;
    }
    let layer = folder.at("layer");
    let answer = other.run(&["merge", "--into", "root", "--layer", layer.to_str().unwrap()], &[]).unwrap();
    assert_eq!(String::from_utf8(answer).unwrap(), "{\"entries\":4,\"bytes\":7}\n");
    assert_eq!(tree(&root), paths(&[("d", "/"), ("d/a", "content"), ("l", "-> d/a")]));
    let found = fs::metadata(root.join("d/a")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.mtime(), found.nlink()), (0o640, 77, 1));
}

#[test]
fn a_file_that_cannot_have_more_names_is_copied() {
    let folder = Folder::new();
    folder.unpack("layer", &tar(&[file("a", "content")])).unwrap();
    let names = folder.make("names");
    let full = (0..70_000).find_map(|number| fs::hard_link(folder.at("layer/tree/a"), names.join(number.to_string())).err());
    let Some(full) = full else {
        eprintln!("skipped: this file system takes more than 70,000 names");
        return;
    };
    assert_eq!(full.raw_os_error(), Some(libc::EMLINK));
    folder.merge("root", &["layer"]).unwrap();
    assert_eq!(tree(&folder.at("root")), paths(&[("a", "content")]));
    assert_eq!(fs::metadata(folder.at("root/a")).unwrap().nlink(), 1);
}

#[test]
fn an_ordinary_user_gets_the_same_root_and_a_list_of_owners() {
    let folder_ = Folder::of_ordinary_user();
    let layer = tar(&[
        Entry { uid: 33, gid: 44, mode: 0o700, ..folder("home") },
        Entry { uid: 33, gid: 44, mode: 0o000, ..file("home/secret", "x") },
        Entry { gid: 5, mode: 0o4755, ..file("tool", "#!") },
        Entry { uid: 9, mode: 0o777, ..symlink("way", "tool") },
        file("plain", ""),
    ]);
    folder_.unpack("layer", &layer).unwrap();
    folder_.merge("root", &["layer"]).unwrap();
    let root = folder_.at("root");
    assert_eq!(["home", "home/secret", "tool", "plain"].map(|name| mode(&root.join(name))), [0o700, 0o000, 0o4755, 0o644]);
    assert_eq!(fs::metadata(folder_.at("layer/tree/tool")).unwrap().ino(), fs::metadata(root.join("tool")).unwrap().ino());
    let expected = [
        r#"{"path":"/home/secret","uid":33,"gid":44,"mode":0}"#,
        r#"{"path":"/home","uid":33,"gid":44,"mode":448}"#,
        r#"{"path":"/tool","uid":0,"gid":5,"mode":2541}"#,
        r#"{"path":"/way","uid":9,"gid":0,"mode":511}"#,
    ];
    assert_eq!(folder_.owners("root"), expected);
    // What cannot be read by its mode is packed all the same.
    assert!(folder_.run(&["pack", "--layer", "layer"], &[]).is_ok());
}

#[test]
fn root_sets_owners_itself() {
    if !is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let folder_ = Folder::new();
    let layer = tar(&[
        Entry { uid: 33, gid: 44, ..folder("home") },
        Entry { uid: 33, gid: 44, mode: 0o6755, ..file("home/tool", "x") },
        Entry { uid: 9, ..symlink("way", "x") },
    ]);
    folder_.root_of(&[layer]);
    let owner = |name: &str| {
        fs::symlink_metadata(folder_.at("root").join(name)).map(|found| (found.uid(), found.gid(), found.mode() & 0o7777)).unwrap()
    };
    assert_eq!((owner("home"), owner("home/tool"), owner("way")), ((33, 44, 0o755), (33, 44, 0o6755), (9, 0, 0o777)));
    assert!(!folder_.at("root.owners").exists());
}

#[test]
fn layers_of_an_ordinary_user_can_be_merged_by_root() {
    if !is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let folder = Folder::of_ordinary_user();
    folder.unpack("layer", &tar(&[file("a", ""), Entry { uid: super::tool::NOBODY, gid: super::tool::NOBODY, ..file("b", "") }])).unwrap();
    folder.make("root");
    let output = std::process::Command::new(folder.at("mitos-layers"))
        .current_dir(&folder.path)
        .args(["merge", "--into", "root", "--layer", "layer"])
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(folder.owners("root"), [r#"{"path":"/a","uid":0,"gid":0,"mode":420}"#]);
}

#[test]
fn a_root_must_be_empty_and_a_layer_finished() {
    let folder = Folder::new();
    folder.unpack("layer", &tar(&[file("a", "")])).unwrap();
    folder.make("root");
    fs::write(folder.at("root/there"), "").unwrap();
    assert!(folder.run(&["merge", "--into", "root", "--layer", "layer"], &[]).unwrap_err().detail.contains("not empty"));
    let index = fs::read(folder.at("layer/index")).unwrap();
    fs::set_permissions(folder.at("layer/index"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(folder.at("layer/index"), &index[..index.len() - 10]).unwrap();
    assert!(folder.merge("second", &["layer"]).unwrap_err().detail.contains("cut off"));
}

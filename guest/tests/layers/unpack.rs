//! What an unpacked layer is.

use super::hostile::filter;
use super::tar::{Entry, entry, file, folder, link, open_tar, symlink, tar, with};
use super::tool::{Folder, mode, paths, tree};
use std::os::unix::fs::MetadataExt;

fn sha256(bytes: &[u8]) -> String {
    let text = filter("sha256sum", &[], bytes).unwrap();
    format!("sha256:{}", String::from_utf8_lossy(&text[..64]))
}

#[test]
fn the_digest_is_that_of_the_whole_uncompressed_tar_however_it_was_compressed() {
    let mut plain = tar(&[file("a", &"some content ".repeat(50_000))]);
    plain.extend(vec![0; 20 * 512]);
    let digest = sha256(&plain);
    let (first, second) = plain.split_at(300_000);
    let gzip = |part: &[u8]| filter("gzip", &["-c"], part).unwrap();
    let mut forms = vec![plain.clone(), gzip(&plain), [gzip(first), gzip(second)].concat()];
    if let Some(whole) = filter("zstd", &["-c", "-q", "--check"], &plain) {
        let zstd = |part: &[u8], level: &str| filter("zstd", &["-c", "-q", level], part).unwrap();
        let skipped = b"\x5a\x2a\x4d\x18\x05\0\0\0mitos";
        forms.push(whole);
        forms.push([skipped, &zstd(first, "-1")[..], skipped, &zstd(second, "-19"), skipped].concat());
        forms.push(zstd(&plain, "--long=27"));
    }
    for form in forms {
        let folder = Folder::new();
        let answer = folder.unpack("layer", &form).unwrap();
        assert_eq!(
            (answer["diff_id"].as_str(), answer["entries"].as_u64(), answer["bytes"].as_u64()),
            (Some(&*digest), Some(1), Some(650_000))
        );
        assert_eq!(folder.index("layer").last(), Some(&answer));
    }
}

#[test]
fn input_may_come_byte_by_byte() {
    let packed = filter("gzip", &["-c"], &tar(&[file("a", "content")])).unwrap();
    let folder = Folder::new();
    folder.make("layer");
    let mut child = folder
        .command(&["unpack", "--into", "layer"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for byte in packed {
        std::io::Write::write_all(&mut stdin, &[byte]).unwrap();
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
    assert_eq!(tree(&folder.at("layer/tree")), paths(&[("a", "content")]));
}

#[test]
fn the_last_of_several_entries_of_one_name_counts() {
    let folder_then_file = [folder("a"), file("a/x", "1"), file("a", "2")];
    let file_then_folder = [file("b", "1"), folder("b"), file("b/y", "2")];
    let link_then_file = [symlink("c", "/etc"), file("c", "1"), symlink("d", "x"), folder("d"), file("d/z", "2")];
    let linked = [file("e", "first"), link("f", "e"), file("e", "second")];
    let entries: Vec<Entry<'_>> = [&folder_then_file[..], &file_then_folder, &link_then_file, &linked].concat();
    let folder = Folder::new();
    let expected = [("a", "2"), ("b", "/"), ("b/y", "2"), ("c", "1"), ("d", "/"), ("d/z", "2"), ("e", "second"), ("f", "first")];
    assert_eq!(folder.root_of(&[tar(&entries)]), paths(&expected));
}

#[test]
fn missing_folders_are_made_and_described_by_nobody() {
    let folder = Folder::new();
    let root = folder.root_of(&[tar(&[file("./a//b/./c", "x")])]);
    assert_eq!(root, paths(&[("a", "/"), ("a/b", "/"), ("a/b/c", "x")]));
    assert_eq!(mode(&folder.at("root/a")), 0o755);
    assert_eq!(folder.index("layer-0").iter().filter(|line| line["kind"] == "folder").count(), 0);
}

#[test]
fn the_root_itself_may_be_described() {
    for name in ["./", ".", "/", "//"] {
        let folder = Folder::new();
        folder.root_of(&[tar(&[Entry { mode: 0o711, ..super::tar::folder(name) }, file("a", "")])]);
        assert_eq!(mode(&folder.at("root")), 0o711, "{name}");
    }
}

#[test]
fn devices_and_pipes_are_left_out_and_counted() {
    let folder = Folder::new();
    let answer =
        folder.unpack("layer", &tar(&[entry("dev/null", b'3'), entry("dev/sda", b'4'), entry("run/pipe", b'6'), file("a", "")])).unwrap();
    assert_eq!((answer["skipped"].as_u64(), answer["entries"].as_u64()), (Some(3), Some(1)));
    assert_eq!(tree(&folder.at("layer/tree")), paths(&[("a", "")]));
}

#[test]
fn names_of_aufs_mean_nothing() {
    let folder = Folder::new();
    let answer =
        folder.unpack("layer", &tar(&[self::folder(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", ""), file(".wh..wh.aufs", "")])).unwrap();
    assert_eq!((answer["skipped"].as_u64(), answer["entries"].as_u64()), (Some(3), Some(0)));
}

#[test]
fn long_names_come_by_gnu_and_by_pax() {
    let long = "long/".repeat(60) + "name";
    let by_gnu = Entry { content: [long.as_bytes(), b"\0"].concat(), ..entry("././@LongLink", b'L') };
    let to_gnu = Entry { content: [long.as_bytes(), b"\0"].concat(), ..entry("././@LongLink", b'K') };
    let tar =
        tar(&[by_gnu, file("cut off", "gnu"), to_gnu, symlink("to-gnu", "cut off"), with(file("x", "pax"), "path", format!("pax/{long}"))]);
    let folder = Folder::new();
    let root = folder.root_of(&[tar]);
    assert_eq!(root[&long], "gnu");
    assert_eq!(root["to-gnu"], format!("-> {long}"));
    assert_eq!(root[&format!("pax/{long}")], "pax");
}

#[test]
fn names_that_are_no_text_are_kept() {
    let folder = Folder::new();
    let name = b"caf\xe9".to_vec();
    let layer = tar(&[with(file("x", "latin"), "path", name.clone()), with(symlink("l", "x"), "linkpath", name.clone())]);
    folder.root_of(&[layer]);
    let path = folder.at("root").join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&name));
    assert_eq!(std::fs::read(path).unwrap(), b"latin");
    assert_eq!(std::fs::read(folder.at("root/l")).unwrap(), b"latin");
}

#[test]
fn attributes_that_steer_a_file_system_are_not_honoured() {
    let mut described = file("a", "x");
    for name in
        ["trusted.overlay.opaque", "user.overlay.opaque", "user.overlay.metacopy", "security.selinux", "system.posix_acl_access", "user."]
    {
        described = with(described, Box::leak(format!("SCHILY.xattr.{name}").into_boxed_str()), "y");
    }
    described = with(described, "SCHILY.xattr.user.mine", b"\x00\xffbytes".to_vec());
    let folder = Folder::new();
    folder.unpack("layer", &tar(&[described])).unwrap();
    let xattrs = folder.index("layer")[1]["meta"]["xattrs"].clone();
    assert_eq!(xattrs, serde_json::json!([["user.mine", [0, 255, 98, 121, 116, 101, 115]]]));
}

#[test]
fn times_have_fractions_and_may_be_before_1970() {
    let folder = Folder::new();
    folder.root_of(&[tar(&[
        with(file("a", ""), "mtime", "1234567890.123456789"),
        with(file("b", ""), "mtime", "-1.5"),
        with(symlink("c", "a"), "mtime", "7.000000001"),
        with(super::tar::folder("d"), "mtime", "8.25"),
        file("d/x", ""),
    ])]);
    let times = ["a", "b", "c", "d"].map(|name| {
        let found = std::fs::symlink_metadata(folder.at("root").join(name)).unwrap();
        (found.mtime(), found.mtime_nsec())
    });
    assert_eq!(times, [(1_234_567_890, 123_456_789), (-2, 500_000_000), (7, 1), (8, 250_000_000)]);
}

#[test]
fn a_tar_without_its_end_is_a_layer_all_the_same() {
    let folder = Folder::new();
    let open = open_tar(&[file("a", "x")]);
    assert_eq!(folder.unpack("layer", &open).unwrap()["diff_id"], sha256(&open));
    assert_eq!(folder.unpack("empty", &[0; 1024]).unwrap()["entries"], 0);
}

#[test]
fn hard_links_of_a_layer_are_one_file() {
    let folder = Folder::new();
    folder.root_of(&[tar(&[file("a", "x"), link("b", "a"), link("c/d", "./b"), link("e", "/a"), symlink("s", "a"), link("t", "s")])]);
    let inode = |name: &str| std::fs::symlink_metadata(folder.at("root").join(name)).unwrap().ino();
    assert!(["b", "c/d", "e"].iter().all(|name| inode(name) == inode("a")));
    assert_eq!(std::fs::read_link(folder.at("root/t")).unwrap().to_str(), Some("a"));
}

#[test]
fn a_layer_packs_into_a_tar_that_unpacks_into_the_same_layer() {
    let folder = Folder::new();
    let long = "long/".repeat(60) + "name";
    let original = tar(&[
        Entry { mode: 0o4755, uid: 7, gid: 8, ..file("usr/bin/tool", "#!") },
        with(with(file("x", "pax"), "path", long), "mtime", "-3.5"),
        with(file("owned", ""), "uid", "3000000000"),
        with(file("tagged", "t"), "SCHILY.xattr.user.mine", b"\0\xff=\n".to_vec()),
        link("b", "owned"),
        link("lower", "etc/passwd"),
        symlink("way", "/etc"),
        Entry { mode: 0o1777, ..super::tar::folder("tmp") },
        file("usr/.wh.gone", ""),
        file("opt/.wh..wh..opq", ""),
    ]);
    folder.unpack("layer", &original).unwrap();
    let packed = folder.run(&["pack", "--layer", "layer"], &[]).unwrap();
    let again = folder.unpack("again", &packed).unwrap();
    assert_eq!(again["diff_id"], sha256(&packed));
    let lines = |layer: &str| {
        let mut lines = folder.index(layer);
        lines.pop();
        lines
    };
    assert_eq!(lines("again"), lines("layer"));
    assert_eq!(folder.run(&["pack", "--layer", "again"], &[]).unwrap(), packed);
}

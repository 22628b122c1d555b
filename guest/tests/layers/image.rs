//! File system images of layers: what can be said of them without a kernel that reads them.

use super::tar::{Entry, file, folder, link, symlink, tar, with};
use super::tool::{Folder, tree};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

/// Everything that has a place of its own in the format: sizes at the edges of blocks, folders of several blocks, links of every length, owners
/// that need 32 bits, attributes of several blocks.
pub fn layers() -> [Vec<u8>; 3] {
    let text = |bytes: usize| (0..bytes).map(|at| (b'a' + (at * 7 % 26) as u8) as char).collect::<String>();
    let names: Vec<String> = (0..700).map(|number| format!("many/{}{number}", text(number % 230))).collect();
    let targets: Vec<String> = [1, 59, 60, 1_000, 3_000].iter().map(|length| text(*length)).collect();
    let sizes: Vec<(String, String)> = [0, 1, 4_031, 4_032, 4_033, 4_095, 4_096, 4_097, 5_000, 8_191, 8_192, 300_000, 2_500_001]
        .iter()
        .map(|size| (format!("sizes/{size}"), text(*size)))
        .collect();
    let mut lower = vec![folder("sizes"), folder("deep"), file("!first", "before `.`"), file("gone", "x"), file("hidden/x", "x")];
    lower.extend(sizes.iter().map(|(name, content)| file(name, content)));
    lower.extend(names.iter().map(|name| with(file("long", name), "path", name.as_bytes())));
    lower.extend([
        file("deep/a/b/c/d/e/f", "at the bottom"),
        link("one-more-name", "sizes/5000"),
        Entry { uid: 33, gid: 44, mode: 0o1777, mtime: 0, ..folder("owned") },
        Entry { mode: 0o000, uid: 100_000, gid: 2_000_000, ..file("owned/unreadable", "x") },
        Entry { mode: 0o4755, ..file("owned/set-user", "#!") },
        Entry { mode: 0o2711, gid: 42, mtime: 1, ..file("owned/set-group", "#!") },
        with(file("owned/in-1999", ""), "mtime", "915148800.123456789"),
        with(file("owned/in-1960", ""), "mtime", "-315619200"),
        with(file("owned/by-the-last-user", ""), "uid", "4294967294"),
        with(file("no text", ""), "path", b"sizes/\xff\xfe".to_vec()),
    ]);
    let mut upper = vec![file(".wh.gone", ""), file("hidden/.wh..wh..opq", ""), file("hidden/y", "above"), link("again", "one-more-name")];
    let target_names: Vec<String> = targets.iter().map(|target| format!("link-{}", target.len())).collect();
    upper.extend(target_names.iter().zip(&targets).map(|(name, target)| with(symlink(name, "long"), "linkpath", target.as_bytes())));
    let mut attributes =
        vec![file("x", "small"), file("y", "capable"), folder("z"), symlink("s", "x"), file("w", &text(4_500)), file("v", "")];
    for (path, name, value) in xattrs() {
        let entry = attributes.iter_mut().find(|entry| entry.name == path).unwrap();
        entry.records.push((name, value));
    }
    [tar(&lower), tar(&upper), tar(&attributes)]
}

/// Path, name in a tar and value of each attribute in `layers`; the last two have no place in an image.
pub fn xattrs() -> [(&'static str, &'static str, Vec<u8>); 8] {
    // Of version 2, CAP_NET_RAW.
    let capability = [&[1, 0, 0, 2, 0, 32][..], &[0; 14]].concat();
    [
        ("x", "SCHILY.xattr.user.one", b"1".to_vec()),
        ("x", "SCHILY.xattr.user.empty", Vec::new()),
        ("y", "SCHILY.xattr.security.capability", capability),
        ("z", "SCHILY.xattr.user.long", vec![b'z'; 3_900]),
        ("w", "SCHILY.xattr.user.a", (0..9_000).map(|at| at as u8).collect()),
        ("w", "SCHILY.xattr.user.b", vec![b'w'; 300]),
        // Too long by one, and what the kernel gives nobody.
        ("v", "SCHILY.xattr.user.v", vec![b'v'; 65_536]),
        ("s", "SCHILY.xattr.user.of-a-link", b"1".to_vec()),
    ]
}

impl Folder {
    /// Unpacks each and makes `image` of them all, lowest first.
    pub fn image_of(&self, tars: &[Vec<u8>]) -> Vec<u8> {
        let names: Vec<String> = (0..tars.len()).map(|at| format!("layer-{at}")).collect();
        for (name, tar) in names.iter().zip(tars) {
            self.unpack(name, tar).unwrap();
        }
        let arguments: Vec<&str> = ["image", "--out", "image"].into_iter().chain(names.iter().map(String::as_str)).collect();
        self.run(&arguments, &[]).unwrap();
        fs::read(self.at("image")).unwrap()
    }

    /// What the tools of the file system's authors find in an image; none where they are not here.
    pub fn extracted(&self, image: &str) -> Option<BTreeMap<String, String>> {
        let program = std::env::var_os("MITOS_FSCK_EROFS")?;
        let arguments = ["--extract=extracted", "--no-preserve", image];
        let libraries = std::env::var_os("MITOS_FSCK_EROFS_LIBRARIES").unwrap_or_default();
        let checked = Command::new(program).args(arguments).env("LD_LIBRARY_PATH", libraries).current_dir(&self.path).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        Some(tree(&self.at("extracted")))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(&self.path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn the_same_layers_are_the_same_image_whoever_makes_it() {
    let ours = Folder::new();
    let image = ours.image_of(&layers());
    assert!(Folder::of_ordinary_user().image_of(&layers()) == image);
    assert!(Folder::new().image_of(&layers()[..2]) != image);
    let found = fs::metadata(ours.at("image")).unwrap();
    assert_eq!((found.permissions().mode() & 0o7777, found.len() % 4_096), (0o444, 0));
    assert_eq!(ours.names(), ["image", "layer-0", "layer-1", "layer-2", "mitos-layers"]);
}

#[test]
fn another_implementation_finds_it_whole_and_unpacks_what_a_merge_makes() {
    let folder = Folder::new();
    folder.image_of(&layers());
    folder.merge("root", &["layer-0", "layer-1", "layer-2"]).unwrap();
    let Some(found) = folder.extracted("image") else {
        eprintln!("skipped: MITOS_FSCK_EROFS does not say where fsck.erofs is");
        return;
    };
    let expected = tree(&folder.at("root"));
    let other: BTreeMap<_, _> = expected.iter().filter(|(path, what)| found.get(*path) != Some(what)).collect();
    assert!(found.len() == expected.len() && other.is_empty(), "{:?}", other.keys());
}

#[test]
fn zeros_take_no_room() {
    let folder = Folder::new();
    let zeros = "\0".repeat(8 << 20);
    let image = folder.image_of(&[tar(&[file("a", &zeros), file("b", "end")])]);
    let found = fs::metadata(folder.at("image")).unwrap();
    assert!(image.len() > 8 << 20 && found.blocks() * 512 < 1 << 20, "{} of {} bytes", found.blocks() * 512, image.len());
}

#[test]
fn what_was_there_stays_until_the_new_one_is_whole() {
    let folder = Folder::new();
    folder.unpack("layer", &tar(&[file("a", "content"), file("b", "content")])).unwrap();
    fs::write(folder.at("image"), "the one before").unwrap();
    fs::write(folder.at("layer/tree/b"), "short").unwrap();
    let failure = folder.run(&["image", "--out", "image", "layer"], &[]).unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.entry.as_str()), ("internal", "b"), "{}", failure.detail);
    assert_eq!(fs::read_to_string(folder.at("image")).unwrap(), "the one before");
    assert_eq!(folder.names(), ["image", "layer", "mitos-layers"]);
    fs::write(folder.at("layer/tree/b"), "content").unwrap();
    folder.run(&["image", "--out", "image", "layer"], &[]).unwrap();
    assert_ne!(fs::read(folder.at("image")).unwrap(), b"the one before");
}

#[test]
fn a_full_disk_is_told_and_nothing_is_left_on_it() {
    let folder = Folder::new();
    folder.unpack("layer", &tar(&[file("a", &"x".repeat(2 << 20))])).unwrap();
    folder.make("small");
    let script = "mount -t tmpfs -o size=1m none small && ./mitos-layers image --out small/image layer; echo $? $(ls -A small)";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .current_dir(&folder.path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("\"disk_full\""), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n");
}

#[test]
fn more_than_an_image_can_be_is_refused_before_a_byte_is_written() {
    let folder = Folder::new();
    // Each of 13 GiB, of nothing but a hole.
    let huge =
        with(with(with(file("huge", "0\n"), "GNU.sparse.major", "1"), "GNU.sparse.minor", "0"), "GNU.sparse.realsize", "13958643712");
    let layers: Vec<String> = (0..5).map(|number| format!("layer-{number}")).collect();
    for name in &layers {
        let huge_name = format!("huge-{name}");
        let content = [&b"0\n"[..], &[0; 510]].concat();
        folder.unpack(name, &tar(&[Entry { name: &huge_name, content, ..huge.clone() }])).unwrap();
    }
    let arguments: Vec<&str> = ["image", "--out", "image"].into_iter().chain(layers.iter().map(String::as_str)).collect();
    let failure = folder.run(&arguments, &[]).unwrap_err();
    assert_eq!(failure.reason, "too_large", "{}", failure.detail);
    assert!(!folder.at("image").exists());
}

#[test]
fn what_does_not_fit_the_command_is_refused() {
    let folder = Folder::new();
    folder.unpack("layer", &tar(&[])).unwrap();
    for arguments in
        [&["image"][..], &["image", "--out", "image"], &["image", "--out", "", "layer"], &["image", "--into", "image", "layer"]]
    {
        assert_eq!(folder.command(arguments).output().unwrap().status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(folder.run(&["image", "--out", "image", "nowhere"], &[]).unwrap_err().reason, "internal");
    assert_eq!(folder.run(&["image", "--out", "nowhere/image", "layer"], &[]).unwrap_err().reason, "internal");
}

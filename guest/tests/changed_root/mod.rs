//! `SetOwners` and `Changes` in a machine whose root lies below what it writes, whatever keeps the two apart.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::link_client::Host;
use crate::link_client::proto::guest::v1 as pb;
use crate::link_client::proto::sandbox::v1 as sandbox;

/// One entry of what `Changes` sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    kind: tar::EntryType,
    same: bool,
    mode: u32,
    owner: (u64, u64),
    content: String,
    target: String,
    xattrs: Vec<(String, String)>,
}

pub fn changes(host: &mut Host) -> BTreeMap<String, Entry> {
    let channel = host.open("Changes", &pb::ChangesRequest {}, true);
    let mut bytes = Vec::new();
    let mut is_complete = false;
    while let Some(chunk) = host.next::<sandbox::Chunk>(channel) {
        bytes.extend_from_slice(&chunk.data);
        is_complete = chunk.eof;
    }
    let status = host.status(channel);
    assert!(is_complete && status.code.is_empty(), "{status:?}");
    let mut archive = tar::Archive::new(&bytes[..]);
    let mut entries = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut xattrs = Vec::new();
        let mut same = false;
        if let Some(records) = entry.pax_extensions().unwrap() {
            for record in records {
                let record = record.unwrap();
                let (key, value) = (record.key().unwrap(), record.value().unwrap());
                match key.strip_prefix("SCHILY.xattr.") {
                    Some(name) => xattrs.push((name.to_owned(), value.to_owned())),
                    None => same = same || (key, value) == ("MITOS.same", "1"),
                }
            }
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let content = String::from_utf8_lossy(&content).into_owned();
        let target = entry.link_name().unwrap().map(|target| target.to_string_lossy().into_owned()).unwrap_or_default();
        let header = entry.header();
        let found = Entry {
            kind: header.entry_type(),
            same,
            mode: header.mode().unwrap(),
            owner: (header.uid().unwrap(), header.gid().unwrap()),
            content,
            target,
            xattrs,
        };
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        assert!(entries.insert(path.clone(), found).is_none(), "{path} is told twice");
    }
    entries
}

fn owner(path: &str, uid: u32, gid: u32, mode: u32) -> pb::OwnerEntry {
    pb::OwnerEntry { path: path.into(), uid, gid, mode }
}

fn not_same(entries: &BTreeMap<String, Entry>) -> Vec<String> {
    let files = entries.iter().filter(|(_, entry)| !entry.same && entry.kind != tar::EntryType::Directory);
    files.map(|(path, _)| path.clone()).collect()
}

/// A file with a long path.
fn long() -> String {
    format!("kept/{}", "n".repeat(140))
}

/// What the layers have at `/data`.
pub fn lay(data: &Path) {
    let long = long();
    for folder in ["", "kept", "chmodded", "replaced", "gone", "moved"] {
        fs::create_dir_all(data.join(folder)).unwrap();
    }
    for name in [
        "same",
        "content",
        "appended",
        "mapped",
        "mode",
        "chowned",
        "gone/file",
        "renamed",
        "replaced/old",
        "moved/file",
        "linked",
        "xattr",
        "touched",
        "owned",
        "owned-later",
        "owned-mapped",
        "suid",
        "truncated",
        &long,
    ] {
        fs::write(data.join(name), format!("{}\n", name.len())).unwrap();
    }
    fs::hard_link(data.join("linked"), data.join("linked-too")).unwrap();
    symlink("gone", data.join("folder-link")).unwrap();
    for name in ["link", "relinked", "owned-link"] {
        symlink("same", data.join(name)).unwrap();
    }
}

/// Gives files owners, and then changes the root in every way.
pub fn change(host: &mut Host) {
    let long = long();
    let before = changes(host);
    assert_eq!(not_same(&before), Vec::<String>::new());
    for path in ["data/same", "data/link", "data/linked", "data/linked-too", "etc/passwd", &format!("data/{long}")] {
        assert!(before[path].same && before[path].content.is_empty(), "{path}: {:?}", before[path]);
    }
    assert_eq!((before["data/link"].kind, before["data/link"].target.as_str()), (tar::EntryType::Symlink, "same"));
    for untold in ["etc/hostname", "etc/hosts", "etc/machine-id", "proc/", "tmp/", "run/", "dev/", "sys/"] {
        assert!(!before.contains_key(untold), "{untold}");
    }
    assert!(before.contains_key("data/kept/"));

    // Owners that the host could not give are no changes.
    let owners = [
        owner("/data/owned", 33, 44, 0o640),
        owner("/data/owned-later", 33, 44, 0o640),
        owner("/data/owned-mapped", 33, 44, 0o640),
        owner("/data/owned-link", 33, 44, 0o777),
        owner("/data/suid", 65534, 0, 0o4755),
        owner("/data/kept", 33, 44, 0o750),
        owner("/data/not-there", 1, 1, 0o644),
        owner("/data/link/below", 1, 1, 0o644),
        owner("/data/folder-link/file", 33, 44, 0o644),
    ];
    let channel = host.open("SetOwners", &pb::SetOwnersRequest { owners: owners[..3].to_vec(), copy_bytes_max: 0 }, false);
    host.message(channel, &pb::SetOwnersRequest { owners: owners[3..].to_vec(), ..Default::default() });
    host.end(channel);
    assert_eq!(host.status(channel).code, "");
    assert_eq!(
        host.shell("stat -c '%n %u:%g %a' /data/owned /data/suid /data/kept /data/owned-link").text(),
        "/data/owned 33:44 640\n/data/suid 65534:0 4755\n/data/kept 33:44 750\n/data/owned-link 33:44 777\n"
    );
    assert_eq!(host.shell("stat -c %u /data/gone/file").text(), "0\n", "links are not followed");
    let owned = changes(host);
    assert_eq!(not_same(&owned), Vec::<String>::new());
    assert_eq!((owned["data/owned"].owner, owned["data/kept/"].owner, owned["data/kept/"].mode), ((33, 44), (33, 44), 0o750));
    let hostile = host.unary::<pb::SetOwnersReply>(
        "SetOwners",
        &pb::SetOwnersRequest { owners: vec![owner("/data/../etc", 1, 1, 0)], ..Default::default() },
    );
    assert_eq!(hostile.unwrap_err().code, "invalid_argument");

    let program = format!(
        "cd /data && echo new > new && chmod 640 new && echo other > content && echo more >> appended && chmod 600 mode && chown 12:13 chowned
        rm -r gone && mv renamed 'has a new name' && rm -r replaced && mkdir replaced && echo now > replaced/new && mv moved elsewhere
        ln linked three && echo x > made && ln made made-too && mkdir empty && chmod 711 chmodded && ln -sf other relinked && ln -s x fresh-link
        : > truncated && touch -d @7 touched && echo more >> owned-later && mkfifo pipe && mkdir -p {long}-folder && echo deep > {long}-folder/{n}
        python3 -c 'import os, mmap
os.setxattr(\"xattr\", \"user.colour\", b\"red = blue\"); os.setxattr(\"chmodded\", \"user.of\", b\"folder\")
for name in (\"mapped\", \"owned-mapped\"):
    with open(name, \"r+b\") as file, mmap.mmap(file.fileno(), 1) as map: map[0:1] = b\"X\"'",
        n = "m".repeat(150),
    );
    let outcome = host.shell(&program);
    assert_eq!(outcome.code(), 0, "{}", String::from_utf8_lossy(&outcome.stderr));
}

/// What is told after `change`.
pub fn check(told: &BTreeMap<String, Entry>) {
    let long = long();
    // Programs leave things elsewhere as well, such as what Python has compiled.
    let changed: Vec<String> = not_same(told).into_iter().filter(|path| path.starts_with("data/")).collect();
    let mut expected: Vec<String> = [
        "new",
        "content",
        "appended",
        "mapped",
        "owned-mapped",
        "mode",
        "chowned",
        "has a new name",
        "replaced/new",
        "elsewhere/file",
        "linked",
        "three",
        "made",
        "made-too",
        "xattr",
        "touched",
        "owned-later",
        "relinked",
        "fresh-link",
        "truncated",
        &format!("{long}-folder/{}", "m".repeat(150)),
    ]
    .map(|name| format!("data/{name}"))
    .into();
    expected.sort();
    assert_eq!(changed, expected);
    let at = |name: &str| &told[&format!("data/{name}")];
    assert_eq!((at("new").content.as_str(), at("new").mode), ("new\n", 0o640));
    assert_eq!(at("appended").content, "8\nmore\n");
    assert_eq!((at("mode").mode, at("mode").content.as_str()), (0o600, "4\n"));
    assert_eq!((at("chowned").owner, at("chowned").content.as_str()), ((12, 13), "7\n"));
    assert_eq!(at("has a new name").content, "7\n");
    assert_eq!((at("mapped").content.as_str(), at("owned-mapped").content.as_str()), ("X\n", "X2\n"));
    assert_eq!(at("owned-later").content, "11\nmore\n");
    assert_eq!((at("made").content.as_str(), at("made").kind), ("x\n", tar::EntryType::Regular));
    assert_eq!((at("made-too").kind, at("made-too").target.as_str()), (tar::EntryType::Link, "data/made"));
    assert_eq!((at("relinked").target.as_str(), at("fresh-link").target.as_str()), ("other", "x"));
    assert_eq!(at("xattr").xattrs, [("user.colour".to_owned(), "red = blue".to_owned())]);
    assert_eq!((at("chmodded/").mode, at("chmodded/").xattrs.len()), (0o711, 1));
    assert!(told.contains_key("data/empty/") && told.contains_key("data/replaced/"));
    for gone in ["gone/", "gone/file", "renamed", "replaced/old", "moved/", "pipe", "not-there"] {
        assert!(!told.contains_key(&format!("data/{gone}")), "{gone}");
    }
    for same in ["same", "link", "linked-too", "owned", "owned-link", "suid", &long] {
        assert!(at(same).same, "{same}: {:?}", at(same));
    }
}

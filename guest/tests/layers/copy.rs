//! Files of a context in a root.

use super::tar::{Entry, entry, file, folder, link, symlink, tar};
use super::tool::{Failure, Folder, mode, paths, tree};
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

struct Root(Folder);

impl Root {
    fn new() -> Self {
        let folder = Folder::new();
        let base = tar(&[
            Entry { mode: 0o750, ..super::tar::folder("app") },
            file("app/old", "old"),
            symlink("link", "/app/sub"),
            symlink("lib", "usr/lib"),
            file("usr/lib/x", "x"),
            symlink("circle", "circle"),
        ]);
        folder.unpack("base", &base).unwrap();
        Self(folder)
    }

    fn copy(&self, layer: &str, dest: &str, context: &[Entry<'_>]) -> Result<Value, Failure> {
        self.0.make(layer);
        let arguments = ["copy", "--into", layer, "--dest", dest, "--uid", "0", "--gid", "0", "--base", "base/index"];
        Ok(serde_json::from_slice(&self.0.run(&arguments, &tar(context))?).unwrap())
    }

    fn layer(&self, layer: &str, dest: &str, context: &[Entry<'_>]) -> BTreeMap<String, String> {
        self.copy(layer, dest, context).unwrap();
        tree(&self.0.at(layer).join("tree"))
    }
}

#[test]
fn the_destination_is_a_folder_or_a_file_as_docker_has_it() {
    let root = Root::new();
    let one = [file("a", "A")];
    let two = [file("a", "A"), file("b", "B")];
    for (at, (dest, context, expected)) in [
        ("/new", &one[..], &[("new", "A")][..]),
        ("/new/", &one, &[("new", "/"), ("new/a", "A")]),
        ("/app", &one, &[("app", "/"), ("app/a", "A")]),
        ("/app/old", &one, &[("app", "/"), ("app/old", "A")]),
        ("/", &one, &[("a", "A")]),
        ("/new/.", &one, &[("new", "/"), ("new/a", "A")]),
        ("/new", &two, &[("new", "/"), ("new/a", "A"), ("new/b", "B")]),
        ("/new", &[folder("./"), file("./a", "A")], &[("new", "/"), ("new/a", "A")]),
        ("/new", &[file("d/a", "A")], &[("new", "/"), ("new/d", "/"), ("new/d/a", "A")]),
        ("/new", &[folder("d")], &[("new", "/"), ("new/d", "/")]),
        ("/new", &[], &[("new", "/")]),
        ("/link", &one, &[("app", "/"), ("app/sub", "A")]),
        ("/link/", &one, &[("app", "/"), ("app/sub", "/"), ("app/sub/a", "A")]),
        ("/lib", &one, &[("usr", "/"), ("usr/lib", "/"), ("usr/lib/a", "A")]),
        ("/app/../lib/new", &one, &[("usr", "/"), ("usr/lib", "/"), ("usr/lib/new", "A")]),
        ("/../../..", &one, &[("a", "A")]),
        ("/", &[file("lib/a", "A")], &[("usr", "/"), ("usr/lib", "/"), ("usr/lib/a", "A")]),
        ("/", &[folder("lib"), file("lib/a", "A")], &[("usr", "/"), ("usr/lib", "/"), ("usr/lib/a", "A")]),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(root.layer(&format!("layer-{at}"), dest, context), paths(expected), "{dest}");
    }
}

#[test]
fn what_cannot_be_put_there_is_refused() {
    let root = Root::new();
    for (at, (dest, context)) in [
        ("/app/old/", &[file("a", "")][..]),
        ("/app/old", &[file("a", ""), file("b", "")]),
        ("/app/old/below", &[file("a", "")]),
        ("/circle/x", &[file("a", "")]),
        ("/", &[file("app", "")]),
        ("/", &[symlink("app", "x")]),
        ("/", &[link("a", "app/old")]),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(root.copy(&format!("layer-{at}"), dest, context).unwrap_err().reason, "corrupt", "{dest}");
    }
    let failure = root.copy("hostile", "/new", &[file("../a", "")]).unwrap_err();
    assert_eq!(failure.reason, "hostile");
}

#[test]
fn copied_files_get_their_owner_and_folders_of_the_image_keep_theirs() {
    let root = Root::new();
    root.0.make("layer");
    let arguments = ["copy", "--into", "layer", "--dest", "/app", "--uid", "12", "--gid", "34", "--base", "base/index"];
    let context =
        tar(&[Entry { mode: 0o777, ..folder("./") }, Entry { mode: 0o755, ..file("run", "#!") }, folder("sub"), symlink("way", "/etc")]);
    root.0.run(&arguments, &context).unwrap();
    let described: Vec<(String, Value)> =
        root.0.index("layer")[1..4].iter().map(|line| (line["path"].to_string(), line["meta"].clone())).collect();
    assert_eq!(described.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["\"app/run\"", "\"app/sub\"", "\"app/way\""]);
    assert!(described.iter().all(|(_, meta)| meta["uid"] == 12 && meta["gid"] == 34));
    root.0.merge("root", &["base", "layer"]).unwrap();
    assert_eq!((mode(&root.0.at("root/app")), mode(&root.0.at("root/app/run"))), (0o750, 0o755));
}

#[test]
fn hard_links_of_a_context_are_one_file() {
    let root = Root::new();
    root.copy("layer", "/new/", &[file("a", "A"), link("b", "a")]).unwrap();
    let inode = |name: &str| std::fs::metadata(root.0.at("layer/tree/new").join(name)).unwrap().ino();
    assert_eq!(inode("a"), inode("b"));
}

#[test]
fn what_a_context_leads_through_stays_in_the_root() {
    let root = Root::new();
    let layer = root.layer("layer", "/new/", &[symlink("way", "../../../../../etc"), file("way/mitos-test", "mine")]);
    assert_eq!(layer, paths(&[("new", "/"), ("new/way", "-> ../../../../../etc"), ("etc", "/"), ("etc/mitos-test", "mine")]));
}

#[test]
fn the_same_files_at_the_same_place_are_the_same_layer() {
    let root = Root::new();
    let context = [file("a", "A"), file("b", "B"), entry("pipe", b'6')];
    let first = root.copy("one", "/new/", &context).unwrap();
    let [a, b, pipe] = context;
    assert_eq!(root.copy("two", "/new/", &[pipe, b, a]).unwrap(), first);
    assert_eq!((first["entries"].as_u64(), first["bytes"].as_u64(), first["skipped"].as_u64()), (Some(2), Some(2), Some(1)));
    assert_ne!(root.copy("three", "/other/", &[file("a", "A"), file("b", "B")]).unwrap()["diff_id"], first["diff_id"]);
}

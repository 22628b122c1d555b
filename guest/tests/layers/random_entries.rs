//! Entries of every kind over a few names, in any order: replaced, linked, led through each other. A failure prints its seed; MITOS_SEED repeats it.

use super::against_gnu_tar::{Random, seed};
use super::tar::{Entry, file, folder, link, symlink, tar};
use super::tool::{Folder, tree};

const NAMES: [&str; 12] = ["a", "b", "c", "a/b", "a/c", "b/a", "b/c", "a/b/c", "c/a/b", "c/b", ".wh.a", "a/.wh.b"];
const TARGETS: [&str; 12] = ["a", "b", "../c", "/a/b", "a/b", "..", "/", ".", "b/../a", "c/a", "nowhere", "../../../b"];

fn random_layer(random: &mut Random) -> Vec<u8> {
    let entries: Vec<Entry<'_>> = (0..1 + random.below(9))
        .map(|_| {
            let name = *random.pick(&NAMES);
            let (target, other) = (*random.pick(&TARGETS), *random.pick(&NAMES[..10]));
            match random.below(6) {
                0 => file(name, name),
                1 => file(name, "other"),
                2 => folder(name),
                3 | 4 => symlink(name, target),
                _ => link(name, other),
            }
        })
        .collect();
    tar(&entries)
}

#[test]
fn any_order_of_entries_is_a_whole_layer_or_refused() {
    let mut random = Random(seed());
    let (mut merged, mut refused) = (0, 0);
    for round in 0..60 {
        let folder = Folder::new();
        let mut layers = Vec::new();
        for (at, name) in ["one", "two", "three"].into_iter().enumerate() {
            match folder.unpack(name, &random_layer(&mut random)) {
                Ok(_) => layers.push(name),
                Err(failure) => assert_eq!(failure.reason, "corrupt", "round {round} layer {at}: {failure:?}"),
            }
        }
        for layer in &layers {
            // The tree is what the index says: packing reads every file of it.
            let packed = folder.run(&["pack", "--layer", layer], &[]).unwrap();
            let again = format!("{layer}-again");
            folder.unpack(&again, &packed).unwrap_or_else(|failure| panic!("round {round}: {failure:?}"));
            assert_eq!(tree(&folder.at(&again).join("tree")), tree(&folder.at(layer).join("tree")), "round {round}");
            assert!(folder.run(&["pack", "--layer", &again], &[]).unwrap() == packed, "round {round}");
        }
        if layers.is_empty() {
            continue;
        }
        let image = folder.run(&[&["image", "--out", "image"], &layers[..]].concat(), &[]);
        match folder.merge("root", &layers) {
            Ok(_) => {
                image.unwrap_or_else(|failure| panic!("round {round}: {failure:?}"));
                if let Some(found) = folder.extracted("image") {
                    assert_eq!(found, tree(&folder.at("root")), "round {round}");
                }
                merged += 1;
            }
            Err(failure) => {
                assert_eq!(failure.reason, "corrupt", "round {round}: {failure:?}");
                assert_eq!(image.unwrap_err().reason, "corrupt", "round {round}");
                refused += 1;
            }
        }
        assert!(!std::path::Path::new("/nowhere").exists());
    }
    assert!(merged > 5 && refused > 0, "{merged} merged, {refused} refused");
}

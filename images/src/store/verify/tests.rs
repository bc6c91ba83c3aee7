//! Each way in which something may be other than its name says, and that it is told.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::store::tests::{Home, home, put_image, unpack_tar};
use crate::unpack::tests::Tar;

fn verify(store: &Store) -> Verified {
    store.verify(&mut |_, _| ()).unwrap()
}

fn layer_tree() -> Vec<u8> {
    Tar::default()
        .dir("d", 0o755)
        .file("d/f", b"content")
        .hardlink("d/g", "d/f")
        .symlink("d/l", "f")
        .file("d/.wh.x", b"")
        .pax(&[("SCHILY.xattr.user.a", b"b")])
        .file("noted", b"")
        .end()
}

#[test]
fn a_store_that_is_whole() {
    let Home { store, .. } = &home();
    let image = put_image(store, "x", true);
    store.tag(&image, &"x".parse().unwrap()).unwrap();
    let mut seen = Vec::new();
    let verified = store
        .verify(&mut |item, finding| seen.push((item.clone(), finding.clone())))
        .unwrap();
    assert!(verified.is_clean() && verified.unknown.is_empty(), "{verified:?}");
    assert_eq!((verified.whole, seen.len()), (4, 4), "{seen:?}");
    assert!(verified.bytes > 2000);
    let mut tar = Vec::new();
    let size = store.layer_tar(&image.diff_ids[0], &mut tar).unwrap();
    assert_eq!(
        (size, DiffId::of(&tar)),
        (Some(tar.len() as u64), image.diff_ids[0])
    );
}

#[test]
fn every_damage_to_a_layer_is_told() {
    let tar = layer_tree();
    let diff_id = DiffId::of(&tar);
    type Harm = fn(&std::path::Path);
    let harms: &[(&str, Harm)] = &[
        ("its tar is", |dir| {
            let path = dir.join("tree/d/f");
            let time = fs::metadata(&path).unwrap().modified().unwrap();
            fs::write(&path, "CONTENT").unwrap();
            File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .set_modified(time)
                .unwrap();
        }),
        ("its length", |dir| {
            fs::write(dir.join("tree/d/f"), "content and more").unwrap()
        }),
        ("shorter than it was", |dir| {
            fs::write(dir.join("tree/d/f"), "").unwrap()
        }),
        ("No such file", |dir| {
            fs::remove_file(dir.join("tree/d/f")).unwrap()
        }),
        ("entries more", |dir| {
            fs::write(dir.join("tree/more"), "").unwrap()
        }),
        ("its time", |dir| {
            fs::write(dir.join("tree/d/f"), "CONTENT").unwrap()
        }),
        ("its mode", |dir| {
            fs::set_permissions(dir.join("tree/d/f"), fs::Permissions::from_mode(0o666)).unwrap();
        }),
        ("hard link no more", |dir| {
            fs::remove_file(dir.join("tree/d/g")).unwrap();
            fs::copy(dir.join("tree/d/f"), dir.join("tree/d/g")).unwrap();
        }),
        ("leads elsewhere", |dir| {
            fs::remove_file(dir.join("tree/d/l")).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", dir.join("tree/d/l")).unwrap();
        }),
        ("\"d/.wh.x\": No such file", |dir| {
            fs::remove_file(dir.join("tree/d/x")).unwrap()
        }),
        ("something else in the tree", |dir| {
            fs::remove_file(dir.join("tree/d/l")).unwrap();
            fs::write(dir.join("tree/d/l"), "f").unwrap();
        }),
        ("Not a directory", |dir| {
            fs::rename(dir.join("tree/d"), dir.join("tree/e")).unwrap();
            std::os::unix::fs::symlink("e", dir.join("tree/d")).unwrap();
        }),
        ("what is noted", |dir| {
            fs::write(dir.join("metadata"), "{}").unwrap()
        }),
        ("cannot show is gone", |dir| {
            fs::remove_file(dir.join("metadata")).unwrap()
        }),
        ("recipe cannot be read", |dir| {
            fs::write(dir.join("recipe"), "rubbish, not zstd").unwrap()
        }),
        ("recipe cannot", |dir| fs::write(dir.join("recipe"), "").unwrap()),
        ("it has no description", |dir| {
            fs::remove_file(dir.join("layer.json")).unwrap()
        }),
        ("layer.json", |dir| {
            fs::write(dir.join("layer.json"), "{}").unwrap()
        }),
    ];
    for (want, harm) in harms {
        let Home { store, .. } = &home();
        unpack_tar(store, &tar, &diff_id).unwrap();
        assert!(verify(store).is_clean());
        harm(&store.layers_dir().join(diff_id.hex()));
        let verified = verify(store);
        let [(Item::Layer(found), why)] = verified.bad.as_slice() else {
            panic!("{want}: {verified:?}");
        };
        assert_eq!(*found, diff_id);
        assert!(why.contains(want), "{want}: {why}");
        // Out of the way, and made again.
        store.discard(&Item::Layer(diff_id)).unwrap();
        assert!(!store.has_layer(&diff_id));
        unpack_tar(store, &tar, &diff_id).unwrap();
        assert!(verify(store).is_clean());
    }
}

#[test]
fn damaged_documents_tags_and_what_is_missing() {
    let Home { store, .. } = &home();
    let image = put_image(store, "x", true);
    let name: Reference = "x".parse().unwrap();
    store.tag(&image, &name).unwrap();
    fs::write(store.blob_dir().join(image.config_digest.hex()), "{}").unwrap();
    let verified = verify(store);
    assert_eq!(verified.bad.len(), 1);
    assert_eq!(verified.bad[0].0, Item::Blob(image.config_digest));
    store.discard(&Item::Blob(image.config_digest)).unwrap();
    let verified = verify(store);
    assert_eq!(verified.bad[0].1, "the config of x:latest is not here");
    let image = put_image(store, "x", false);
    store.discard(&Item::Layer(image.diff_ids[0])).unwrap();
    let verified = verify(store);
    assert_eq!(verified.bad[0].1, "the layer of x:latest is not here");
    let record = Store::record_name(&name);
    fs::write(store.image_dir().join(&record), "{").unwrap();
    let verified = verify(store);
    assert_eq!(verified.bad[0].0, Item::Tag(record.clone()));
    store.discard(&Item::Tag(record)).unwrap();
    assert!(verify(store).is_clean());
}

#[test]
fn a_layer_without_a_recipe_is_said_to_be_unknown() {
    let Home { store, .. } = &home();
    let image = put_image(store, "x", true);
    let dir = store.layers_dir().join(image.diff_ids[0].hex());
    fs::remove_file(dir.join("recipe")).unwrap();
    let verified = verify(store);
    assert!(verified.is_clean());
    assert_eq!(verified.unknown, image.diff_ids);
    assert_eq!(
        store.layer_tar(&image.diff_ids[0], &mut Vec::new()).unwrap(),
        None
    );
}

//! What a collection takes and what it leaves.

use std::fs;

use super::*;
use crate::store::tests::{Home, all_files, home, put_image};

fn nothing() -> Result<InUse, Error> {
    Ok(InUse::default())
}

const ALL: &dyn Fn(&Image) -> bool = &|_| true;

fn names(store: &Store) -> Vec<String> {
    let records = store.tags().unwrap();
    records.iter().map(|record| record.reference.familiar()).collect()
}

#[test]
fn only_what_nothing_needs_goes() {
    let Home { store, .. } = &home();
    let [tagged, used, dangling, leased] = ["a", "b", "c", "d"].map(|name| put_image(store, name, true));
    store.tag(&tagged, &"a".parse().unwrap()).unwrap();
    let work = store.leased().unwrap();
    assert_eq!(work.image(&leased.digest).unwrap(), leased);
    assert!(work.has_layer(&leased.diff_ids[0]));
    let in_use = InUse {
        images: BTreeSet::from([used.digest]),
        ..InUse::default()
    };
    let done = store
        .collect(Scope::Dangling(ALL), &mut || Ok(in_use.clone()))
        .unwrap();
    assert_eq!(done.layers, dangling.diff_ids);
    assert_eq!(done.images, [dangling.config_digest]);
    assert_eq!(
        BTreeSet::from_iter(done.blobs.clone()),
        BTreeSet::from([dangling.digest, dangling.config_digest])
    );
    assert!(done.bytes > 0 && done.damaged.is_none() && done.untagged.is_empty());
    for image in [&tagged, &used, &leased] {
        assert_eq!(store.image(&image.digest).unwrap(), *image);
        assert!(store.missing_layers(image).is_empty());
    }
    // The work is over and the image got no name.
    drop(work);
    let done = store
        .collect(Scope::Dangling(ALL), &mut || Ok(in_use.clone()))
        .unwrap();
    assert_eq!(done.layers, leased.diff_ids);
    // Unused names go with `Unused` alone.
    let done = store
        .collect(Scope::All(ALL), &mut || Ok(in_use.clone()))
        .unwrap();
    assert_eq!(
        (names(store), done.layers.clone()),
        (vec![], tagged.diff_ids.clone())
    );
    assert!(store.missing_layers(&used).is_empty());
    store.collect(Scope::Dangling(ALL), &mut nothing).unwrap();
    assert_eq!(
        all_files(store.root()),
        [
            "blobs",
            "blobs/sha256",
            "images",
            "layers",
            "leases",
            "lock",
            "partial",
            "version"
        ]
    );
}

#[test]
fn names_that_pods_want_stay() {
    let Home { store, .. } = &home();
    for name in ["a", "b"] {
        let image = put_image(store, name, true);
        store.tag(&image, &name.parse().unwrap()).unwrap();
    }
    let in_use = InUse {
        names: BTreeSet::from(["a".parse().unwrap()]),
        ..InUse::default()
    };
    let done = store
        .collect(Scope::All(ALL), &mut || Ok(in_use.clone()))
        .unwrap();
    assert_eq!(done.untagged, ["b".parse().unwrap()]);
    assert_eq!(names(store), ["a:latest"]);
    // A predicate that admits nothing.
    let done = store.collect(Scope::All(&|_| false), &mut nothing).unwrap();
    assert_eq!(done, Collected::default());
}

#[test]
fn one_image_goes_and_the_other_dangling_ones_stay() {
    let Home { store, .. } = &home();
    let [own, other] = ["a", "b"].map(|name| put_image(store, name, true));
    let done = store.collect(Scope::Document(own.digest), &mut nothing).unwrap();
    assert_eq!(done.layers, own.diff_ids);
    assert!(store.image(&own.digest).is_err());
    assert_eq!(store.image(&other.digest).unwrap(), other);
    assert!(store.missing_layers(&other).is_empty());
    // A name came in between: it stays.
    store.tag(&other, &"b".parse().unwrap()).unwrap();
    let done = store
        .collect(Scope::Document(other.digest), &mut nothing)
        .unwrap();
    assert_eq!(done, Collected::default());
}

#[test]
fn what_cannot_be_known_is_not_collected() {
    let Home { store, .. } = &home();
    let [tagged, dangling] = ["a", "b"].map(|name| put_image(store, name, true));
    store.tag(&tagged, &"a".parse().unwrap()).unwrap();
    let refused = store.collect(Scope::Dangling(ALL), &mut || Err(Error::InUse("x".into())));
    assert!(matches!(refused, Err(Error::InUse(_))));
    for damaged in [
        store.blob_dir().join(tagged.digest.hex()),
        store.blob_dir().join(tagged.config_digest.hex()),
        store.image_dir().join(Store::record_name(&"a".parse().unwrap())),
    ] {
        let right = fs::read(&damaged).unwrap();
        fs::write(&damaged, "{}").unwrap();
        let done = store.collect(Scope::All(ALL), &mut nothing).unwrap();
        assert!(
            done.damaged.is_some() && done.layers.is_empty() && done.untagged.is_empty(),
            "{done:?}"
        );
        fs::write(&damaged, right).unwrap();
    }
    assert!(store.missing_layers(&dangling).is_empty());
}

#[test]
fn partials_go_when_nobody_holds_them() {
    let Home { store, .. } = &home();
    let make = |text: &[u8]| {
        let mut partial = store.partial(&Digest::of(text), 100).unwrap();
        partial.append(text).unwrap();
        partial.sync().unwrap();
        partial
    };
    let held = make(b"held");
    drop(make(b"left"));
    fs::write(store.partial_dir().join(format!("{}.json", "0".repeat(64))), "{}").unwrap();
    for scope in [Scope::Dangling(ALL), Scope::Unused(ALL)] {
        let young = store.collect(scope, &mut nothing).unwrap();
        assert_eq!(young.partials, 0, "a pull may go on tomorrow");
    }
    let done = store.collect(Scope::All(ALL), &mut nothing).unwrap();
    assert_eq!((done.partials, done.bytes), (1, 4));
    assert_eq!(all_files(&store.partial_dir()).len(), 2);
    drop(held);
    store.collect(Scope::All(ALL), &mut nothing).unwrap();
    assert!(all_files(&store.partial_dir()).is_empty());
}

#[test]
fn referrers_stay_with_what_they_refer_to() {
    let Home { store, .. } = &home();
    let image = put_image(store, "a", true);
    store.tag(&image, &"a".parse().unwrap()).unwrap();
    let blob = b"{\"signature\":1}";
    let digest = store.put_document(blob).unwrap();
    let artifact = serde_json::json!({
        "schemaVersion": 2, "mediaType": crate::manifest::OCI_MANIFEST, "artifactType": "application/x-test",
        "config": {"mediaType": crate::manifest::OCI_EMPTY, "digest": Digest::of(b"{}"), "size": 2},
        "layers": [{"mediaType": "application/x-test", "digest": digest, "size": blob.len()}],
        "subject": {"mediaType": image.media_type, "digest": image.digest, "size": 1},
    });
    let artifact = store.put_document(artifact.to_string().as_bytes()).unwrap();
    let list = serde_json::json!({
        "schemaVersion": 2, "mediaType": crate::manifest::OCI_INDEX,
        "manifests": [{"mediaType": crate::manifest::OCI_MANIFEST, "digest": artifact, "size": 1}],
    });
    let dir = store.root().join("referrers");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join(format!("{}.json", image.digest.hex())), list.to_string()).unwrap();
    let done = store.collect(Scope::Dangling(ALL), &mut nothing).unwrap();
    assert_eq!(done, Collected::default());
    assert!(store.has_blob(&artifact) && store.has_blob(&digest));
    store.remove_tag(&"a".parse().unwrap()).unwrap();
    let done = store.collect(Scope::Dangling(ALL), &mut nothing).unwrap();
    assert_eq!(done.blobs.len(), 4);
}

#[test]
fn a_lease_of_a_dead_process_counts_for_nothing() {
    let Home { store, .. } = &home();
    let image = put_image(store, "a", true);
    fs::create_dir_all(store.root().join("leases")).unwrap();
    fs::write(
        store.root().join("leases/1-0"),
        format!("b{}\n", image.digest.hex()),
    )
    .unwrap();
    let done = store.collect(Scope::Dangling(ALL), &mut nothing).unwrap();
    assert_eq!(done.layers, image.diff_ids);
    assert!(all_files(&store.root().join("leases")).is_empty());
}

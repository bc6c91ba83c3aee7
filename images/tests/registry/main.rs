//! Pull, push and serve against the real parts: Debian's docker-registry and skopeo, and links that cut.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test program"
)]

mod kinds;
mod links;
#[path = "../parts/mod.rs"]
mod parts;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parts::{DockerRegistry, Link, Sample, blobs_in, noise, skopeo, store};
use wherry_images::cage;
use wherry_images::manifest::{Descriptor, OCI_EMPTY, OCI_MANIFEST};
use wherry_images::pull::{How, PullOptions, pull};
use wherry_images::push::push;
use wherry_images::registry::{self, Client, Login, Options};
use wherry_images::serve::{self, Server, Stopper};
use wherry_images::store::Store;
use wherry_images::{Digest, Reference};

const TOKEN: &str = "letmein";

const TESTS: &[(&str, fn())] = &[
    (
        "what_a_card_has_changed_is_fetched_again",
        what_a_card_has_changed_is_fetched_again,
    ),
    (
        "an_image_for_another_platform_is_refused_or_warned_of",
        an_image_for_another_platform_is_refused_or_warned_of,
    ),
    (
        "a_layer_that_leads_outside_leaves_nothing_behind",
        a_layer_that_leads_outside_leaves_nothing_behind,
    ),
    (
        "tls_registries_are_verified_or_called_insecure",
        tls_registries_are_verified_or_called_insecure,
    ),
    (
        "a_registry_that_asks_for_a_certificate_is_shown_that_of_its_folder",
        links::a_registry_that_asks_for_a_certificate_is_shown_that_of_its_folder,
    ),
    (
        "our_server_speaks_tls_and_bounds_a_handshake",
        links::our_server_speaks_tls_and_bounds_a_handshake,
    ),
    (
        "a_wrong_byte_on_the_way_costs_its_chunk",
        links::a_wrong_byte_on_the_way_costs_its_chunk,
    ),
    (
        "a_plan_says_what_the_pull_then_takes",
        links::a_plan_says_what_the_pull_then_takes,
    ),
    (
        "layers_of_every_compression_are_pulled_and_pushed_as_they_are",
        kinds::layers_of_every_compression_are_pulled_and_pushed_as_they_are,
    ),
    (
        "foreign_and_unknown_layers_are_refused_before_any_is_fetched",
        kinds::foreign_and_unknown_layers_are_refused_before_any_is_fetched,
    ),
    (
        "the_platform_that_is_asked_for_is_chosen_by_variant",
        kinds::the_platform_that_is_asked_for_is_chosen_by_variant,
    ),
    (
        "what_skopeo_pushed_to_docker_registry_is_pulled_byte_identical",
        what_skopeo_pushed_to_docker_registry_is_pulled_byte_identical,
    ),
    (
        "what_we_push_to_docker_registry_skopeo_copies_out_byte_identical",
        what_we_push_to_docker_registry_skopeo_copies_out_byte_identical,
    ),
    (
        "a_layer_whose_blob_was_not_kept_is_named_before_anything_moves",
        a_layer_whose_blob_was_not_kept_is_named_before_anything_moves,
    ),
    (
        "a_link_that_cuts_each_256_kb_costs_less_than_a_hundredth",
        a_link_that_cuts_each_256_kb_costs_less_than_a_hundredth,
    ),
    (
        "a_pull_that_was_stopped_goes_on_where_it_was",
        a_pull_that_was_stopped_goes_on_where_it_was,
    ),
    (
        "uploads_get_through_a_link_that_cuts_them",
        uploads_get_through_a_link_that_cuts_them,
    ),
    (
        "skopeo_copies_into_and_out_of_our_server",
        skopeo_copies_into_and_out_of_our_server,
    ),
    (
        "writing_to_our_server_needs_the_token",
        writing_to_our_server_needs_the_token,
    ),
    (
        "referrers_by_api_and_by_fallback_tag",
        referrers_by_api_and_by_fallback_tag,
    ),
    ("docker_registry_with_a_password", docker_registry_with_a_password),
    (
        "what_is_not_there_is_said_in_one_line",
        what_is_not_there_is_said_in_one_line,
    ),
];

/// `registry [FILTER]...` runs the tests whose names contain a filter, all without one; `registry cage JOB` is the cage of them all.
fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().map(String::as_str) == Some(cage::VERB) {
        return cage::main();
    }
    let filters: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let mut failed = false;
    for (name, test) in TESTS {
        if filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str())) {
            let begun = std::time::Instant::now();
            let passed = std::panic::catch_unwind(test).is_ok();
            println!(
                "{name} ... {} ({:.1?})",
                if passed { "ok" } else { "FAILED" },
                begun.elapsed()
            );
            failed |= !passed;
        }
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn reference(address: std::net::SocketAddr, name: &str) -> Reference {
    Reference::parse(&format!("{address}/{name}")).unwrap()
}

fn client() -> Client {
    Client::new(Options {
        docker_config: None,
        ..Options::default()
    })
}

fn writer() -> Client {
    let login = Login::Password {
        user: "wherry".to_owned(),
        secret: TOKEN.to_owned(),
    };
    Client::new(Options {
        docker_config: None,
        login: Some(login),
        ..Options::default()
    })
}

fn keep() -> PullOptions {
    PullOptions {
        keep_blobs: true,
        ..PullOptions::default()
    }
}

/// A `wherry serve` over a store of its own.
struct Served {
    address: std::net::SocketAddr,
    stopper: Stopper,
    _folder: tempfile::TempDir,
}

impl Served {
    fn start() -> Served {
        let folder = tempfile::tempdir().unwrap();
        let options = serve::Options {
            listen: "127.0.0.1:0".parse().unwrap(),
            token: Some(TOKEN.to_owned()),
            unix: Some(folder.path().join("serve.sock")),
        };
        let server = Server::bind(options, store(&folder.path().join("state"))).unwrap();
        let (address, stopper) = (server.addr().unwrap(), server.stopper());
        std::thread::spawn(move || server.run().unwrap());
        Served {
            address,
            stopper,
            _folder: folder,
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stopper.stop();
    }
}

fn small_sample() -> Sample {
    Sample::new(&[
        &[("a", b"first"), ("b/c", &noise(1, 300_000))],
        &[("a", b"second")],
    ])
}

/// All that must be true of a sample that was pulled with its blobs.
fn assert_whole(store: &Store, reference: &Reference, sample: &Sample) {
    let image = store.resolve(&reference.to_string()).unwrap();
    assert_eq!(
        (image.digest, image.config_digest),
        (sample.manifest, sample.config)
    );
    for diff_id in &image.diff_ids {
        assert!(store.layer(diff_id).unwrap().is_some());
    }
    assert_eq!(
        image.manifest.layers.iter().map(|l| l.digest).collect::<Vec<_>>(),
        sample.blobs
    );
    let tree = store.layer(image.diff_ids.last().unwrap()).unwrap().unwrap();
    assert_eq!(std::fs::read(tree.join("a")).unwrap(), b"second");
}

fn what_skopeo_pushed_to_docker_registry_is_pulled_byte_identical() {
    let (registry, sample) = (DockerRegistry::start(), small_sample());
    let name = reference(registry.address, "iris:v1");
    skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        &sample.place(),
        &format!("docker://{name}"),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let mut told = Vec::new();
    let pulled = pull(&store, &client(), &name, &PullOptions::default(), &mut |p| {
        told.push((p.layer, p.offset))
    })
    .unwrap();
    assert_eq!(
        (pulled.digest, pulled.needed, pulled.full),
        (sample.manifest, sample.bytes, sample.bytes)
    );
    assert!(
        pulled.wire > pulled.needed && pulled.wire < pulled.needed + 8192,
        "{} {}",
        pulled.wire,
        pulled.needed
    );
    assert!(
        pulled
            .layers
            .iter()
            .all(|l| l.how == How::Full && l.reason.is_none())
    );
    assert!(told.last().unwrap().0 == 1 && told.len() > 4);
    assert_whole(&store, &name, &sample);
    // A board keeps no blob and no partial.
    assert!(sample.blobs.iter().all(|digest| !store.has_blob(digest)));
    assert_eq!(
        std::fs::read_dir(folder.path().join("partial")).unwrap().count(),
        0
    );

    let again = pull(&store, &client(), &name, &PullOptions::default(), &mut |_| {}).unwrap();
    assert_eq!((again.digest, again.needed), (sample.manifest, 0));
    assert!(again.wire < 2048, "{}", again.wire);
    assert!(again.layers.iter().all(|l| l.how == How::Present));
    let by_digest = pull(
        &store,
        &client(),
        &name.with_digest(sample.manifest),
        &keep(),
        &mut |_| {},
    )
    .unwrap();
    assert_eq!(by_digest.digest, sample.manifest);
    assert!(sample.blobs.iter().all(|digest| store.has_blob(digest)));
}

fn what_we_push_to_docker_registry_skopeo_copies_out_byte_identical() {
    let registry = DockerRegistry::start();
    // Larger than a chunk, so that it is sent in several.
    let sample = Sample::new(&[&[("big", &noise(2, 3_000_000))], &[("a", b"second")]]);
    let (from, to) = (
        reference(registry.address, "from:v1"),
        reference(registry.address, "to/deep/er:v2"),
    );
    skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        &sample.place(),
        &format!("docker://{from}"),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    pull(&store, &client(), &from, &keep(), &mut |_| {}).unwrap();
    let image = store.resolve(&from.to_string()).unwrap();
    let pushed = push(&store, &client(), &image, &to, &mut |_| {}).unwrap();
    assert_eq!(
        (pushed.digest, pushed.sent),
        (sample.manifest, sample.blobs.clone())
    );
    let out = tempfile::tempdir().unwrap();
    let place = format!("oci:{}:v2", out.path().display());
    skopeo(&[
        "copy",
        "--src-tls-verify=false",
        "--preserve-digests",
        &format!("docker://{to}"),
        &place,
    ]);
    assert_eq!(blobs_in(out.path()), blobs_in(sample.path()));
    // Once there, nothing is sent again.
    let again = push(&store, &client(), &image, &to, &mut |_| {}).unwrap();
    assert!(again.sent.is_empty() && again.wire < 4096);
}

fn a_layer_whose_blob_was_not_kept_is_named_before_anything_moves() {
    let (registry, sample) = (DockerRegistry::start(), small_sample());
    let (from, to) = (
        reference(registry.address, "from:v1"),
        reference(registry.address, "to:v1"),
    );
    skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        &sample.place(),
        &format!("docker://{from}"),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    pull(&store, &client(), &from, &PullOptions::default(), &mut |_| {}).unwrap();
    let image = store.resolve(&from.to_string()).unwrap();
    let message = push(&store, &client(), &image, &to, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        message.contains(&sample.blobs[0].to_string()) && message.contains("--keep-blobs"),
        "{message}"
    );
    assert!(client().head_manifest(&to).unwrap().is_none());
}

fn a_link_that_cuts_each_256_kb_costs_less_than_a_hundredth() {
    let registry = DockerRegistry::start();
    let sample = Sample::new(&[
        &[("big", &noise(3, 8_000_000))],
        &[("a", b"second"), ("b", &noise(4, 700_000))],
    ]);
    let direct = reference(registry.address, "iris:v1");
    skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        &sample.place(),
        &format!("docker://{direct}"),
    ]);
    let link = Link::cutting(registry.address, Some(256 * 1024), None);
    let name = reference(link.address, "iris:v1");
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let pulled = pull(&store, &client(), &name, &PullOptions::default(), &mut |_| {}).unwrap();
    assert_whole(&store, &name, &sample);
    let delivered = link.down.load(Ordering::Relaxed);
    let ratio = delivered as f64 / pulled.needed as f64;
    println!(
        "needed {} wire {} delivered {delivered} ratio {ratio:.5} connections {}",
        pulled.needed,
        pulled.wire,
        link.connections.load(Ordering::Relaxed)
    );
    assert_eq!(pulled.needed, sample.bytes);
    assert!(ratio <= 1.01, "{ratio}");
    // What the client counts is what the link delivered, but for what a cut threw away unread.
    assert!(
        pulled.wire <= delivered && delivered - pulled.wire < delivered / 200,
        "{} {delivered}",
        pulled.wire
    );
}

fn a_pull_that_was_stopped_goes_on_where_it_was() {
    let registry = DockerRegistry::start();
    let sample = Sample::new(&[&[("big", &noise(5, 4_000_000))], &[("a", b"second")]]);
    let name = reference(registry.address, "iris:v1");
    skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        &sample.place(),
        &format!("docker://{name}"),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let stop = Arc::new(AtomicBool::new(false));
    let options = Options {
        docker_config: None,
        cancel: Some(stop.clone()),
        ..Options::default()
    };
    let stopped = pull(
        &store,
        &Client::new(options),
        &name,
        &PullOptions::default(),
        &mut |p| {
            if p.offset > 2_000_000 {
                stop.store(true, Ordering::Relaxed);
            }
        },
    );
    assert_eq!(stopped.unwrap_err().to_string(), "cancelled");
    assert!(store.resolve(&name.to_string()).is_err() && store.images().unwrap().is_empty());
    let client = client();
    let pulled = pull(&store, &client, &name, &PullOptions::default(), &mut |_| {}).unwrap();
    assert_whole(&store, &name, &sample);
    assert!(
        client.wire().down < 2_100_000 && pulled.wire == client.wire().down,
        "{}",
        client.wire().down
    );
}

fn uploads_get_through_a_link_that_cuts_them() {
    let registry = DockerRegistry::start();
    let served = Served::start();
    let sample = Sample::new(&[&[("big", &noise(6, 2_500_000))], &[("a", b"second")]]);
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let source = wherry_images::pull::Source::parse(&sample.place()).unwrap();
    wherry_images::pull::pull_from(&store, &client(), &source, &keep(), &mut |_| {}).unwrap();
    let image = store.resolve(&sample.manifest.to_string()).unwrap();
    for upstream in [registry.address, served.address] {
        let link = Link::cutting(upstream, None, Some(300_000));
        push(
            &store,
            &writer(),
            &image,
            &reference(link.address, "iris:v1"),
            &mut |_| {},
        )
        .unwrap();
        let there = client()
            .head_manifest(&reference(upstream, "iris:v1"))
            .unwrap()
            .unwrap();
        assert_eq!(there.digest, Some(sample.manifest));
    }
}

fn skopeo_copies_into_and_out_of_our_server() {
    let (served, sample) = (Served::start(), small_sample());
    let name = reference(served.address, "a/iris:v1");
    let login = format!("any:{TOKEN}");
    skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        "--dest-creds",
        &login,
        &sample.place(),
        &format!("docker://{name}"),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder.path().join("board"));
    let pulled = pull(&store, &client(), &name, &keep(), &mut |_| {}).unwrap();
    assert_eq!(pulled.digest, sample.manifest);
    assert_whole(&store, &name, &sample);
    let image = store.resolve(&name.to_string()).unwrap();
    let second = reference(served.address, "b:v2");
    assert!(
        push(&store, &writer(), &image, &second, &mut |_| {})
            .unwrap()
            .sent
            .is_empty()
    );
    let out = folder.path().join("out");
    let place = format!("oci:{}:v2", out.display());
    skopeo(&[
        "copy",
        "--src-tls-verify=false",
        "--preserve-digests",
        &format!("docker://{second}"),
        &place,
    ]);
    assert_eq!(blobs_in(&out), blobs_in(sample.path()));
    // Between two registries, too.
    let registry = DockerRegistry::start();
    let third = reference(registry.address, "c:v3");
    let (from, to) = (format!("docker://{second}"), format!("docker://{third}"));
    skopeo(&[
        "copy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        &from,
        &to,
    ]);
    assert_eq!(
        client().head_manifest(&third).unwrap().unwrap().digest,
        Some(sample.manifest)
    );
    skopeo(&[
        "list-tags",
        "--tls-verify=false",
        &format!("docker://{}", second.familiar_name()),
    ]);
}

fn writing_to_our_server_needs_the_token() {
    let (served, sample) = (Served::start(), small_sample());
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let source = wherry_images::pull::Source::parse(&sample.place()).unwrap();
    wherry_images::pull::pull_from(&store, &client(), &source, &keep(), &mut |_| {}).unwrap();
    let image = store.resolve(&sample.manifest.to_string()).unwrap();
    let name = reference(served.address, "iris:v1");
    let wrong = Login::Password {
        user: "x".to_owned(),
        secret: "y".to_owned(),
    };
    for login in [None, Some(wrong)] {
        let client = Client::new(Options {
            docker_config: None,
            login,
            ..Options::default()
        });
        let error = push(&store, &client, &image, &name, &mut |_| {}).unwrap_err();
        assert!(
            matches!(
                error,
                wherry_images::push::Error::Registry(registry::Error::Denied { .. })
            ),
            "{error}"
        );
    }
    push(&store, &writer(), &image, &name, &mut |_| {}).unwrap();
}

fn referrers_by_api_and_by_fallback_tag() {
    let (registry, served, sample) = (DockerRegistry::start(), Served::start(), small_sample());
    for address in [registry.address, served.address] {
        let (name, client) = (reference(address, "iris:v1"), writer());
        let to = format!("docker://{name}");
        let login = format!("any:{TOKEN}");
        skopeo(&[
            "copy",
            "--dest-tls-verify=false",
            "--dest-creds",
            &login,
            &sample.place(),
            &to,
        ]);
        let manifest = client.get_manifest(&name).unwrap();
        let subject = Descriptor::of(&manifest.media_type, &manifest.bytes);
        assert!(
            client
                .list_referrers(&name, &subject.digest, None)
                .unwrap()
                .is_empty()
        );
        let empty = Descriptor::of(OCI_EMPTY, b"{}");
        client
            .put_blob(
                &name,
                &empty.digest,
                2,
                &mut std::io::Cursor::new(b"{}"),
                &mut |_| {},
            )
            .unwrap();
        let mut made = Vec::new();
        for kind in ["application/x.one", "application/x.two"] {
            let artifact = serde_json::json!({
                "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": kind, "config": empty, "layers": [empty],
                "subject": {"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size},
                "annotations": {"kind": kind},
            });
            let bytes = artifact.to_string().into_bytes();
            let digest = Digest::of(&bytes);
            client
                .put_manifest(&name.with_digest(digest), OCI_MANIFEST, &bytes, Some(&subject))
                .unwrap();
            made.push(digest);
        }
        let all = client.list_referrers(&name, &subject.digest, None).unwrap();
        assert_eq!(all.iter().map(|d| d.digest).collect::<Vec<_>>(), made);
        let two = client
            .list_referrers(&name, &subject.digest, Some("application/x.two"))
            .unwrap();
        assert_eq!(two.iter().map(|d| d.digest).collect::<Vec<_>>(), made[1..]);
        assert_eq!(
            two[0].annotations.get("kind").map(String::as_str),
            Some("application/x.two")
        );
        assert_eq!(
            client.get_manifest(&name.with_digest(made[0])).unwrap().digest,
            made[0]
        );
    }
}

fn docker_registry_with_a_password() {
    let auth = "auth:\n  htpasswd: {realm: test, path: FOLDER/htpasswd}\n";
    let (registry, sample) = (DockerRegistry::start_with(auth), small_sample());
    let name = reference(registry.address, "iris:v1");
    let to = format!("docker://{name}");
    skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        "--dest-creds",
        "user:pass",
        &sample.place(),
        &to,
    ]);
    let folder = tempfile::tempdir().unwrap();
    let denied = client().get_manifest(&name).unwrap_err().to_string();
    assert!(
        denied.contains("denies access") && denied.contains("config.json"),
        "{denied}"
    );
    let config = folder.path().join("config.json");
    let login = serde_json::json!({"auths": {registry.address.to_string(): {"auth": "dXNlcjpwYXNz"}}});
    std::fs::write(&config, login.to_string()).unwrap();
    let client = Client::new(Options {
        docker_config: Some(config),
        ..Options::default()
    });
    let store = store(&folder.path().join("state"));
    pull(&store, &client, &name, &PullOptions::default(), &mut |_| {}).unwrap();
    assert_whole(&store, &name, &sample);
}

fn what_is_not_there_is_said_in_one_line() {
    let registry = DockerRegistry::start();
    let name = reference(registry.address, "nothing:v1");
    let message = client().get_manifest(&name).unwrap_err().to_string();
    assert_eq!(
        message,
        format!("manifest {name}: not found in registry {}", registry.address)
    );
    let address = registry.address;
    drop(registry);
    let begun = std::time::Instant::now();
    let message = client().get_manifest(&name).unwrap_err().to_string();
    assert_eq!(message, format!("registry {address}: connection refused"));
    assert!(begun.elapsed() < std::time::Duration::from_secs(4));
}

fn tls_registries_are_verified_or_called_insecure() {
    let tls = "  tls: {certificate: FOLDER/cert.pem, key: FOLDER/key.pem}\n";
    let (registry, sample) = (DockerRegistry::start_with(tls), small_sample());
    let name = reference(registry.address, "iris:v1");
    skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        &sample.place(),
        &format!("docker://{name}"),
    ]);
    let folder = tempfile::tempdir().unwrap();
    // Nobody vouches for the certificate: named, and nothing is fetched.
    let refused = client().get_manifest(&name).unwrap_err();
    assert!(matches!(refused, registry::Error::Tls { .. }), "{refused}");
    assert!(
        refused.to_string().contains("certificate does not verify"),
        "{refused}"
    );
    let trusting = Options {
        docker_config: None,
        roots: Some(parts::certificate()),
        ..Options::default()
    };
    let insecure = Options {
        docker_config: None,
        insecure: vec![registry.address.to_string()],
        ..Options::default()
    };
    for (at, options) in [trusting, insecure].into_iter().enumerate() {
        let store = store(&folder.path().join(at.to_string()));
        let client = Client::new(options);
        let pulled = pull(&store, &client, &name, &keep(), &mut |_| {}).unwrap();
        assert_whole(&store, &name, &sample);
        assert!(pulled.wire > pulled.needed, "TLS is counted");
        let image = store.resolve(&name.to_string()).unwrap();
        push(
            &store,
            &client,
            &image,
            &reference(registry.address, "again:v1"),
            &mut |_| {},
        )
        .unwrap();
    }
    // A registry called insecure that has no TLS is spoken to without.
    let plain = DockerRegistry::start();
    let options = Options {
        docker_config: None,
        insecure: vec![plain.address.to_string()],
        ..Options::default()
    };
    let missing = Client::new(options)
        .head_manifest(&reference(plain.address, "x:v1"))
        .unwrap();
    assert!(missing.is_none());
}

fn a_layer_that_leads_outside_leaves_nothing_behind() {
    let registry = DockerRegistry::start();
    let sample = Sample::new(&[&[("a", b"good")], &[("../../evil", b"bad")]]);
    let name = reference(registry.address, "evil:v1");
    skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        &sample.place(),
        &format!("docker://{name}"),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder.path().join("state"));
    for options in [PullOptions::default(), keep()] {
        let error = pull(&store, &client(), &name, &options, &mut |_| {}).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("evil") && !said.contains('\n'), "{said}");
        assert_eq!(error.class(), wherry_images::Class::Permanent);
        assert!(store.tags().unwrap().is_empty());
        assert!(!store.has_blob(&sample.blobs[1]) && store.layers().unwrap().len() == 1);
        assert_eq!(
            std::fs::read_dir(store.root().join("partial")).unwrap().count(),
            0
        );
        let names = std::fs::read_dir(store.root().join("layers")).unwrap();
        assert!(
            names
                .map(|n| n.unwrap().file_name())
                .all(|n| !n.to_string_lossy().starts_with('.'))
        );
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

fn what_a_card_has_changed_is_fetched_again() {
    let (served, sample) = (Served::start(), small_sample());
    let name = reference(served.address, "iris:v1");
    let folder = tempfile::tempdir().unwrap();
    let publisher = store(&folder.path().join("publisher"));
    let source = wherry_images::pull::Source::parse(&sample.place()).unwrap();
    wherry_images::pull::pull_from(&publisher, &client(), &source, &keep(), &mut |_| {}).unwrap();
    let image = publisher.image(&sample.manifest).unwrap();
    push(&publisher, &writer(), &image, &name, &mut |_| {}).unwrap();

    let board = store(&folder.path().join("board"));
    pull(&board, &client(), &name, &keep(), &mut |_| {}).unwrap();
    let blob = |digest: &Digest| board.root().join("blobs/sha256").join(digest.hex());
    for digest in [&sample.manifest, &sample.config, &sample.blobs[1]] {
        let mut bytes = std::fs::read(blob(digest)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(blob(digest), bytes).unwrap();
    }
    std::fs::remove_dir_all(board.root().join("layers").join(image.diff_ids[1].hex())).unwrap();
    let pulled = pull(&board, &client(), &name, &keep(), &mut |_| {}).unwrap();
    let how: Vec<How> = pulled.layers.iter().map(|layer| layer.how).collect();
    assert_eq!(how, [How::Present, How::Full]);
    assert!(pulled.layers[1].bytes > 0);
    assert_whole(&board, &name, &sample);
    // A layer that is gone while its blob was kept costs nothing.
    std::fs::remove_dir_all(board.root().join("layers").join(image.diff_ids[1].hex())).unwrap();
    let pulled = pull(&board, &client(), &name, &keep(), &mut |_| {}).unwrap();
    assert_eq!((pulled.needed, pulled.layers[1].how), (0, How::Full));
}

fn an_image_for_another_platform_is_refused_or_warned_of() {
    use wherry_images::Platform;
    use wherry_images::pull::{Error, Source, pull_from};
    let served = Served::start();
    let folder = tempfile::tempdir().unwrap();
    let publisher = store(&folder.path().join("publisher"));
    let name = reference(served.address, "foreign:v1");
    let config = br#"{"architecture":"s390x","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let config_digest = publisher.put_document(config).unwrap();
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [],
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len()}});
    let digest = publisher.put_document(manifest.to_string().as_bytes()).unwrap();
    let image = publisher.image(&digest).unwrap();
    push(&publisher, &writer(), &image, &name, &mut |_| {}).unwrap();
    // The same as a layout.
    let layout = folder.path().join("layout");
    skopeo(&[
        "copy",
        "--src-tls-verify=false",
        &format!("docker://{name}"),
        &format!("oci:{}:v1", layout.display()),
    ]);
    let places = [
        Source::Registry(name),
        Source::parse(&format!("oci:{}:v1", layout.display())).unwrap(),
    ];
    for (at, place) in places.iter().enumerate() {
        let store = store(&folder.path().join(at.to_string()));
        let pull = |platform: &str| {
            let options = PullOptions {
                platform: platform.parse().unwrap(),
                ..PullOptions::default()
            };
            pull_from(&store, &client(), place, &options, &mut |_| {})
        };
        let error = pull("linux/riscv64").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("the image is for linux/s390x, not for linux/riscv64"),
            "{error}"
        );
        let wanted = matches!(error, Error::Platform { .. } | Error::Layout(_));
        assert!(wanted && store.tags().unwrap().is_empty());
        assert!(pull("linux/s390x").unwrap().warnings.is_empty());
        let warned = pull(&Platform::host().to_string()).unwrap().warnings;
        assert!(
            warned
                .iter()
                .any(|w| w.starts_with("the image is for linux/s390x, and this board runs")),
            "{warned:?}"
        );
    }
}

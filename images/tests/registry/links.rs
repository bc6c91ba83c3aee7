//! Certificates, wrong bytes on the way, and forecasts.

use wherry_images::pull::{How, PullOptions, pull};
use wherry_images::push::push;
use wherry_images::registry::{self, Client, Options};
use wherry_images::serve::{self, Server};

use super::parts::{self, DockerRegistry, Link, Sample, noise, skopeo, store};
use super::{Served, TOKEN, assert_whole, client, keep, reference, small_sample, writer};

pub(super) fn a_registry_that_asks_for_a_certificate_is_shown_that_of_its_folder() {
    let tls = "  tls: {certificate: FOLDER/cert.pem, key: FOLDER/key.pem, clientcas: [FOLDER/cert.pem]}\n";
    let registry = DockerRegistry::start_with(tls);
    let name = reference(registry.address, "iris:v1");
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join(registry.address.to_string());
    std::fs::create_dir(&own).unwrap();
    let client = || {
        Client::new(Options {
            docker_config: None,
            certs: vec![folder.path().to_owned()],
            ..Options::default()
        })
    };
    // Its authority alone: it is trusted, and does not trust us.
    std::fs::copy(parts::certificate(), own.join("ca.crt")).unwrap();
    let error = client().head_manifest(&name).unwrap_err();
    assert!(matches!(error, registry::Error::Tls { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("put NAME.cert and NAME.key into its folder"),
        "{error}"
    );
    std::fs::copy(parts::certificate(), own.join("me.cert")).unwrap();
    std::fs::copy(parts::certificate().with_file_name("key.pem"), own.join("me.key")).unwrap();
    assert!(client().head_manifest(&name).unwrap().is_none());
}

pub(super) fn our_server_speaks_tls_and_bounds_a_handshake() {
    use std::io::{Read, Write};
    let folder = tempfile::tempdir().unwrap();
    let options = serve::Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        token: Some(TOKEN.to_owned()),
        unix: None,
    };
    let guard = serve::Guard {
        accounts: Vec::new(),
        tls: Some(serve::Tls {
            certificate: parts::certificate(),
            key: parts::certificate().with_file_name("key.pem"),
        }),
    };
    let server = Server::guarded(options, guard, store(&folder.path().join("state"))).unwrap();
    let (address, stopper) = (server.addr().unwrap(), server.stopper());
    let running = std::thread::spawn(move || server.run().unwrap());
    let (name, sample) = (reference(address, "iris:v1"), small_sample());
    let login = format!("any:{TOKEN}");
    let certs = folder.path().join("certs");
    std::fs::create_dir(&certs).unwrap();
    std::fs::copy(parts::certificate(), certs.join("ca.crt")).unwrap();
    // With the certificate verified, both ways.
    let place = certs.display().to_string();
    skopeo(&[
        "copy",
        "--dest-cert-dir",
        &place,
        "--dest-creds",
        &login,
        &sample.place(),
        &format!("docker://{name}"),
    ]);
    let client = Client::new(Options {
        docker_config: None,
        roots: Some(parts::certificate()),
        ..Options::default()
    });
    let board = store(&folder.path().join("board"));
    let pulled = pull(&board, &client, &name, &keep(), &mut |_| {}).unwrap();
    assert_eq!(pulled.digest, sample.manifest);
    assert_whole(&board, &name, &sample);
    // Whoever speaks something else is told so or sent away, and the server goes on.
    for (said, wanted) in [
        (&b"GET /v2/ HTTP/1.1\r\n\r\n"[..], &b"HTTP/1.1 400"[..]),
        (b"\x16\x03\x01\x00\x05hello", b"\x15\x03"),
    ] {
        let mut stranger = std::net::TcpStream::connect(address).unwrap();
        stranger.write_all(said).unwrap();
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer);
        assert!(
            answer.starts_with(wanted),
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
    }
    assert!(client.head_manifest(&name).unwrap().is_some());
    stopper.stop();
    running.join().unwrap();
}

pub(super) fn a_wrong_byte_on_the_way_costs_its_chunk() {
    let (registry, served) = (DockerRegistry::start(), Served::start());
    let sample = Sample::new(&[&[("big", &noise(9, 6_000_000))], &[("a", b"second")]]);
    let folder = tempfile::tempdir().unwrap();
    let publisher = store(&folder.path().join("publisher"));
    let source = wherry_images::pull::Source::parse(&sample.place()).unwrap();
    wherry_images::pull::pull_from(&publisher, &client(), &source, &keep(), &mut |_| {}).unwrap();
    let image = publisher.resolve(&sample.manifest.to_string()).unwrap();
    for (at, upstream) in [registry.address, served.address].into_iter().enumerate() {
        let pushed = push(
            &publisher,
            &writer(),
            &image,
            &reference(upstream, "iris:v1"),
            &mut |_| {},
        )
        .unwrap();
        assert!(
            pushed.chunk_hashes.is_some() && pushed.warning.is_none(),
            "{pushed:?}"
        );
        // The same image again has them already.
        let again = push(
            &publisher,
            &writer(),
            &image,
            &reference(upstream, "iris:v1"),
            &mut |_| {},
        )
        .unwrap();
        assert_eq!((again.chunk_hashes, again.warning), (None, None));
        let link = Link::flipping(upstream, 3_500_000);
        let board = store(&folder.path().join(at.to_string()));
        let name = reference(link.address, "iris:v1");
        let pulled = pull(&board, &client(), &name, &PullOptions::default(), &mut |_| {}).unwrap();
        assert_whole(&board, &name, &sample);
        let more = pulled.wire - pulled.needed;
        assert!((1 << 20..(1 << 20) + 16_384).contains(&more), "{more}");
    }
}

pub(super) fn a_plan_says_what_the_pull_then_takes() {
    use wherry_images::pull::plan;
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
    let before = plan(&store, &client(), &name, &PullOptions::default()).unwrap();
    assert!(before.fits() && before.rate.is_none() && before.time().is_none());
    assert!(before.disk_likely > before.disk_least && before.disk_least > before.fetch);
    // Its documents are here now; the layers are what is left.
    let pulled = pull(&store, &client(), &name, &PullOptions::default(), &mut |_| {}).unwrap();
    assert_eq!(before.fetch, pulled.layers.iter().map(|l| l.bytes).sum::<u64>());
    assert_eq!(before.fetch, before.layers.iter().map(|l| l.size).sum::<u64>());
    let after = plan(&store, &client(), &name, &PullOptions::default()).unwrap();
    assert!(after.layers.iter().all(|l| l.how == How::Present));
    assert_eq!(
        (after.fetch, after.disk_least, after.digest),
        (0, 0, sample.manifest)
    );
    assert!(after.rate.is_some_and(|rate| rate > 0));
    // A publisher has the blobs yet to fetch.
    let kept = plan(&store, &client(), &name, &keep()).unwrap();
    assert_eq!(kept.fetch, before.fetch);
}

//! What a link, a publisher and an owner may add to a registry: stalls, chunk hashes, mirrors, limits. Against the server that says
//! what it is told to.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::hostile::{Fake, client, fetch, field, layer, ok, part, start};
use super::{Client, Error, Limits, Options, Window};
use crate::chunks::{self, CHUNK, List};
use crate::digest::Digest;
use crate::manifest::{Descriptor, OCI_INDEX, OCI_MANIFEST};
use crate::reference::Reference;
use crate::store::Store;

const MIB: usize = 1 << 20;

fn blob(length: usize) -> Vec<u8> {
    let words = (0..length as u32 / 4 + 1).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes());
    words.take(length).collect()
}

fn image() -> Descriptor {
    Descriptor::of(OCI_MANIFEST, b"the image")
}

/// What a request asks for, the end exclusive; none is all.
type Range = Option<(usize, usize)>;

fn range(request: &super::hostile::Seen) -> Range {
    let (from, to) = field(request, "range")?.strip_prefix("bytes=")?.split_once('-')?;
    Some((
        from.parse().ok()?,
        to.parse::<usize>().map_or(usize::MAX, |to| to + 1),
    ))
}

/// A registry of one layer whose bytes come `wrong` to whoever asks from the start, with chunk hashes `list` attached.
fn registry(whole: Vec<u8>, wrong: Vec<u8>, list: Vec<u8>) -> Fake {
    let mut artifact = chunks::artifact(image(), vec![chunks::entry(&layer(&whole), &list)]);
    // What the entry says of its own list is not the registry's to change.
    artifact.layers[0].size = list.len() as u64;
    let artifact = serde_json::to_vec(&artifact).unwrap();
    let mut entry = Descriptor::of(OCI_MANIFEST, &artifact);
    entry.artifact_type = Some(chunks::ARTIFACT_TYPE.to_owned());
    let index =
        serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).to_string();
    let digest = Digest::of(&whole).to_string();
    Fake::new(move |_, request, stream| {
        let line = &request[0];
        let answer = if line.contains("/referrers/") {
            ok(&format!("Content-Type: {OCI_INDEX}\r\n"), index.as_bytes())
        } else if line.contains("/manifests/") {
            ok(&format!("Content-Type: {OCI_MANIFEST}\r\n"), &artifact)
        } else if !line.contains(&digest) {
            ok("", &list)
        } else {
            match range(request) {
                Some((from, to)) => {
                    let to = to.min(whole.len());
                    let head = format!(
                        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{}\r\n\r\n",
                        to - from,
                        to - 1,
                        whole.len()
                    );
                    [head.as_bytes(), &whole[from..to]].concat()
                }
                None => ok("", &wrong),
            }
        };
        let _ = stream.write_all(&answer);
    })
}

/// Fetches the layer; how it ended, and the ranges that were asked for.
fn fetch_layer(fake: &Fake, whole: &[u8]) -> (Result<(), Error>, Vec<Range>) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let descriptor = layer(whole);
    let mut partial = store.partial(&descriptor.digest, descriptor.size).unwrap();
    let image = image().digest;
    let result = client().fetch_layer(&fake.name(), Some(&image), &descriptor, &mut partial, &mut |_| {});
    if result.is_ok() {
        assert_eq!(store.commit_blob(partial).unwrap(), descriptor.digest);
    }
    let asked = fake
        .seen()
        .into_iter()
        .filter(|r| r[0].contains(&descriptor.digest.to_string()));
    (result, asked.map(|r| range(&r)).collect())
}

#[test]
fn with_chunk_hashes_a_wrong_byte_costs_its_chunk_alone() {
    let whole = blob(5 * MIB + 1234);
    let list = List::of(whole.len() as u64, &mut &whole[..]).unwrap().to_bytes();
    let mut wrong = whole.clone();
    wrong[2 * MIB + 7] ^= 1;
    *wrong.last_mut().unwrap() ^= 0x80;
    let fake = registry(whole.clone(), wrong, list);
    let (result, asked) = fetch_layer(&fake, &whole);
    result.unwrap();
    assert_eq!(
        asked,
        [None, Some((2 * MIB, 3 * MIB)), Some((5 * MIB, whole.len()))]
            .map(|r| r.map(|(from, to)| (from, if to == whole.len() { usize::MAX } else { to })))
    );
}

#[test]
fn chunk_hashes_that_lie_cost_little_and_are_believed_in_nothing() {
    let whole = blob(4 * MIB);
    let good = List::of(whole.len() as u64, &mut &whole[..]).unwrap().to_bytes();
    let mut wrong = whole.clone();
    wrong[MIB + 5] ^= 1;
    let hashes_of = |bytes: &[u8]| List::of(bytes.len() as u64, &mut &bytes[..]).unwrap().to_bytes();
    let mut one_wrong = good.clone();
    one_wrong[0] ^= 1;
    let mut too_long = good.clone();
    too_long.extend([0; 32]);
    // Ranges asked for between the first whole fetch and the second.
    let cases = [
        ("of the wrong bytes: nothing differs", hashes_of(&wrong), 0),
        ("all wrong: the whole is cheaper", vec![0; good.len()], 0),
        ("one chunk that nobody has: tried twice", one_wrong, 2),
        ("of another length", too_long, 0),
        ("empty", Vec::new(), 0),
    ];
    for (what, list, ranges) in cases {
        // The second whole fetch is as wrong as the first: the digest alone decides, and says so.
        let fake = registry(whole.clone(), wrong.clone(), list);
        let (result, asked) = fetch_layer(&fake, &whole);
        assert!(matches!(result, Err(Error::Digest { .. })), "{what}: {result:?}");
        assert_eq!(
            asked.iter().filter(|r| r.is_none()).count(),
            2,
            "{what}: {asked:?}"
        );
        assert_eq!(asked.len(), 2 + ranges, "{what}: {asked:?}");
    }
    assert_eq!(CHUNK as usize, MIB);
}

#[test]
fn a_stall_is_over_after_eight_seconds() {
    let whole = blob(200_000);
    let served = whole.clone();
    let fake = Fake::new(move |n, request, stream| {
        if n > 0 {
            let _ = stream.write_all(&part(&served, start(request), served.len(), ""));
            return;
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", served.len());
        let _ = stream.write_all(&[head.as_bytes(), &served[..70_000]].concat());
        // Silent and open, while the next connection is served.
        let held = stream.try_clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(60));
            drop(held);
        });
    });
    let begun = Instant::now();
    fetch(&fake, &client(), &layer(&whole)).0.unwrap();
    let took = begun.elapsed().as_secs_f64();
    assert!((7.5..10.0).contains(&took), "{took}");
    assert_eq!(fake.seen().iter().map(start).collect::<Vec<_>>(), [0, 70_000]);
}

/// A settings file that names mirrors of `registry`.
fn mirrors(folder: &Path, registry: &Fake, mirrors: &[String]) -> PathBuf {
    let path = folder.join("registries.json");
    let settings = serde_json::json!({"registries": {registry.address.to_string(): {"mirrors": mirrors}}});
    std::fs::write(&path, settings.to_string()).unwrap();
    path
}

#[test]
fn mirrors_are_asked_first_and_what_they_lack_comes_from_the_registry() {
    let whole = blob(300_000);
    let (cut, served) = (whole.clone(), whole.clone());
    // The mirror has the manifest, and a part of the layer before it goes away for good.
    let mirror = Fake::new(move |_, request, stream| {
        let answer = if request[0].contains("/manifests/") {
            ok(&format!("Content-Type: {OCI_MANIFEST}\r\n"), b"{}")
        } else if range(request).is_none() && field(request, "range").is_none() {
            let head = format!(
                "HTTP/1.1 200 OK\r\nETag: \"m\"\r\nContent-Length: {}\r\n\r\n",
                cut.len()
            );
            [head.as_bytes(), &cut[..100_000]].concat()
        } else {
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec()
        };
        let _ = stream.write_all(&answer);
    });
    let registry = Fake::new(move |_, request, stream| {
        let _ = stream.write_all(&part(&served, start(request), served.len(), ""));
    });
    let folder = tempfile::tempdir().unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let names = [nobody.to_string(), mirror.address.to_string()];
    let client = Client::new(Options {
        docker_config: None,
        settings: Some(mirrors(folder.path(), &registry, &names)),
        ..Options::default()
    });
    assert_eq!(client.get_manifest(&registry.name()).unwrap().bytes, b"{}");
    assert!(registry.seen().is_empty());
    fetch(&registry, &client, &layer(&whole)).0.unwrap();
    // The registry goes on where the mirror ended, and is not asked with the mirror's ETag.
    let seen = registry.seen();
    assert_eq!((seen.len(), start(&seen[0])), (1, 100_000));
    assert_eq!(field(&seen[0], "if-range"), None);
    // Nothing is sent to a mirror.
    let before = mirror.seen().len();
    let _ = client.has_blob(&registry.name(), &Digest::of(b"x"));
    assert_eq!((mirror.seen().len(), registry.seen().len()), (before, 2));
    // Nor does a publisher ask it.
    let publisher = Client::new(Options {
        docker_config: None,
        settings: Some(folder.path().join("registries.json")),
        mirrors: false,
        ..Options::default()
    });
    let _ = publisher.head_manifest(&registry.name());
    assert_eq!((mirror.seen().len(), registry.seen().len()), (before, 3));
}

#[test]
fn settings_that_cannot_be_read_end_a_pull_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registries.json");
    std::fs::write(&path, "{\"registries\":").unwrap();
    let client = Client::new(Options {
        settings: Some(path),
        ..Options::default()
    });
    let error = client
        .get_manifest(&Reference::parse("127.0.0.1:9/a").unwrap())
        .unwrap_err();
    assert!(
        error.ends_all() && error.to_string().contains("registries.json: EOF"),
        "{error}"
    );
}

fn limited(limits: Limits) -> Client {
    Client::new(Options {
        docker_config: None,
        limits,
        ..Options::default()
    })
}

fn serving(whole: &[u8]) -> Fake {
    let served = whole.to_vec();
    Fake::new(move |_, request, stream| {
        let (from, to) = range(request).unwrap_or((start(request), served.len()));
        let to = to.min(served.len());
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{}\r\n\r\n",
            to - from,
            to - 1,
            served.len()
        );
        let _ = stream.write_all(&[head.as_bytes(), &served[from..to]].concat());
    })
}

#[test]
fn a_rate_is_kept_to_within_a_twentieth() {
    let whole = blob(3_000_000);
    let fake = {
        let served = whole.clone();
        Fake::new(move |_, _, stream| {
            let _ = stream.write_all(&ok("", &served));
        })
    };
    let client = limited(Limits {
        rate: Some(1_000_000),
        ..Limits::default()
    });
    let begun = Instant::now();
    fetch(&fake, &client, &layer(&whole)).0.unwrap();
    let rate = client.wire().down as f64 / begun.elapsed().as_secs_f64();
    assert!((950_000.0..1_050_000.0).contains(&rate), "{rate}");
}

#[test]
fn a_budget_is_kept_and_what_arrived_stays() {
    let whole = blob(1_000_000);
    let fake = serving(&whole);
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let descriptor = layer(&whole);
    let mut got = 0;
    for pull in 0..3 {
        let mut partial = store.partial(&descriptor.digest, descriptor.size).unwrap();
        assert_eq!(partial.offset(), got, "{pull}");
        let client = limited(Limits {
            budget: Some(400_000),
            ..Limits::default()
        });
        let result = client.fetch_blob(&fake.name(), &descriptor, &mut partial, &mut |_| {});
        let wire = client.wire();
        assert!(wire.down + wire.up <= 420_000, "{wire:?}");
        got = partial.offset();
        match pull {
            0 | 1 => {
                assert!(
                    matches!(result, Err(Error::Spent { budget: 400_000 })),
                    "{result:?}"
                );
                assert!(got >= (pull + 1) * 380_000, "{got}");
            }
            _ => result.unwrap(),
        }
    }
}

#[test]
fn outside_its_window_nothing_is_asked_for() {
    let fake = serving(b"x");
    let hour = super::exchange::unix_now() / 3600 % 24;
    let window =
        |from: u64, to: u64| -> Window { format!("{:02}:00-{:02}:00", from % 24, to % 24).parse().unwrap() };
    let closed = limited(Limits {
        window: Some(window(hour + 2, hour + 4)),
        ..Limits::default()
    });
    let error = closed.get_manifest(&fake.name()).unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error}");
    assert!(fake.seen().is_empty());
    let open = limited(Limits {
        window: Some(window(hour + 23, hour + 2)),
        ..Limits::default()
    });
    fetch(&fake, &open, &layer(b"x")).0.unwrap();
}

#[test]
fn a_drip_is_given_up_on_however_long_it_goes_on() {
    let drip = |head: &'static str| {
        Fake::new(move |_, request, stream| {
            let head = match start(request) {
                0 => head.to_owned(),
                from => format!(
                    "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-99999/100000\r\n\r\n",
                    100_000 - from
                ),
            };
            let _ = stream.write_all(head.as_bytes());
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        })
    };
    let mut client = Client::new(Options {
        docker_config: None,
        patience: Duration::from_secs(3),
        ..Options::default()
    });
    client.grace = Duration::from_millis(500);
    let whole = blob(100_000);
    let fake = drip("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n");
    let begun = Instant::now();
    let (result, kept) = fetch(&fake, &client, &layer(&whole));
    let message = result.unwrap_err().to_string();
    assert!(message.contains("slower than 200 bytes a second"), "{message}");
    assert!(
        kept < 2000 && begun.elapsed() < Duration::from_secs(8),
        "{kept} {:?}",
        begun.elapsed()
    );
    let begun = Instant::now();
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n",
        "HTTP/1.1 403 No\r\nContent-Length: 60000\r\n\r\n",
    ] {
        client.get_manifest(&drip(head).name()).unwrap_err();
    }
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
}

#[test]
fn another_etag_is_another_copy_of_the_same_bytes() {
    // Behind the name are two servers, each with an ETag of its own: If-Range then gives the whole body.
    let whole = blob(300_000);
    let served = whole.clone();
    let fake = Fake::new(move |n, request, stream| {
        let size = served.len();
        let answer = match (n, field(request, "if-range")) {
            (0, _) => {
                let head = format!("HTTP/1.1 200 OK\r\nETag: \"one\"\r\nContent-Length: {size}\r\n\r\n");
                [head.as_bytes(), &served[..90_000]].concat()
            }
            (_, Some(_)) => ok("ETag: \"two\"\r\n", &served),
            (_, None) => part(&served, start(request), size, "ETag: \"two\"\r\n"),
        };
        let _ = stream.write_all(&answer);
    });
    fetch(&fake, &client(), &layer(&whole)).0.unwrap();
    let seen = fake.seen();
    assert_eq!(seen.iter().map(start).collect::<Vec<_>>(), [0, 90_000, 90_000]);
    let etags: Vec<_> = seen.iter().map(|r| field(r, "if-range")).collect();
    assert_eq!(etags, [None, Some("\"one\""), None]);
}

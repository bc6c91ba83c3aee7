//! Registries that lie, stall, cut, redirect and refuse: a server in the test that says what it is told to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Client, Error, Login, Options};
use crate::digest::Digest;
use crate::manifest::{Descriptor, MAX_DOCUMENT, OCI_LAYER_GZIP, OCI_MANIFEST};
use crate::reference::Reference;
use crate::store::Store;

/// A request as the server saw it: its first line and its fields, lower case.
pub(super) type Seen = Vec<String>;

pub(super) struct Fake {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Fake {
    /// Answers the nth request with `answer(n, request, stream)`; the connection closes after each.
    pub(super) fn new(answer: impl Fn(usize, &Seen, &mut TcpStream) + Send + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let log = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut request = Vec::new();
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
                        break;
                    }
                    request.push(line.trim().to_ascii_lowercase());
                }
                if request.is_empty() {
                    continue;
                }
                let length = request
                    .iter()
                    .find_map(|l| l.strip_prefix("content-length: ")?.parse::<u64>().ok());
                let _ = std::io::copy(&mut (&mut reader).take(length.unwrap_or(0)), &mut std::io::sink());
                let number = {
                    let mut log = log.lock().unwrap();
                    log.push(request.clone());
                    log.len() - 1
                };
                answer(number, &request, &mut stream);
            }
        });
        Fake { address, seen }
    }

    /// Answers every request with the same bytes.
    pub(super) fn saying(text: impl Into<Vec<u8>>) -> Fake {
        let text = text.into();
        Fake::new(move |_, _, stream| {
            let _ = stream.write_all(&text);
        })
    }

    pub(super) fn name(&self) -> Reference {
        Reference::parse(&format!("{}/a/b:v1", self.address)).unwrap()
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(super) fn first_lines(&self) -> Vec<String> {
        self.seen().iter().map(|r| r[0].clone()).collect()
    }
}

pub(super) fn client() -> Client {
    Client::new(Options {
        docker_config: None,
        patience: Duration::from_secs(3),
        ..Options::default()
    })
}

pub(super) fn field<'a>(request: &'a Seen, name: &str) -> Option<&'a str> {
    request
        .iter()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

pub(super) fn blob() -> Vec<u8> {
    (0..100_000u32)
        .flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes())
        .collect()
}

pub(super) fn layer(bytes: &[u8]) -> Descriptor {
    Descriptor::of(OCI_LAYER_GZIP, bytes)
}

/// Fetches `descriptor` into a fresh store; the error, and how much was kept.
pub(super) fn fetch(fake: &Fake, client: &Client, descriptor: &Descriptor) -> (Result<(), Error>, u64) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let mut partial = store.partial(&descriptor.digest, descriptor.size).unwrap();
    let result = client.fetch_blob(&fake.name(), descriptor, &mut partial, &mut |_| {});
    if result.is_ok() {
        assert_eq!(partial.verify().unwrap(), descriptor.digest);
    }
    (result, partial.offset())
}

pub(super) fn ok(fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{fields}Connection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Where a request wants to begin.
pub(super) fn start(request: &Seen) -> usize {
    field(request, "range")
        .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
        .unwrap_or(0)
}

pub(super) fn part(whole: &[u8], from: usize, to: usize, fields: &str) -> Vec<u8> {
    let size = whole.len();
    let length = size - from;
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {length}\r\nContent-Range: bytes {from}-{}/{size}\r\n{fields}\r\n",
        size - 1
    );
    [head.as_bytes(), &whole[from..to]].concat()
}

#[test]
fn cuts_and_resumes_ask_for_exactly_the_rest() {
    let whole = blob();
    let served = whole.clone();
    let fake = Fake::new(move |_, request, stream| {
        let from = start(request);
        let to = (from + 70_001).min(served.len());
        let answer = match from {
            0 => {
                let head = format!(
                    "HTTP/1.1 200 OK\r\nETag: \"e1\"\r\nContent-Length: {}\r\n\r\n",
                    served.len()
                );
                [head.as_bytes(), &served[..to]].concat()
            }
            from => part(&served, from, to, "ETag: \"e1\"\r\n"),
        };
        let _ = stream.write_all(&answer);
    });
    let client = client();
    let (result, kept) = fetch(&fake, &client, &layer(&whole));
    result.unwrap();
    assert_eq!(kept, whole.len() as u64);
    let seen = fake.seen();
    assert_eq!(
        seen.iter().map(start).collect::<Vec<_>>(),
        [0, 70_001, 140_002, 210_003, 280_004, 350_005]
    );
    assert_eq!(field(&seen[0], "if-range"), None);
    assert_eq!(field(&seen[1], "if-range"), Some("\"e1\""));
    // Nothing but headers came beside the blob's own bytes.
    assert!(
        client.wire().down < whole.len() as u64 + 6 * 200,
        "{}",
        client.wire().down
    );
}

#[test]
fn a_whole_body_to_a_range_is_never_appended() {
    // A cache that is still filling: whole bodies for a while, then the range.
    let whole = blob();
    let served = whole.clone();
    let fake = Fake::new(move |n, request, stream| {
        let answer = match n {
            0 => {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", served.len());
                [head.as_bytes(), &served[..1000]].concat()
            }
            1 | 2 => ok("", &served),
            _ => part(&served, start(request), served.len(), ""),
        };
        let _ = stream.write_all(&answer);
    });
    fetch(&fake, &client(), &layer(&whole)).0.unwrap();
    assert_eq!(
        fake.seen().iter().map(start).collect::<Vec<_>>(),
        [0, 1000, 1000, 1000]
    );
}

#[test]
fn a_wrong_blob_is_fetched_once_more_and_then_named() {
    let whole = blob();
    let mut wrong = whole.clone();
    wrong[5] ^= 1;
    let (once, good) = (wrong.clone(), whole.clone());
    let fake = Fake::new(move |n, _, stream| {
        let _ = stream.write_all(&ok("", if n == 0 { &once } else { &good }));
    });
    fetch(&fake, &client(), &layer(&whole)).0.unwrap();
    assert_eq!(fake.seen().len(), 2);

    let fake = Fake::saying(ok("", &wrong));
    let (result, kept) = fetch(&fake, &client(), &layer(&whole));
    let (digest, got) = (Digest::of(&whole), Digest::of(&wrong));
    assert_eq!(
        result.unwrap_err().to_string(),
        format!("layer {digest}: expected {digest}, got {got} after 400000 bytes")
    );
    assert_eq!((fake.seen().len(), kept), (2, 0));
}

#[test]
fn what_is_not_the_blob_is_not_kept() {
    let whole = blob();
    let chunked = |extra: &[u8]| {
        let body = [whole.as_slice(), extra].concat();
        let head = format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n",
            body.len()
        );
        [head.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat()
    };
    fetch(&Fake::saying(chunked(b"")), &client(), &layer(&whole))
        .0
        .unwrap();
    let html = ok("Content-Type: text/html\r\n", b"<html>log in</html>");
    let same_size = ok("Content-Type: text/html\r\n", &whole);
    let cases = [
        (ok("", &whole[..99]), "99 bytes, the manifest says 400000"),
        (html, "a web page instead of the blob"),
        (same_size, "a web page instead of the blob"),
        (
            b"HTTP/1.1 206 Partial Content\r\nContent-Length: 400000\r\n\r\n".to_vec(),
            "content-range \"\"",
        ),
        (
            b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "has nothing from byte 0 on",
        ),
        (b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(), "does not speak HTTP"),
    ];
    // Each is tried several times: all at once.
    std::thread::scope(|scope| {
        for (answer, message) in cases {
            let whole = &whole;
            scope.spawn(move || {
                let (result, kept) = fetch(&Fake::saying(answer), &client(), &layer(whole));
                let said = result.unwrap_err().to_string();
                assert!(said.contains(message) && kept == 0, "{said} {kept}");
            });
        }
    });
    let (result, _) = fetch(&Fake::saying(chunked(b"x")), &client(), &layer(&whole));
    // All the bytes were right, and the surplus was never read: it counts.
    result.unwrap();
}

#[test]
fn an_endless_body_ends_at_the_size_of_the_manifest() {
    let whole = blob();
    let fake = Fake::new(|_, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        while stream.write_all(&[7; 65536]).is_ok() {}
    });
    let client = client();
    let (result, _) = fetch(&fake, &client, &layer(&whole));
    assert!(
        matches!(result, Err(Error::Digest { size: 400_000, .. })),
        "{result:?}"
    );
    // Twice the blob, and what the sockets had buffered.
    assert!(client.wire().down < 2_000_000, "{}", client.wire().down);
}

#[test]
fn a_manifest_is_bounded_and_verified() {
    let huge = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1u64 << 32);
    let fake = Fake::new(move |_, _, stream| {
        let _ = stream.write_all(huge.as_bytes());
        while stream.write_all(&[b' '; 65536]).is_ok() {}
    });
    let client_of_huge = client();
    let message = client_of_huge.get_manifest(&fake.name()).unwrap_err().to_string();
    assert!(message.contains("larger than 4194304 bytes"), "{message}");
    assert!(client_of_huge.wire().down < MAX_DOCUMENT + 300_000);

    let fake = Fake::saying(ok(&format!("Content-Type: {OCI_MANIFEST}\r\n"), b"{}"));
    let wanted = Digest::of(b"other");
    let error = client()
        .get_manifest(&fake.name().with_digest(wanted))
        .unwrap_err();
    let got = Digest::of(b"{}");
    assert!(
        error
            .to_string()
            .ends_with(&format!("expected {wanted}, got {got} after 2 bytes")),
        "{error}"
    );
    let header = format!("Docker-Content-Digest: {wanted}\r\n");
    let error = client()
        .get_manifest(&Fake::saying(ok(&header, b"{}")).name())
        .unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error}");
    let page = Fake::saying(ok("Content-Type: text/html; charset=utf-8\r\n", b"<html>"));
    let error = client().get_manifest(&page.name()).unwrap_err();
    assert!(
        error.to_string().contains("a web page instead of a manifest"),
        "{error}"
    );
}

#[test]
fn redirects_are_followed_without_the_login_and_not_for_ever() {
    let whole = blob();
    let served = whole.clone();
    let cdn = Fake::new(move |_, request, stream| {
        let from = start(request);
        let to = (from + 250_000).min(served.len());
        let answer = if from == 0 {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", served.len());
            [head.as_bytes(), &served[..to]].concat()
        } else {
            part(&served, from, to, "")
        };
        let _ = stream.write_all(&answer);
    });
    let location = format!("http://{}/signed?sig=1", cdn.address);
    let registry = Fake::new(move |_, request, stream| {
        let answer = match field(request, "authorization") {
            None => {
                "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n"
                    .to_owned()
            }
            Some(_) => format!(
                "HTTP/1.1 307 Temporary Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
            ),
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let login = Login::Password {
        user: "u".to_owned(),
        secret: "p".to_owned(),
    };
    let client_with_login = Client::new(Options {
        docker_config: None,
        login: Some(login),
        ..Options::default()
    });
    fetch(&registry, &client_with_login, &layer(&whole)).0.unwrap();
    // One refusal, then the registry again after the cut: never straight to the signed address.
    assert_eq!(registry.seen().len(), 3);
    assert_eq!(cdn.seen().iter().map(start).collect::<Vec<_>>(), [0, 250_000]);
    assert!(cdn.seen().iter().all(|r| field(r, "authorization").is_none()));
    assert!(
        registry.seen()[1..]
            .iter()
            .all(|r| field(r, "authorization") == Some("basic dtpw"))
    );

    let looping = Fake::saying("HTTP/1.1 302 Found\r\nLocation: /v2/again\r\nContent-Length: 0\r\n\r\n");
    let message = fetch(&looping, &client(), &layer(&whole))
        .0
        .unwrap_err()
        .to_string();
    assert!(message.contains("redirects more than 5 times"), "{message}");
    assert_eq!(looping.seen().len(), 6);
    for to in ["", "ftp://x/", "http://u:p@x/"] {
        let fake = Fake::saying(format!(
            "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"
        ));
        let message = client().get_manifest(&fake.name()).unwrap_err().to_string();
        assert!(message.contains("redirects to no usable address"), "{message}");
    }
}

#[test]
fn the_login_goes_to_no_address_that_a_registry_makes_up() {
    let elsewhere = Fake::new(|_, request, stream| {
        let answer = match request[0].split(' ').next() {
            // A list that goes on, on the host that it was redirected to.
            Some("get") if !request[0].contains("next") => ok(
                "Link: </next>; rel=next\r\n",
                br#"{"schemaVersion":2,"manifests":[]}"#,
            ),
            Some("get") => ok("", br#"{"schemaVersion":2,"manifests":[]}"#),
            _ => b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
        };
        let _ = stream.write_all(&answer);
    });
    let there = format!("http://{}/elsewhere", elsewhere.address);
    let registry = Fake::new(move |_, request, stream| {
        let known = field(request, "authorization").is_some();
        let status = match request[0].split(' ').next() {
            _ if !known => "401 Unauthorized\r\nWWW-Authenticate: Basic realm=x".to_owned(),
            Some("head") => "404 Not Found".to_owned(),
            Some("post") => format!("202 Accepted\r\nLocation: {there}"),
            _ => format!("307 Temporary Redirect\r\nLocation: {there}"),
        };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let _ = stream.write_all(answer.as_bytes());
    });
    let login = Login::Password {
        user: "u".to_owned(),
        secret: "p".to_owned(),
    };
    let client = Client::new(Options {
        docker_config: None,
        login: Some(login),
        ..Options::default()
    });
    let bytes = b"a small blob";
    let (digest, size) = (Digest::of(bytes), bytes.len() as u64);
    client
        .put_blob(
            &registry.name(),
            &digest,
            size,
            &mut std::io::Cursor::new(bytes),
            &mut |_| {},
        )
        .unwrap();
    client.list_referrers(&registry.name(), &digest, None).unwrap();
    let seen = elsewhere.seen();
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(
        seen.iter().all(|r| field(r, "authorization").is_none()),
        "{seen:?}"
    );
}

#[test]
fn a_refusal_is_answered_once() {
    let loops = Fake::saying(
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n",
    );
    let login = Login::Password {
        user: "u".to_owned(),
        secret: "p".to_owned(),
    };
    let client = Client::new(Options {
        docker_config: None,
        login: Some(login),
        ..Options::default()
    });
    let error = client.get_manifest(&loops.name()).unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    assert_eq!(loops.seen().len(), 2);
}

#[test]
fn tokens_are_fetched_renewed_and_kept_to_their_registry() {
    let tokens = Fake::new(|n, _, stream| {
        let _ = stream.write_all(&ok(
            "",
            format!(r#"{{"token":"t{n}","expires_in":300}}"#).as_bytes(),
        ));
    });
    let whole = blob();
    let (served, realm) = (whole.clone(), format!("http://{}/token", tokens.address));
    let registry = Fake::new(move |_, request, stream| {
        // The first token is good for one request only.
        let from = start(request);
        let good = match field(request, "authorization") {
            Some("bearer t0") => from == 0,
            Some("bearer t1") => true,
            _ => false,
        };
        let answer = if !good {
            let challenge = format!("Bearer realm=\"{realm}\",service=\"s\",scope=\"repository:a/b:pull\"");
            format!("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 0\r\n\r\n")
                .into_bytes()
        } else if from == 0 {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", served.len());
            [head.as_bytes(), &served[..1000]].concat()
        } else {
            part(&served, from, served.len(), "")
        };
        let _ = stream.write_all(&answer);
    });
    let login = Login::Password {
        user: "u".to_owned(),
        secret: "p".to_owned(),
    };
    let client = Client::new(Options {
        docker_config: None,
        login: Some(login),
        ..Options::default()
    });
    fetch(&registry, &client, &layer(&whole)).0.unwrap();
    let asked = "get /token?scope=repository%3aa%2fb%3apull&service=s http/1.1";
    assert_eq!(tokens.first_lines(), [asked, asked]);
    // The account goes to the token service, only tokens go to the registry.
    assert!(
        tokens
            .seen()
            .iter()
            .all(|r| field(r, "authorization") == Some("basic dtpw"))
    );
    let sent: Vec<_> = registry
        .seen()
        .iter()
        .map(|r| field(r, "authorization").map(str::to_owned))
        .collect();
    assert_eq!(
        sent,
        [
            None,
            Some("bearer t0".into()),
            Some("bearer t0".into()),
            Some("bearer t1".into())
        ]
    );
}

#[test]
fn busy_registries_are_waited_for_as_they_ask() {
    let fake = Fake::new(|n, _, stream| {
        let answer = match n {
            0 => "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n".to_owned(),
            1 => "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n".to_owned(),
            _ => String::from_utf8(ok("", b"{}")).unwrap(),
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let begun = Instant::now();
    client().get_manifest(&fake.name()).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let late = Fake::saying("HTTP/1.1 503 Busy\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n");
    let message = client().get_manifest(&late.name()).unwrap_err().to_string();
    assert!(
        message.contains("busy, answered 503, asks to wait 3600 s"),
        "{message}"
    );
    assert_eq!(late.seen().len(), 1);
}

#[test]
fn a_registrys_words_come_as_one_line() {
    let body = b"{\"errors\":[{\"code\":\"DENIED\",\"message\":\"no\\n\\u001b[31m way\"}]}";
    let answer = [
        format!(
            "HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .as_bytes(),
        body.as_slice(),
    ]
    .concat();
    let fake = Fake::saying(answer);
    let message = client().get_manifest(&fake.name()).unwrap_err().to_string();
    assert!(message.ends_with("answered 400: no  [31m way"), "{message:?}");
}

#[test]
fn endless_headers_are_refused() {
    let fake = Fake::new(|_, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream
            .write_all(b"X-More: and more and more and more and more\r\n")
            .is_ok()
        {}
    });
    let client = client();
    let error = client.get_manifest(&fake.name()).unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    assert!(client.wire().down < 1_000_000);
}

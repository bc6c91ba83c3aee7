//! The served API from the outside, byte by byte: what the specification asks for, and clients that mean no good.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::{MAX_CONNECTIONS, Options, Server, Stopper};
use crate::digest::Digest;
use crate::manifest::{Descriptor, OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST};
use crate::reference::Reference;
use crate::store::Store;

const TOKEN: &str = "Authorization: Bearer letmein\r\n";

struct Served {
    address: SocketAddr,
    unix: PathBuf,
    stopper: Stopper,
    store: Store,
    _folder: tempfile::TempDir,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stopper.stop();
    }
}

fn serve(token: Option<&str>) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("state")).unwrap();
    let unix = folder.path().join("serve.sock");
    let options = Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        token: token.map(str::to_owned),
        unix: Some(unix.clone()),
    };
    let server = Server::bind(options.clone(), store.clone()).unwrap();
    let second = Server::bind(options, store.clone()).unwrap_err().to_string();
    assert!(second.contains("is being served already"), "{second}");
    let (address, stopper) = (server.addr().unwrap(), server.stopper());
    std::thread::spawn(move || server.run().unwrap());
    Served {
        address,
        unix,
        stopper,
        store,
        _folder: folder,
    }
}

/// An answer: status, head in lower case, body.
struct Said {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Said {
    fn field(&self, name: &str) -> &str {
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .unwrap_or("")
    }

    fn code(&self) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        json["errors"][0]["code"].as_str().unwrap_or("").to_owned()
    }
}

fn talk(mut stream: impl Read + Write, request: &[u8]) -> Said {
    // A server that has heard enough may close while the rest is still being sent.
    let _ = stream.write_all(request);
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let end = bytes
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map_or(bytes.len(), |at| at + 4);
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    Said {
        status,
        head,
        body: bytes.split_off(end),
    }
}

impl Served {
    fn ask(&self, method: &str, path: &str, fields: &str, body: &[u8]) -> Said {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nConnection: close\r\n{fields}Content-Length: {length}\r\n\r\n"
        );
        talk(
            TcpStream::connect(self.address).unwrap(),
            &[head.as_bytes(), body].concat(),
        )
    }

    /// Sends a blob whole.
    fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let said = self.ask(
            "POST",
            &format!("/v2/a/blobs/uploads/?digest={digest}"),
            TOKEN,
            bytes,
        );
        assert_eq!(
            (said.status, said.field("docker-content-digest")),
            (201, digest.to_string().as_str())
        );
        digest
    }

    fn manifest(&self, config: &[u8], layer: &[u8], more: serde_json::Value) -> Vec<u8> {
        let part = |kind, bytes: &[u8]| serde_json::json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len()});
        let mut manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": part(OCI_CONFIG, config), "layers": [part(OCI_LAYER_GZIP, layer)],
        });
        for (key, value) in more.as_object().unwrap() {
            manifest[key] = value.clone();
        }
        manifest.to_string().into_bytes()
    }

    fn put(&self, name: &str, fields: &str, bytes: &[u8]) -> Said {
        let fields = format!("{TOKEN}Content-Type: {OCI_MANIFEST}\r\n{fields}");
        self.ask("PUT", &format!("/v2/a/manifests/{name}"), &fields, bytes)
    }
}

#[test]
fn reading_is_open_and_writing_is_not() {
    let served = serve(Some("letmein"));
    // Clients look here for how to log in, and go no further without.
    let host = format!("Host: {}\r\n", served.address);
    let realm = format!(
        "bearer realm=\"http://{}/token\",service=\"wherry\"",
        served.address
    );
    let base = served.ask("GET", "/v2/", &host, b"");
    assert_eq!(
        (base.status, base.field("www-authenticate")),
        (401, realm.as_str())
    );
    let token = |fields: &str| {
        let said = served.ask(
            "GET",
            "/token?service=wherry&scope=repository:a:pull,push",
            fields,
            b"",
        );
        let json: serde_json::Value = serde_json::from_slice(&said.body).unwrap_or_default();
        let token = json["token"]
            .as_str()
            .map(|t| format!("Authorization: Bearer {t}\r\n"));
        (said.status, token.unwrap_or_default())
    };
    let (anonymous, mine) = (token(""), token("Authorization: Basic eDpsZXRtZWlu\r\n"));
    assert_eq!((anonymous.0, mine.0), (200, 200));
    assert_eq!(token("Authorization: Basic eDp3cm9uZw==\r\n").0, 401);
    for (fields, base, write) in [
        (&anonymous.1, 200, 401),
        (&mine.1, 200, 202),
        (&TOKEN.to_owned(), 200, 202),
    ] {
        assert_eq!(served.ask("GET", "/v2/", fields, b"").status, base);
        assert_eq!(
            served.ask("POST", "/v2/a/blobs/uploads/", fields, b"").status,
            write
        );
    }
    for fields in [
        "",
        "Authorization: Bearer wrong\r\n",
        "Authorization: Basic OmxldG1laQ==\r\n",
    ] {
        let said = served.ask("POST", "/v2/a/blobs/uploads/", &format!("{host}{fields}"), b"");
        assert_eq!((said.status, said.code().as_str()), (401, "UNAUTHORIZED"));
        let wanted = format!("{realm},scope=\"repository:a:pull,push\"");
        assert_eq!(said.field("www-authenticate"), wanted);
        assert_eq!(served.ask("GET", "/v2/a/tags/list", fields, b"").status, 404);
    }
    assert_eq!(
        served
            .ask(
                "POST",
                "/v2/a/blobs/uploads/",
                "Authorization: Basic eDpsZXRtZWlu\r\n",
                b""
            )
            .status,
        202
    );
    assert_eq!(served.ask("PUT", "/v2/a/manifests/v1", "", b"{}").status, 401);
    assert_eq!(served.ask("DELETE", "/v2/a/manifests/v1", "", b"").status, 401);
    // The Unix socket is its own permission, and it is the owner's alone.
    let request = b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nConnection: close\r\n\r\n";
    assert_eq!(
        talk(UnixStream::connect(&served.unix).unwrap(), request).status,
        202
    );
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&served.unix).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    let closed = serve(None);
    let said = closed.ask("POST", "/v2/a/blobs/uploads/", TOKEN, b"");
    assert_eq!(
        (said.status, said.code().as_str(), said.field("www-authenticate")),
        (403, "DENIED", "")
    );
    assert_eq!(
        talk(UnixStream::connect(&closed.unix).unwrap(), request).status,
        202
    );
}

#[test]
fn a_manifest_that_a_card_has_changed_is_the_servers_fault_and_can_be_pushed_again() {
    let served = serve(Some("letmein"));
    let (config, layer) = (b"{}", b"layer");
    served.blob(config);
    served.blob(layer);
    let manifest = served.manifest(config, layer, serde_json::json!({}));
    assert_eq!(served.put("v1", "", &manifest).status, 201);
    let path = served
        .store
        .root()
        .join("blobs/sha256")
        .join(Digest::of(&manifest).hex());
    std::fs::write(path, "rot").unwrap();
    let said = served.ask("GET", "/v2/a/manifests/v1", "", b"");
    assert_eq!((said.status, said.code().as_str()), (500, "UNKNOWN"));
    assert_eq!(served.put("v1", "", &manifest).status, 201);
    assert_eq!(served.ask("GET", "/v2/a/manifests/v1", "", b"").body, manifest);
}

#[test]
fn a_unix_socket_that_answers_is_not_taken_away() {
    let served = serve(None);
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        token: None,
        unix: Some(served.unix.clone()),
    };
    let other = || Store::open(&folder.path().join("other")).unwrap();
    let error = Server::bind(options.clone(), other()).unwrap_err();
    assert!(
        error.to_string().contains("serve.sock: Address already in use"),
        "{error}"
    );
    assert!(UnixStream::connect(&served.unix).is_ok());
    // One whose server is gone, and a file that is no socket.
    let left = folder.path().join("left.sock");
    drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
    options.unix = Some(left);
    drop(Server::bind(options.clone(), other()).unwrap());
    let file = folder.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    options.unix = Some(file.clone());
    assert!(Server::bind(options, other()).is_err());
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}

#[test]
fn an_upload_in_chunks_that_was_cut_goes_on() {
    let served = serve(Some("letmein"));
    let bytes: Vec<u8> = (0..200_000u32).flat_map(|n| n.to_le_bytes()).collect();
    let at = served
        .ask("POST", "/v2/a/blobs/uploads/", TOKEN, b"")
        .field("location")
        .to_owned();
    let first = served.ask(
        "PATCH",
        &at,
        &format!("{TOKEN}Content-Range: 0-99999\r\n"),
        &bytes[..100_000],
    );
    assert_eq!((first.status, first.field("range")), (202, "0-99999"));
    // A chunk of which half arrives.
    {
        let mut stream = TcpStream::connect(served.address).unwrap();
        let head = format!("PATCH {at} HTTP/1.1\r\n{TOKEN}Content-Length: 100000\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&bytes[100_000..150_000]).unwrap();
    }
    let there = loop {
        let said = served.ask("GET", &at, TOKEN, b"");
        match said.status {
            204 if said.field("range") == "0-149999" => break said,
            // The server has not noticed the end yet.
            204 | 503 => std::thread::yield_now(),
            other => panic!("{other}"),
        }
    };
    assert_eq!(there.field("location"), at);
    let wrong = served.ask(
        "PATCH",
        &at,
        &format!("{TOKEN}Content-Range: 100000-100001\r\n"),
        b"xx",
    );
    assert_eq!((wrong.status, wrong.field("range")), (416, "0-149999"));
    let digest = Digest::of(&bytes);
    let done = served.ask("PUT", &format!("{at}?digest={digest}"), TOKEN, &bytes[150_000..]);
    assert_eq!(
        (done.status, done.field("location")),
        (201, format!("/v2/a/blobs/{digest}").as_str())
    );
    assert_eq!(
        served.ask("GET", &format!("/v2/a/blobs/{digest}"), "", b"").body,
        bytes
    );
    assert_eq!(served.ask("GET", &at, TOKEN, b"").code(), "BLOB_UPLOAD_UNKNOWN");

    let at = served
        .ask("POST", "/v2/a/blobs/uploads/", TOKEN, b"")
        .field("location")
        .to_owned();
    let wrong = served.ask("PUT", &format!("{at}?digest={}", Digest::of(b"x")), TOKEN, b"y");
    assert_eq!((wrong.status, wrong.code().as_str()), (400, "DIGEST_INVALID"));
    assert!(!served.store.has_blob(&Digest::of(b"y")) && !served.store.has_blob(&Digest::of(b"x")));
    let at = served
        .ask("POST", "/v2/a/blobs/uploads/", TOKEN, b"")
        .field("location")
        .to_owned();
    assert_eq!(served.ask("DELETE", &at, TOKEN, b"").status, 204);
    assert_eq!(served.ask("PATCH", &at, TOKEN, b"x").status, 404);
    assert_eq!(
        std::fs::read_dir(served.store.root().join("partial"))
            .unwrap()
            .count(),
        0
    );
    let mounted = served.ask(
        "POST",
        &format!("/v2/b/blobs/uploads/?mount={digest}&from=a"),
        TOKEN,
        b"",
    );
    assert_eq!(mounted.status, 201);
}

#[test]
fn blobs_by_range_and_etag() {
    let served = serve(Some("letmein"));
    let path = format!("/v2/a/blobs/{}", served.blob(b"0123456789"));
    let etag = served.ask("HEAD", &path, "", b"").field("etag").to_owned();
    for (fields, status, range, body) in [
        (String::new(), 200, "", "0123456789"),
        ("Range: bytes=3-5\r\n".to_owned(), 206, "bytes 3-5/10", "345"),
        ("Range: bytes=8-\r\n".to_owned(), 206, "bytes 8-9/10", "89"),
        ("Range: bytes=-2\r\n".to_owned(), 206, "bytes 8-9/10", "89"),
        ("Range: bytes=0-1,3-4\r\n".to_owned(), 200, "", "0123456789"),
        (
            format!("Range: bytes=3-5\r\nIf-Range: {etag}\r\n"),
            206,
            "bytes 3-5/10",
            "345",
        ),
        (
            "Range: bytes=3-5\r\nIf-Range: \"other\"\r\n".to_owned(),
            200,
            "",
            "0123456789",
        ),
        (format!("If-None-Match: {etag}\r\n"), 304, "", ""),
    ] {
        let said = served.ask("GET", &path, &fields, b"");
        assert_eq!(
            (said.status, said.field("content-range"), said.body.as_slice()),
            (status, range, body.as_bytes())
        );
    }
    let beyond = served.ask("GET", &path, "Range: bytes=10-\r\n", b"");
    assert_eq!(
        (beyond.status, beyond.field("content-range")),
        (416, "bytes */10")
    );
    let head = served.ask("HEAD", &path, "", b"");
    assert_eq!(
        (head.status, head.field("content-length"), head.body.len()),
        (200, "10", 0)
    );
    assert_eq!(
        served
            .ask("GET", &format!("/v2/a/blobs/{}", Digest::of(b"none")), "", b"")
            .code(),
        "BLOB_UNKNOWN"
    );
}

#[test]
fn manifests_tags_and_lists() {
    let served = serve(Some("letmein"));
    let (config, layer) = (br#"{"architecture":"amd64","os":"linux"}"#, b"layer");
    let manifest = served.manifest(config, layer, serde_json::json!({}));
    let refused = served.put("v1", "", &manifest);
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (400, "MANIFEST_BLOB_UNKNOWN")
    );
    served.blob(config);
    served.blob(layer);
    let digest = Digest::of(&manifest);
    for name in ["v1", "v2", "v3", digest.to_string().as_str()] {
        let said = served.put(name, "", &manifest);
        assert_eq!(
            (said.status, said.field("docker-content-digest")),
            (201, digest.to_string().as_str())
        );
    }
    let got = served.ask("GET", "/v2/a/manifests/v1", "", b"");
    assert_eq!(
        (got.field("content-type"), got.body.as_slice()),
        (OCI_MANIFEST, manifest.as_slice())
    );
    let fresh = served.ask(
        "GET",
        "/v2/a/manifests/v1",
        &format!("If-None-Match: \"{digest}\"\r\n"),
        b"",
    );
    assert_eq!((fresh.status, fresh.body.len()), (304, 0));
    // A config is a blob and no manifest.
    let config_digest = Digest::of(config);
    assert_eq!(
        served
            .ask("GET", &format!("/v2/a/manifests/{config_digest}"), "", b"")
            .status,
        404
    );
    assert_eq!(
        served.put(&config_digest.to_string(), "", &manifest).code(),
        "DIGEST_INVALID"
    );
    for bad in ["{", "[]", "{}", r#"{"schemaVersion":1}"#] {
        assert_eq!(
            served.put("v9", "", bad.as_bytes()).code(),
            "MANIFEST_INVALID",
            "{bad}"
        );
    }
    // Tags change only for those who know what they were, if they say so.
    let other = served.manifest(config, layer, serde_json::json!({"annotations": {"a": "b"}}));
    let other_digest = Digest::of(&other);
    assert_eq!(served.put("v3", "If-None-Match: *\r\n", &other).status, 412);
    assert_eq!(
        served
            .put("v3", &format!("If-Match: \"{other_digest}\"\r\n"), &other)
            .status,
        412
    );
    assert_eq!(
        served
            .put("v3", &format!("If-Match: \"{digest}\"\r\n"), &other)
            .status,
        201
    );
    assert_eq!(served.put("new", "If-Match: \"x\"\r\n", &other).status, 412);

    let page = served.ask("GET", "/v2/a/tags/list?n=2", "", b"");
    assert_eq!(page.body, b"{\"name\":\"a\",\"tags\":[\"v1\",\"v2\"]}\n");
    assert_eq!(page.field("link"), "</v2/a/tags/list?n=2&last=v2>; rel=\"next\"");
    let rest = served.ask("GET", "/v2/a/tags/list?n=2&last=v2", "", b"");
    assert_eq!(
        (rest.body.as_slice(), rest.field("link")),
        (&b"{\"name\":\"a\",\"tags\":[\"v3\"]}\n"[..], "")
    );
    assert_eq!(
        served.ask("GET", "/v2/_catalog", "", b"").body,
        b"{\"repositories\":[\"a\"]}\n"
    );
    assert_eq!(
        served.ask("GET", "/v2/b/tags/list", "", b"").code(),
        "NAME_UNKNOWN"
    );
    assert_eq!(served.ask("DELETE", "/v2/a/manifests/v2", TOKEN, b"").status, 202);
    assert_eq!(
        served.ask("GET", "/v2/a/manifests/v2", "", b"").code(),
        "MANIFEST_UNKNOWN"
    );
    // It is an image of the store's, under the name that people give local images.
    let local = Reference::parse("localhost/a:v3").unwrap();
    assert_eq!(
        served.store.tagged(&local).unwrap().unwrap().target.digest,
        other_digest
    );
    assert_eq!(served.store.tags().unwrap().len(), 2);

    // What was pulled from elsewhere is served without its registry's name; what is pushed here comes before it.
    let target = Descriptor::of(OCI_MANIFEST, &manifest);
    for elsewhere in [
        "reg.example:5000/lab/iris:v1",
        "docker.io/library/nginx:v1",
        "reg.example/a:v3",
    ] {
        served
            .store
            .set_tag(&Reference::parse(elsewhere).unwrap(), &target)
            .unwrap();
    }
    for (name, wanted) in [
        ("lab/iris/manifests/v1", digest),
        ("nginx/manifests/v1", digest),
        ("a/manifests/v3", other_digest),
    ] {
        let said = served.ask("GET", &format!("/v2/{name}"), "", b"");
        assert_eq!(said.field("docker-content-digest"), wanted.to_string());
    }
    let names = served.ask("GET", "/v2/_catalog", "", b"").body;
    assert_eq!(names, b"{\"repositories\":[\"a\",\"lab/iris\",\"nginx\"]}\n");
    let tags = served.ask("GET", "/v2/a/tags/list", "", b"").body;
    assert_eq!(tags, b"{\"name\":\"a\",\"tags\":[\"v1\",\"v3\"]}\n");

    let subject = serde_json::json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": manifest.len()});
    let artifact = served.manifest(
        config,
        layer,
        serde_json::json!({"subject": subject, "artifactType": "x/y"}),
    );
    let put = served.put(&Digest::of(&artifact).to_string(), "", &artifact);
    assert_eq!(
        (put.status, put.field("oci-subject")),
        (201, digest.to_string().as_str())
    );
    for (query, count, filtered) in [
        ("", 1, ""),
        ("?artifactType=x%2Fy", 1, "artifacttype"),
        ("?artifactType=z", 0, "artifacttype"),
    ] {
        let said = served.ask("GET", &format!("/v2/a/referrers/{digest}{query}"), "", b"");
        let list: serde_json::Value = serde_json::from_slice(&said.body).unwrap();
        assert_eq!(list["manifests"].as_array().unwrap().len(), count, "{query}");
        assert_eq!(
            (said.field("content-type"), said.field("oci-filters-applied")),
            (OCI_INDEX, filtered)
        );
    }
}

#[test]
fn requests_that_make_no_sense() {
    let served = serve(Some("letmein"));
    for (request, status) in [
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), 404),
        (
            "GET /v2/A/tags/list HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(),
            400,
        ),
        (
            "GET /v2/../../etc/passwd HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(),
            404,
        ),
        ("BREW /v2/ HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), 401),
        (
            format!("BREW /v2/ HTTP/1.1\r\nConnection: close\r\n{TOKEN}\r\n"),
            405,
        ),
        ("hello\r\n\r\n".to_owned(), 400),
        (
            format!("GET /v2/ HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(20_000)),
            431,
        ),
        (
            "GET /v2/ HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            400,
        ),
        (
            format!("PUT /v2/a/manifests/v1 HTTP/1.1\r\n{TOKEN}Content-Length: 99999999\r\n\r\n"),
            413,
        ),
        (
            format!(
                "PUT /v2/a/manifests/v1 HTTP/1.1\r\n{TOKEN}Content-Length: 9\r\nExpect: 100-continue\r\n\r\n"
            ),
            100,
        ),
    ] {
        let stream = TcpStream::connect(served.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        assert_eq!(talk(stream, request.as_bytes()).status, status, "{request:.70}");
    }
}

#[test]
fn connections_beyond_the_cap_are_told_to_come_back() {
    let served = serve(None);
    // Each is answered once, so that it is known to have its thread.
    let held: Vec<TcpStream> = (0..MAX_CONNECTIONS)
        .map(|_| {
            let mut stream = TcpStream::connect(served.address).unwrap();
            stream.write_all(b"HEAD /v2/ HTTP/1.1\r\n\r\n").unwrap();
            assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
            stream
        })
        .collect();
    let busy = served.ask("GET", "/v2/", "", b"");
    assert_eq!((busy.status, busy.field("retry-after")), (503, "1"));
    let request = b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nConnection: close\r\n\r\n";
    let local = talk(UnixStream::connect(&served.unix).unwrap(), request);
    assert_eq!(local.status, 202, "strangers keep nobody out of the Unix socket");
    drop(held);
    while served.ask("GET", "/v2/", "", b"").status != 200 {
        std::thread::yield_now();
    }
}

#[test]
fn what_is_deleted_is_gone_and_what_is_needed_stays() {
    let served = serve(Some("letmein"));
    let (config, layer) = (b"{}", b"layer");
    let blob = served.blob(layer);
    served.blob(config);
    let manifest = served.manifest(config, layer, serde_json::json!({}));
    let digest = Digest::of(&manifest);
    let (by_digest, by_tag) = (format!("/v2/a/manifests/{digest}"), "/v2/a/manifests/v1");
    let of_blob = format!("/v2/a/blobs/{blob}");
    let delete = |path: &str| {
        let said = served.ask("DELETE", path, TOKEN, b"");
        (said.status, said.code())
    };
    let is = |status: u16, code: &str| (status, code.to_owned());
    for _ in 0..2 {
        for tag in ["v1", "v2"] {
            assert_eq!(served.put(tag, "", &manifest).status, 201);
        }
        assert_eq!(delete(&of_blob), is(405, "UNSUPPORTED"));
        // An image that was pulled from elsewhere needs it as well.
        let elsewhere = Reference::parse("reg.example/x:v1").unwrap();
        let target = Descriptor::of(OCI_MANIFEST, &manifest);
        served.store.set_tag(&elsewhere, &target).unwrap();
        assert_eq!(delete(&by_digest), is(202, ""));
        assert_eq!(delete(&by_digest), is(405, "UNSUPPORTED"));
        assert_eq!(served.ask("GET", by_tag, "", b"").status, 404);
        assert_eq!(delete(&of_blob), is(405, "UNSUPPORTED"));
        served.store.remove_tag(&elsewhere).unwrap();
        assert_eq!(delete(&by_digest), is(202, ""));
        assert_eq!(delete(&by_digest), is(404, "MANIFEST_UNKNOWN"));
        assert_eq!(delete(by_tag), is(404, "MANIFEST_UNKNOWN"));
    }
    assert_eq!(delete(&of_blob), is(202, ""));
    assert_eq!(delete(&of_blob), is(404, "BLOB_UNKNOWN"));
    assert_eq!(
        delete(&format!("/v2/a/manifests/{blob}")),
        is(404, "MANIFEST_UNKNOWN")
    );
    assert_eq!(served.ask("DELETE", &by_digest, "", b"").status, 401);
}

#[test]
fn with_accounts_nothing_is_read_without_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("state")).unwrap();
    let options = Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        token: None,
        unix: Some(folder.path().join("serve.sock")),
    };
    let account = |name: &str, writes| super::Account {
        name: name.to_owned(),
        secret: "secret".to_owned(),
        writes,
    };
    let guard = super::Guard {
        accounts: vec![account("board", false), account("maker", true)],
        tls: None,
    };
    let server = Server::guarded(options, guard, store.clone()).unwrap();
    let served = Served {
        address: server.addr().unwrap(),
        unix: folder.path().join("serve.sock"),
        stopper: server.stopper(),
        store,
        _folder: folder,
    };
    std::thread::spawn(move || server.run().unwrap());
    // board:secret, maker:secret, maker:wrong
    let board = "Authorization: Basic Ym9hcmQ6c2VjcmV0\r\n";
    let maker = "Authorization: Basic bWFrZXI6c2VjcmV0\r\n";
    let wrong = "Authorization: Basic bWFrZXI6d3Jvbmc=\r\n";
    for (fields, base, read, write) in [
        ("", 401, 401, 401),
        (wrong, 401, 401, 401),
        (board, 200, 404, 401),
        (maker, 200, 404, 202),
    ] {
        assert_eq!(served.ask("GET", "/v2/", fields, b"").status, base, "{fields}");
        assert_eq!(
            served.ask("GET", "/v2/a/tags/list", fields, b"").status,
            read,
            "{fields}"
        );
        assert_eq!(
            served.ask("POST", "/v2/a/blobs/uploads/", fields, b"").status,
            write,
            "{fields}"
        );
        let issued = served.ask("GET", "/token", fields, b"").status;
        assert_eq!(issued, if base == 200 { 200 } else { 401 }, "{fields}");
    }
}

//! The distribution specification's conformance cases, request by request, against Debian's docker-registry and `wherry serve`.
//!
//! One table for both. Where docker-registry 2.8 answers otherwise than the specification asks, its own answer stands beside the
//! wanted one: so that it is known, and so that a newer one that mends it is noticed.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test program"
)]

#[allow(dead_code, reason = "the other test program uses the rest")]
mod parts;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use parts::{DockerRegistry, noise};
use wherry_images::Digest;
use wherry_images::manifest::{OCI_CONFIG, OCI_EMPTY, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST};
use wherry_images::serve::{self, Server};
use wherry_images::store::Store;

const TOKEN: &str = "letmein-letmein-letmein";

/// One request and what is wanted of its answer. `{name}` in texts is replaced by what is known under that name.
struct Case {
    what: &'static str,
    method: &'static str,
    path: &'static str,
    fields: &'static str,
    /// The name of the body, or nothing.
    body: &'static str,
    status: &'static [u16],
    /// What docker-registry answers where it differs.
    peer: &'static [u16],
    /// Fields that the answer must have, with these values; `*` is any value, `-` is none at all. For ours and, unless its status
    /// differs, for the peer.
    has: &'static [(&'static str, &'static str)],
    /// What the answer's body must be, by name, or contain.
    says: &'static str,
    /// The name under which the answer's `Location` is kept.
    keep: &'static str,
    /// Whether docker-registry answers with this status and with something else in it.
    loose: bool,
}

const fn case(what: &'static str, method: &'static str, path: &'static str, status: &'static [u16]) -> Case {
    Case {
        what,
        method,
        path,
        fields: "",
        body: "",
        status,
        peer: &[],
        has: &[],
        says: "",
        keep: "",
        loose: false,
    }
}

impl Case {
    const fn with(mut self, fields: &'static str) -> Case {
        self.fields = fields;
        self
    }
    const fn sending(mut self, body: &'static str) -> Case {
        self.body = body;
        self
    }
    const fn peer(mut self, status: &'static [u16]) -> Case {
        self.peer = status;
        self
    }
    const fn has(mut self, fields: &'static [(&'static str, &'static str)]) -> Case {
        self.has = fields;
        self
    }
    /// docker-registry 2.8 gives tags unsorted and whole.
    const fn loose(mut self) -> Case {
        self.loose = true;
        self
    }
    const fn says(mut self, text: &'static str) -> Case {
        self.says = text;
        self
    }
    const fn keep(mut self, name: &'static str) -> Case {
        self.keep = name;
        self
    }
}

const UPLOADS: &str = "/v2/lab/iris/blobs/uploads/";
const DIGEST: &str = "docker-content-digest";

/// In the order of the conformance suite: push, pull, discovery, management. Each line builds on those before it.
const CASES: &[Case] = &[
    // What is not there.
    case("the base of the API", "GET", "/v2/", &[200]),
    case(
        "HEAD of an unknown blob",
        "HEAD",
        "/v2/lab/iris/blobs/{none}",
        &[404],
    ),
    case(
        "GET of an unknown blob",
        "GET",
        "/v2/lab/iris/blobs/{none}",
        &[404],
    )
    .says("BLOB_UNKNOWN"),
    case(
        "HEAD of an unknown tag",
        "HEAD",
        "/v2/lab/iris/manifests/none",
        &[404],
    ),
    case(
        "GET of an unknown tag",
        "GET",
        "/v2/lab/iris/manifests/none",
        &[404],
    )
    .says("MANIFEST_UNKNOWN"),
    case(
        "GET of an unknown manifest digest",
        "GET",
        "/v2/lab/iris/manifests/{none}",
        &[404],
    )
    .says("MANIFEST_UNKNOWN"),
    case(
        "tags of an unknown repository",
        "GET",
        "/v2/nobody/tags/list",
        &[404],
    )
    .says("NAME_UNKNOWN"),
    case("a name that is none", "GET", "/v2/Lab/tags/list", &[400, 404]),
    case(
        "a blob digest that is none",
        "GET",
        "/v2/lab/iris/blobs/sha256:12",
        &[400, 404],
    ),
    case(
        "an unknown upload",
        "GET",
        "/v2/lab/iris/blobs/uploads/11111111111111111111111111111111",
        &[404],
    )
    .peer(&[404, 400]),
    // A blob in one POST and one PUT.
    case("POST begins an upload", "POST", UPLOADS, &[202])
        .has(&[("location", "*")])
        .keep("up"),
    case("PUT of a whole blob", "PUT", "{up}?digest={layer}", &[201])
        .sending("layer")
        .with("Content-Type: application/octet-stream\r\n")
        .has(&[("location", "*"), (DIGEST, "{layer}")]),
    case("HEAD of it", "HEAD", "/v2/lab/iris/blobs/{layer}", &[200])
        .has(&[("content-length", "{layer-size}"), (DIGEST, "{layer}")]),
    case("GET of it", "GET", "/v2/lab/iris/blobs/{layer}", &[200]).says("=layer"),
    case("a digest that is wrong", "POST", UPLOADS, &[202]).keep("up"),
    case("... is refused", "PUT", "{up}?digest={none}", &[400])
        .sending("layer")
        .says("DIGEST_INVALID"),
    case(
        "... and nothing is there",
        "HEAD",
        "/v2/lab/iris/blobs/{none}",
        &[404],
    ),
    case("an upload without a digest", "POST", UPLOADS, &[202]).keep("up"),
    case("... is not ended", "PUT", "{up}", &[400]).sending("layer"),
    // In one POST.
    case(
        "POST of a whole blob",
        "POST",
        "/v2/lab/iris/blobs/uploads/?digest={config}",
        &[201, 202],
    )
    .sending("config")
    .has(&[("location", "*")])
    .keep("up"),
    case(
        "... or by PUT where that is not done",
        "PUT",
        "{up}?digest={config}",
        &[201, 404, 405],
    )
    .sending("config"),
    case(
        "the config is there",
        "HEAD",
        "/v2/lab/iris/blobs/{config}",
        &[200],
    ),
    // In chunks.
    case("POST for chunks", "POST", UPLOADS, &[202]).keep("up"),
    case("the first chunk", "PATCH", "{up}", &[202])
        .with("Content-Range: 0-99999\r\nContent-Type: application/octet-stream\r\n")
        .sending("chunk1")
        .has(&[("range", "0-99999"), ("location", "*")])
        .keep("up"),
    case("where the upload stands", "GET", "{up}", &[204]).has(&[("range", "0-99999"), ("location", "*")]),
    case("the second chunk", "PATCH", "{up}", &[202])
        .with("Content-Range: 100000-199999\r\nContent-Type: application/octet-stream\r\n")
        .sending("chunk2")
        .has(&[("range", "0-199999")])
        .keep("up"),
    case(
        "the last chunk out of step",
        "PUT",
        "{up}?digest={chunked}",
        &[416],
    )
    .with("Content-Range: 7-50006\r\n")
    .sending("chunk3")
    .peer(&[416, 400, 201]),
    case("POST for a chunk that leaves a gap", "POST", UPLOADS, &[202]).keep("up"),
    case("the chunk that leaves a gap", "PATCH", "{up}", &[416])
        .with("Content-Range: 150000-249999\r\n")
        .sending("chunk2")
        .peer(&[416, 202]),
    case("POST for a chunk that comes twice", "POST", UPLOADS, &[202]).keep("up"),
    case("the chunk", "PATCH", "{up}", &[202])
        .with("Content-Range: 0-99999\r\n")
        .sending("chunk1")
        .keep("up"),
    case("the chunk that comes twice", "PATCH", "{up}", &[416])
        .with("Content-Range: 0-99999\r\n")
        .sending("chunk1")
        .peer(&[416, 202]),
    case("POST for chunks again", "POST", UPLOADS, &[202]).keep("up"),
    case("one streamed chunk", "PATCH", "{up}", &[202])
        .sending("chunk1")
        .with("Content-Type: application/octet-stream\r\n")
        .keep("up"),
    case("another streamed chunk", "PATCH", "{up}", &[202])
        .sending("chunk2")
        .with("Content-Type: application/octet-stream\r\n")
        .keep("up"),
    case(
        "the last chunk on the PUT",
        "PUT",
        "{up}?digest={chunked}",
        &[201],
    )
    .with("Content-Type: application/octet-stream\r\n")
    .sending("chunk3")
    .has(&[(DIGEST, "{chunked}")]),
    case(
        "the blob of three chunks",
        "GET",
        "/v2/lab/iris/blobs/{chunked}",
        &[200],
    )
    .says("=chunked"),
    case("an upload that is given up", "POST", UPLOADS, &[202]).keep("up"),
    case("DELETE of it", "DELETE", "{up}", &[204]),
    case("... and it is gone", "GET", "{up}", &[404]),
    // Mounts.
    case(
        "a mount from another repository",
        "POST",
        "/v2/other/blobs/uploads/?mount={layer}&from=lab/iris",
        &[201],
    )
    .has(&[("location", "*")]),
    case("the mounted blob", "GET", "/v2/other/blobs/{layer}", &[200]).says("=layer"),
    case(
        "a mount of what is not there",
        "POST",
        "/v2/other/blobs/uploads/?mount={none}&from=lab/iris",
        &[202],
    )
    .has(&[("location", "*")]),
    // Ranges.
    case("a range", "GET", "/v2/lab/iris/blobs/{chunked}", &[206])
        .with("Range: bytes=100000-199999\r\n")
        .has(&[
            ("content-range", "bytes 100000-199999/250000"),
            ("content-length", "100000"),
        ])
        .says("=chunk2"),
    case(
        "the rest of a blob",
        "GET",
        "/v2/lab/iris/blobs/{chunked}",
        &[206],
    )
    .with("Range: bytes=200000-\r\n")
    .says("=chunk3"),
    case("past the end", "GET", "/v2/lab/iris/blobs/{chunked}", &[416])
        .with("Range: bytes=250000-\r\n")
        .has(&[("content-range", "bytes */250000")]),
    case(
        "a range of something else",
        "GET",
        "/v2/lab/iris/blobs/{chunked}",
        &[200],
    )
    .with("Range: bytes=0-9\r\nIf-Range: \"other\"\r\n")
    .says("=chunked"),
    case(
        "a blob that the client has",
        "GET",
        "/v2/lab/iris/blobs/{chunked}",
        &[304],
    )
    .with("If-None-Match: \"{chunked}\"\r\n"),
    // Manifests.
    case(
        "a manifest whose layer is missing",
        "PUT",
        "/v2/lab/iris/manifests/bad",
        &[400],
    )
    .with("Content-Type: {oci-manifest}\r\n")
    .sending("lacking")
    .peer(&[404, 400])
    .says("BLOB_UNKNOWN"),
    case(
        "a manifest that is no JSON",
        "PUT",
        "/v2/lab/iris/manifests/bad",
        &[400],
    )
    .with("Content-Type: {oci-manifest}\r\n")
    .sending("layer")
    .says("MANIFEST_INVALID"),
    case(
        "a manifest under a wrong digest",
        "PUT",
        "/v2/lab/iris/manifests/{none}",
        &[400],
    )
    .with("Content-Type: {oci-manifest}\r\n")
    .sending("manifest")
    .says("DIGEST_INVALID"),
    case(
        "a tag that is none",
        "PUT",
        "/v2/lab/iris/manifests/.bad",
        &[400, 404],
    )
    .with("Content-Type: {oci-manifest}\r\n")
    .sending("manifest"),
    case("a manifest by tag", "PUT", "/v2/lab/iris/manifests/v1", &[201])
        .with("Content-Type: {oci-manifest}\r\n")
        .sending("manifest")
        .has(&[("location", "*"), (DIGEST, "{manifest}")]),
    case(
        "the same by digest",
        "PUT",
        "/v2/lab/iris/manifests/{manifest}",
        &[201],
    )
    .with("Content-Type: {oci-manifest}\r\n")
    .sending("manifest"),
    case("a second tag", "PUT", "/v2/lab/iris/manifests/v2", &[201])
        .with("Content-Type: {oci-manifest}\r\n")
        .sending("manifest"),
    case("HEAD by tag", "HEAD", "/v2/lab/iris/manifests/v1", &[200])
        .with("Accept: {oci-manifest}\r\n")
        .has(&[
            (DIGEST, "{manifest}"),
            ("content-length", "{manifest-size}"),
            ("content-type", "{oci-manifest}"),
        ]),
    case("GET by tag", "GET", "/v2/lab/iris/manifests/v1", &[200])
        .with("Accept: {oci-manifest}\r\n")
        .has(&[("content-type", "{oci-manifest}"), (DIGEST, "{manifest}")])
        .says("=manifest"),
    case(
        "GET by digest",
        "GET",
        "/v2/lab/iris/manifests/{manifest}",
        &[200],
    )
    .with("Accept: {oci-manifest}\r\n")
    .says("=manifest"),
    case(
        "a manifest that the client has",
        "GET",
        "/v2/lab/iris/manifests/v1",
        &[304],
    )
    .with("Accept: {oci-manifest}\r\nIf-None-Match: \"{manifest}\"\r\n"),
    case("an index", "PUT", "/v2/lab/iris/manifests/all", &[201])
        .with("Content-Type: {oci-index}\r\n")
        .sending("index"),
    case("GET of the index", "GET", "/v2/lab/iris/manifests/all", &[200])
        .with("Accept: {oci-index}\r\n")
        .has(&[("content-type", "{oci-index}")])
        .says("=index"),
    case(
        "a manifest that is too long",
        "PUT",
        "/v2/lab/iris/manifests/long",
        &[413, 400],
    )
    .with("Content-Type: {oci-manifest}\r\n")
    .sending("long"),
    // Referrers.
    case("the empty config", "POST", UPLOADS, &[202]).keep("up"),
    case("... is pushed", "PUT", "{up}?digest={empty}", &[201]).sending("empty"),
    case(
        "referrers of what nothing refers to",
        "GET",
        "/v2/lab/iris/referrers/{manifest}",
        &[200],
    )
    .peer(&[404])
    .has(&[("content-type", "{oci-index}")])
    .says("\"manifests\":[]"),
    case("an artifact", "PUT", "/v2/lab/iris/manifests/{artifact}", &[201])
        .with("Content-Type: {oci-manifest}\r\n")
        .sending("artifact"),
    case(
        "an artifact that is an image",
        "PUT",
        "/v2/lab/iris/manifests/{signed}",
        &[201],
    )
    .with("Content-Type: {oci-manifest}\r\n")
    .sending("signed"),
    case(
        "an artifact of what is not there",
        "PUT",
        "/v2/lab/iris/manifests/{orphan}",
        &[201],
    )
    .with("Content-Type: {oci-manifest}\r\n")
    .sending("orphan"),
    case("referrers", "GET", "/v2/lab/iris/referrers/{manifest}", &[200])
        .peer(&[404])
        .says("{artifact}"),
    case(
        "referrers by their config's type",
        "GET",
        "/v2/lab/iris/referrers/{manifest}",
        &[200],
    )
    .peer(&[404])
    .says("{signed}"),
    case(
        "referrers of one type",
        "GET",
        "/v2/lab/iris/referrers/{manifest}?artifactType=application/x.one",
        &[200],
    )
    .peer(&[404])
    .has(&[("oci-filters-applied", "artifactType")])
    .says("{artifact}"),
    case(
        "referrers of no type",
        "GET",
        "/v2/lab/iris/referrers/{manifest}?artifactType=application/x.none",
        &[200],
    )
    .peer(&[404])
    .says("\"manifests\":[]"),
    case(
        "referrers of what is not there",
        "GET",
        "/v2/lab/iris/referrers/{none}",
        &[200],
    )
    .peer(&[404])
    .says("{orphan}"),
    case(
        "referrers of no digest",
        "GET",
        "/v2/lab/iris/referrers/sha256:12",
        &[400],
    )
    .peer(&[404]),
    // Discovery.
    case("tags", "GET", "/v2/lab/iris/tags/list", &[200])
        .says("\"tags\":[\"all\",\"v1\",\"v2\"]")
        .loose(),
    case("the first tag", "GET", "/v2/lab/iris/tags/list?n=1", &[200])
        .has(&[("link", "*")])
        .says("\"tags\":[\"all\"]")
        .loose(),
    case("no tag", "GET", "/v2/lab/iris/tags/list?n=0", &[200]).says("\"tags\":["),
    case(
        "tags after one",
        "GET",
        "/v2/lab/iris/tags/list?n=1&last=all",
        &[200],
    )
    .says("\"tags\":[\"v1\"]")
    .loose(),
    case(
        "tags after the last",
        "GET",
        "/v2/lab/iris/tags/list?last=v2",
        &[200],
    )
    .has(&[("link", "-")]),
    case("repositories", "GET", "/v2/_catalog", &[200]).says("lab/iris"),
    case("the first repository", "GET", "/v2/_catalog?n=1", &[200]).says("lab/iris"),
    // Management.
    case("DELETE of a tag", "DELETE", "/v2/lab/iris/manifests/v2", &[202]).peer(&[400, 404, 405]),
    case("... leaves the other", "GET", "/v2/lab/iris/manifests/v1", &[200])
        .with("Accept: {oci-manifest}\r\n"),
    case(
        "DELETE of an unknown manifest",
        "DELETE",
        "/v2/lab/iris/manifests/{none}",
        &[404],
    ),
    case(
        "DELETE of the index",
        "DELETE",
        "/v2/lab/iris/manifests/{index}",
        &[202],
    ),
    case("... and it is gone", "GET", "/v2/lab/iris/manifests/all", &[404]).with("Accept: {oci-index}\r\n"),
    case(
        "DELETE of the manifest",
        "DELETE",
        "/v2/lab/iris/manifests/{manifest}",
        &[202],
    ),
    case(
        "... and it is gone by tag",
        "GET",
        "/v2/lab/iris/manifests/v1",
        &[404],
    )
    .with("Accept: {oci-manifest}\r\n"),
    case(
        "... and by digest",
        "GET",
        "/v2/lab/iris/manifests/{manifest}",
        &[404],
    )
    .with("Accept: {oci-manifest}\r\n"),
    case(
        "DELETE of an unknown blob",
        "DELETE",
        "/v2/lab/iris/blobs/{none}",
        &[404],
    ),
    case(
        "DELETE of a blob",
        "DELETE",
        "/v2/lab/iris/blobs/{chunked}",
        &[202],
    ),
    case(
        "... and it is gone",
        "HEAD",
        "/v2/lab/iris/blobs/{chunked}",
        &[404],
    ),
];

/// Bodies by name; their digests and sizes are known under the same names.
fn bodies() -> HashMap<&'static str, Vec<u8>> {
    let chunked = noise(7, 250_000);
    let layer = noise(8, 70_000);
    let config =
        br#"{"architecture":"arm64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#.to_vec();
    let empty = b"{}".to_vec();
    let part = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len()});
    let manifest = |layers: &[&[u8]]| {
        let layers: Vec<_> = layers.iter().map(|l| part(OCI_LAYER_GZIP, l)).collect();
        serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": part(OCI_CONFIG, &config), "layers": layers})
    };
    let whole = manifest(&[&layer, &chunked]).to_string().into_bytes();
    let lacking = manifest(&[b"nobody pushed this"]).to_string().into_bytes();
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [part(OCI_MANIFEST, &whole)]});
    let artifact = |kind: &str, config: serde_json::Value, subject: serde_json::Value| {
        let mut made = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config,
            "layers": [part(OCI_EMPTY, &empty)], "subject": subject});
        if !kind.is_empty() {
            made["artifactType"] = kind.into();
        }
        made.to_string().into_bytes()
    };
    let subject = part(OCI_MANIFEST, &whole);
    let nobody = part(OCI_MANIFEST, b"none");
    let mut long = br#"{"schemaVersion":2,"x":""#.to_vec();
    long.resize(5 << 20, b'a');
    HashMap::from([
        (
            "artifact",
            artifact("application/x.one", part(OCI_EMPTY, &empty), subject.clone()),
        ),
        ("signed", artifact("", part("application/x.two", &empty), subject)),
        (
            "orphan",
            artifact("application/x.one", part(OCI_EMPTY, &empty), nobody),
        ),
        ("chunk1", chunked[..100_000].to_vec()),
        ("chunk2", chunked[100_000..200_000].to_vec()),
        ("chunk3", chunked[200_000..].to_vec()),
        ("none", b"none".to_vec()),
        ("index", index.to_string().into_bytes()),
        ("manifest", whole),
        ("layer", layer),
        ("chunked", chunked),
        ("config", config),
        ("empty", empty),
        ("long", long),
        ("lacking", lacking),
    ])
}

struct Said {
    status: u16,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Said {
    fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }
}

fn ask(address: SocketAddr, method: &str, path: &str, fields: &str, body: &[u8]) -> Said {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let length = match (method, body.len()) {
        ("GET" | "HEAD" | "DELETE", 0) => String::new(),
        (_, length) => format!("Content-Length: {length}\r\n"),
    };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n{fields}{length}\r\n"
    );
    // A server that has heard enough may close while the rest is still being sent.
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let end = bytes
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .map_or(bytes.len(), |at| at + 4);
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .unwrap_or(0);
    let fields: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut body = bytes.split_off(end);
    if fields
        .iter()
        .any(|(n, v)| n == "transfer-encoding" && v == "chunked")
    {
        body = unchunk(&body);
    }
    Said { status, fields, body }
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = rest.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..at]).unwrap().trim(), 16).unwrap_or(0);
        if size == 0 || rest.len() < at + 2 + size {
            break;
        }
        body.extend_from_slice(&rest[at + 2..at + 2 + size]);
        rest = rest.get(at + 4 + size..).unwrap_or_default();
    }
    body
}

/// Runs the table; what is wrong, a line for each case.
fn run(address: SocketAddr, peer: bool) -> Vec<String> {
    let bodies = bodies();
    let mut known: HashMap<String, String> = HashMap::from([
        ("oci-manifest".to_owned(), OCI_MANIFEST.to_owned()),
        ("oci-index".to_owned(), OCI_INDEX.to_owned()),
    ]);
    for (name, bytes) in &bodies {
        known.insert((*name).to_owned(), Digest::of(bytes).to_string());
        known.insert(format!("{name}-size"), bytes.len().to_string());
    }
    let mut wrong = Vec::new();
    for case in CASES {
        let fill = |text: &str| {
            let filled = known.iter().fold(text.to_owned(), |text, (name, value)| {
                text.replace(&format!("{{{name}}}"), value)
            });
            // An upload's address may have a query of its own.
            match filled.match_indices('?').nth(1) {
                Some((at, _)) => format!("{}&{}", &filled[..at], &filled[at + 1..]),
                None => filled,
            }
        };
        let body = bodies.get(case.body).map_or(&[][..], Vec::as_slice);
        let said = ask(address, case.method, &fill(case.path), &fill(case.fields), body);
        let differs = peer && !case.peer.is_empty();
        let statuses = if differs { case.peer } else { case.status };
        // Where it answers otherwise, what is in the answer is otherwise too.
        let excused = peer && case.loose || differs && !case.status.contains(&said.status);
        let mut complain = |why: String| {
            let text = String::from_utf8_lossy(&said.body)
                .chars()
                .take(200)
                .collect::<String>();
            wrong.push(format!(
                "{} ({} {}): {why}; {text}",
                case.what,
                case.method,
                fill(case.path)
            ));
        };
        if !statuses.contains(&said.status) {
            complain(format!("answered {}, wanted {statuses:?}", said.status));
        } else if !excused {
            for (name, value) in case.has {
                let value = fill(value);
                let good = match (said.field(name), value.as_str()) {
                    (None, "-") | (Some(_), "*") => true,
                    (got, wanted) => got == Some(wanted),
                };
                if !good {
                    complain(format!("{name} is {:?}, wanted {value}", said.field(name)));
                }
            }
            let good = match case.says.strip_prefix('=') {
                Some(name) => said.body == bodies[name],
                None => String::from_utf8_lossy(&said.body).contains(&fill(case.says)),
            };
            if !good {
                complain(format!("does not say {}", case.says));
            }
        }
        if !case.keep.is_empty()
            && let Some(location) = said.field("location")
        {
            let path = location
                .split_once("://")
                .map_or(location, |(_, rest)| &rest[rest.find('/').unwrap_or(0)..]);
            known.insert(case.keep.to_owned(), path.to_owned());
        }
    }
    wrong
}

fn report(who: &str, wrong: &[String]) {
    let differing = CASES
        .iter()
        .filter(|case| !case.peer.is_empty() || case.loose)
        .count();
    println!(
        "{who}: {} cases, {} wrong; docker-registry is known to differ in up to {differing}",
        CASES.len(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{who}:\n{}", wrong.join("\n"));
}

#[test]
fn wherry_serve_answers_as_the_specification_says() {
    let folder = tempfile::tempdir().unwrap();
    let options = serve::Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        token: Some(TOKEN.to_owned()),
        unix: None,
    };
    let server = Server::bind(options, Store::open(&folder.path().join("state")).unwrap()).unwrap();
    let (address, stopper) = (server.addr().unwrap(), server.stopper());
    let running = std::thread::spawn(move || server.run().unwrap());
    let wrong = run(address, false);
    stopper.stop();
    running.join().unwrap();
    report("wherry serve", &wrong);
}

#[test]
fn docker_registry_answers_the_same_but_where_it_is_known_not_to() {
    let registry = DockerRegistry::start();
    report("docker-registry", &run(registry.address, true));
}

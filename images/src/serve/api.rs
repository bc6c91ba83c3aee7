//! What each route answers: the distribution API over the store.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::sync::{Mutex, PoisonError};

use super::MAX_BLOB;
use super::access::{Access, LIFETIME_S, Right, Verdict, challenge};
use super::http::{Answer, Body, Head};
use super::referrers::{self, Referrers};
use super::route::{self, HOME, NoRoute, Route, Target};
use super::uploads::{Claim, Session, Uploads};
use crate::digest::Digest;
use crate::manifest::{Descriptor, Document, MAX_DOCUMENT, OCI_EMPTY, OCI_INDEX};
use crate::reference::Reference;
use crate::store::{self, Record, Store};

/// Entries of a list answered at once.
const MAX_LIST: usize = 1000;
/// Read size of an upload.
const CHUNK: usize = 64 * 1024;

/// The store as a registry.
pub(super) struct Api {
    pub(super) store: Store,
    access: Access,
    uploads: Uploads,
    referrers: Referrers,
    /// Held while a tag is looked at and changed, and while what an image needs is looked for or removed.
    pub(super) tags: Mutex<()>,
}

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Over TCP.
    Plain,
    /// Over TCP with TLS.
    Secure,
    /// Over the Unix socket.
    Local,
}

/// A failure that the distribution specification has a code for.
pub(super) fn error(status: u16, code: &str, message: impl ToString) -> Answer {
    Answer::new(status).json(&serde_json::json!({"errors": [{"code": code, "message": message.to_string()}]}))
}

fn store_error(e: &store::Error) -> Answer {
    tracing::error!(error = %e, "the store fails a request");
    match e {
        store::Error::NoSpace { .. } => error(507, "DENIED", "no space left on the registry's file system"),
        // Paths are not the client's business.
        _ => error(500, "UNKNOWN", "the registry's store failed"),
    }
}

impl Api {
    pub(super) fn new(store: Store, access: Access) -> Result<Api, store::Error> {
        Ok(Api {
            uploads: Uploads::new(store.clone()),
            referrers: Referrers::open(&store)?,
            store,
            access,
            tags: Mutex::default(),
        })
    }

    /// Answers a request.
    pub(super) fn answer(&self, head: &Head, body: &mut Body<'_>, way: Way) -> Answer {
        let answer = self.route(head, body, way).unwrap_or_else(|e| store_error(&e));
        answer.field("Docker-Distribution-Api-Version", "registry/2.0")
    }

    fn route(&self, head: &Head, body: &mut Body<'_>, way: Way) -> Result<Answer, store::Error> {
        let route = match route::parse(&head.path) {
            Ok(route) => route,
            Err(NoRoute::Unknown) => {
                return Ok(error(404, "UNSUPPORTED", "no such path; the API is under /v2/"));
            }
            Err(NoRoute::Name) => {
                return Ok(error(400, "NAME_INVALID", "the repository's name is not valid"));
            }
            Err(NoRoute::Digest) => return Ok(error(400, "DIGEST_INVALID", "not a sha256 digest")),
            Err(NoRoute::Tag) => return Ok(error(400, "TAG_INVALID", "not a tag")),
        };
        if let Some(refusal) = self.refusal(head, &route, way) {
            return Ok(refusal);
        }
        match (head.method.as_str(), route) {
            ("GET" | "HEAD", Route::Base) => Ok(Answer::new(200).json(&serde_json::json!({}))),
            ("GET", Route::Token) => Ok(self.token(head)),
            ("GET" | "HEAD", Route::Catalog) => self.catalog(head),
            ("GET" | "HEAD", Route::Tags(name)) => self.tag_list(head, &name),
            ("GET" | "HEAD", Route::Manifest(name, target)) => self.manifest(head, &name, &target),
            ("GET" | "HEAD", Route::Blob(_, digest)) => self.blob(head, &digest),
            ("GET" | "HEAD", Route::Referrers(_, subject)) => self.list_referrers(head, &subject),
            ("PUT", Route::Manifest(name, target)) => self.put_manifest(head, body, &name, &target),
            ("DELETE", Route::Manifest(name, Target::Tag(tag))) => self.remove_tag(&name, &tag),
            ("DELETE", Route::Manifest(name, Target::Digest(digest))) => self.remove_manifest(&name, &digest),
            ("DELETE", Route::Blob(_, digest)) => self.remove_blob(&digest),
            ("POST", Route::Uploads(name)) => self.begin(head, body, &name),
            ("GET" | "HEAD", Route::Upload(name, id)) => {
                self.with_upload(&id, |session| Ok(status(204, &name, &session)))
            }
            ("PATCH", Route::Upload(name, id)) => {
                self.with_upload(&id, |session| self.patch(head, body, &name, session))
            }
            ("PUT", Route::Upload(name, id)) => {
                self.with_upload(&id, |session| self.finish(head, body, &name, session))
            }
            ("DELETE", Route::Upload(_, id)) => self.with_upload(&id, |session| {
                if let Some(partial) = session.take() {
                    partial.discard()?;
                }
                Ok(Answer::new(204))
            }),
            _ => Ok(error(405, "UNSUPPORTED", "not supported here")),
        }
    }

    /// What a request that may not go on is answered.
    fn refusal(&self, head: &Head, route: &Route, way: Way) -> Option<Answer> {
        let reads = matches!(head.method.as_str(), "GET" | "HEAD");
        let authorization = head.field("authorization");
        let local = way == Way::Local;
        let verdict = match route {
            Route::Token => Verdict::Allowed,
            Route::Base => self.access.judge_base(local, authorization),
            // Where an upload stands is the uploader's business.
            Route::Upload(..) => self.access.judge(local, authorization, Right::Write),
            _ if reads => self.access.judge(local, authorization, Right::Read),
            _ => self.access.judge(local, authorization, Right::Write),
        };
        match verdict {
            Verdict::Allowed => None,
            Verdict::Unknown => {
                let actions = if reads { "pull" } else { "pull,push" };
                let scope = route
                    .repository()
                    .map(|name| format!("repository:{}:{actions}", name.repository()));
                let value = challenge(way == Way::Secure, head.field("host"), scope.as_deref());
                let message = "log in to the registry first";
                Some(error(401, "UNAUTHORIZED", message).field("WWW-Authenticate", value))
            }
            Verdict::Closed => {
                let message =
                    "writing is closed here: start the registry with a token, or use its Unix socket";
                Some(error(403, "DENIED", message))
            }
        }
    }

    /// The token service that challenges name.
    fn token(&self, head: &Head) -> Answer {
        match self.access.issue(head.field("authorization")) {
            Some(token) => Answer::new(200)
                .field("Cache-Control", "no-store")
                .json(&serde_json::json!({
                    "token": token, "access_token": token, "expires_in": LIFETIME_S,
                })),
            None => error(401, "UNAUTHORIZED", "the name or the password is wrong")
                .field("WWW-Authenticate", challenge(false, None, None)),
        }
    }

    /// Every name that has a tag in the store, as (repository, tag, record): of one that several registries use the same way, the
    /// one that [`HOME`] has comes first.
    fn served(&self) -> Result<Vec<(String, String, Record)>, store::Error> {
        let records = self.store.tags()?.into_iter();
        let named = records.filter_map(|record| {
            let tag = record.reference.tag()?.to_owned();
            Some((served_name(&record.reference), tag, record))
        });
        let mut served: Vec<_> = named.collect();
        served.sort_by_cached_key(|(name, tag, record)| {
            let registry = record.reference.registry();
            (name.clone(), tag.clone(), registry != HOME, registry.to_owned())
        });
        served.dedup_by(|b, a| (&a.0, &a.1) == (&b.0, &b.1));
        Ok(served)
    }

    fn catalog(&self, head: &Head) -> Result<Answer, store::Error> {
        let mut names: Vec<String> = self.served()?.into_iter().map(|(name, ..)| name).collect();
        names.dedup();
        let (page, next) = page(head, names);
        let answer = Answer::new(200).json(&serde_json::json!({"repositories": page}));
        Ok(match next {
            Some(query) => answer.field("Link", format!("</v2/_catalog?{query}>; rel=\"next\"")),
            None => answer,
        })
    }

    fn tag_list(&self, head: &Head, name: &Reference) -> Result<Answer, store::Error> {
        let wanted = name.repository();
        let served = self.served()?.into_iter().filter(|(name, ..)| name == wanted);
        let tags: Vec<String> = served.map(|(_, tag, _)| tag).collect();
        if tags.is_empty() {
            return Ok(error(
                404,
                "NAME_UNKNOWN",
                format!("no repository {}", name.repository()),
            ));
        }
        let (page, next) = page(head, tags);
        let answer = Answer::new(200).json(&serde_json::json!({"name": name.repository(), "tags": page}));
        Ok(match next {
            Some(query) => answer.field(
                "Link",
                format!("</v2/{}/tags/list?{query}>; rel=\"next\"", name.repository()),
            ),
            None => answer,
        })
    }

    /// The digest that a target means, if it means one.
    fn find(
        &self,
        name: &Reference,
        target: &Target,
    ) -> Result<Option<(Digest, Option<String>)>, store::Error> {
        let tag = match target {
            Target::Digest(digest) => return Ok(Some((*digest, None))),
            Target::Tag(tag) => tag,
        };
        let Ok(reference) = name.with_tag(tag) else {
            return Ok(None);
        };
        let found = match self.store.tagged(&reference)? {
            Some(record) => Some(record),
            // Not pushed here: an image that was pulled or tagged under another registry's name.
            None => {
                let mut served = self.served()?.into_iter();
                served
                    .find(|(served, has, _)| served == name.repository() && has == tag)
                    .map(|(.., record)| record)
            }
        };
        Ok(found.map(|record| (record.target.digest, Some(record.target.media_type))))
    }

    fn manifest(&self, head: &Head, name: &Reference, target: &Target) -> Result<Answer, store::Error> {
        let unknown = || Ok(error(404, "MANIFEST_UNKNOWN", "no such manifest"));
        let Some((digest, media_type)) = self.find(name, target)? else {
            return unknown();
        };
        let Some(bytes) = self.document_bytes(&digest)? else {
            return unknown();
        };
        // A config or a small layer is a blob, not a manifest.
        let Ok(document) = Document::parse(&bytes, media_type.as_deref()) else {
            return unknown();
        };
        let answer = |status| {
            Answer::new(status)
                .field("Docker-Content-Digest", digest)
                .field("ETag", format!("\"{digest}\""))
        };
        if names_etag(head.field("if-none-match"), &digest) {
            return Ok(answer(304));
        }
        Ok(answer(200)
            .field("Content-Type", document.media_type())
            .bytes(bytes))
    }

    /// A document's bytes; a blob too long to be one is none.
    pub(super) fn document_bytes(&self, digest: &Digest) -> Result<Option<Vec<u8>>, store::Error> {
        let Some(file) = self.store.blob(digest)? else {
            return Ok(None);
        };
        if file.metadata().map_or(0, |m| m.len()) > MAX_DOCUMENT {
            return Ok(None);
        }
        self.store.document(digest)
    }

    fn blob(&self, head: &Head, digest: &Digest) -> Result<Answer, store::Error> {
        let Some(mut file) = self.store.blob(digest)? else {
            let message = format!(
                "no blob {digest}: it was not pushed here, or its image was pulled without --keep-blobs"
            );
            return Ok(error(404, "BLOB_UNKNOWN", message));
        };
        let size = length(&file);
        let etag = format!("\"{digest}\"");
        let answer = |status| {
            Answer::new(status)
                .field("Accept-Ranges", "bytes")
                .field("Docker-Content-Digest", digest)
                .field("ETag", &etag)
                .field("Content-Type", "application/octet-stream")
        };
        if names_etag(head.field("if-none-match"), digest) {
            return Ok(answer(304));
        }
        let wanted = head
            .field("range")
            .filter(|_| head.field("if-range").is_none_or(|e| e == etag));
        match wanted.and_then(|value| byte_range(value, size)) {
            None => Ok(answer(200).file(file, size)),
            Some(None) => Ok(error(416, "RANGE_INVALID", "nothing there")
                .field("Content-Range", format!("bytes */{size}"))),
            Some(Some((first, last))) => {
                if file.seek(SeekFrom::Start(first)).is_err() {
                    return Ok(error(500, "UNKNOWN", "the registry's store failed"));
                }
                let part = answer(206).field("Content-Range", format!("bytes {first}-{last}/{size}"));
                Ok(part.file(file, last - first + 1))
            }
        }
    }

    fn list_referrers(&self, head: &Head, subject: &Digest) -> Result<Answer, store::Error> {
        let mut found = self.referrers.of(subject)?;
        found.retain(|d| self.store.has_blob(&d.digest));
        let mut answer = Answer::new(200).field("Content-Type", OCI_INDEX);
        if let Some(wanted) = head.query("artifactType").filter(|t| !t.is_empty()) {
            found.retain(|d| d.artifact_type.as_deref() == Some(wanted.as_str()));
            answer = answer.field("OCI-Filters-Applied", "artifactType");
        }
        match serde_json::to_vec(&referrers::index(found)) {
            Ok(bytes) => Ok(answer.bytes(bytes)),
            Err(_) => Ok(error(500, "UNKNOWN", "the registry's store failed")),
        }
    }

    fn put_manifest(
        &self,
        head: &Head,
        body: &mut Body<'_>,
        name: &Reference,
        target: &Target,
    ) -> Result<Answer, store::Error> {
        let bytes = match body.whole(MAX_DOCUMENT) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                return Ok(error(
                    413,
                    "SIZE_INVALID",
                    format!("a manifest has at most {MAX_DOCUMENT} bytes"),
                ));
            }
            Err(_) => return Ok(error(400, "MANIFEST_INVALID", "the manifest ends early")),
        };
        let digest = Digest::of(&bytes);
        if let Target::Digest(expected) = target
            && *expected != digest
        {
            return Ok(error(
                400,
                "DIGEST_INVALID",
                format!("expected {expected}, got {digest}"),
            ));
        }
        let document = match Document::parse(&bytes, head.field("content-type")) {
            Ok(document) => document,
            Err(e) => return Ok(error(400, "MANIFEST_INVALID", e)),
        };
        let (needed, subject): (Vec<&Descriptor>, _) = match &document {
            Document::Manifest(m) => (m.layers.iter().chain([&m.config]).collect(), m.subject.as_ref()),
            Document::Index(index) => (index.manifests.iter().collect(), index.subject.as_ref()),
        };
        // Nothing of it may be deleted between being looked for and being named.
        let _lock = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
        for part in needed {
            let here = self
                .store
                .blob(&part.digest)?
                .is_some_and(|file| length(&file) == part.size);
            if !here {
                let message = format!(
                    "{} of {} bytes is not here: push it first",
                    part.digest, part.size
                );
                return Ok(error(400, "MANIFEST_BLOB_UNKNOWN", message));
            }
        }
        let media_type = document.media_type().to_owned();
        self.store.put_document(&bytes)?;
        if let Target::Tag(tag) = target {
            let Ok(reference) = name.with_tag(tag) else {
                return Ok(error(400, "TAG_INVALID", "not a tag"));
            };
            let now = self.find(name, target)?.map(|(digest, _)| digest);
            let refused = match (head.field("if-match"), head.field("if-none-match")) {
                (Some(etag), _) => !now.is_some_and(|now| names_etag(Some(etag), &now)),
                (None, Some("*")) => now.is_some(),
                _ => false,
            };
            if refused {
                return Ok(error(412, "DENIED", "the tag has changed"));
            }
            self.store.set_tag(
                &reference,
                &Descriptor::new(&media_type, digest, bytes.len() as u64),
            )?;
        }
        let mut answer = Answer::new(201)
            .field(
                "Location",
                format!("/v2/{}/manifests/{digest}", name.repository()),
            )
            .field("Docker-Content-Digest", digest);
        if let Some(subject) = subject {
            self.referrers.add(&subject.digest, entry(&document, &bytes))?;
            answer = answer.field("OCI-Subject", subject.digest);
        }
        Ok(answer)
    }

    fn begin(&self, head: &Head, body: &mut Body<'_>, name: &Reference) -> Result<Answer, store::Error> {
        if let Some(mount) = head.query("mount").and_then(|d| Digest::parse(&d).ok())
            && self.store.has_blob(&mount)
        {
            return Ok(created(name, &mount));
        }
        match self.uploads.begin()? {
            Claim::Yours(session) if head.query("digest").is_some() => self.finish(head, body, name, session),
            Claim::Yours(session) => Ok(status(202, name, &session)),
            _ => Ok(error(429, "TOOMANYREQUESTS", "too many uploads at once").field("Retry-After", 5)),
        }
    }

    fn with_upload(
        &self,
        id: &str,
        work: impl FnOnce(Session<'_>) -> Result<Answer, store::Error>,
    ) -> Result<Answer, store::Error> {
        match self.uploads.resume(id)? {
            Claim::Yours(session) => work(session),
            Claim::Unknown => Ok(error(404, "BLOB_UPLOAD_UNKNOWN", "no such upload")),
            // The connection that a client gave up on may still hold its upload for a moment.
            Claim::Busy => {
                Ok(error(503, "BLOB_UPLOAD_INVALID", "the upload is in use").field("Retry-After", 1))
            }
            Claim::Full => {
                Ok(error(429, "TOOMANYREQUESTS", "too many uploads at once").field("Retry-After", 5))
            }
        }
    }

    fn patch(
        &self,
        head: &Head,
        body: &mut Body<'_>,
        name: &Reference,
        mut session: Session<'_>,
    ) -> Result<Answer, store::Error> {
        if out_of_step(head, &session) {
            return Ok(status(416, name, &session));
        }
        match receive(body, &mut session)? {
            Received::All => Ok(status(202, name, &session)),
            Received::Cut => Ok(error(
                400,
                "BLOB_UPLOAD_INVALID",
                "the chunk ended early; ask for the upload's range",
            )),
            Received::TooLong => Ok(too_long()),
        }
    }

    fn finish(
        &self,
        head: &Head,
        body: &mut Body<'_>,
        name: &Reference,
        mut session: Session<'_>,
    ) -> Result<Answer, store::Error> {
        let Some(digest) = head.query("digest").and_then(|d| Digest::parse(&d).ok()) else {
            return Ok(error(400, "DIGEST_INVALID", "digest=sha256:... is missing"));
        };
        if out_of_step(head, &session) {
            return Ok(status(416, name, &session));
        }
        match receive(body, &mut session)? {
            Received::All => {}
            Received::Cut => return Ok(error(400, "BLOB_UPLOAD_INVALID", "the blob ended early")),
            Received::TooLong => {
                return Ok(too_long());
            }
        }
        if let Some(partial) = session.take() {
            if self.store.has_blob(&digest) && partial.offset() == 0 {
                partial.discard()?;
            } else {
                match self.store.commit_upload(partial, &digest) {
                    Err(store::Error::Digest { expected, got, .. }) => {
                        return Ok(error(
                            400,
                            "DIGEST_INVALID",
                            format!("expected {expected}, got {got}"),
                        ));
                    }
                    other => other?,
                }
            }
        }
        Ok(created(name, &digest))
    }
}

/// How receiving a body ended. What arrived is kept in each case.
enum Received {
    All,
    Cut,
    TooLong,
}

/// Whether a chunk says that it begins elsewhere than where the upload ends.
fn out_of_step(head: &Head, session: &Session<'_>) -> bool {
    head.field("content-range").is_some_and(|range| {
        let first = range.trim_start_matches("bytes ").split('-').next();
        first.and_then(|n| n.trim().parse::<u64>().ok()) != Some(session.offset())
    })
}

fn too_long() -> Answer {
    error(
        413,
        "SIZE_INVALID",
        format!("a blob has at most {MAX_BLOB} bytes"),
    )
}

fn receive(body: &mut Body<'_>, session: &mut Session<'_>) -> Result<Received, store::Error> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let got = match body.read(&mut buffer) {
            Ok(0) => return Ok(Received::All),
            Ok(got) => got,
            Err(_) => return Ok(Received::Cut),
        };
        if session.offset() + got as u64 > MAX_BLOB {
            return Ok(Received::TooLong);
        }
        session.append(&buffer[..got])?;
    }
}

/// The repository under which a name of the store is served: its path, without what `docker.io` adds to short names.
fn served_name(reference: &Reference) -> String {
    let repository = reference.repository();
    match repository.strip_prefix("library/") {
        Some(short) if reference.registry() == "docker.io" => short.to_owned(),
        _ => repository.to_owned(),
    }
}

/// Where an upload stands.
fn status(status: u16, name: &Reference, session: &Session<'_>) -> Answer {
    Answer::new(status)
        .field(
            "Location",
            format!("/v2/{}/blobs/uploads/{}", name.repository(), session.id),
        )
        .field("Docker-Upload-UUID", &session.id)
        .field("Range", format!("0-{}", session.offset().saturating_sub(1)))
}

fn created(name: &Reference, digest: &Digest) -> Answer {
    Answer::new(201)
        .field("Location", format!("/v2/{}/blobs/{digest}", name.repository()))
        .field("Docker-Content-Digest", digest)
}

fn length(file: &File) -> u64 {
    file.metadata().map_or(0, |m| m.len())
}

/// A manifest's entry in the list of referrers: artifactType as the specification derives it.
fn entry(document: &Document, bytes: &[u8]) -> Descriptor {
    let mut entry = Descriptor::of(document.media_type(), bytes);
    match document {
        Document::Manifest(m) => {
            let config = (m.config.media_type != OCI_EMPTY).then(|| m.config.media_type.clone());
            entry.artifact_type = m.artifact_type.clone().or(config);
            entry.annotations = m.annotations.clone();
        }
        Document::Index(index) => {
            entry.artifact_type = index.artifact_type.clone();
            entry.annotations = index.annotations.clone();
        }
    }
    entry
}

/// Whether an `If-Match`-like value names a digest's ETag, quoted, bare, or as `*`.
fn names_etag(value: Option<&str>, digest: &Digest) -> bool {
    let digest = digest.to_string();
    value.is_some_and(|value| {
        value.split(',').any(|e| {
            let e = e.trim().trim_start_matches("W/").trim_matches('"');
            e == "*" || e == digest
        })
    })
}

/// Reads `bytes=A-B`, `A-` or `-N` against a length. None: not a single range, and to be ignored; an inner none: nothing there.
fn byte_range(value: &str, size: u64) -> Option<Option<(u64, u64)>> {
    let (first, last) = value.trim().strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| -> Option<u64> {
        (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
            .then(|| text.parse().unwrap_or(u64::MAX))
    };
    match (first.trim(), last.trim()) {
        ("", suffix) => {
            let suffix = number(suffix)?;
            Some((suffix > 0 && size > 0).then(|| (size.saturating_sub(suffix), size - 1)))
        }
        (first, last) => {
            let first = number(first)?;
            let last = if last.is_empty() { u64::MAX } else { number(last)? };
            if last < first {
                return None;
            }
            Some((first < size).then(|| (first, last.min(size.saturating_sub(1)))))
        }
    }
}

/// One page of a sorted list (`n`, `last`), and the query of the next.
fn page(head: &Head, all: Vec<String>) -> (Vec<String>, Option<String>) {
    let most = head
        .query("n")
        .and_then(|n| n.parse().ok())
        .unwrap_or(MAX_LIST)
        .min(MAX_LIST);
    let last = head.query("last").unwrap_or_default();
    let mut rest = all.into_iter().filter(|item| last.is_empty() || *item > last);
    let page: Vec<String> = rest.by_ref().take(most).collect();
    let next = match (rest.next(), page.last()) {
        (Some(_), Some(last)) => Some(format!("n={most}&last={last}")),
        _ => None,
    };
    (page, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_ranges() {
        for (value, wanted) in [
            ("bytes=0-", Some(Some((0, 99)))),
            ("bytes=10-19", Some(Some((10, 19)))),
            ("bytes=10-1000", Some(Some((10, 99)))),
            ("bytes=-10", Some(Some((90, 99)))),
            ("bytes=-1000", Some(Some((0, 99)))),
            ("bytes=-0", Some(None)),
            ("bytes=100-", Some(None)),
            ("bytes=99999999999999999999-", Some(None)),
            ("bytes=9-5", None),
            ("bytes=0-1,5-6", None),
            ("bytes=x-", None),
            ("bytes=-", None),
            ("items=0-", None),
        ] {
            assert_eq!(byte_range(value, 100), wanted, "{value}");
        }
        assert_eq!(byte_range("bytes=0-", 0), Some(None));
    }

    #[test]
    fn etags() {
        let digest = Digest::of(b"x");
        let other = Digest::of(b"y");
        for (value, wanted) in [
            (format!("\"{digest}\""), true),
            (digest.to_string(), true),
            (format!("\"a\", W/\"{digest}\""), true),
            ("*".to_owned(), true),
            (format!("\"{other}\""), false),
            (String::new(), false),
        ] {
            assert_eq!(names_etag(Some(&value), &digest), wanted, "{value}");
        }
        assert!(!names_etag(None, &digest));
    }
}

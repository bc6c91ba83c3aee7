//! Sending a blob: asked for first, then in chunks, small ones where the link is bad.
//!
//! ```text
//!   HEAD --200--> done
//!     | 404
//!     v
//!   POST --> PATCH, PATCH, ... --> PUT ?digest= --> done
//!     ^        |  fault: GET the upload
//!     |        |    204 Range: go on from there
//!     +--------+    404: the upload is lost (docker-registry 2.8 after a cut): again from 0,
//!                        chunks half as large, each on a connection of its own
//! ```

use std::io::{Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use ureq::http::Method;
use ureq::http::header::{CONNECTION, CONTENT_RANGE, CONTENT_TYPE, HeaderName, LOCATION, RANGE};

use super::endpoint::Url;
use super::exchange::{COMMIT_WAIT, Exchange, Failure, Request};
use super::retry::Fault;
use super::{Client, Error};
use crate::digest::Digest;
use crate::reference::Reference;

/// Chunks on a good link; a blob not larger goes in one piece.
const LARGEST_CHUNK: u64 = 1024 * 1024;
/// Chunks on the worst link: below any cut that lets anything through.
const SMALLEST_CHUNK: u64 = 64 * 1024;
/// Uploads begun anew without getting farther than before, after which it is given up.
const MAX_RESTARTS: u32 = 12;
/// A registry may write a chunk to slow storage before it answers.
const CHUNK_WAIT: Duration = Duration::from_secs(30);

const OCTETS: &str = "application/octet-stream";

/// An upload under way.
struct Upload {
    url: Url,
    offset: u64,
}

/// What a chunk's answer means.
enum Sent {
    Chunk(Upload),
    Lost,
}

impl Client {
    /// Asks whether the registry has a blob.
    pub fn has_blob(&self, reference: &Reference, digest: &Digest) -> Result<bool, Error> {
        let what = format!("blob {digest}");
        self.persist(reference, &what, || {
            let url = self.url(reference, &format!("blobs/{digest}"))?;
            let mut request = Request::new(reference, &what, Method::HEAD, url);
            // Being sent elsewhere for it is a yes; the address is signed for GET and would refuse a HEAD.
            request.follow = false;
            let exchange = self.exchange(&request)?;
            match exchange.status() {
                200 | 301..=308 => Ok(true),
                404 => Ok(false),
                _ => Err(exchange.refuse(self, reference, &what)),
            }
        })
    }

    /// Sends the `size` bytes of `source` as the blob `digest`, unless the registry has it. `progress` is told the offset
    /// reached, also when it goes back.
    pub fn put_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        size: u64,
        source: &mut (impl Read + Seek),
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Error> {
        if self.has_blob(reference, digest)? {
            progress(size);
            return Ok(());
        }
        let what = format!("blob {digest}");
        let mut retry = self.retry(reference);
        let mut upload: Option<Upload> = None;
        let (mut chunk, mut careful, mut restarts) = (LARGEST_CHUNK, false, 0);
        // The farthest of this upload, and of all.
        let (mut reached, mut farthest) = (0, 0);
        loop {
            self.check_allowed()?;
            let begun = Instant::now();
            let state = upload.take();
            let resumed = state.as_ref().map(|u| Upload {
                url: u.url.clone(),
                offset: u.offset,
            });
            let step = self.upload_step(reference, &what, digest, size, source, state, chunk, careful);
            let failure = match step {
                Ok(None) => {
                    progress(size);
                    return Ok(());
                }
                Ok(Some(Sent::Chunk(next))) => {
                    progress(next.offset);
                    if next.offset > reached {
                        reached = next.offset;
                        retry.progressed();
                    }
                    upload = Some(next);
                    continue;
                }
                Ok(Some(Sent::Lost)) => None,
                Err(Failure::Final(error)) => return Err(*error),
                Err(Failure::Retry(fault, reason)) => Some((fault, reason)),
            };
            if let Some((fault, reason)) = &failure {
                self.wait_or_give_up(&mut retry, reference, &what, *fault, reason, begun.elapsed())?;
                upload = match resumed {
                    Some(known) => self.ask_upload(reference, &what, known)?,
                    None => None,
                };
                if let Some(known) = &upload
                    && known.offset > reached
                {
                    // A chunk that was cut got part of the way.
                    reached = known.offset;
                    retry.progressed();
                    progress(reached);
                }
            }
            if upload.is_none() {
                // The answer to the last PUT may have been what was lost.
                if self.has_blob(reference, digest)? {
                    progress(size);
                    return Ok(());
                }
                restarts = if reached > farthest { 0 } else { restarts + 1 };
                farthest = farthest.max(reached);
                reached = 0;
                if restarts > MAX_RESTARTS {
                    let reason =
                        format!("loses the upload each time, at best after {farthest} of {size} bytes");
                    return Err(Error::Protocol {
                        what,
                        host: reference.registry().to_owned(),
                        reason,
                    });
                }
                chunk = (chunk / 2).max(SMALLEST_CHUNK);
                careful = true;
                progress(0);
            }
        }
    }

    /// The next request of an upload. None when the blob is complete.
    #[allow(clippy::too_many_arguments, reason = "the loop's state, one call site")]
    fn upload_step(
        &self,
        reference: &Reference,
        what: &str,
        digest: &Digest,
        size: u64,
        source: &mut (impl Read + Seek),
        state: Option<Upload>,
        chunk: u64,
        careful: bool,
    ) -> Result<Option<Sent>, Failure> {
        let Some(upload) = state else {
            let url = self.url(reference, "blobs/uploads/")?;
            let request = Request::new(reference, what, Method::POST, url).writing(&[], CHUNK_WAIT);
            let exchange = self.exchange(&request)?;
            if exchange.status() != 202 {
                return Err(exchange.refuse(self, reference, what));
            }
            let url = location(&exchange, reference, what)?;
            exchange.drain();
            return Ok(Some(Sent::Chunk(Upload { url, offset: 0 })));
        };
        let left = size.saturating_sub(upload.offset);
        // All of a small blob rides on the PUT; of a large one nothing does, so that a lost PUT costs nothing.
        let last = left == 0 || (size <= chunk && upload.offset == 0);
        let length = if last { left } else { left.min(chunk) };
        let body = read_at(source, upload.offset, length).map_err(|source| {
            Failure::from(Error::Local {
                what: what.to_owned(),
                source,
            })
        })?;
        let mut request = match last {
            true => Request::new(
                reference,
                what,
                Method::PUT,
                upload.url.with_query("digest", &digest.to_string()),
            )
            .writing(&body, COMMIT_WAIT),
            false => Request::new(reference, what, Method::PATCH, upload.url.clone())
                .header(
                    CONTENT_RANGE,
                    format!("{}-{}", upload.offset, upload.offset + length - 1),
                )
                .writing(&body, CHUNK_WAIT),
        };
        request = request.header(CONTENT_TYPE, OCTETS);
        if careful {
            request = request.header(CONNECTION, "close");
        }
        let exchange = self.exchange(&request)?;
        match (last, exchange.status()) {
            (true, 201 | 202 | 204) => {
                exchange.drain();
                Ok(None)
            }
            (false, 202 | 201 | 204) => {
                let url = location(&exchange, reference, what).unwrap_or(upload.url);
                let offset = received(&exchange, &RANGE).unwrap_or(upload.offset + length);
                exchange.drain();
                Ok(Some(Sent::Chunk(Upload {
                    url,
                    offset: offset.min(size),
                })))
            }
            (_, 404) => {
                exchange.drain();
                Ok(Some(Sent::Lost))
            }
            // Out of step: what it has is asked for next.
            (false, 416) => Err(Failure::Retry(Fault::Cut, "the upload is out of step".to_owned())),
            _ => Err(exchange.refuse(self, reference, what)),
        }
    }

    /// Where an upload stands after a fault; none when the registry has lost it.
    fn ask_upload(&self, reference: &Reference, what: &str, upload: Upload) -> Result<Option<Upload>, Error> {
        self.persist(reference, what, || {
            let mut request = Request::new(reference, what, Method::GET, upload.url.clone());
            request.write = true;
            let exchange = self.exchange(&request)?;
            match exchange.status() {
                200 | 202 | 204 => {
                    let url = location(&exchange, reference, what).unwrap_or_else(|_| upload.url.clone());
                    let offset = received(&exchange, &RANGE).unwrap_or(0);
                    exchange.drain();
                    Ok(Some(Upload { url, offset }))
                }
                404 => {
                    exchange.drain();
                    Ok(None)
                }
                _ => Err(exchange.refuse(self, reference, what)),
            }
        })
    }
}

fn location(exchange: &Exchange, reference: &Reference, what: &str) -> Result<Url, Failure> {
    let refuse = |reason: String| {
        let (what, host) = (what.to_owned(), reference.registry().to_owned());
        Failure::from(Error::Protocol { what, host, reason })
    };
    let next = exchange
        .header(&LOCATION)
        .and_then(|to| exchange.url.join(to))
        .ok_or_else(|| refuse("accepts an upload without saying where".to_owned()))?;
    if exchange.url.secure && !next.secure {
        return Err(refuse(format!("sends an upload from TLS to plain {next}")));
    }
    Ok(next)
}

/// How many bytes `Range: 0-LAST` says are there. `0-0` is what registries say of an empty upload.
fn received(exchange: &Exchange, name: &HeaderName) -> Option<u64> {
    let value = exchange.header(name)?;
    let last: u64 = value
        .trim_start_matches("bytes=")
        .strip_prefix("0-")?
        .parse()
        .ok()?;
    Some(if last == 0 { 0 } else { last.saturating_add(1) })
}

fn read_at(source: &mut (impl Read + Seek), offset: u64, length: u64) -> std::io::Result<Vec<u8>> {
    source.seek(SeekFrom::Start(offset))?;
    let mut body = Vec::new();
    source.take(length).read_to_end(&mut body)?;
    if body.len() as u64 != length {
        return Err(std::io::Error::new(
            std::io::ErrorKind::UnexpectedEof,
            "shorter than its descriptor says",
        ));
    }
    Ok(body)
}

//! Fetching a blob: from wherever the partial ends, over as many connections as it takes, verified at the end.
//!
//! ```text
//!   partial = size --digest right--> done
//!      ^  |  digest wrong: its bad chunks alone where the publisher attached hashes (repair.rs),
//!      |  |                else rewind, once more from 0, then the error
//!      |  v
//!   GET Range: bytes=HAVE-  --206/200 judged to continue--> append while it arrives
//!      ^                                                        |
//!      +-- wait (retry.rs) <-- cut, stall, busy, whole body ----+
//! ```
//!
//! After a cut the request goes to the registry again, not to the address it redirected to: signed addresses expire.

use std::io::Read;
use std::time::Instant;

use ureq::http::Method;
use ureq::http::header::{CONTENT_LENGTH, ETAG, IF_RANGE, RANGE};

use super::exchange::{Failure, Request, body_fault};
use super::range::{Verdict, judge};
use super::retry::{Fault, Retry};
use super::steady::is_drip;
use super::{Client, Error};
use crate::digest::{Digest, Hasher};
use crate::manifest::{Descriptor, MAX_DOCUMENT};
use crate::reference::Reference;
use crate::store::{self, Partial};

/// How much is read at once, and so the most that is received but not yet appended.
const CHUNK: usize = 64 * 1024;

/// Where a blob's bytes go as they arrive.
pub(super) trait Sink {
    fn offset(&self) -> u64;
    fn append(&mut self, bytes: &[u8]) -> Result<(), store::Error>;
    fn rewind(&mut self) -> Result<(), store::Error>;
    /// The digest of all bytes so far.
    fn digest(&mut self) -> Result<Digest, store::Error>;
    fn etag(&self) -> Option<&str>;
    fn set_etag(&mut self, etag: Option<&str>) -> Result<(), store::Error>;
    /// What can be read and mended in the middle, if this can.
    fn mendable(&mut self) -> Option<&mut Partial> {
        None
    }
}

impl Sink for Partial {
    fn offset(&self) -> u64 {
        Partial::offset(self)
    }
    fn append(&mut self, bytes: &[u8]) -> Result<(), store::Error> {
        Partial::append(self, bytes)
    }
    fn rewind(&mut self) -> Result<(), store::Error> {
        self.truncate(0)
    }
    fn digest(&mut self) -> Result<Digest, store::Error> {
        match self.verify() {
            Err(store::Error::Digest { got, .. }) => Ok(got),
            other => other,
        }
    }
    fn etag(&self) -> Option<&str> {
        Partial::etag(self)
    }
    fn set_etag(&mut self, etag: Option<&str>) -> Result<(), store::Error> {
        Partial::set_etag(self, etag)
    }
    fn mendable(&mut self) -> Option<&mut Partial> {
        Some(self)
    }
}

/// A small blob in memory.
#[derive(Default)]
struct Memory {
    bytes: Vec<u8>,
    hasher: Hasher,
    etag: Option<String>,
}

impl Sink for Memory {
    fn offset(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn append(&mut self, bytes: &[u8]) -> Result<(), store::Error> {
        self.bytes.extend_from_slice(bytes);
        self.hasher.update(bytes);
        Ok(())
    }
    fn rewind(&mut self) -> Result<(), store::Error> {
        *self = Memory::default();
        Ok(())
    }
    fn digest(&mut self) -> Result<Digest, store::Error> {
        Ok(self.hasher.clone().digest())
    }
    fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }
    fn set_etag(&mut self, etag: Option<&str>) -> Result<(), store::Error> {
        self.etag = etag.map(str::to_owned);
        Ok(())
    }
}

/// How an error names a blob, by what it is.
fn name(descriptor: &Descriptor) -> String {
    let media_type = &descriptor.media_type;
    let kind = if media_type.contains(".layer.") || media_type.contains("rootfs.diff") {
        "layer"
    } else if media_type.contains("config") || media_type.contains("container.image") {
        "config"
    } else {
        "blob"
    };
    format!("{kind} {}", descriptor.digest)
}

/// How a transfer has gone so far.
pub(super) struct Tries {
    retry: Retry,
    /// The farthest so far: bytes that come again after starting over are no progress.
    best: u64,
}

impl Tries {
    pub(super) fn new(retry: Retry, best: u64) -> Tries {
        Tries { retry, best }
    }
}

impl Client {
    /// Fetches a blob into `partial`, from where it ends. `progress` is told the offset reached, also when it goes back to 0.
    ///
    /// When it returns, `partial` holds `descriptor.size` bytes of `descriptor.digest`. When it fails, what arrived stays in
    /// `partial` for the next try. A complete blob with another digest is thrown away and fetched once more.
    pub fn fetch_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        partial: &mut Partial,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Error> {
        self.fetch_layer(reference, None, descriptor, partial, progress)
    }

    /// As [`fetch_blob`](Self::fetch_blob), for a layer of the image whose manifest is `image`: of a complete blob with another
    /// digest only the wrong chunks are fetched again where the image's publisher attached their hashes.
    pub fn fetch_layer(
        &self,
        reference: &Reference,
        image: Option<&Digest>,
        descriptor: &Descriptor,
        partial: &mut Partial,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Error> {
        let alone = self.mirrors_of(reference)?.is_empty();
        let result = self.through(reference, |from| {
            // Each mirror has an ETag of its own for the same bytes.
            if !alone {
                partial.set_etag(None)?;
            }
            self.fetch_into(from, image, descriptor, partial, progress)
        });
        if result.is_err() && partial.offset() > 0 {
            // What arrived is worth keeping over a power cut. That it cannot be synced is not the news here.
            let _ = partial.sync();
        }
        result
    }

    /// Fetches a small blob (a config, an artifact's document) into memory, at most [`MAX_DOCUMENT`] bytes.
    pub fn blob_bytes(&self, reference: &Reference, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        if descriptor.size > MAX_DOCUMENT {
            let (what, host) = (name(descriptor), reference.registry().to_owned());
            let reason = format!("{} bytes; a document has at most {MAX_DOCUMENT}", descriptor.size);
            return Err(Error::Protocol { what, host, reason });
        }
        self.through(reference, |from| {
            let mut memory = Memory::default();
            self.fetch_into(from, None, descriptor, &mut memory, &mut |_| {})?;
            Ok(memory.bytes)
        })
    }

    fn fetch_into(
        &self,
        reference: &Reference,
        image: Option<&Digest>,
        descriptor: &Descriptor,
        sink: &mut dyn Sink,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Error> {
        let what = name(descriptor);
        let (expected, size) = (descriptor.digest, descriptor.size);
        let (mut mended, mut mismatched) = (false, false);
        let mut tries = Tries::new(self.retry(reference), sink.offset());
        loop {
            if !self.fetch_until(reference, &what, descriptor, size, sink, &mut tries, progress)? {
                sink.rewind()?;
                progress(0);
                continue;
            }
            let (have, got) = (sink.offset(), sink.digest()?);
            if have == size && got == expected {
                return Ok(());
            }
            if let (Some(image), false, Some(partial)) = (image, mended || have != size, sink.mendable()) {
                mended = true;
                if self.mend(reference, image, &what, descriptor, partial)? {
                    continue;
                }
            }
            sink.rewind()?;
            progress(0);
            let error = Error::Digest {
                what: what.clone(),
                expected,
                got,
                size: have,
            };
            if mismatched {
                return Err(error);
            }
            // A partial that was never this blob's, or a bit that flipped on the way: once more, from the start.
            tracing::warn!(error = %error, "fetching it again");
            mismatched = true;
            tries.best = 0;
        }
    }

    /// Fetches from where `sink` ends up to `end`, over as many connections as it takes. False when the registry does not serve
    /// the rest: what is there has to be thrown away.
    #[allow(clippy::too_many_arguments, reason = "the loop's state, two call sites")]
    pub(super) fn fetch_until(
        &self,
        reference: &Reference,
        what: &str,
        descriptor: &Descriptor,
        end: u64,
        sink: &mut dyn Sink,
        tries: &mut Tries,
        progress: &mut dyn FnMut(u64),
    ) -> Result<bool, Error> {
        while sink.offset() < end {
            self.check_allowed()?;
            let begun = Instant::now();
            let result = self.fetch_some(reference, what, descriptor, end, sink, progress);
            if sink.offset() > tries.best {
                // A drip is not progress: it would go on for ever.
                if !is_drip(sink.offset() - tries.best, begun.elapsed(), self.grace) {
                    tries.retry.progressed();
                }
                tries.best = sink.offset();
            }
            let (fault, reason) = match result {
                Ok(()) => continue,
                Err(Failure::Final(error)) => return Err(*error),
                Err(Failure::Retry(fault, reason)) => (fault, reason),
            };
            tracing::debug!(digest = %descriptor.digest, offset = sink.offset(), ?fault, reason, "fetch interrupted");
            if self.wait_or_give_up(&mut tries.retry, reference, what, fault, &reason, begun.elapsed())? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One request, and as much of its body as arrives.
    #[allow(clippy::too_many_arguments, reason = "the loop's state, one call site")]
    fn fetch_some(
        &self,
        reference: &Reference,
        what: &str,
        descriptor: &Descriptor,
        end: u64,
        sink: &mut dyn Sink,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Failure> {
        let (have, size) = (sink.offset(), descriptor.size);
        let end = end.min(have.saturating_add(self.allowance())).max(have + 1);
        let url = self.url(reference, &format!("blobs/{}", descriptor.digest))?;
        let mut request = Request::new(reference, what, Method::GET, url);
        if end < size {
            request = request.header(RANGE, format!("bytes={have}-{}", end - 1));
        } else if have > 0 {
            request = request.header(RANGE, format!("bytes={have}-"));
        }
        if have > 0
            && let Some(etag) = sink.etag()
        {
            request = request.header(IF_RANGE, etag);
        }
        let exchange = self.exchange(&request)?;
        match judge(have, size, &exchange.answer()) {
            Verdict::Append => {}
            Verdict::Whole => {
                // The next try goes without If-Range: another mirror has another ETag for the same bytes.
                sink.set_etag(None).map_err(Error::from)?;
                // Not drained: closing the connection is what stops the bytes.
                return Err(Failure::Retry(
                    Fault::Whole,
                    format!("{what}: serves the whole where a range was asked for"),
                ));
            }
            Verdict::PastEnd => {
                return Err(Failure::Retry(
                    Fault::Foreign,
                    format!("has nothing from byte {have} on, the manifest says {size}"),
                ));
            }
            Verdict::Foreign(reason) => return Err(Failure::Retry(Fault::Foreign, reason)),
            Verdict::Status => return Err(exchange.refuse(self, reference, what)),
        }
        let etag = exchange.header(&ETAG).filter(|e| e.starts_with('"'));
        sink.set_etag(etag).map_err(Error::from)?;
        let bounded = exchange.header(&CONTENT_LENGTH).is_some();
        let mut reader = exchange.body();
        let mut buffer = vec![0; CHUNK];
        loop {
            let left = end - sink.offset();
            if left == 0 && bounded {
                // The reader knows that this is the end, and so the connection is free for the next request.
                let _ = reader.read(&mut buffer[..1]);
                return Ok(());
            }
            let most = usize::try_from(left).unwrap_or(CHUNK).clamp(1, CHUNK);
            let got = reader.read(&mut buffer[..most]).map_err(body_fault)?;
            if left == 0 {
                return match got {
                    0 => Ok(()),
                    // Not asked for, and not read.
                    _ if end < size => Ok(()),
                    _ => Err(Failure::Retry(
                        Fault::Foreign,
                        format!("sends more than the {size} bytes of the manifest"),
                    )),
                };
            }
            if got == 0 {
                return match bounded {
                    // A 206 may be shorter than what was asked for.
                    true => Ok(()),
                    false => Err(Failure::Retry(Fault::Cut, "the answer ended early".to_owned())),
                };
            }
            sink.append(&buffer[..got]).map_err(Error::from)?;
            progress(sink.offset());
            self.check_allowed()?;
        }
    }
}

//! Parts are put into frames, and these are hashed and compressed.

use std::io::{Read, Seek};

use super::super::CHUNK;
use super::super::decode::hash;
use super::super::part::stream;
use super::columns::NewItem;
use super::content::PartData;
use super::parallel::in_parallel;
use super::streams::Streams;
use crate::EncodeError;
use crate::image::load;

/// A frame that makes more output is closed at the next entry: a restart makes it again.
const FRAME_OUTPUT: u64 = 32 << 20;

/// A frame that is done.
pub(super) struct Sealed {
    pub(super) output: u64,
    pub(super) bytes: Vec<u8>,
    /// Bytes of hashes in it.
    pub(super) hashes: u64,
}

/// A frame that is not compressed yet.
pub(super) struct Open {
    streams: Streams<{ stream::COUNT }>,
    output: std::ops::Range<u64>,
}

/// Puts parts into frames.
#[derive(Default)]
pub(super) struct Builder {
    open: Option<Open>,
    /// The place of the next entry in its table.
    place: u64,
}

impl Builder {
    pub(super) fn add(&mut self, item: &NewItem, parts: Vec<PartData>, most: usize, ready: &mut Vec<Open>) {
        let header = item.header.len() as u64;
        let start = item.begin - header;
        self.start(self.place, 0, start);
        let mut done = 0;
        for part in parts {
            let full = self
                .open
                .as_ref()
                .is_some_and(|open| open.streams.len() + part.streams.len() > most);
            if full && start + header + done > self.open.as_ref().map_or(0, |open| open.output.start) {
                self.reach(start + header + done);
                ready.extend(self.seal());
                let offset = header + done;
                self.start(self.place, offset, start + offset);
            }
            if let Some(open) = &mut self.open {
                open.streams.append(&part.streams);
            }
            done += part.length;
        }
        self.place += 1;
        let end = item.begin + item.content.next_multiple_of(512);
        self.reach(end);
        if self
            .open
            .as_ref()
            .is_some_and(|open| open.output.end - open.output.start >= FRAME_OUTPUT)
        {
            ready.extend(self.seal());
        }
    }

    fn start(&mut self, place: u64, offset: u64, at: u64) {
        if self.open.is_none() {
            let mut streams = Streams::default();
            streams.number(stream::PARTS, place);
            streams.number(stream::PARTS, offset);
            self.open = Some(Open {
                streams,
                output: at..at,
            });
        }
    }

    fn reach(&mut self, end: u64) {
        if let Some(open) = &mut self.open {
            open.output.end = end;
        }
    }

    /// Closes the open frame, if it makes anything.
    pub(super) fn seal(&mut self) -> Option<Open> {
        self.open.take().filter(|open| !open.output.is_empty())
    }
}

/// Hashes and compresses frames.
pub(super) fn pack<N: Read + Seek>(
    new: &mut N,
    ready: Vec<Open>,
    threads: usize,
) -> Result<Vec<Sealed>, EncodeError> {
    let mut work = Vec::new();
    for open in ready {
        let mut hashes = Vec::new();
        let mut at = open.output.start;
        while at < open.output.end {
            let to = open.output.end.min(at + CHUNK as u64);
            hashes.extend_from_slice(&hash(&load(new, at..to).map_err(EncodeError::New)?));
            at = to;
        }
        work.push((hashes, open));
    }
    in_parallel(&work, threads, |(hashes, open)| {
        Ok(Sealed {
            output: open.output.end - open.output.start,
            hashes: hashes.len() as u64,
            bytes: [&hashes[..], &open.streams.pack().map_err(EncodeError::Patch)?].concat(),
        })
    })
}

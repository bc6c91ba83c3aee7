//! The encoder. It tries every patch that it makes: what it returns decodes to the new tar within the memory it declares.
//!
//! ```text
//! new tar ─ entries ─► headers: columns, predicted from the listed old layer ───────────────► table frame
//!               └────► contents: equal old file │ old file to align with │ nothing ─ parts ─► content frames
//! ```
//!
//! Files are worked on in parallel, in batches of bounded size. The same input gives the same patch, on any number of cores.

mod columns;
mod content;
mod frames;
mod layers;
mod numbers;
mod parallel;
mod streams;

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::sync::Mutex;

pub use crate::image::EncodeError;

use super::header::{Base, Header, Limits, SourceId};
use super::listing::Listing;
use super::old::{has_time, with_time};
use super::table::python_source;
use super::wire::{Account, put};
use super::{Decoder, Layers, MAGIC, MAX_FRAME, PREDICTOR};
use crate::adapt::{Std, Zstd};
use crate::image::{Image, load};
use crate::tar::{Entries, Entry};
use columns::{NewItem, Source};
use content::PartData;
use frames::{Builder, Sealed, pack};
use layers::Layer;
use parallel::{Budget, in_parallel, lock};

/// The entries of one table.
const TABLE_ITEMS: usize = 1 << 14;
/// The longest list of old files that headers are predicted from, in bytes of memory: beside it a table is decoded.
const MAX_LISTING: u64 = 4 << 20;
/// What boards allow a patch to declare.
const BOARD_MEMORY: u64 = 18 << 20;
/// A tail of the tar up to this length is a header, which zstd sees beside the others; a longer one is content.
const SHORT_TAIL: u64 = 64 << 10;
/// New bytes that are worked on at once.
const BATCH: u64 = 256 << 20;

/// How a patch is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// A patch that would be this long or longer is not made.
    pub smaller_than: u64,
    /// A patch that would need more memory to decode is not made.
    pub memory: u64,
    /// How many threads work; 0 is one for each core.
    pub threads: usize,
    /// The bytes of a frame before compression, at most [`MAX_FRAME`]. Larger frames are smaller in sum and take more memory to decode.
    pub frame: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            smaller_than: u64::MAX,
            memory: BOARD_MEMORY,
            threads: 0,
            frame: 4 << 20,
        }
    }
}

/// What a patch is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The bytes of the patch.
    pub size: u64,
    /// The length of the tar that it makes.
    pub output: u64,
    /// The bytes of memory that it declares.
    pub memory: u64,
    /// The bytes of its tables, of its other frames, and of the hashes in these.
    pub tables: u64,
    /// As above.
    pub contents: u64,
    /// As above.
    pub hashes: u64,
}

/// Makes patches against the layers of one old image.
pub struct Encoder<R> {
    ids: Vec<SourceId>,
    image: Image<R>,
    layers: Vec<Layer>,
}

impl<R: Read + Seek + Send> Encoder<R> {
    /// An encoder against these layers, the lowest first: their diffIDs and uncompressed tars.
    ///
    /// # Errors
    /// [`EncodeError::Old`] when one of them is not a tar or cannot be read.
    pub fn new(layers: Vec<(SourceId, R)>) -> Result<Self, EncodeError> {
        let (ids, tars): (Vec<_>, Vec<_>) = layers.into_iter().unzip();
        let mut image = Image::new(tars, u64::MAX)?;
        let layers = image
            .layers
            .iter_mut()
            .map(|tar| Layer::read(tar))
            .collect::<io::Result<_>>();
        Ok(Self {
            ids,
            image,
            layers: layers.map_err(EncodeError::Old)?,
        })
    }

    /// Writes the patch that makes the uncompressed layer tar `new` to `patch`. `None` when it would be longer than asked for, or
    /// need more memory; then nothing was written.
    ///
    /// # Errors
    /// Any of [`EncodeError`].
    pub fn encode<N: Read + Seek + Send, W: Write>(
        &mut self,
        new: &mut N,
        mut patch: W,
        options: &Options,
    ) -> Result<Option<Encoded>, EncodeError> {
        let end = new.seek(SeekFrom::End(0)).map_err(EncodeError::New)?;
        let mut items = items(new, end).map_err(EncodeError::New)?;
        self.find_sources(new, &mut items)?;
        let used = self.used(&items);
        let mut account = Account::new(u64::MAX);
        let base = self.base(&items);
        let (entries, names) = base.map_or((0, 0), |base| self.layers[base].listing_size());
        let mut listing = Listing::new(&mut account, entries, names).map_err(fault)?;
        let mut hash = 0;
        if let Some(base) = base {
            self.layers[base].list(&mut listing);
            hash = listing.finish().map_err(fault)?;
        }
        let numbers = renumbered(&mut items, &used, base);
        let mut frames = Vec::new();
        for items in items.chunks(TABLE_ITEMS) {
            let table = columns::table(items, &listing, numbers).map_err(EncodeError::Patch)?;
            frames.push(Sealed {
                output: 0,
                bytes: table.pack().map_err(EncodeError::Patch)?,
                hashes: 0,
            });
            self.contents(new, items, &used, options, &mut frames)?;
            if frames.iter().map(|frame| frame.bytes.len() as u64).sum::<u64>() >= options.smaller_than {
                return Ok(None);
            }
        }
        drop(listing);
        let sources: Vec<SourceId> = used.iter().map(|&layer| self.ids[layer]).collect();
        let base = numbers.map(|source| Base {
            source,
            hash,
            entries,
            names,
        });
        let memory = self.try_out(new, &head(u64::MAX, end, &sources, base, &frames), &frames, &used)?;
        let head = head(memory, end, &sources, base, &frames);
        let size = head.len() as u64 + frames.iter().map(|frame| frame.bytes.len() as u64).sum::<u64>();
        if size >= options.smaller_than || memory > options.memory {
            return Ok(None);
        }
        patch.write_all(&head).map_err(EncodeError::Patch)?;
        for frame in &frames {
            patch.write_all(&frame.bytes).map_err(EncodeError::Patch)?;
        }
        let sum = |table: bool| {
            frames
                .iter()
                .filter(|f| (f.output == 0) == table)
                .map(|f| f.bytes.len() as u64)
                .sum()
        };
        Ok(Some(Encoded {
            size,
            output: end,
            memory,
            tables: sum(true),
            contents: sum(false),
            hashes: frames.iter().map(|frame| frame.hashes).sum(),
        }))
    }

    /// Decides for every content what it is made of.
    fn find_sources<N: Read + Seek>(
        &mut self,
        new: &mut N,
        items: &mut [NewItem],
    ) -> Result<(), EncodeError> {
        let times = times(items);
        for item in items {
            if item.content == 0 {
                continue;
            }
            let bytes = load(new, item.begin..item.begin + item.content).map_err(EncodeError::New)?;
            let time = source_time(&times, &item.path);
            item.source = self.source(item, &bytes, time)?;
        }
        Ok(())
    }

    fn source(&mut self, item: &NewItem, bytes: &[u8], time: Option<u32>) -> Result<Source, EncodeError> {
        let Ok(path) = std::str::from_utf8(&item.path) else {
            return Ok(Source::Fresh);
        };
        let here = self.image.tree.by_path(path);
        let same_size = |&file: &usize| self.image.tree.files[file].size == bytes.len() as u64;
        if let Some(file) = here.filter(same_size)
            && self.old_bytes(file, time)? == bytes
        {
            return Ok(self.old(file, true));
        }
        if time.is_none()
            && let Some(file) = self.image.equal(bytes)?
        {
            return Ok(self.old(file, true));
        }
        let entry = Entry {
            path: item.path.clone(),
            link: Vec::new(),
            kind: b'0',
            mode: 0,
            sparse: false,
            mtime: 0,
            begin: 0,
            offset: item.begin,
            size: item.content,
        };
        let found = self.image.source(&entry, bytes)?;
        Ok(found.map_or(Source::Fresh, |file| self.old(file, false)))
    }

    /// Names an old file, if the decoder will find the same bytes under that name.
    fn old(&self, file: usize, copy: bool) -> Source {
        let file = &self.image.tree.files[file];
        let node = self.layers[file.layer].nodes.get(file.path.as_bytes());
        if node.is_none_or(|node| node.place != file.place()) {
            return Source::Fresh;
        }
        Source::Old {
            layer: file.layer,
            path: file.path.clone().into_bytes(),
            copy,
        }
    }

    fn old_bytes(&mut self, file: usize, time: Option<u32>) -> Result<Vec<u8>, EncodeError> {
        let file = &self.image.tree.files[file];
        let mut bytes = load(&mut self.image.layers[file.layer], file.place()).map_err(EncodeError::Old)?;
        set_time(&mut bytes, time);
        Ok(bytes)
    }

    /// The layer whose list the headers are predicted from: the one that shares the most paths.
    fn base(&self, items: &[NewItem]) -> Option<usize> {
        let small = |layer: &Layer| layer.plain && layer.listing_memory() <= MAX_LISTING;
        let shared = |layer: &Layer| {
            items
                .iter()
                .filter(|item| layer.nodes.contains_key(&item.path))
                .count()
        };
        let plain = self.layers.iter().enumerate().filter(|(_, layer)| small(layer));
        let best = plain
            .map(|(number, layer)| (shared(layer), number))
            .max_by_key(|&(shared, _)| shared);
        best.filter(|&(shared, _)| shared > 0).map(|(_, number)| number)
    }

    /// The layers that the patch needs, in order.
    fn used(&self, items: &[NewItem]) -> Vec<usize> {
        let mut used: Vec<usize> = items
            .iter()
            .filter_map(|item| match item.source {
                Source::Old { layer, .. } => Some(layer),
                Source::Fresh => None,
            })
            .chain(self.base(items))
            .collect();
        used.sort_unstable();
        used.dedup();
        used
    }

    /// Makes the content frames of some entries.
    fn contents<N: Read + Seek + Send>(
        &mut self,
        new: &mut N,
        items: &[NewItem],
        used: &[usize],
        options: &Options,
        frames: &mut Vec<Sealed>,
    ) -> Result<(), EncodeError> {
        let most = options.frame.clamp(64 << 10, MAX_FRAME - (4 << 10));
        let times = times(items);
        let mut builder = Builder::default();
        let mut at = 0;
        while at < items.len() {
            let mut sum = 0;
            let in_batch = |item: &&NewItem| {
                sum += item.content;
                sum <= BATCH
            };
            let count = items[at..].iter().take_while(in_batch).count().max(1);
            let batch = &items[at..at + count];
            let parts = self.parts(new, batch, &times, used, most, options.threads)?;
            let mut ready = Vec::new();
            for (item, parts) in batch.iter().zip(parts) {
                builder.add(item, parts, most, &mut ready);
            }
            at += count;
            if at == items.len() {
                ready.extend(builder.seal());
            }
            frames.extend(pack(new, ready, options.threads)?);
        }
        Ok(())
    }

    /// The parts of each entry's content, made in parallel.
    fn parts<N: Read + Seek + Send>(
        &mut self,
        new: &mut N,
        batch: &[NewItem],
        times: &BTreeMap<Vec<u8>, Option<u64>>,
        used: &[usize],
        most: usize,
        threads: usize,
    ) -> Result<Vec<Vec<PartData>>, EncodeError> {
        let inputs = Mutex::new(Inputs {
            new,
            layers: &mut self.image.layers,
            nodes: &self.layers,
            used,
            times,
        });
        let budget = Budget::default();
        in_parallel(batch, threads, |item| {
            if item.content == 0 || matches!(item.source, Source::Old { copy: true, .. }) {
                return Ok(Vec::new());
            }
            let old_size = lock(&inputs).old_size(item);
            let _share = budget.take(old_size.saturating_mul(6) + item.content.saturating_mul(2));
            let (old, bytes) = lock(&inputs).load(item)?;
            Ok(content::parts(&old, &bytes, most))
        })
    }

    /// Decodes the patch and compares; returns the memory that it took.
    fn try_out<N: Read + Seek>(
        &mut self,
        new: &mut N,
        head: &[u8],
        frames: &[Sealed],
        used: &[usize],
    ) -> Result<u64, EncodeError> {
        let wrong = |what: String| EncodeError::Patch(io::Error::other(what));
        let mut patch: Box<dyn Read> = Box::new(head);
        for frame in frames {
            patch = Box::new(patch.chain(&frame.bytes[..]));
        }
        let mut patch = Std(patch);
        let header = Header::read::<_, io::Error>(&mut patch).map_err(|error| wrong(error.to_string()))?;
        let layers = Tars {
            tars: &mut self.image.layers,
            layers: &self.layers,
            used,
        };
        let limits = Limits {
            memory: u64::MAX,
            output: u64::MAX,
        };
        let mut decoder = Decoder::new(header, patch, layers, Zstd::default(), &limits).map_err(fault)?;
        new.rewind().map_err(EncodeError::New)?;
        let (mut made, mut expected) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        loop {
            let length = decoder
                .read(&mut made)
                .map_err(|error| wrong(error.to_string()))?;
            if length == 0 {
                break;
            }
            new.read_exact(&mut expected[..length])
                .map_err(EncodeError::New)?;
            if made[..length] != expected[..length] {
                return Err(wrong("the patch does not make the new layer".to_owned()));
            }
        }
        // The vectors of the header take as much again when they grow.
        Ok((decoder.peak() + (4 << 10)).next_multiple_of(4 << 10))
    }
}

fn fault(fault: super::Fault) -> EncodeError {
    EncodeError::Patch(io::Error::other(fault.to_string()))
}

/// Magic, length and header.
fn head(memory: u64, output: u64, sources: &[SourceId], base: Option<Base>, frames: &[Sealed]) -> Vec<u8> {
    let mut body = Vec::new();
    for number in [PREDICTOR, memory, output, sources.len() as u64] {
        put(&mut body, number);
    }
    for source in sources {
        body.extend_from_slice(source);
    }
    match base {
        Some(base) => {
            put(&mut body, base.source as u64 + 1);
            body.extend_from_slice(&base.hash.to_le_bytes());
            put(&mut body, base.entries as u64);
            put(&mut body, base.names as u64);
        }
        None => put(&mut body, 0),
    }
    for frame in frames {
        put(&mut body, frame.bytes.len() as u64);
        put(&mut body, frame.output);
    }
    [&MAGIC[..], &(body.len() as u32).to_le_bytes(), &body].concat()
}

/// Numbers layers as the patch names them, and returns the number of `base`.
fn renumbered(items: &mut [NewItem], used: &[usize], base: Option<usize>) -> Option<usize> {
    let number = |layer: usize| used.iter().position(|&used| used == layer);
    for item in items {
        if let Source::Old { layer, .. } = &mut item.source {
            *layer = number(*layer).unwrap_or_default();
        }
    }
    base.and_then(number)
}

/// The new tar's entries: each byte of the tar is in one header, content or padding.
fn items<N: Read + Seek>(new: &mut N, end: u64) -> io::Result<Vec<NewItem>> {
    let mut found = Vec::new();
    let mut entries = Entries::new(&mut *new);
    // What follows something that is no tar is carried as it is.
    while let Ok(Some(entry)) = entries.next() {
        if entry.offset.checked_add(entry.size).is_none_or(|last| last > end) {
            break;
        }
        found.push(entry);
    }
    let mut items = Vec::new();
    let mut at = 0;
    for entry in found {
        let mut item = NewItem {
            header: load(new, at..entry.offset)?,
            path: layers::normal(&entry.path).unwrap_or_default(),
            begin: entry.offset,
            content: entry.size,
            ..NewItem::default()
        };
        let last = entry.offset + entry.size;
        let padded = last.next_multiple_of(512).min(end);
        if padded % 512 != 0 || load(new, last..padded)?.iter().any(|&byte| byte != 0) {
            // The padding is content, too; what is left of the tar is its tail.
            item.content = (padded - entry.offset) / 512 * 512;
        }
        if entry.begin == at && item.content == entry.size {
            item.find_style(&entry);
        }
        at = item.begin + item.content.next_multiple_of(512);
        items.push(item);
    }
    if at < end {
        let whole = if end - at > SHORT_TAIL {
            (end - at) / 512 * 512
        } else {
            0
        };
        items.push(NewItem {
            header: load(new, at..end - whole)?,
            begin: end - whole,
            content: whole,
            ..NewItem::default()
        });
    }
    Ok(items)
}

/// When each path was changed, as the table's reader finds it: the first of several entries decides.
fn times(items: &[NewItem]) -> BTreeMap<Vec<u8>, Option<u64>> {
    let mut times = BTreeMap::new();
    for table in items.chunks(TABLE_ITEMS) {
        for item in table.iter().filter(|item| item.path.ends_with(b".py")) {
            times.entry(item.path.clone()).or_insert(item.mtime());
        }
    }
    times
}

fn source_time(times: &BTreeMap<Vec<u8>, Option<u64>>, path: &[u8]) -> Option<u32> {
    let time = (*times.get(&python_source(path)?)?)?;
    Some(time as u32)
}

fn set_time(bytes: &mut [u8], time: Option<u32>) {
    if let Some(time) = time.filter(|_| has_time(bytes)) {
        with_time(0, bytes, time);
    }
}

/// What the workers read, one at a time.
struct Inputs<'a, N, R> {
    new: &'a mut N,
    layers: &'a mut Vec<R>,
    nodes: &'a [Layer],
    used: &'a [usize],
    times: &'a BTreeMap<Vec<u8>, Option<u64>>,
}

impl<N: Read + Seek, R: Read + Seek> Inputs<'_, N, R> {
    fn place(&self, item: &NewItem) -> Option<(usize, std::ops::Range<u64>)> {
        let Source::Old { layer, path, .. } = &item.source else {
            return None;
        };
        let layer = *self.used.get(*layer)?;
        Some((layer, self.nodes[layer].nodes.get(path)?.place.clone()))
    }

    fn old_size(&self, item: &NewItem) -> u64 {
        self.place(item).map_or(0, |(_, place)| place.end - place.start)
    }

    fn load(&mut self, item: &NewItem) -> Result<(Vec<u8>, Vec<u8>), EncodeError> {
        let new = load(self.new, item.begin..item.begin + item.content).map_err(EncodeError::New)?;
        let Some((layer, place)) = self.place(item) else {
            return Ok((Vec::new(), new));
        };
        let mut old = load(&mut self.layers[layer], place).map_err(EncodeError::Old)?;
        set_time(&mut old, source_time(self.times, &item.path));
        Ok((old, new))
    }
}

/// The old layers' tars as their extracted files.
struct Tars<'a, R> {
    tars: &'a mut Vec<R>,
    layers: &'a [Layer],
    used: &'a [usize],
}

impl<R: Read + Seek> Layers for Tars<'_, R> {
    type Error = io::Error;
    type File = Std<Cursor<Vec<u8>>>;

    fn open(&mut self, layer: usize, path: &[u8]) -> io::Result<Self::File> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let layer = *self.used.get(layer).ok_or_else(missing)?;
        let node = self.layers[layer].nodes.get(path).ok_or_else(missing)?;
        load(&mut self.tars[layer], node.place.clone()).map(|bytes| Std(Cursor::new(bytes)))
    }

    fn list(&mut self, layer: usize, listing: &mut Listing<'_>) -> io::Result<()> {
        let layer = *self.used.get(layer).ok_or(io::ErrorKind::NotFound)?;
        self.layers[layer].list(listing);
        Ok(())
    }
}

//! The forecast: what a pull would fetch and need, before anything but the image's documents moves; and the refusal of a pull that
//! cannot fit.
//!
//! Manifests do not say how long a layer is once unpacked, so there are two figures for disk. *At least* takes a compressed
//! layer to unpack to no less than its blob: a pull is refused by this figure alone. *Likely* takes [`GROWTH`] for a compressed one. The rate is
//! that of the last pulls from the same registry (`STATE/rates.json`).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Error, How, Progress, Pull, PullOptions};
use crate::delta::Candidate;
use crate::digest::Digest;
use crate::manifest::{DOCKER_LAYER, DOCKER_LAYER_ZSTD, Descriptor, OCI_LAYER, OCI_LAYER_ZSTD};
use crate::reference::Reference;
use crate::registry::Client;
use crate::store::{self, Image, Store, durable};

/// How much longer a compressed layer usually is once unpacked: Debian's slim base image is 28 MB and then 75 MB.
const GROWTH: f64 = 2.7;
/// What a pull has in memory besides a layer's zstd window: both processes, shared pages once.
const MEMORY: u64 = 12_000_000;
/// The window that zstd layers are usually written with, at its highest usual level.
const ZSTD_WINDOW: u64 = 8 << 20;
/// A pull that moved less says nothing about the link.
const MIN_SAMPLE: u64 = 256 * 1024;
/// Registries whose rates are remembered.
const MAX_RATES: usize = 64;
/// The file fits easily.
const MAX_RATES_LEN: u64 = 64 * 1024;
/// How much the newest pull counts.
const NEWEST: f64 = 0.5;
const RATES: &str = "rates.json";

/// What a pull would take.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The image's manifest.
    pub digest: Digest,
    /// The layers, lowest first.
    pub layers: Vec<PlannedLayer>,
    /// Bytes of layers and deltas to fetch: what partials have already is not counted.
    pub fetch: u64,
    /// Bytes of disk at the peak, at least.
    pub disk_least: u64,
    /// Bytes of disk at the peak, likely.
    pub disk_likely: u64,
    /// Bytes of disk that are free for this user.
    pub disk_free: u64,
    /// Bytes of memory at the peak.
    pub memory: u64,
    /// Bytes in a second, as the last pulls from this registry had them.
    pub rate: Option<u64>,
}

/// What a pull would do about one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedLayer {
    /// The blob that the manifest names.
    pub digest: Digest,
    /// Its size.
    pub size: u64,
    /// How it would come.
    pub how: How,
    /// Bytes still to fetch for it.
    pub fetch: u64,
}

impl Plan {
    /// How long the bytes take at the measured rate.
    pub fn time(&self) -> Option<Duration> {
        let rate = self.rate.filter(|rate| *rate > 0)?;
        Some(Duration::from_secs_f64(self.fetch as f64 / rate as f64))
    }

    /// Whether it can fit at all.
    pub fn fits(&self) -> bool {
        self.disk_least <= self.disk_free
    }
}

/// Says what [`pull`](super::pull) of `reference` would take. The image's documents are fetched and kept, nothing else.
pub fn plan(
    store: &Store,
    client: &Client,
    reference: &Reference,
    options: &PullOptions,
) -> Result<Plan, Error> {
    let mut nobody = |_: &Progress<'_>| {};
    let mut pull = Pull {
        store,
        client,
        reference,
        options,
        progress: &mut nobody,
        needed: 0,
        full: 0,
        moved: Moved::default(),
    };
    let image = pull.documents()?;
    let (candidate, _) = pull.candidate(&image)?;
    pull.forecast(&image, candidate.as_ref())
}

impl Pull<'_> {
    /// Refuses a pull that cannot fit, with its numbers.
    pub(super) fn check_room(&self, image: &Image, candidate: Option<&Candidate>) -> Result<(), Error> {
        let plan = self.forecast(image, candidate)?;
        if plan.fits() {
            return Ok(());
        }
        Err(Error::NoRoom {
            image: self.reference.familiar(),
            plan: Box::new(plan),
        })
    }

    fn forecast(&self, image: &Image, candidate: Option<&Candidate>) -> Result<Plan, Error> {
        let mut layers = Vec::new();
        // What is there once the layers so far are done, and the most that was there on the way.
        let (mut done, mut peak) = ([0u64; 2], [0u64; 2]);
        let (mut fetch, mut memory) = (0u64, MEMORY);
        for (layer, diff_id) in image.manifest.layers.iter().zip(&image.diff_ids) {
            let unpacked = self.store.has_layer(diff_id);
            let kept = self.store.has_blob(&layer.digest);
            let blob_wanted = self.options.keep_blobs && !kept;
            if unpacked && !blob_wanted {
                layers.push(planned(layer, How::Present, 0));
                continue;
            }
            let patch = candidate.and_then(|c| c.layer(&layer.digest));
            let patch = patch.filter(|p| !blob_wanted && p.blob.size < layer.size);
            let (how, blob) = patch.map_or((How::Full, layer), |p| (How::Delta, &p.blob));
            let here = if kept {
                blob.size
            } else {
                self.partial_length(blob)
            };
            let left = blob.size.saturating_sub(here);
            layers.push(planned(layer, how, left));
            fetch = fetch.saturating_add(left);
            if matches!(layer.media_type.as_str(), OCI_LAYER_ZSTD | DOCKER_LAYER_ZSTD) {
                memory = memory.max(MEMORY + ZSTD_WINDOW);
            }
            let tree = if unpacked {
                [0; 2]
            } else {
                [least(layer), likely(layer)]
            };
            for ((done, peak), tree) in done.iter_mut().zip(&mut peak).zip(tree) {
                *peak = (*peak).max(done.saturating_add(left).saturating_add(tree));
                // A board drops the blob, with the disk it took before.
                let stays = if blob_wanted { left } else { 0 };
                let freed = if self.options.keep_blobs || kept { 0 } else { here };
                *done = done
                    .saturating_add(tree)
                    .saturating_add(stays)
                    .saturating_sub(freed);
            }
        }
        Ok(Plan {
            digest: image.digest,
            layers,
            fetch,
            disk_least: peak[0],
            disk_likely: peak[1],
            disk_free: free(self.store)?,
            memory,
            rate: rate(self.store, self.reference.registry()),
        })
    }

    /// How much of a blob an earlier pull left. Looked at, not locked: a pull that is at it may add to it.
    fn partial_length(&self, blob: &Descriptor) -> u64 {
        let path = self.store.root().join("partial").join(blob.digest.hex());
        std::fs::metadata(path).map_or(0, |m| m.len()).min(blob.size)
    }
}

fn planned(layer: &Descriptor, how: How, fetch: u64) -> PlannedLayer {
    PlannedLayer {
        digest: layer.digest,
        size: layer.size,
        how,
        fetch,
    }
}

fn is_plain(layer: &Descriptor) -> bool {
    matches!(layer.media_type.as_str(), OCI_LAYER | DOCKER_LAYER)
}

/// A plain tar of many small files is headers by half; compressed, headers are next to nothing.
fn least(layer: &Descriptor) -> u64 {
    if is_plain(layer) {
        layer.size / 2
    } else {
        layer.size
    }
}

fn likely(layer: &Descriptor) -> u64 {
    if is_plain(layer) {
        return layer.size;
    }
    (layer.size as f64 * GROWTH) as u64
}

/// What is free for this user where the store is.
fn free(store: &Store) -> Result<u64, Error> {
    let path = store.root();
    let found = rustix::fs::statvfs(path).map_err(|e| store::Error::Io {
        action: "stat the file system of",
        path: path.to_owned(),
        source: e.into(),
    })?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Bytes that crossed the link for layers, and how long that took.
#[derive(Debug, Default)]
pub(super) struct Moved {
    bytes: u64,
    time: Duration,
}

impl Moved {
    /// Counts what `work` moves.
    pub(super) fn during<T>(&mut self, client: &Client, work: impl FnOnce() -> T) -> T {
        let (before, begun) = (client.wire().down, Instant::now());
        let result = work();
        self.bytes += client.wire().down.saturating_sub(before);
        self.time += begun.elapsed();
        result
    }

    /// Remembers the rate of a pull that is done. A finding aid: that it cannot be written is not the pull's failure.
    pub(super) fn remember(&self, store: &Store, registry: &str) {
        if self.bytes < MIN_SAMPLE || self.time.is_zero() {
            return;
        }
        let now = (self.bytes as f64 / self.time.as_secs_f64()) as u64;
        let mut rates = load(store);
        let new = match rates.registries.get(registry) {
            Some(old) => (now as f64 * NEWEST + *old as f64 * (1.0 - NEWEST)) as u64,
            None => now,
        };
        if rates.registries.len() >= MAX_RATES && !rates.registries.contains_key(registry) {
            rates.registries.pop_first();
        }
        rates.registries.insert(registry.to_owned(), new);
        let path = store.root().join(RATES);
        let written =
            store::to_json(&rates, &path).and_then(|json| durable::replace(store.root(), RATES, &json));
        if let Err(error) = written {
            tracing::debug!(%error, "the rate is not remembered");
        }
    }
}

/// `STATE/rates.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Rates {
    version: u32,
    /// Bytes in a second by registry.
    registries: BTreeMap<String, u64>,
}

/// Unreadable rates are no rates.
fn load(store: &Store) -> Rates {
    let bytes = durable::read_bounded(&store.root().join(RATES), MAX_RATES_LEN);
    let read: Option<Rates> = bytes.ok().flatten().and_then(|b| serde_json::from_slice(&b).ok());
    let empty = Rates {
        version: 1,
        ..Rates::default()
    };
    read.filter(|rates| rates.version == 1).unwrap_or(empty)
}

fn rate(store: &Store, registry: &str) -> Option<u64> {
    load(store).registries.get(registry).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_remembered_by_registry_and_unreadable_ones_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let moved = |bytes, seconds| Moved {
            bytes,
            time: Duration::from_secs(seconds),
        };
        assert_eq!(rate(&store, "a"), None);
        moved(10_000_000, 10).remember(&store, "a");
        assert_eq!((rate(&store, "a"), rate(&store, "b")), (Some(1_000_000), None));
        moved(30_000_000, 10).remember(&store, "a");
        moved(1000, 10).remember(&store, "b");
        assert_eq!((rate(&store, "a"), rate(&store, "b")), (Some(2_000_000), None));
        std::fs::write(folder.path().join(RATES), "{").unwrap();
        assert_eq!(rate(&store, "a"), None);
        moved(10_000_000, 10).remember(&store, "a");
        assert_eq!(rate(&store, "a"), Some(1_000_000));
    }

    #[test]
    fn time_and_room() {
        let plan = Plan {
            digest: Digest::of(b"x"),
            layers: Vec::new(),
            fetch: 10_000_000,
            disk_least: 100,
            disk_likely: 270,
            disk_free: 100,
            memory: MEMORY,
            rate: Some(1_000_000),
        };
        assert_eq!((plan.time(), plan.fits()), (Some(Duration::from_secs(10)), true));
        let full = Plan {
            disk_free: 99,
            rate: Some(0),
            ..plan
        };
        assert_eq!((full.time(), full.fits()), (None, false));
    }
}

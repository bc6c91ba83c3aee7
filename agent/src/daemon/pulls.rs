//! The thread that fetches images, one at a time.
//!
//! It shares nothing with the agent but two channels and a flag: a fetch over a dead link may take hours, and nothing
//! waits for it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use rustix::event::EventfdFlags;
use serde_json::{Value, json};
use wherry_images::pull::{How, PullOptions, Pulled, pull};
use wherry_images::registry::{Client, Options};
use wherry_images::store::Scope;
use wherry_images::{Class, Image, Reference, Store};

use super::Error;
use crate::causes::line;
use crate::container;

/// An image to fetch for a pod.
#[derive(Debug)]
struct Job {
    uid: String,
    reference: Reference,
    cancel: Arc<AtomicBool>,
}

/// How a fetch ended.
#[derive(Debug)]
pub(super) struct Fetch {
    /// The pod.
    pub(super) uid: String,
    /// What was fetched, or why not.
    pub(super) result: Result<Fetched, Failure>,
}

/// An image that is in the store now.
#[derive(Debug)]
pub(super) struct Fetched {
    /// Its manifest.
    pub(super) digest: String,
    /// Bytes that had to cross the link.
    pub(super) needed: u64,
    /// Bytes that did.
    pub(super) wire: u64,
    /// What it took, for the pod's record.
    pub(super) record: Value,
}

/// Why an image could not be fetched.
#[derive(Debug)]
pub(super) struct Failure {
    /// One line.
    pub(super) message: String,
    /// Whether it may help to try again unchanged.
    pub(super) class: Class,
}

/// The fetching thread, seen from the agent.
#[derive(Debug)]
pub(super) struct Puller {
    jobs: mpsc::Sender<Job>,
    outcomes: mpsc::Receiver<Fetch>,
    ready: Arc<OwnedFd>,
    cancel: Arc<AtomicBool>,
}

impl Puller {
    /// Starts the thread. It opens the store for itself.
    pub(super) fn start(root: &Path, insecure: Vec<String>) -> Result<Self, Error> {
        let ready = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::system("make an eventfd", error))?;
        let ready = Arc::new(ready);
        let (jobs, work) = mpsc::channel::<Job>();
        let (done, outcomes) = mpsc::channel();
        let store = Store::open(root)?.with_budget(crate::budget::of_environment());
        let wake = Arc::clone(&ready);
        std::thread::Builder::new()
            .name("fetch".into())
            .spawn(move || {
                for job in work {
                    let result = fetch(&store, &insecure, &job);
                    if done.send(Fetch { uid: job.uid, result }).is_err() {
                        return;
                    }
                    // Never fails: the counter is far from its limit.
                    let _ = rustix::io::write(&*wake, &1_u64.to_ne_bytes());
                }
            })
            .map_err(|error| Error::system("start a thread", error))?;
        Ok(Self {
            jobs,
            outcomes,
            ready,
            cancel: Arc::default(),
        })
    }

    /// Asks for an image; the one before has to be done.
    pub(super) fn fetch(&mut self, uid: &str, reference: Reference) {
        self.cancel = Arc::default();
        let job = Job {
            uid: uid.to_owned(),
            reference,
            cancel: Arc::clone(&self.cancel),
        };
        // The thread ends with this struct alone.
        let _ = self.jobs.send(job);
    }

    /// Makes the fetch in progress end soon; what it has is kept for the next.
    pub(super) fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    /// Readable when there is an outcome.
    pub(super) fn readiness(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// The next outcome, if there is one.
    pub(super) fn outcome(&self) -> Option<Fetch> {
        let mut counter = [0; 8];
        // Empty or not, the channel is what counts.
        let _ = rustix::io::read(&*self.ready, &mut counter);
        self.outcomes.try_recv().ok()
    }
}

fn fetch(store: &Store, insecure: &[String], job: &Job) -> Result<Fetched, Failure> {
    let options = Options {
        insecure: insecure.to_vec(),
        cancel: Some(Arc::clone(&job.cancel)),
        ..Options::default()
    };
    // A client for each fetch: its connections and certificates are not kept in memory between them.
    let client = Client::new(options);
    let began = Instant::now();
    let options = PullOptions::default();
    let attempt = || pull(store, &client, &job.reference, &options, &mut |_| {});
    let pulled = attempt().or_else(|error| match make_room(store, &error) {
        true => attempt(),
        false => Err(error),
    });
    let pulled = pulled.map_err(|error| {
        let class = error.class();
        Failure {
            message: line(&error),
            class,
        }
    })?;
    let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Fetched {
        digest: pulled.digest.to_string(),
        needed: pulled.needed,
        wire: pulled.wire,
        record: record(&pulled, milliseconds),
    })
}

/// Where the disk is too full for a pull: forgets the images that this agent pulled for pods which no longer want them (their names
/// carry the digest) and those without a name. What people named, what any container or pod uses and what a pod falls back to
/// stays. Answers whether that gave anything back, and so whether to try again.
fn make_room(store: &Store, error: &wherry_images::pull::Error) -> bool {
    use wherry_images::pull::Error as Pull;
    use wherry_images::registry::Error as Registry;
    use wherry_images::store::Error as Full;
    let full = match error {
        Pull::NoRoom { .. } => true,
        Pull::Store(error) | Pull::Registry(Registry::Store(error)) => {
            matches!(error, Full::NoSpace { .. } | Full::Room { .. })
        }
        _ => false,
    };
    if !full {
        return false;
    }
    let ours = |image: &Image| {
        image
            .reference
            .as_ref()
            .is_none_or(|name| name.digest().is_some())
    };
    match store.collect(Scope::Unused(&ours), &mut || container::in_use(store.root())) {
        Ok(done) => {
            let (bytes, layers) = (done.bytes, done.layers.len());
            tracing::info!(bytes, layers, error = line(error), "made room for a pull");
            done.bytes > 0
        }
        Err(error) => {
            tracing::warn!(error = line(&error), "no room could be made for a pull");
            false
        }
    }
}

fn record(pulled: &Pulled, milliseconds: u64) -> Value {
    let layers: Vec<Value> = pulled
        .layers
        .iter()
        .map(|layer| {
            let how = match layer.how {
                How::Present => "present",
                How::Full => "full",
                How::Delta => "delta",
            };
            json!({
                "diffId": layer.diff_id.to_string(),
                "digest": layer.digest.to_string(),
                "how": how,
                "bytes": layer.bytes,
                "reason": layer.reason,
            })
        })
        .collect();
    json!({
        "digest": pulled.digest.to_string(),
        "needed": pulled.needed,
        "wire": pulled.wire,
        "milliseconds": milliseconds,
        "layers": layers,
    })
}

//! The loop: read, plan, act, report, sleep.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use wherry_images::{Digest, Image, Reference, Store};
use wherry_sync::plan::{self, Action, Desired, FETCH, Moment, Observed, Slot, State, Step, Trouble};
use wherry_sync::status;

use super::board::{self, Board};
use super::hands::{Hands, Outcome};
use super::pulls::{Fetch, Puller};
use super::records::Records;
use super::wait::{self, Watch};
use super::{Args, Error, spec};
use crate::causes::line;
use crate::container::{self, Attach, Container, Containers, Id, Listing, Owner, Signal, Timestamp};
use crate::source::{Change, Directory, Reading, Refusal, Remembered, Source};
use crate::upstream::{PodReport, Reporter};

/// A plan and its actions follow each other at most this often before the agent looks at its sources again.
const ROUNDS: u32 = 64;
/// After an action that failed for reasons of the board (a full disk, a lock held by someone else).
const STUMBLE: wherry_sync::Backoff =
    wherry_sync::Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
/// Everything is looked at once in this time even if no event asked for it: a network file system, or an image that a
/// person brings for a pod whose pull policy is Never.
const LOOK_AGAIN: Duration = Duration::from_secs(300);

/// The agent's state. All of it is read again at a start; none of it has to survive.
pub(super) struct Agent {
    containers: Arc<Containers>,
    source: Box<dyn Source>,
    source_due: Moment,
    source_error: Option<String>,
    refused: Reading,
    remembered: Remembered,
    records: Records,
    board: Board,
    watch: Watch,
    puller: Puller,
    hands: Hands,
    fetching: Option<String>,
    troubles: BTreeMap<String, Trouble>,
    stumbles: u32,
    /// When the last container of a key ended, to tell how long a switch took.
    ended: BTreeMap<String, Moment>,
    reporter: Option<Reporter>,
    host_ip: Option<String>,
}

impl Agent {
    pub(super) fn open(args: &Args, store: Store, node: &str, runtime: &Path) -> Result<Self, Error> {
        let root = store.root().to_owned();
        let containers = Containers::open(store, runtime)?;
        containers.sweep()?;
        let (remembered, damaged) = Remembered::open(&root, node)?;
        for record in damaged {
            tracing::error!(record, "damaged record passed over");
        }
        let reporter = match &args.kubeconfig {
            Some(path) => Some(Reporter::start(path, node, &root)?),
            None => None,
        };
        Ok(Self {
            watch: Watch::new(&root.join("containers"))?,
            puller: Puller::start(&root, args.insecure_registry.clone())?,
            records: Records::open(&root)?,
            source: Box::new(Directory::new(&args.watch)),
            source_due: Moment::ZERO,
            source_error: None,
            refused: Reading::new(),
            remembered,
            containers: Arc::new(containers),
            hands: Hands::new()?,
            board: Board::default(),
            fetching: None,
            troubles: BTreeMap::new(),
            stumbles: 0,
            ended: BTreeMap::new(),
            reporter,
            host_ip: crate::upstream::host_address(),
        })
    }

    pub(super) fn run(&mut self) -> Result<ExitCode, Error> {
        loop {
            self.read_source();
            while let Some(outcome) = self.puller.outcome() {
                self.fetched(outcome);
            }
            while let Some(outcome) = self.hands.outcome() {
                if let Err(error) = self.conclude(outcome) {
                    tracing::error!(error = line(&error), "action failed");
                }
            }
            let wake = self.settle();
            let now = board::now();
            let due = wake.min(self.source_due).max(now) - now;
            let others = self
                .source
                .readiness()
                .into_iter()
                .chain([self.puller.readiness(), self.hands.readiness()]);
            wait::wait(&self.watch, others.chain(self.board.monitors()), Some(due))?;
        }
    }

    /// Asks the source and takes over what it says. Asking when nothing changed costs a directory listing.
    fn read_source(&mut self) {
        let now = board::now();
        let (reading, again) = match self.source.read() {
            Ok(answer) => answer,
            Err(error) => {
                let text = line(&error);
                if self.source_error.as_ref() != Some(&text) {
                    tracing::error!(
                        error = text,
                        "desired state cannot be read; the last one stays in force"
                    );
                    self.source_error = Some(text);
                }
                self.source_due = now.saturating_add(Duration::from_secs(10));
                return;
            }
        };
        self.source_due = now.saturating_add(again);
        if self.source_error.take().is_some() {
            tracing::info!("desired state can be read again");
        }
        let refused: Reading = reading
            .iter()
            .filter(|(_, content)| content.is_err())
            .map(clone)
            .collect();
        for (origin, content) in &refused {
            if self.refused.get(origin) != Some(content)
                && let Err(refusal) = content
                && *refusal != Refusal::Unsettled
            {
                tracing::error!(origin, error = %refusal, "refused; its last good pods stay in force");
            }
        }
        self.refused = refused;
        match self.remembered.adopt(&reading) {
            Ok(changes) => changes.iter().for_each(log_change),
            Err(error) => {
                tracing::error!(error = line(&error), "desired state cannot be recorded");
                self.source_due = now.saturating_add(Duration::from_secs(10));
            }
        }
        if let Some(uid) = &self.fetching
            && self.remembered.pod(uid).is_none()
        {
            self.puller.cancel();
        }
    }

    fn fetched(&mut self, outcome: Fetch) {
        self.fetching = None;
        let Some(pod) = self.remembered.pod(&outcome.uid).cloned() else {
            return;
        };
        let key = pod.pod.key();
        let fetched = match outcome.result {
            Ok(fetched) => fetched,
            Err(failure) => {
                tracing::warn!(pod = key, error = failure.message, class = ?failure.class, "image not fetched");
                self.trouble(&pod, Step::Fetch, failure.message);
                return;
            }
        };
        let (needed, wire) = (fetched.needed, fetched.wire);
        tracing::info!(
            pod = key,
            uid = pod.uid,
            digest = fetched.digest,
            needed,
            wire,
            "pulled"
        );
        self.troubles.remove(&pod.uid);
        if let Err(error) = self.remembered.pin(&pod.uid, &fetched.digest) {
            self.trouble(&pod, Step::Fetch, line(&error));
            return;
        }
        if let Err(error) = self.records.set_pull(&pod, fetched.record) {
            tracing::error!(pod = key, error = line(&error), "record not written");
        }
    }

    /// Plans and acts until nothing is left to do now. Answers when to look again.
    fn settle(&mut self) -> Moment {
        for _ in 0..ROUNDS {
            let now = board::now();
            let listing = match self.containers.list() {
                Ok(listing) => listing,
                Err(error) => {
                    tracing::error!(error = line(&error), "containers cannot be listed");
                    return self.stumble(now);
                }
            };
            let slots = self.remembered.slots();
            let observed = self.observe(&listing, &slots, now);
            let ids = observed.containers.iter().map(|container| container.id.clone());
            if self.watch.set(ids) {
                continue;
            }
            self.note_ends(&observed, now);
            let plan = plan::plan(&slots, &observed, now);
            let (mut done, mut failed) = (0, 0);
            for action in &plan.actions {
                match self.act(action, &listing, now) {
                    Ok(true) => done += 1,
                    // It goes on by itself, and its outcome wakes.
                    Ok(false) => {}
                    Err(error) => {
                        failed += 1;
                        tracing::error!(action = ?action, error = line(&error), "action failed");
                    }
                }
            }
            if done > 0 {
                self.stumbles = 0;
                continue;
            }
            self.report(&slots, &observed, now);
            if failed > 0 {
                return self.stumble(now);
            }
            let later = now.saturating_add(LOOK_AGAIN);
            return plan.wake.map_or(later, |wake| wake.min(later));
        }
        tracing::warn!(rounds = ROUNDS, "still not settled");
        board::now().saturating_add(Duration::from_secs(1))
    }

    fn stumble(&mut self, now: Moment) -> Moment {
        self.stumbles = self.stumbles.saturating_add(1);
        now.saturating_add(STUMBLE.delay(self.stumbles))
    }

    fn observe(&mut self, listing: &Listing, slots: &[Slot], now: Moment) -> Observed {
        let containers = self.board.observe(&listing.containers, now);
        let desired = slots
            .iter()
            .flat_map(|slot| std::iter::once(&slot.desired).chain(&slot.previous));
        let mut images = BTreeMap::new();
        for pod in desired {
            let lives = |container: &plan::Container| container.uid == pod.uid && container.state.lives();
            // Nobody asks for the image of what runs.
            if !containers.iter().any(lives) {
                let container = pod
                    .pod
                    .spec
                    .containers
                    .first()
                    .map(|container| container.image.as_str());
                let name = pod.digest.as_deref().or(container).unwrap_or_default();
                if let Some(image) = self.image(name) {
                    images.insert(name.to_owned(), image.digest.to_string());
                }
            }
        }
        let known = |uid: &String| slots.iter().any(|slot| is_of(slot, uid));
        self.troubles.retain(|uid, _| known(uid));
        Observed {
            containers,
            images,
            fetching: self.fetching.clone(),
            troubles: self.troubles.clone(),
            finished: self.records.finished(),
        }
    }

    /// The image of that name or digest, if the store has all of it.
    fn image(&self, name: &str) -> Option<Image> {
        let store = self.containers.store();
        let name = match name.parse::<Digest>() {
            Ok(digest) => digest.to_string(),
            // In full, so that it is not taken for the beginning of a digest.
            Err(_) => Reference::parse(name).ok()?.to_string(),
        };
        let image = store.resolve(&name).ok()?;
        store.missing_layers(&image).is_empty().then_some(image)
    }

    fn note_ends(&mut self, observed: &Observed, now: Moment) {
        let lives = |key: &str| {
            observed
                .containers
                .iter()
                .any(|other| other.key == key && other.state.lives())
        };
        for container in &observed.containers {
            if let State::Exited { at, .. } = container.state
                && !lives(&container.key)
            {
                let ended = self.ended.entry(container.key.clone()).or_insert(at);
                *ended = (*ended).max(at).min(now);
            }
        }
    }

    /// Whether it was done; else a change of its container is under way.
    fn act(&mut self, action: &Action, listing: &Listing, now: Moment) -> Result<bool, container::Error> {
        match action {
            Action::Pin { uid, digest } => self.remembered.pin(uid, digest).map_err(record_error)?,
            Action::Forget { key } => self.remembered.forget_previous(key).map_err(record_error)?,
            // The status that is derived from it is the record.
            Action::Finish { uid } => self.finish(uid, listing, now)?,
            Action::Fetch { uid } => self.fetch(uid),
            Action::Create {
                uid,
                digest,
                attempt,
                crashes,
            } => self.create(uid, digest, *attempt, *crashes),
            Action::Start { id } => {
                let Some((container, id)) = self.idle(listing, id) else {
                    return Ok(false);
                };
                let (pod, container) = (pod_of(container), container.clone());
                return self.change(id, Some(pod.clone()), move |containers| {
                    containers.start(&id, Attach::None)?;
                    for lost in containers.lost_limits(&container).unwrap_or_default() {
                        tracing::warn!(container = id.short(), pod, "{lost}");
                    }
                    Ok(())
                });
            }
            Action::Terminate { id } => {
                let Some((container, id)) = self.idle(listing, id) else {
                    return Ok(false);
                };
                let grace = Duration::from_secs(container.spec.stop_grace.into());
                self.board.terminating(&id.hex(), grace, now);
                tracing::info!(container = id.short(), pod = pod_of(container), "stopping");
                let signal = container.spec.stop_signal;
                return self.change(id, None, move |containers| containers.kill(&id, signal));
            }
            Action::Kill { id } => {
                let Some((container, id)) = self.idle(listing, id) else {
                    return Ok(false);
                };
                self.board.killed(&id.hex(), now);
                tracing::warn!(
                    container = id.short(),
                    pod = pod_of(container),
                    "killing: its grace is over"
                );
                return self.change(id, None, move |containers| containers.kill(&id, Signal::KILL));
            }
            Action::Remove { id } => {
                let Some((container, id)) = self.idle(listing, id) else {
                    return Ok(false);
                };
                tracing::info!(container = id.short(), pod = pod_of(container), "removing");
                return self.change(id, None, move |containers| containers.remove(&id, false));
            }
        }
        Ok(true)
    }

    fn finish(&mut self, uid: &str, listing: &Listing, now: Moment) -> Result<(), container::Error> {
        let Some(pod) = self.remembered.pod(uid).cloned() else {
            return Ok(());
        };
        let slots = self.remembered.slots();
        let observed = self.observe(listing, &slots, now);
        let wall = board::seconds(Timestamp::now());
        let status = status::pod(
            &pod,
            &observed,
            now,
            &wall,
            self.host_ip.as_deref(),
            self.records.status(uid),
        );
        tracing::info!(
            pod = pod.pod.key(),
            phase = status["phase"].as_str(),
            "ended for good"
        );
        self.records.set_status(&pod, status).map(|_| ())
    }

    fn fetch(&mut self, uid: &str) {
        let Some(pod) = self.remembered.pod(uid).cloned() else {
            return;
        };
        let name = pod
            .pod
            .spec
            .containers
            .first()
            .map_or("", |container| container.image.as_str());
        let reference = match Reference::parse(name) {
            Ok(reference) => reference,
            Err(error) => {
                tracing::error!(pod = pod.pod.key(), error = %error, "image name refused");
                let message = error.to_string();
                self.troubles.insert(
                    uid.to_owned(),
                    Trouble {
                        step: Step::Name,
                        failures: 1,
                        retry_at: None,
                        message,
                    },
                );
                return;
            }
        };
        let reference = match pod
            .digest
            .as_ref()
            .and_then(|digest| digest.parse::<Digest>().ok())
        {
            Some(digest) => reference.with_digest(digest),
            None => reference,
        };
        tracing::info!(pod = pod.pod.key(), image = %reference, "pulling");
        self.puller.fetch(uid, reference);
        self.fetching = Some(uid.to_owned());
    }

    fn create(&mut self, uid: &str, digest: &str, attempt: u32, crashes: u32) {
        let Some(pod) = self.remembered.pod(uid).cloned() else {
            return;
        };
        let made = match self.image(digest) {
            None => Err(format!("image {digest} is not in the store any more")),
            Some(image) => spec::spec(&pod, &image, attempt, crashes, &self.records.volumes(uid))
                .map_err(|error| line(&error))
                .and_then(|spec| self.containers.create(&spec).map_err(|error| line(&error))),
        };
        match made {
            Ok(container) => {
                self.troubles.remove(uid);
                tracing::info!(
                    pod = pod.pod.key(),
                    uid,
                    container = container.id.short(),
                    attempt,
                    "created"
                );
            }
            Err(message) => {
                tracing::error!(pod = pod.pod.key(), uid, error = message, "container not created");
                self.trouble(&pod, Step::Create, message);
            }
        }
    }

    /// The container of that id, unless a change of it is under way.
    fn idle<'a>(&self, listing: &'a Listing, id: &str) -> Option<(&'a Container, Id)> {
        find(listing, id).filter(|(_, id)| !self.hands.is_busy(*id))
    }

    /// Changes a container by `change`. Whether anything came to an end.
    fn change(
        &mut self,
        id: Id,
        started: Option<String>,
        change: impl FnOnce(&Containers) -> Result<(), container::Error> + Send + 'static,
    ) -> Result<bool, container::Error> {
        let containers = Arc::clone(&self.containers);
        let outcomes = self.hands.change(id, started, move || change(&containers))?;
        let any = !outcomes.is_empty();
        let results: Vec<_> = outcomes
            .into_iter()
            .map(|outcome| self.conclude(outcome))
            .collect();
        results.into_iter().collect::<Result<(), _>>().map(|()| any)
    }

    fn conclude(&mut self, outcome: Outcome) -> Result<(), container::Error> {
        match outcome.started {
            Some(key) => self.started(&key, outcome.id, outcome.result),
            None => ended_anyway(outcome.result),
        }
    }

    fn started(
        &mut self,
        key: &str,
        id: Id,
        result: Result<(), container::Error>,
    ) -> Result<(), container::Error> {
        match result {
            Ok(()) => {
                let now = board::now();
                match self.ended.remove(key) {
                    Some(ended) => {
                        let gap_ms = u64::try_from((now - ended.min(now)).as_millis()).unwrap_or(u64::MAX);
                        tracing::info!(
                            pod = key,
                            container = id.short(),
                            gap_ms,
                            "started in its predecessor's place"
                        );
                    }
                    None => tracing::info!(pod = key, container = id.short(), "started"),
                }
                Ok(())
            }
            // Someone else was faster, or the board is in trouble: the next plan tells.
            Err(
                error @ (container::Error::Gone { .. }
                | container::Error::Busy { .. }
                | container::Error::Sibling { .. }),
            ) => ended_anyway(Err(error)),
            Err(error @ container::Error::Io { .. }) => Err(error),
            // The container itself cannot run (no such program, a taken port, a layer that is gone): that is an exit,
            // with the backoff of one.
            Err(error) => {
                let code = match &error {
                    container::Error::Runtime { code, .. } => i64::from(*code),
                    _ => 128,
                };
                tracing::error!(
                    pod = key,
                    container = id.short(),
                    error = line(&error),
                    "not started"
                );
                self.board.failed(&id.hex(), code, line(&error), board::now());
                Ok(())
            }
        }
    }

    fn trouble(&mut self, pod: &Desired, step: Step, message: String) {
        let failures = match self.troubles.get(&pod.uid) {
            Some(trouble) if trouble.step == step => trouble.failures.saturating_add(1),
            _ => 1,
        };
        let retry_at = Some(board::now().saturating_add(FETCH.jittered(failures, random())));
        self.troubles.insert(
            pod.uid.clone(),
            Trouble {
                step,
                failures,
                retry_at,
                message,
            },
        );
    }

    /// Derives a pod's status and records it.
    fn status(&mut self, pod: &Desired, observed: &Observed, now: Moment, wall: &str) -> Value {
        let before = self.records.status(&pod.uid);
        let status = status::pod(pod, observed, now, wall, self.host_ip.as_deref(), before);
        if let Err(error) = self.records.set_status(pod, status.clone()) {
            tracing::error!(pod = pod.pod.key(), error = line(&error), "record not written");
        }
        status
    }

    /// Derives every pod's status, records what changed, and hands it to the cluster's thread.
    fn report(&mut self, slots: &[Slot], observed: &Observed, now: Moment) {
        let wall = board::seconds(Timestamp::now());
        // The last one known, while there is no route.
        self.host_ip = crate::upstream::host_address().or(self.host_ip.take());
        let mut reports = Vec::new();
        for slot in slots {
            let status = self.status(&slot.desired, observed, now, &wall);
            // Until the switch, the pod that serves is the one before.
            let has_container = observed
                .containers
                .iter()
                .any(|container| container.uid == slot.desired.uid);
            let (pod, status) = match slot.previous.as_ref().filter(|_| !has_container) {
                Some(previous) => {
                    let serving = self.status(previous, observed, now, &wall);
                    (previous, status::with_update(&serving, &status))
                }
                None => (&slot.desired, status),
            };
            reports.push(PodReport {
                uid: pod.uid.clone(),
                pod: pod.pod.clone(),
                status,
            });
        }
        let uids: BTreeSet<&str> = observed
            .containers
            .iter()
            .map(|container| container.uid.as_str())
            .collect();
        let keep = |uid: &str| uids.contains(uid) || slots.iter().any(|slot| is_of(slot, uid));
        if let Err(error) = self.records.retain(keep) {
            tracing::error!(error = line(&error), "records not removed");
        }
        self.ended
            .retain(|key, _| slots.iter().any(|slot| slot.desired.pod.key() == *key));
        if let Some(reporter) = &self.reporter {
            reporter.publish(reports);
        }
    }
}

fn is_of(slot: &Slot, uid: &str) -> bool {
    slot.desired.uid == uid || slot.previous.as_ref().is_some_and(|pod| pod.uid == uid)
}

fn clone<K: Clone, V: Clone>((key, value): (&K, &V)) -> (K, V) {
    (key.clone(), value.clone())
}

fn find<'a>(listing: &'a Listing, id: &str) -> Option<(&'a Container, Id)> {
    let id = Id::parse(id)?;
    listing
        .containers
        .iter()
        .find(|container| container.id == id)
        .map(|container| (container, id))
}

fn pod_of(container: &Container) -> String {
    match &container.spec.owner {
        Owner::Pod { namespace, name, .. } => format!("{namespace}/{name}"),
        Owner::Cli => String::new(),
    }
}

/// Someone else was faster: what was wanted has happened, or the next listing tells.
fn ended_anyway(result: Result<(), container::Error>) -> Result<(), container::Error> {
    match result {
        Err(container::Error::Gone { .. } | container::Error::NotRunning { .. }) => Ok(()),
        other => other,
    }
}

fn record_error(error: crate::source::Error) -> container::Error {
    match error {
        crate::source::Error::Record(error) => error,
        crate::source::Error::Directory { path, source } => container::Error::io("read", &path, source),
    }
}

fn log_change(change: &Change) {
    match change {
        Change::Added { key, uid } => tracing::info!(pod = key, uid, "added"),
        Change::Updated { key, uid } => tracing::info!(pod = key, uid, "changed"),
        Change::Removed { key } => tracing::info!(pod = key, "removed from the desired state"),
        Change::LeftOut { key, origin, why } => tracing::warn!(pod = key, origin, why, "left out"),
    }
}

/// Uniform enough for a jitter: the standard library seeds each hasher from the kernel's randomness.
fn random() -> u32 {
    let random = std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish();
    (random >> 32) as u32
}

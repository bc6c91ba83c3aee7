//! What to do next: a pure function of what is desired, what is observed and the time.
//!
//! A pod has a *key* (`namespace/name`) and an identity (UID, which changes with its content). Of each key at most
//! one container runs at any time. An update makes before it breaks: while the new pod's image is fetched and its
//! container made, the one before it is kept running, restarts included; only the switch itself stops it.
//!
//! ```text
//!  the desired pod's container:
//!
//!            image here?  no                            others of the key run: terminate them, then
//!   (none) ─────────────────► Fetch ──┐                        ┌────────────────────────┐
//!     │ ▲                             │ (backoff on failure)   ▼                        │
//!     │ └─────────────────────────────┘        ┌──► created ── none run: Start ──► running
//!     └── Create (backoff on failure) ─────────┤                                        │ exits
//!                                              │                                        ▼
//!                                              └── Create, attempt + 1 ◄─ due ───── exited ── policy: stays ─► terminal
//!                                                                   (0, 10 s, 20 s .. 300 s)
//!
//!  any other container of the key:
//!
//!   running ── Terminate ──► terminating ── grace over: Kill ──► (exited) ── Remove
//! ```
//!
//! What always holds: no action is taken on a container that belongs to no pod; a `Start` is given only when nothing
//! of that key runs; with nothing left to do and nobody failing, the plan is empty.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::Backoff;
use crate::pod::{Pod, PullPolicy};

/// Kubernetes' crash loop: at once after the first exit, then 10 s doubling to five minutes.
pub const CRASH: Backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));

/// A container that ran this long has not crashed in a loop.
pub const CALM: Duration = Duration::from_secs(600);

/// Kubernetes' wait between attempts to fetch an image or to make a container.
pub const FETCH: Backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));

/// A moment: the time since some fixed moment of a clock that never steps. Not the time of day.
pub type Moment = Duration;

/// A pod that shall run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The identity of this content.
    pub uid: String,
    /// What to run.
    pub pod: Pod,
    /// The digest that the image's tag stood for when the pod was changed, once it is known.
    pub digest: Option<String>,
}

/// What is desired for one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The pod that shall run.
    pub desired: Desired,
    /// The pod that ran before it, kept up until `desired` has its container.
    pub previous: Option<Desired>,
}

/// One container of a pod, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// The container's id.
    pub id: String,
    /// `namespace/name` of its pod.
    pub key: String,
    /// The UID of its pod.
    pub uid: String,
    /// 0 for the pod's first, one more for each restart.
    pub attempt: u32,
    /// How many exits in a row led to it.
    pub crashes: u32,
    /// Created, running or exited.
    pub state: State,
    /// Set once it was told to stop: when it is killed.
    pub kill_at: Option<Moment>,
    /// The digest of its image.
    pub image: String,
    /// Times and reasons for a status, opaque here.
    pub detail: Detail,
}

/// Where a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, never started.
    Created,
    /// Its process runs.
    Running,
    /// Its process has ended, but what surrounds it (its monitor, its published ports) has not: it counts as
    /// running, and there is nothing to do but wait for the news.
    Ending,
    /// Its process has ended, or could not be started.
    Exited {
        /// When.
        at: Moment,
        /// How long it had run.
        ran: Duration,
        /// The exit code; 128 + signal.
        code: i64,
    },
}

impl State {
    /// Whether another container of its pod has to wait for it.
    #[must_use]
    pub fn lives(self) -> bool {
        matches!(self, Self::Running | Self::Ending)
    }
}

/// What a status shows of a container and no decision needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// RFC 3339.
    pub started_at: Option<String>,
    /// RFC 3339.
    pub finished_at: Option<String>,
    /// The signal that ended it.
    pub signal: Option<i64>,
    /// Ended for want of memory.
    pub oom_killed: bool,
    /// Why it could not be started, or was lost.
    pub error: Option<String>,
}

/// Why a pod is waiting, after a step for it has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What failed.
    pub step: Step,
    /// How often in a row.
    pub failures: u32,
    /// Not before this moment again; never, if there is none.
    pub retry_at: Option<Moment>,
    /// One line for people.
    pub message: String,
}

/// A step that can fail without anything having run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reading the image's name.
    Name,
    /// Fetching the image.
    Fetch,
    /// Making the container.
    Create,
}

/// Everything that is known about the board.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Every container that belongs to a pod.
    pub containers: Vec<Container>,
    /// Images in the store, by each name and digest that the desired pods use, to their digests.
    pub images: BTreeMap<String, String>,
    /// The UID of the pod whose image is being fetched: one at a time, so that layers do not starve each other.
    pub fetching: Option<String>,
    /// Pods that are waiting after a failure, by UID.
    pub troubles: BTreeMap<String, Trouble>,
    /// UIDs of pods that have ended for good.
    pub finished: BTreeSet<String>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Remember that this pod's image is `digest`, which the store has.
    Pin {
        /// The pod.
        uid: String,
        /// The image.
        digest: String,
    },
    /// Fetch the image of this pod: its digest where one is known, else what its name stands for now.
    Fetch {
        /// The pod.
        uid: String,
    },
    /// Make a container for this pod from `digest`.
    Create {
        /// The pod.
        uid: String,
        /// The image.
        digest: String,
        /// 0 for the first.
        attempt: u32,
        /// Exits in a row so far.
        crashes: u32,
    },
    /// Start a created container.
    Start {
        /// The container.
        id: String,
    },
    /// Send its stop signal and remember when its grace is over.
    Terminate {
        /// The container.
        id: String,
    },
    /// Send SIGKILL.
    Kill {
        /// The container.
        id: String,
    },
    /// Delete a container that does not run.
    Remove {
        /// The container.
        id: String,
    },
    /// The pod that ran before is no longer needed: forget it.
    Forget {
        /// The key of the slot.
        key: String,
    },
    /// This pod has ended for good: remember that, so that it is never run again.
    Finish {
        /// The pod.
        uid: String,
    },
}

/// What to do now, and when to ask again if nothing happens before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order; each may be done once.
    pub actions: Vec<Action>,
    /// The next moment at which time alone changes the answer.
    pub wake: Option<Moment>,
}

impl Plan {
    fn wake_at(&mut self, moment: Moment) {
        self.wake = Some(self.wake.map_or(moment, |wake| wake.min(moment)));
    }
}

/// Decides. Slots have distinct keys.
#[must_use]
pub fn plan(desired: &[Slot], observed: &Observed, now: Moment) -> Plan {
    let mut plan = Plan::default();
    let mut fetch: Option<Action> = None;
    let mut keys = BTreeSet::new();
    for slot in desired {
        let key = slot.desired.pod.key();
        let of_key: Vec<&Container> = observed
            .containers
            .iter()
            .filter(|container| container.key == key)
            .collect();
        Keeper {
            observed,
            now,
            of_key,
            plan: &mut plan,
            fetch: &mut fetch,
        }
        .slot(slot, &key);
        keys.insert(key);
    }
    for container in observed
        .containers
        .iter()
        .filter(|container| !keys.contains(&container.key))
    {
        end(container, now, &mut plan);
    }
    if observed.fetching.is_none() {
        plan.actions.extend(fetch);
    }
    plan
}

/// The delay before a container that exited after running for `ran` is replaced, and the crashes counted then.
#[must_use]
pub fn crash_delay(crashes: u32, ran: Duration) -> (Duration, u32) {
    let crashes = if ran >= CALM { 0 } else { crashes };
    (CRASH.delay(crashes), crashes.saturating_add(1))
}

/// Brings a container to its end, step by step, and removes it.
fn end(container: &Container, now: Moment, plan: &mut Plan) {
    let id = container.id.clone();
    match container.state {
        State::Running => {}
        State::Ending => return,
        State::Created | State::Exited { .. } => {
            plan.actions.push(Action::Remove { id });
            return;
        }
    }
    match container.kill_at {
        None => plan.actions.push(Action::Terminate { id }),
        Some(at) if at <= now => plan.actions.push(Action::Kill { id }),
        Some(at) => plan.wake_at(at),
    }
}

struct Keeper<'a> {
    observed: &'a Observed,
    now: Moment,
    of_key: Vec<&'a Container>,
    plan: &'a mut Plan,
    fetch: &'a mut Option<Action>,
}

impl<'a> Keeper<'a> {
    fn slot(&mut self, slot: &Slot, key: &str) {
        let own = self.newest(&slot.desired.uid);
        let finished = self.observed.finished.contains(&slot.desired.uid);
        if own.is_none() && !finished {
            // The new pod is being prepared: whatever ran before stays up.
            self.prepare(&slot.desired, 0, 0);
            match &slot.previous {
                Some(previous) if previous.uid != slot.desired.uid => self.keep(previous),
                // Nothing is known of it any more but that it runs: leave it.
                _ => {}
            }
            return;
        }
        if slot.previous.is_some() && (finished || own.is_some_and(|own| own.state != State::Created)) {
            self.plan.actions.push(Action::Forget { key: key.to_owned() });
        }
        self.keep(&slot.desired);
    }

    /// The newest container of the pod `uid`.
    fn newest(&self, uid: &str) -> Option<&'a Container> {
        self.of_key
            .iter()
            .filter(|container| container.uid == uid)
            .max_by_key(|container| container.attempt)
            .copied()
    }

    /// Keeps `pod` up, and nothing else of its key. What serves comes first, what tidies up last.
    fn keep(&mut self, pod: &Desired) {
        let newest = self.newest(&pod.uid);
        let finished = self.observed.finished.contains(&pod.uid);
        match newest.map(|newest| (newest, newest.state)) {
            None if !finished => self.prepare(pod, 0, 0),
            Some((newest, State::Created)) => {
                if !self.of_key.iter().any(|container| container.state.lives()) {
                    self.plan.actions.push(Action::Start {
                        id: newest.id.clone(),
                    });
                }
            }
            Some((newest, State::Exited { at, ran, code })) if !finished => {
                let (delay, crashes) = crash_delay(newest.crashes, ran);
                let due = at.saturating_add(delay);
                if !pod.pod.spec.restart_policy.restarts(code) {
                    self.plan.actions.push(Action::Finish { uid: pod.uid.clone() });
                } else if due > self.now {
                    self.plan.wake_at(due);
                } else {
                    self.prepare(pod, newest.attempt.saturating_add(1), crashes);
                }
            }
            None | Some((_, State::Running | State::Ending | State::Exited { .. })) => {}
        }
        self.clear(pod, newest);
    }

    /// Ends and removes what is not `newest`. The pod's last dead container stays, for its logs and its `lastState`.
    fn clear(&mut self, pod: &Desired, newest: Option<&Container>) {
        let spare = self
            .of_key
            .iter()
            .filter(|container| {
                container.uid == pod.uid && Some(container.id.as_str()) != newest.map(|own| own.id.as_str())
            })
            .filter(|container| matches!(container.state, State::Exited { .. }))
            .max_by_key(|container| container.attempt)
            .map(|container| container.id.clone());
        for container in &self.of_key {
            let keep =
                newest.is_some_and(|own| own.id == container.id) || Some(&container.id) == spare.as_ref();
            if keep {
                continue;
            }
            end(container, self.now, self.plan);
        }
    }

    /// Brings `pod` one step nearer to having its container number `attempt`.
    fn prepare(&mut self, pod: &Desired, attempt: u32, crashes: u32) {
        let trouble = self.observed.troubles.get(&pod.uid);
        if let Some(trouble) = trouble {
            match trouble.retry_at {
                None => return,
                Some(at) if at > self.now => {
                    self.plan.wake_at(at);
                    return;
                }
                Some(_) => {}
            }
        }
        let Some(container) = pod.pod.spec.containers.first() else {
            return;
        };
        let uid = pod.uid.clone();
        if let Some(pinned) = &pod.digest {
            match self.observed.images.get(pinned) {
                Some(digest) => {
                    let digest = digest.clone();
                    self.plan.actions.push(Action::Create {
                        uid,
                        digest,
                        attempt,
                        crashes,
                    });
                }
                None if container.image_pull_policy == PullPolicy::Never => {}
                // Its image has been removed since: the same digest again, never what the tag stands for now.
                None => self.want(uid),
            }
            return;
        }
        match (
            container.image_pull_policy,
            self.observed.images.get(&container.image),
        ) {
            (PullPolicy::IfNotPresent | PullPolicy::Never, Some(digest)) => {
                let digest = digest.clone();
                self.plan.actions.push(Action::Pin { uid, digest });
            }
            // Only a person can bring it: the status says ErrImageNeverPull until then.
            (PullPolicy::Never, None) => {}
            _ => self.want(uid),
        }
    }

    /// Asks for a fetch. The first pod that asks is served; the next plan serves the next one.
    fn want(&mut self, uid: String) {
        self.fetch.get_or_insert(Action::Fetch { uid });
    }
}

#[cfg(test)]
mod tests;

//! What the containers do now, in the terms of [`wherry_sync::plan`].
//!
//! Times of day become moments of a clock that never steps: a board may boot in 1970 and learn the date later, and no
//! backoff may be cut short or drawn out by that.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags};
use rustix::time::ClockId;
use wherry_sync::plan::{self, Detail, Moment, State};

use crate::container::{Container, Owner, Status, Timestamp};

/// On a container of the agent: which try of its pod it is.
pub(super) const ATTEMPT: &str = "dev.wherry.attempt";
/// On a container of the agent: how many exits in a row led to it.
pub(super) const CRASHES: &str = "dev.wherry.crashes";

/// How long a container is given to end after SIGKILL before it is killed again.
const KILL_AGAIN: Duration = Duration::from_secs(5);

/// Now, by the clock that counts sleep and never steps.
pub(super) fn now() -> Moment {
    let time = rustix::time::clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// A start that failed before there was a process.
#[derive(Debug, Clone)]
struct Failed {
    at: Moment,
    wall: Timestamp,
    code: i64,
    message: String,
}

/// What is known of the containers beyond their records.
#[derive(Debug, Default)]
pub(super) struct Board {
    /// When each exit was first seen.
    ended: BTreeMap<String, Moment>,
    /// When each container that was told to stop is killed.
    kill_at: BTreeMap<String, Moment>,
    failed: BTreeMap<String, Failed>,
    /// The monitors of what runs, so that the agent wakes when one ends.
    monitors: BTreeMap<String, OwnedFd>,
}

impl Board {
    /// Takes in a listing.
    pub(super) fn observe(&mut self, containers: &[Container], now: Moment) -> Vec<plan::Container> {
        let of_pods: Vec<&Container> = containers
            .iter()
            .filter(|container| matches!(container.spec.owner, Owner::Pod { .. }))
            .collect();
        let ids: Vec<String> = of_pods.iter().map(|container| container.id.hex()).collect();
        let there = |id: &String| ids.contains(id);
        self.ended.retain(|id, _| there(id));
        self.kill_at.retain(|id, _| there(id));
        self.failed.retain(|id, _| there(id));
        self.monitors.retain(|id, _| there(id));
        of_pods
            .into_iter()
            .zip(ids)
            .filter_map(|(container, id)| self.one(container, id, now))
            .collect()
    }

    fn one(&mut self, container: &Container, id: String, now: Moment) -> Option<plan::Container> {
        let Owner::Pod {
            namespace, name, uid, ..
        } = &container.spec.owner
        else {
            return None;
        };
        let observed = &container.observed;
        let mut detail = Detail {
            started_at: observed.started_at.map(seconds),
            finished_at: observed.finished_at.map(seconds),
            signal: observed.signal.map(i64::from),
            oom_killed: observed.oom_killed,
            error: observed.error.clone(),
        };
        let lives = match observed.status {
            Status::Running => true,
            Status::Created => observed.claims_life(),
            Status::Exited => supervised(container),
        };
        if lives {
            if !self.monitors.contains_key(&id)
                && let Some(monitor) = observed
                    .monitor_pid
                    .filter(|pid| *pid > 0)
                    .and_then(Pid::from_raw)
                && let Ok(fd) = rustix::process::pidfd_open(monitor, PidfdFlags::empty())
            {
                self.monitors.insert(id.clone(), fd);
            }
        } else {
            self.monitors.remove(&id);
        }
        let state = match observed.status {
            Status::Exited if lives => State::Ending,
            Status::Exited => {
                self.failed.remove(&id);
                let at = *self
                    .ended
                    .entry(id.clone())
                    .or_insert_with(|| since(observed.finished_at, now));
                State::Exited {
                    at,
                    ran: ran(container),
                    code: i64::from(observed.exit_code.unwrap_or(255)),
                }
            }
            Status::Running | Status::Created if lives => {
                self.ended.remove(&id);
                self.failed.remove(&id);
                State::Running
            }
            Status::Running | Status::Created => match self.failed.get(&id) {
                None => State::Created,
                Some(failed) => {
                    detail.finished_at = Some(seconds(failed.wall));
                    detail.error = Some(failed.message.clone());
                    State::Exited {
                        at: failed.at,
                        ran: Duration::ZERO,
                        code: failed.code,
                    }
                }
            },
        };
        if !state.lives() {
            self.kill_at.remove(&id);
        }
        let number = |label: &str| {
            container
                .spec
                .labels
                .get(label)
                .and_then(|text| text.parse().ok())
                .unwrap_or(0)
        };
        Some(plan::Container {
            key: format!("{namespace}/{name}"),
            uid: uid.clone(),
            attempt: number(ATTEMPT),
            crashes: number(CRASHES),
            state,
            kill_at: self.kill_at.get(&id).copied(),
            image: container.spec.image.to_string(),
            detail,
            id,
        })
    }

    /// The container was told to stop.
    pub(super) fn terminating(&mut self, id: &str, grace: Duration, now: Moment) {
        self.kill_at.insert(id.to_owned(), now.saturating_add(grace));
    }

    /// The container was sent SIGKILL.
    pub(super) fn killed(&mut self, id: &str, now: Moment) {
        self.kill_at.insert(id.to_owned(), now.saturating_add(KILL_AGAIN));
    }

    /// The container could not be started.
    pub(super) fn failed(&mut self, id: &str, code: i64, message: String, now: Moment) {
        self.failed.insert(
            id.to_owned(),
            Failed {
                at: now,
                wall: Timestamp::now(),
                code,
                message,
            },
        );
    }

    /// Readable when a monitor ends.
    pub(super) fn monitors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.monitors.values().map(AsFd::as_fd)
    }
}

/// Whether the monitor of a container that has exited still cleans up after it (its published ports are taken until
/// then). Its lock tells, as MONITOR.md says.
fn supervised(container: &Container) -> bool {
    let path = container.directory().join("monitor.lock");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let Ok(file) = rustix::fs::open(&path, flags, Mode::empty()) else {
        return false;
    };
    let lock = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared);
    lock == Err(rustix::io::Errno::WOULDBLOCK)
}

/// The moment of `wall`, as far as the time of day can be believed: not in the future.
fn since(wall: Option<Timestamp>, now: Moment) -> Moment {
    let Some(wall) = wall else { return now };
    let ago = (Timestamp::now().get() - wall.get()).max(time::Duration::ZERO);
    now.saturating_sub(Duration::try_from(ago).unwrap_or(Duration::ZERO))
}

fn ran(container: &Container) -> Duration {
    let observed = &container.observed;
    match (observed.started_at, observed.finished_at) {
        (Some(from), Some(to)) => Duration::try_from(to.get() - from.get()).unwrap_or(Duration::ZERO),
        _ => Duration::ZERO,
    }
}

/// RFC 3339 to the second, as Kubernetes writes times.
pub(super) fn seconds(moment: Timestamp) -> String {
    Timestamp::new(moment.get().replace_nanosecond(0).unwrap_or(moment.get())).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day_become_moments() {
        let now = Duration::from_secs(1000);
        let wall = Timestamp::now().get();
        let at =
            |offset: i64| since(Some(Timestamp::new(wall + time::Duration::seconds(offset))), now).as_secs();
        assert_eq!(since(None, now), now);
        assert!((989..=990).contains(&at(-10)), "{}", at(-10));
        assert_eq!(
            at(86_400),
            1000,
            "an exit in the future, before the clock was set, was just now"
        );
        assert_eq!(at(-86_400), 0, "an exit before the boot is long ago");
    }

    #[test]
    fn seconds_are_whole() {
        let moment = Timestamp::parse("2026-11-20T20:00:01.987654Z").unwrap();
        assert_eq!(seconds(moment), "2026-11-20T20:00:01Z");
    }
}

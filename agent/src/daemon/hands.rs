//! What changes a container, each in a thread of its own: a runtime that hangs on one container (a dead network file
//! system, a hook) must not keep the agent from the others.
//!
//! As a rule such a change takes milliseconds and the agent waits for it, so that what it plans next is founded on what
//! has happened. What takes longer than [`PATIENCE`] goes on by itself: its container is left alone until the outcome
//! is there.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustix::event::EventfdFlags;

use super::Error;
use crate::container::{self, Id};

/// How long the agent waits for one change of a container before it turns to the others.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a change of a container ended.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The container.
    pub(super) id: Id,
    /// The pod that it was started for, if it was.
    pub(super) started: Option<String>,
    /// What became of it.
    pub(super) result: Result<(), container::Error>,
}

/// The threads, seen from the agent.
#[derive(Debug)]
pub(super) struct Hands {
    busy: BTreeSet<Id>,
    patience: Duration,
    done: mpsc::Sender<Outcome>,
    outcomes: mpsc::Receiver<Outcome>,
    ready: Arc<OwnedFd>,
}

impl Hands {
    pub(super) fn new() -> Result<Self, Error> {
        let ready = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Error::system("make an eventfd", error))?;
        let (done, outcomes) = mpsc::channel();
        Ok(Self {
            busy: BTreeSet::new(),
            patience: PATIENCE,
            done,
            outcomes,
            ready: Arc::new(ready),
        })
    }

    /// Whether a change of this container is under way.
    pub(super) fn is_busy(&self, id: Id) -> bool {
        self.busy.contains(&id)
    }

    /// Begins a change of a container that is not busy and waits for it in patience. Answers what has come to its end
    /// by then, other changes included; the rest comes with [`Self::outcome`].
    pub(super) fn change(
        &mut self,
        id: Id,
        started: Option<String>,
        change: impl FnOnce() -> Result<(), container::Error> + Send + 'static,
    ) -> Result<Vec<Outcome>, container::Error> {
        let (done, ready) = (self.done.clone(), Arc::clone(&self.ready));
        std::thread::Builder::new()
            .name("change".into())
            .spawn(move || {
                let result = change();
                let outcome = Outcome { id, started, result };
                // Whoever would hear it has ended, and with it this process.
                let _ = done.send(outcome);
                // Never fails: the counter is far from its limit.
                let _ = rustix::io::write(&*ready, &1_u64.to_ne_bytes());
            })
            .map_err(|error| container::Error::io("start", Path::new("a thread"), error))?;
        self.busy.insert(id);
        let deadline = Instant::now() + self.patience;
        let mut outcomes = Vec::new();
        while self.is_busy(id) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(outcome) = self.outcomes.recv_timeout(left) else {
                tracing::warn!(
                    container = id.short(),
                    "a change of it takes long: on with the others"
                );
                break;
            };
            self.busy.remove(&outcome.id);
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// The next outcome that came after patience was over.
    pub(super) fn outcome(&mut self) -> Option<Outcome> {
        let mut counter = [0; 8];
        // Empty or not, the channel is what counts.
        let _ = rustix::io::read(&*self.ready, &mut counter);
        let outcome = self.outcomes.try_recv().ok()?;
        self.busy.remove(&outcome.id);
        Some(outcome)
    }

    /// Readable when there may be an outcome.
    pub(super) fn readiness(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_holds_up_nobody_else() {
        let mut hands = Hands {
            patience: Duration::from_millis(50),
            ..Hands::new().unwrap()
        };
        let (stuck, other) = (Id::from_bytes([1; 32]), Id::from_bytes([2; 32]));
        let (release, held) = mpsc::channel::<()>();
        let hangs = move || {
            let _ = held.recv();
            Ok(())
        };
        assert!(
            hands
                .change(stuck, Some("default/p".into()), hangs)
                .unwrap()
                .is_empty()
        );
        assert!(hands.is_busy(stuck) && hands.outcome().is_none());
        let done = hands.change(other, None, || Ok(())).unwrap();
        assert_eq!(done.iter().map(|outcome| outcome.id).collect::<Vec<_>>(), [other]);
        assert!(hands.is_busy(stuck) && !hands.is_busy(other));
        release.send(()).unwrap();
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(
            hands.ready.as_fd(),
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut fds, None).unwrap();
        // The eventfd may still tell of the other one's end; the stuck one's outcome is sent before its event.
        let outcome = loop {
            if let Some(outcome) = hands.outcome() {
                break outcome;
            }
            std::thread::yield_now();
        };
        assert_eq!(
            (outcome.id, outcome.started.as_deref()),
            (stuck, Some("default/p"))
        );
        assert!(outcome.result.is_ok() && !hands.is_busy(stuck));
    }
}

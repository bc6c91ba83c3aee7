//! What a cluster is told: this Node, its Lease, and a mirror Pod with its status for each pod of the board.
//!
//! ```text
//!   agent ── latest reports (watch channel, the older ones are dropped) ──► thread "upstream"
//!                                                                             │
//!                 cluster::Cluster: next(now) -> Request   (no I/O)  ◄────────┤
//!                 cluster::Cluster: answered(Answer)                 ─────────┤
//!                                                                             │ one request at a time
//!                                                              client::Client ─► API server
//! ```
//!
//! One current-thread runtime in one thread; async goes no further than this module. Nothing here can hold up a
//! workload: the agent only ever leaves its latest reports in a channel. What the cluster already knows is asked again
//! after a restart, so there is no outbox on disk: reports are derived from what runs.
//!
//! Not trusted: what the API server answers. Bodies are bounded, and a refusal changes what is asked next, never what
//! runs.

mod client;
mod cluster;
mod facts;
mod objects;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use wherry_sync::Pod;
use wherry_sync::plan::Moment;

pub use facts::host_address;

use client::Client;
use cluster::{Cluster, Next, Trouble};

/// How long nothing is asked after the kubeconfig could not be used.
const CONFIG_RETRY: Duration = Duration::from_secs(30);

/// A pod of this board, for the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct PodReport {
    /// Its identity on this board.
    pub uid: String,
    /// What it is.
    pub pod: Pod,
    /// Its status.
    pub status: Value,
}

/// Why nothing can be reported at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No thread or no runtime.
    #[error("cannot start reporting to the cluster")]
    Start(#[source] std::io::Error),
}

/// The reporting thread, seen from the agent.
#[derive(Debug)]
pub struct Reporter {
    /// `None` until there is a first report, which may be that there are no pods.
    latest: watch::Sender<Latest>,
}

type Latest = Option<Arc<Vec<PodReport>>>;

impl Reporter {
    /// Starts the thread. A kubeconfig that cannot be used is reported and tried again: workloads come first.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(kubeconfig: &Path, node: &str, state: &Path) -> Result<Self, Error> {
        let (latest, reports) = watch::channel(None);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(Error::Start)?;
        let (kubeconfig, node, state) = (kubeconfig.to_owned(), node.to_owned(), state.to_owned());
        std::thread::Builder::new()
            .name("upstream".into())
            .spawn(move || runtime.block_on(report(kubeconfig, node, state, reports)))
            .map_err(Error::Start)?;
        Ok(Self { latest })
    }

    /// Leaves the latest reports for the thread; those that it has not read yet are dropped.
    pub fn publish(&self, reports: Vec<PodReport>) {
        self.latest.send_if_modified(|latest| {
            let changed = latest.as_ref().is_none_or(|latest| **latest != reports);
            if changed {
                *latest = Some(Arc::new(reports));
            }
            changed
        });
    }
}

fn now() -> Moment {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Ends when the agent does.
async fn report(kubeconfig: PathBuf, node: String, state: PathBuf, mut reports: watch::Receiver<Latest>) {
    // Nothing is said before the first plan has settled: an empty list would delete every mirror pod.
    if reports.changed().await.is_err() {
        return;
    }
    let mut cluster = Cluster::new(&node);
    let mut client: Option<Client> = None;
    let mut said: Option<String> = None;
    loop {
        let latest = reports.borrow_and_update().clone().unwrap_or_default();
        let facts = facts::read(&node, &state);
        let wait = match cluster.next(&latest, &facts, objects::Wall::now(), now()) {
            Next::Wait(until) => until.saturating_sub(now()),
            Next::Send(request) => {
                let connected = match client.take() {
                    Some(client) => Ok(client),
                    None => Client::connect(&kubeconfig).await,
                };
                let connected = match connected {
                    Ok(connected) => connected,
                    Err(error) => {
                        say(
                            &mut said,
                            &Trouble {
                                what: "connect".into(),
                                why: error.to_string(),
                            },
                        );
                        if rest(&mut reports, CONFIG_RETRY, false).await {
                            continue;
                        }
                        return;
                    }
                };
                let answer = connected.send(&request).await;
                let refused = answer.as_ref().is_ok_and(|answer| answer.status == 401);
                // The credentials may have been renewed in the file.
                client = (!refused).then_some(connected);
                match cluster.answered(&request, answer, now(), random()) {
                    Some(trouble) => say(&mut said, &trouble),
                    None if said.is_some() && cluster.is_content() => {
                        said = None;
                        tracing::info!("the cluster takes our reports again");
                    }
                    None => {}
                }
                continue;
            }
        };
        if !rest(&mut reports, wait, true).await {
            return;
        }
    }
}

/// Sleeps, or wakes early for new reports. `false` when the agent has ended.
async fn rest(reports: &mut watch::Receiver<Latest>, wait: Duration, wake: bool) -> bool {
    let sleep = tokio::time::sleep(wait);
    if !wake {
        sleep.await;
        return true;
    }
    tokio::select! {
        changed = reports.changed() => changed.is_ok(),
        () = sleep => true,
    }
}

/// An error is logged when it is another than the last one: an outage of a week is two lines.
fn say(said: &mut Option<String>, trouble: &Trouble) {
    let line = format!("{}: {}", trouble.what, trouble.why);
    if said.as_ref() != Some(&line) {
        tracing::warn!(
            what = trouble.what.as_str(),
            error = trouble.why.as_str(),
            "cluster"
        );
        *said = Some(line);
    }
}

fn random() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    (std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
        >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_report_counts_even_if_it_is_empty() {
        let (latest, mut reports) = watch::channel(None);
        let reporter = Reporter { latest };
        let mut news = || {
            let news = reports.has_changed().unwrap();
            reports.borrow_and_update();
            news
        };
        assert!(!news());
        reporter.publish(Vec::new());
        assert!(news());
        reporter.publish(Vec::new());
        assert!(!news(), "the same again is no news");
    }
}

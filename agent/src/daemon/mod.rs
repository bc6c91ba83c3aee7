//! The agent: keeps a board in its desired state.
//!
//! ```text
//!   Source ─► Remembered ─► plan(desired, observed, now) ─► actions ─► containers, puller
//!      ▲                         ▲                                         │
//!      │ inotify                 └───────────── board::Board ◄─────────────┘ inotify on `observed`, monitors' pidfds
//!      │                                                                     eventfd of the puller
//!   (wait) ◄──────────── nothing left to do ──► status records, upstream
//! ```
//!
//! One thread decides; what changes a container has a thread for the time it takes, which is waited for in bounds; one
//! fetches images, one at a time; one speaks to the cluster, if there is one. So neither a dead link nor a dead API
//! server nor a runtime that hangs on one container touches the others.
//!
//! The agent is crash-only: it keeps nothing in memory that it cannot read again, so SIGTERM and SIGKILL are the same
//! to it, and workloads run on without it (their monitors are not its children). The next agent adopts them. At most
//! one agent runs on a state directory; CLI and agent may work on the same containers at any time.

mod agent;
mod board;
mod hands;
mod pulls;
mod records;
mod spec;
mod wait;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;

use crate::delegation::Delegation;

/// A service manager starts the next agent as soon as the last one has been killed, which may be a moment too early.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// keep this board in its desired state: run the pods of a directory, and report to a cluster
#[derive(Debug, Clone, PartialEq, Eq, argh::FromArgs, argh::ArgsInfo)]
#[argh(subcommand, name = "agent", example = "wherry agent --watch /etc/wherry/pods")]
pub struct Args {
    /// directory of Pod files (*.yaml, *.yml, *.json)
    #[argh(option, arg_name = "dir")]
    pub watch: PathBuf,
    /// report to the cluster of this kubeconfig
    #[argh(option, arg_name = "file")]
    pub kubeconfig: Option<PathBuf>,
    /// name of this node (default: the host name)
    #[argh(option, arg_name = "name")]
    pub node_name: Option<String>,
    /// registry (host:port) that may speak plain HTTP or show a certificate nobody knows; repeatable
    #[argh(option, arg_name = "host:port")]
    pub insecure_registry: Vec<String>,
}

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent has this state directory.
    #[error("another agent runs on {0}")]
    Taken(PathBuf),
    /// The node's name is no DNS name.
    #[error("node name {0:?} is not a DNS name; give one with --node-name")]
    NodeName(String),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] wherry_images::store::Error),
    /// The containers cannot be opened.
    #[error(transparent)]
    Container(#[from] crate::container::Error),
    /// The last good desired state cannot be read.
    #[error(transparent)]
    Source(#[from] crate::source::Error),
    /// The cluster's access cannot be set up.
    #[error(transparent)]
    Upstream(#[from] crate::upstream::Error),
    /// The runtime is not to be found.
    #[error("{0}")]
    Runtime(String),
    /// The kernel refuses something that the agent cannot do without.
    #[error("cannot {verb}")]
    System {
        /// What.
        verb: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

impl Error {
    fn system(verb: &'static str, source: impl Into<std::io::Error>) -> Self {
        Self::System {
            verb,
            source: source.into(),
        }
    }
}

/// `wherry agent` on the state directory `root`. Returns only when it cannot run.
pub fn run(args: Args, root: &Path, runtime: &Path) -> Result<ExitCode, Error> {
    start_log();
    // Opening the store makes the state directory, checks its format, and refuses a newer one.
    let store = wherry_images::Store::open(root)?;
    let _lock = lock(root)?;
    let node = match &args.node_name {
        Some(name) => name.clone(),
        None => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .to_lowercase(),
    };
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if node.len() > 253 || !node.split('.').all(label) {
        return Err(Error::NodeName(node));
    }
    // Before there is any other thread or process of ours.
    if let Some(delegation) = Delegation::find()
        && let Err(error) = delegation.make_room()
    {
        let own = delegation.own().display();
        tracing::warn!(%error, cgroup = %own, "resource limits are not enforced: cannot move beneath it");
    }
    let mut agent = agent::Agent::open(&args, store, &node, runtime)?;
    tracing::info!(node, root = %root.display(), watch = %args.watch.display(), "agent started");
    agent.run()
}

/// Events go to standard error, one line each, with their fields; `WHERRY_LOG` may be `error` .. `trace`. Only our own:
/// what a library has to say comes as the cause of an error, once.
fn start_log() {
    let level = std::env::var("WHERRY_LOG")
        .ok()
        .and_then(|level| level.parse().ok());
    let ours = filter_fn(|event| event.target().starts_with("wherry"));
    let subscriber = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .with_max_level(level.unwrap_or(tracing::Level::INFO))
        .finish()
        .with(ours);
    // A second call finds the first one's subscriber: the same.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// The agent's lock on its state directory, held until the process ends. One that is just being killed is waited for.
fn lock(root: &Path) -> Result<rustix::fd::OwnedFd, Error> {
    let path = root.join("agent.lock");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|error| Error::system("open agent.lock", error))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Taken(root.to_owned())),
            Err(error) => return Err(Error::system("lock agent.lock", error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_for_a_state_directory() {
        let root = tempfile::tempdir().unwrap();
        let first = lock(root.path()).unwrap();
        assert!(matches!(lock(root.path()), Err(Error::Taken(_))));
        drop(first);
        assert!(lock(root.path()).is_ok());
    }
}

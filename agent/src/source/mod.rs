//! Where desired state comes from, and where the last good one is kept.
//!
//! A [`Source`] says what each of its origins (a file, for a directory) holds now: Pods, or what is wrong with them.
//! [`Remembered`] is the durable copy: an origin that cannot be read keeps its last good pods, a board that boots with
//! no network or without the watched directory starts from it, and a tag's digest is kept in it.
//!
//! ```text
//!   Source::read ──► Reading ──► Remembered::adopt ──► slots for wherry_sync::plan
//!                                      │
//!                                STATE/desired/<hash of the pod's key>.json
//! ```
//!
//! Not trusted: everything that a source reads. Trusted: STATE/desired, which only this user can write; a record that
//! is damaged is set aside and reported, never guessed at.

mod directory;
mod remembered;

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use wherry_sync::{Pod, Problem};

pub use directory::Directory;
pub use remembered::{Change, Remembered};

/// What all origins of a source hold now.
pub type Reading = BTreeMap<String, Result<Vec<Pod>, Refusal>>;

/// Why an origin's pods cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It could be read, and this is wrong with it; at least one.
    #[error("{}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("; "))]
    Problems(Vec<Problem>),
    /// It holds no Pod. An empty file is what a power cut leaves behind, so it does not remove anything.
    #[error("holds no Pod; remove the file to remove its pods")]
    Empty,
    /// It changed a moment ago and may be half written. Its last good pods stay, and it is read soon.
    #[error("is being written")]
    Unsettled,
    /// It could not be read at all.
    #[error("{0}")]
    Unreadable(String),
}

/// Why a source cannot be asked. What was read before stays valid.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory is not there, or cannot be listed.
    #[error("cannot read the directory {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The last good state cannot be written or read.
    #[error(transparent)]
    Record(#[from] crate::container::Error),
}

/// A place that says which pods this board shall run.
pub trait Source {
    /// Becomes readable when [`Source::read`] may have something new to say.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;

    /// Reads what is desired now, and after which time to ask again though nothing became readable.
    ///
    /// # Errors
    /// When nothing can be said; then whatever was read before stays in force.
    fn read(&mut self) -> Result<(Reading, Duration), Error>;
}

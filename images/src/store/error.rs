//! What can go wrong in the store.

use std::io;
use std::path::{Path, PathBuf};

use crate::Class;
use crate::digest::{DiffId, Digest};

/// A failure of the store. Whatever failed, nothing half-made is visible afterwards.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system is full (or the user's quota is).
    #[error("{action} {path}: no space left on the file system")]
    NoSpace {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
    },
    /// It would not fit beside what the board needs.
    #[error(
        "image {image}: at least {} needed and {} left: {} free, {} kept in reserve{}",
        size(*.needed), size(*.room), size(*.free), size(*.reserve), quota_words(*.quota)
    )]
    Room {
        /// The image.
        image: Digest,
        /// The bytes that its missing layers take at least, at once.
        needed: u64,
        /// The bytes that may be written.
        room: u64,
        /// The bytes that the file system has free.
        free: u64,
        /// The bytes that stay free.
        reserve: u64,
        /// The store's own limit.
        quota: Option<u64>,
    },
    /// What is in use could not be found out, or not which parts it has.
    #[error("nothing was collected: {0}")]
    InUse(String),
    /// The operating system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A later version of this program wrote the directory.
    #[error(
        "{path}: state format {found} is newer than {known}, the newest that this version reads; it was left untouched"
    )]
    Newer {
        /// The state directory.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// The directory holds something else.
    #[error("{path}: not a state directory: {reason}")]
    NotState {
        /// The directory.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// No image of that name.
    #[error("no such image: {0}")]
    NoImage(String),
    /// Several images whose ID begins so.
    #[error("image ID {prefix} is ambiguous: {found}")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// What it could mean.
        found: String,
    },
    /// A blob that should be there is not.
    #[error("{what} {digest} is not in the store")]
    NoBlob {
        /// The kind of blob.
        what: &'static str,
        /// Its digest.
        digest: Digest,
    },
    /// The bytes are not those that the digest names.
    #[error("blob {expected}: got {got} after {bytes} bytes")]
    Digest {
        /// The digest wanted.
        expected: Digest,
        /// The digest of what came.
        got: Digest,
        /// How many bytes came.
        bytes: u64,
    },
    /// More or fewer bytes than the descriptor says.
    #[error("blob {digest}: expected {expected} bytes, got {got}")]
    Length {
        /// The blob.
        digest: Digest,
        /// The length that its descriptor names.
        expected: u64,
        /// The length so far.
        got: u64,
    },
    /// The layer is well-formed but not the one that the config names.
    #[error("layer: expected diffID {expected}, got {got} after {bytes} bytes")]
    DiffId {
        /// The diffID wanted.
        expected: DiffId,
        /// The diffID of what came.
        got: DiffId,
        /// The length of the uncompressed tar.
        bytes: u64,
    },
    /// Manifest and config contradict each other.
    #[error("image {digest}: {reason}")]
    Image {
        /// The manifest.
        digest: Digest,
        /// How.
        reason: String,
    },
    /// A manifest, index or config that cannot be used.
    #[error(transparent)]
    Document(#[from] crate::manifest::Error),
    /// A layer that could not be unpacked.
    #[error("layer {diff_id}: {source}")]
    Layer {
        /// The layer.
        diff_id: DiffId,
        /// Why not.
        source: crate::cage::Error,
    },
    /// An archive of images that could not be unpacked.
    #[error("the archive: {0}")]
    Archive(crate::cage::Error),
    /// A file of the store's own is not what the store wrote.
    #[error("{path}: {reason}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { action, path },
            _ => Self::Io { action, path, source },
        }
    }

    /// What the failure means to whoever may try again.
    pub fn class(&self) -> Class {
        match self {
            Self::NoSpace { .. } | Self::Room { .. } | Self::Io { .. } => Class::Transient,
            Self::Digest { .. } | Self::Length { .. } | Self::DiffId { .. } | Self::Broken { .. } => {
                Class::Corrupt
            }
            Self::Document(source) => source.class(),
            Self::Layer { source, .. } | Self::Archive(source) => source.class(),
            Self::Newer { .. }
            | Self::NotState { .. }
            | Self::NoImage(_)
            | Self::Ambiguous { .. }
            | Self::NoBlob { .. }
            | Self::InUse(_)
            | Self::Image { .. } => Class::Permanent,
        }
    }
}

/// A size as people read it.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{bytes} bytes"),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10),
    }
}

fn quota_words(quota: Option<u64>) -> String {
    quota.map_or(String::new(), |quota| format!(", quota {}", size(quota)))
}

//! Unpacking: a layer's tar, as hostile as any bytes from outside, becomes a tree that overlay can use as a lower directory.
//!
//! ```text
//! bytes -> decompress (gzip, zstd, plain) or apply a delta -> count and hash -> tar entries -> tree/ and metadata
//! ```
//!
//! Beside tree and metadata lies the [`RECIPE`], from which [`regenerate`] makes the tar again and [`check`] tells whether the tree is still
//! what the tar says. Runs inside the [`cage`](crate::cage). What always holds: nothing is created outside the one directory given, because every
//! name is resolved component by component from its descriptor and no symbolic link is ever followed; memory does not grow with
//! the layer; an entry that cannot be kept as it is is refused by name, or written down in the `metadata` file.
//!
//! What becomes of an entry, where the tree cannot simply have it:
//!
//! | entry | in the tree | in `metadata` |
//! |---|---|---|
//! | owner other than 0:0 | owned by this user, as all files | uid and gid |
//! | a mode that keeps its owner out | readable by its owner (directories: entered and written) | the true mode |
//! | `user.*` attributes | set, where the file system has them | all attributes |
//! | other attributes, file capabilities | not set | all attributes |
//! | `user.overlay.*`, `trusted.overlay.*` | never set: overlay would obey them | all attributes |
//! | device nodes | left out | type, major, minor |
//! | `.wh.NAME` | `NAME` as a character device 0:0, which needs no privilege since Linux 5.8 | |
//! | `.wh..wh..opq` | `user.overlay.opaque=y` on the directory | |

mod check;
mod decompress;
mod metadata;
mod recipe;
mod tar;
mod tree;

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Class;
use crate::digest::DiffId;
use crate::disk;

pub use check::Checked;
pub use check::{check, regenerate};
pub use metadata::{Note, parse_note};

/// The directory inside the work directory that becomes the layer.
pub const TREE: &str = "tree";
/// The file beside it with what the tree cannot have.
pub const METADATA: &str = "metadata";

/// The file beside it from which, with the tree, the tar can be made again.
pub const RECIPE: &str = "recipe";

/// How a layer's bytes are to be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encoding {
    /// A tar, plain or compressed with gzip or zstd: its first bytes say which.
    Layer,
    /// A tar-diff over the trees of another image's layers, lowest first.
    TarDiff {
        /// The trees.
        sources: Vec<PathBuf>,
    },
    /// A patch of our own codec over the trees of layers.
    Wherry {
        /// The trees.
        sources: Vec<PathBuf>,
        /// Their diffIDs, by which the patch names them.
        diff_ids: Vec<DiffId>,
    },
}

impl Encoding {
    /// What has to be readable beside the bytes themselves.
    pub(crate) fn sources(&self) -> &[PathBuf] {
        match self {
            Self::Layer => &[],
            Self::TarDiff { sources } | Self::Wherry { sources, .. } => sources,
        }
    }
}

/// What a layer may cost. Its manifest is hostile too, so the limits derive from the bytes that really travelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The most bytes of uncompressed tar.
    pub tar_bytes: u64,
    /// The most files, directories and links.
    pub entries: u64,
    /// The most bytes of file contents that there is room for on the file system; more is as if it were full.
    pub room: u64,
}

impl Limits {
    /// No honest layer shrinks more than this; gzip's own bound is about 1,030.
    const RATIO: u64 = 250;
    /// What even the smallest blob may become: repetitive small layers beat [`Self::RATIO`].
    const SMALLEST: u64 = 256 << 20;
    /// Half of the inodes of a 32 GB card.
    const ENTRIES: u64 = 1_000_000;

    /// The limits of a layer whose blob lies in a file; what the manifest says of its size is only somebody's word.
    pub fn of(blob: &std::fs::File) -> Self {
        Self::for_blob(blob.metadata().map_or(0, |meta| meta.len()))
    }

    /// The limits of a layer that travelled as so many bytes.
    pub fn for_blob(bytes: u64) -> Self {
        Self {
            tar_bytes: bytes.saturating_mul(Self::RATIO).max(Self::SMALLEST),
            entries: Self::ENTRIES,
            room: u64::MAX,
        }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Summary {
    /// The digest of the uncompressed tar: the one proof that it was the right one.
    pub diff_id: DiffId,
    /// The length of the uncompressed tar.
    pub tar_size: u64,
    /// Bytes of file contents written.
    pub data_size: u64,
    /// Files, directories, links and whiteouts made.
    pub entries: u64,
    /// Device nodes left out and written down.
    pub devices: u64,
}

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system is full.
    #[error("no space left on the file system after {0} bytes of the layer")]
    NoSpace(u64),
    /// The operating system refused.
    #[error("{action} {path:?}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which entry, escaped.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The input broke off.
    #[error("read the layer: {0}")]
    Input(io::Error),
    /// The compressed stream is damaged or of a kind that is not taken.
    #[error("{0}")]
    Compression(String),
    /// The archive is not well-formed.
    #[error("tar at byte {offset}: {reason}")]
    Tar {
        /// Where in the uncompressed tar.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// An entry that is not let in.
    #[error("entry {path:?}: {reason}")]
    Entry {
        /// The entry's name, escaped.
        path: String,
        /// Why not.
        reason: String,
    },
    /// More than an honest layer has.
    #[error("the layer has more than {limit} {what}, the limit for its compressed size")]
    Limit {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

impl Error {
    /// What the failure means to whoever may try again. Well-formedness is permanent: the blob's digest was right, so fetching
    /// the same bytes again would not help.
    pub fn class(&self) -> Class {
        match self {
            Self::NoSpace(_) | Self::Io { .. } | Self::Input(_) => Class::Transient,
            Self::Compression(_) | Self::Tar { .. } | Self::Entry { .. } | Self::Limit { .. } => {
                Class::Permanent
            }
        }
    }

    fn io(action: &'static str, path: &[u8], source: impl Into<io::Error>) -> Self {
        let source = source.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace(0),
            _ => Self::Io {
                action,
                path: quote(path),
                source,
            },
        }
    }

    fn entry(path: &[u8], reason: impl Into<String>) -> Self {
        Self::Entry {
            path: quote(path),
            reason: reason.into(),
        }
    }
}

/// A hostile name as text: what is not printable ASCII is left to the Debug form that prints it, and it is short.
fn quote(path: &[u8]) -> String {
    const LONGEST: usize = 200;
    let text = String::from_utf8_lossy(path);
    match text.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}...", text.get(..cut).unwrap_or_default()),
        None => text.into_owned(),
    }
}

/// A layer's tar out of its blob, as [`unpack`] reads it: at most `limits.tar_bytes` and one byte, by which it is seen to be more.
#[cfg(feature = "publish")]
pub(crate) fn tar_of(blob: impl Read, limits: &Limits) -> Result<impl Read, Error> {
    Ok(decompress::Decoder::new(blob)?.take(limits.tar_bytes.saturating_add(1)))
}

/// Unpacks a layer into the directory `work`: `work/tree` and `work/metadata`. On an error the directory holds rubbish.
pub fn unpack(
    input: impl Read,
    encoding: &Encoding,
    limits: &Limits,
    work: BorrowedFd<'_>,
) -> Result<Summary, Error> {
    match encoding {
        Encoding::Layer => {
            let decoder = decompress::Decoder::new(input)?;
            unpack_tar(decoder, limits, work)
        }
        Encoding::TarDiff { sources } => {
            let stream =
                crate::delta::tar_stream(input, sources).map_err(|e| Error::Compression(e.to_string()))?;
            unpack_tar(stream, limits, work)
        }
        Encoding::Wherry { sources, diff_ids } => {
            let stream = crate::delta::wherry_stream(input, sources, diff_ids)
                .map_err(|e| Error::Compression(e.to_string()))?;
            unpack_tar(stream, limits, work)
        }
    }
}

fn unpack_tar(input: impl Read, limits: &Limits, work: BorrowedFd<'_>) -> Result<Summary, Error> {
    let failed = |e| Error::io("create", RECIPE.as_bytes(), e);
    let recipe = disk::make_file_at(work, RECIPE.as_bytes()).map_err(|e| failed(e.into()))?;
    let recipe = recipe::Writer::new(recipe.into()).map_err(failed)?;
    let mut source = decompress::Source::new(input, limits.tar_bytes, Some(recipe));
    let mut tree = tree::Tree::create(work, limits)?;
    let unpacked = write_entries(&mut source, &mut tree);
    let written = unpacked.and_then(|()| tree.finish()).map_err(|e| match e {
        Error::NoSpace(_) => Error::NoSpace(source.position()),
        e => e,
    })?;
    source.drain()?;
    let (diff_id, tar_size) = source.finish()?;
    Ok(Summary {
        diff_id,
        tar_size,
        data_size: written.data_size,
        entries: written.entries,
        devices: written.devices,
    })
}

fn write_entries(source: &mut decompress::Source<impl Read>, tree: &mut tree::Tree) -> Result<(), Error> {
    let mut archive = tar::Archive::new(source);
    while let Some(entry) = archive.next()? {
        tree.write(&entry, &mut archive)?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;

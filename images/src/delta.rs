//! Deltas: a layer that is a patch over an image which is already here, in the containers/oci-delta envelope.
//!
//! A delta is an artifact beside the image in the registry: a manifest whose `subject` is the target image's manifest, found by
//! the referrers API or its fallback tag, with one blob for each changed layer. It needs no server part, and a client that
//! does not know it pulls the image in full.
//!
//! ```text
//! publish:  OLD's and NEW's layer blobs ── wherry-delta (feature `publish`) ──► patches ──► envelope ──► registry
//! find:     registry ── referrers of the target ──► envelopes whose source image is in the store ──► the smallest
//! apply:    patch ── tar_stream or wherry_stream, in the cage, over the source image's trees ──► tar ──► unpack ──► diffID
//! ```
//!
//! Nothing that an envelope or a patch says is trusted: the target's manifest and config come from the registry as for a full
//! pull, and a layer made by a patch counts only when its diffID is the config's. Whatever fails, the full layer is pulled.

#[cfg(feature = "publish")]
mod compose;
mod envelope;
mod find;
mod layers;
#[cfg(feature = "publish")]
mod publish;
mod source;
#[cfg(test)]
mod tests;

pub use envelope::{ARTIFACT_TYPE, Codec, Envelope, Layer};
pub use find::{Candidate, apply, find, list};
pub use layers::{MEMORY, wherry_stream};
#[cfg(feature = "publish")]
pub use publish::{Published, PublishedLayer, push};
pub use source::tar_stream;

use crate::Class;
use crate::digest::Digest;
use crate::{manifest, registry, store};

/// Why a delta was not found, applied or published.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry refused or could not be reached.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The store failed, or the delta made another layer than the target's.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The artifact's manifest cannot be read.
    #[error("delta {artifact}: {source}")]
    Manifest {
        /// The artifact.
        artifact: Digest,
        /// What is wrong with it.
        source: manifest::Error,
    },
    /// The artifact is not a delta that can be used here.
    #[error("delta {artifact}: {reason}")]
    Refused {
        /// The artifact.
        artifact: Digest,
        /// What is missing or wrong in it.
        reason: String,
    },
    /// A patch does not decode.
    #[error("{0}")]
    Patch(String),
    /// A delta between these two images cannot be published.
    #[error("cannot make a delta: {0}")]
    Publish(String),
    /// The encoder failed.
    #[cfg(feature = "publish")]
    #[error("{what}: {source}")]
    Encode {
        /// Which layer.
        what: String,
        /// What the encoder was doing, and why it failed.
        source: EncodeFailure,
    },
}

/// An encoder's error with its cause in the text: it crosses a boundary where only the text is shown.
#[cfg(feature = "publish")]
#[derive(Debug, thiserror::Error)]
#[error("{0}: {cause}", cause = std::error::Error::source(.0).map(ToString::to_string).unwrap_or_default())]
pub struct EncodeFailure(wherry_delta::EncodeError);

impl Error {
    /// What retry logic may do. A delta is never retried as such: the full layer is there.
    pub fn class(&self) -> Class {
        match self {
            Self::Registry(error) => error.class(),
            Self::Store(error) => error.class(),
            Self::Manifest { source, .. } => source.class(),
            Self::Refused { .. } | Self::Publish(_) => Class::Permanent,
            Self::Patch(_) => Class::Corrupt,
            #[cfg(feature = "publish")]
            Self::Encode {
                source: EncodeFailure(error),
                ..
            } => match error.class() {
                wherry_delta::Class::Transient => Class::Transient,
                wherry_delta::Class::Permanent => Class::Permanent,
                wherry_delta::Class::Corrupt => Class::Corrupt,
            },
        }
    }
}

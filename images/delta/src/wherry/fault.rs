//! What can go wrong while a patch of this codec is decoded.

use core::convert::Infallible;
use core::fmt;

use crate::{Class, PathFault};

/// Why a patch was not decoded. `P`, `S` and `W` are the errors of the patch stream, the source layers and the output.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error<P, S, W = Infallible> {
    /// The patch is not one, or not one that this decoder knows.
    Fault(Fault),
    /// The patch stream failed.
    Patch(P),
    /// A source layer failed, or a file of it is not there.
    Source(S),
    /// The output failed.
    Output(W),
}

/// What is wrong with a patch, or with the source that it is applied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The file does not begin with the magic.
    Magic([u8; 8]),
    /// Made for a predictor that this decoder does not have.
    Predictor(u64),
    /// The patch ended before it was whole.
    Truncated,
    /// A frame or the header holds something that the format does not have.
    Corrupt(&'static str),
    /// A path that may not be opened.
    Path(PathFault),
    /// The patch declares more memory than the caller allows.
    Declared {
        /// What it declares, in bytes.
        needed: u64,
        /// What is allowed.
        allowed: u64,
    },
    /// The patch needs more memory than it declares.
    Memory {
        /// What it declares, in bytes.
        declared: u64,
    },
    /// The patch makes more output than the caller allows.
    TooMuch {
        /// The limit in bytes.
        limit: u64,
    },
    /// The decompressor refused a stream.
    Compression,
    /// The source layer's list of files is not the one that the patch was made from.
    Listing,
    /// An old file ended before the bytes that the patch takes from it.
    SourceShort {
        /// The offset that was wanted.
        offset: u64,
    },
    /// A chunk of output is not the expected one: an old file is not what it was, or the patch is not for it.
    Chunk {
        /// Where in the output it begins.
        offset: u64,
    },
    /// The decoder was asked to begin where no restart is possible.
    Restart,
}

impl<P, S, W> From<Fault> for Error<P, S, W> {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl<P, S, W> Error<P, S, W> {
    /// What retry logic may do. Errors of the streams are the caller's own to judge; here they count as transient.
    pub fn class(&self) -> Class {
        match self {
            Self::Patch(_) | Self::Source(_) | Self::Output(_) => Class::Transient,
            Self::Fault(fault) => match fault {
                Fault::Predictor(_)
                | Fault::Declared { .. }
                | Fault::TooMuch { .. }
                | Fault::Listing
                | Fault::SourceShort { .. }
                | Fault::Chunk { .. }
                | Fault::Restart => Class::Permanent,
                _ => Class::Corrupt,
            },
        }
    }
}

impl<P, S> Error<P, S> {
    /// The same error beside another output's error type.
    pub(super) fn with_output<W>(self) -> Error<P, S, W> {
        match self {
            Self::Fault(fault) => Error::Fault(fault),
            Self::Patch(error) => Error::Patch(error),
            Self::Source(error) => Error::Source(error),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(found) => write!(f, "expected a wherry delta of version 1, got {found:02x?}"),
            Self::Predictor(version) => {
                write!(
                    f,
                    "made for predictor {version}, this decoder has {}",
                    super::PREDICTOR
                )
            }
            Self::Truncated => write!(f, "the patch ends too early"),
            Self::Corrupt(what) => write!(f, "{what}"),
            Self::Path(fault) => write!(f, "a path {fault}"),
            Self::Declared { needed, allowed } => {
                write!(f, "needs {needed} bytes of memory, {allowed} are allowed")
            }
            Self::Memory { declared } => {
                write!(f, "needs more than the {declared} bytes of memory it declares")
            }
            Self::TooMuch { limit } => write!(f, "output exceeds the limit of {limit} bytes"),
            Self::Compression => write!(f, "a compressed stream is damaged"),
            Self::Listing => write!(
                f,
                "the source layer does not list the files that the patch was made from"
            ),
            Self::SourceShort { offset } => write!(f, "an old file ends before byte {offset}"),
            Self::Chunk { offset } => {
                write!(
                    f,
                    "output from byte {offset} on is not the expected one: an old file is not what it was"
                )
            }
            Self::Restart => write!(f, "no frame begins at or before the asked place"),
        }
    }
}

impl<P: fmt::Display, S: fmt::Display, W: fmt::Display> fmt::Display for Error<P, S, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => write!(f, "delta: {fault}"),
            Self::Patch(error) => write!(f, "delta: cannot read the patch: {error}"),
            Self::Source(error) => write!(f, "delta: cannot read an old file: {error}"),
            Self::Output(error) => write!(f, "delta: cannot write: {error}"),
        }
    }
}

// The streams' errors are part of the text above: there is no further source.
impl<P, S, W> core::error::Error for Error<P, S, W>
where
    P: fmt::Debug + fmt::Display,
    S: fmt::Debug + fmt::Display,
    W: fmt::Debug + fmt::Display,
{
}

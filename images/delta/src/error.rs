//! What can go wrong while a patch is decoded, for every codec.

use core::convert::Infallible;
use core::fmt;

use crate::source::PathFault;

/// What retry logic may do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The same again may work.
    Transient,
    /// The same again fails the same way; another way (the full layer) may work.
    Permanent,
    /// The bytes are not what they claim to be.
    Corrupt,
}

/// Why a patch was not decoded. `at` counts bytes of the decompressed operations, to the operation's first byte.
///
/// `P`, `S` and `W` are the errors of the patch stream, the source files and the output.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error<P, S, W = Infallible> {
    /// The file does not begin with a known magic.
    Magic([u8; 8]),
    /// An operation that the format does not have.
    Operation {
        /// The operation's code.
        code: u8,
        /// Where it stands.
        at: u64,
    },
    /// An operation of the format that this decoder does not carry out.
    Unsupported {
        /// The operation's name in the format.
        name: &'static str,
        /// Where it stands.
        at: u64,
    },
    /// A length that does not fit 64 bits.
    Varint {
        /// Where its operation stands.
        at: u64,
    },
    /// The patch ended inside an operation.
    Truncated {
        /// Where the operation stands.
        at: u64,
    },
    /// A path that may not be opened.
    Path {
        /// What is wrong with it.
        fault: PathFault,
        /// Where the operation stands.
        at: u64,
    },
    /// Old bytes were asked for before any file was opened.
    NoFile {
        /// Where the operation stands.
        at: u64,
    },
    /// The old file ended before the bytes that the patch takes from it.
    SourceShort {
        /// Where the operation stands.
        at: u64,
        /// The offset at which the file ended.
        offset: u64,
    },
    /// The patch makes more output than the caller allows.
    TooMuch {
        /// The limit in bytes.
        limit: u64,
    },
    /// The patch goes on and on without making output.
    Idle {
        /// Where the operation stands.
        at: u64,
        /// How many operations without output are allowed in a row.
        limit: u32,
    },
    /// The patch stream failed.
    Patch(P),
    /// An old file failed, or is not there.
    Source(S),
    /// The output failed.
    Output(W),
}

impl<P, S, W> Error<P, S, W> {
    /// What retry logic may do. Errors of the streams are the caller's own to judge; here they count as transient.
    pub fn class(&self) -> Class {
        match self {
            Self::Unsupported { .. } | Self::TooMuch { .. } | Self::SourceShort { .. } => Class::Permanent,
            Self::Patch(_) | Self::Source(_) | Self::Output(_) => Class::Transient,
            _ => Class::Corrupt,
        }
    }
}

impl<P, S> Error<P, S> {
    /// The same error beside another output's error type.
    pub(crate) fn with_output<W>(self) -> Error<P, S, W> {
        match self {
            Self::Magic(found) => Error::Magic(found),
            Self::Operation { code, at } => Error::Operation { code, at },
            Self::Unsupported { name, at } => Error::Unsupported { name, at },
            Self::Varint { at } => Error::Varint { at },
            Self::Truncated { at } => Error::Truncated { at },
            Self::Path { fault, at } => Error::Path { fault, at },
            Self::NoFile { at } => Error::NoFile { at },
            Self::SourceShort { at, offset } => Error::SourceShort { at, offset },
            Self::TooMuch { limit } => Error::TooMuch { limit },
            Self::Idle { at, limit } => Error::Idle { at, limit },
            Self::Patch(error) => Error::Patch(error),
            Self::Source(error) => Error::Source(error),
        }
    }
}

impl<P: fmt::Display, S: fmt::Display, W: fmt::Display> fmt::Display for Error<P, S, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(found) => write!(f, "delta: expected a tar-diff header, got {found:02x?}"),
            Self::Operation { code, at } => {
                write!(f, "delta: operation {code} at byte {at} is not one of tar-diff's")
            }
            Self::Unsupported { name, at } => write!(
                f,
                "delta: operation {name} at byte {at} is not supported: it holds a whole old file in memory"
            ),
            Self::Varint { at } => write!(f, "delta: length at byte {at} does not fit 64 bits"),
            Self::Truncated { at } => write!(f, "delta: ends inside the operation at byte {at}"),
            Self::Path { fault, at } => write!(f, "delta: path at byte {at} {fault}"),
            Self::NoFile { at } => write!(
                f,
                "delta: operation at byte {at} reads an old file, but none is open"
            ),
            Self::SourceShort { at, offset } => {
                write!(
                    f,
                    "delta: old file ends at byte {offset}, the operation at byte {at} wants more"
                )
            }
            Self::TooMuch { limit } => write!(f, "delta: output exceeds the limit of {limit} bytes"),
            Self::Idle { at, limit } => write!(
                f,
                "delta: more than {limit} operations without output before byte {at}"
            ),
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

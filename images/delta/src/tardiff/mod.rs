//! The codec `application/vnd.tar-diff`, as published in `file-format.md` of containers/tar-diff.
//!
//! ```text
//! file       = magic, zstd frame
//! magic      = "tardf1\n\0" (version 1) | "tardf2\n\0" (version 2)
//! frame      = { operation }                 decompressed
//! operation  = code: u8, size: LEB128 u64, payload
//!
//! code  name       payload      what it does
//!  0    DATA       size bytes   appends the payload to the output
//!  1    OPEN       size bytes   opens the old file at the path in the payload, position 0
//!  2    COPY       -            appends size bytes of the old file
//!  3    ADD_DATA   size bytes   appends size bytes of the old file, each plus the payload's byte, modulo 256
//!  4    SEEK       -            sets the position in the old file to size
//!  5    ZSTD_DICT  size bytes   version 2 only: a zstd frame with the whole old file as its dictionary
//! ```
//!
//! The decoder carries out 0 to 4 in both versions and refuses 5 by name: the dictionary is a whole old file in memory,
//! which a board does not have. Such a layer is pulled in full.

mod decode;
#[cfg(feature = "publish")]
mod encode;
#[cfg(test)]
mod tests;

pub use decode::{Decoder, Limits, read_magic};
#[cfg(feature = "publish")]
pub use encode::{Encoded, Encoder};

/// The media type of a tar-diff.
pub const MEDIA_TYPE: &str = "application/vnd.tar-diff";

/// The first bytes of version 1.
pub const MAGIC_V1: [u8; 8] = *b"tardf1\n\0";
/// The first bytes of version 2, which may use `ZSTD_DICT`.
pub const MAGIC_V2: [u8; 8] = *b"tardf2\n\0";

/// The largest zstd window (as a power of two) for which a patch is worth decoding: 8 MiB. It is the window of the
/// reference encoder's default level and of zstd's level 19, and with it the whole decoder stays below 24 MB.
pub const WINDOW_LOG_MAX: u32 = 23;

/// How many bytes of the old file are held at once.
const BUFFER: usize = 64 << 10;

/// The heap that a [`Decoder`] holds, in bytes, whatever the patch says.
pub const DECODER_MEMORY: usize = BUFFER + crate::MAX_PATH;

/// How many operations in a row may make no output. An encoder needs three at most (OPEN, SEEK, and an empty COPY); without a limit a few
/// KB of zstd could keep a board busy for hours.
const MAX_IDLE: u32 = 1024;

/// The operations' codes.
mod code {
    pub(super) const DATA: u8 = 0;
    pub(super) const OPEN: u8 = 1;
    pub(super) const COPY: u8 = 2;
    pub(super) const ADD_DATA: u8 = 3;
    pub(super) const SEEK: u8 = 4;
    pub(super) const ZSTD_DICT: u8 = 5;
}

//! Layer deltas: a new layer's tar is rebuilt from a patch and the *extracted files* of an image that is already there.
//!
//! The decoder is `no_std`: it reads the patch and the old files through [`embedded_io`], so the same code serves an HTTP
//! body, a file, a USB stick and a serial line. Its memory does not depend on the patch: one buffer and one path
//! ([`tardiff::DECODER_MEMORY`]). Nothing in a patch is trusted. Every length is checked before it is used, and a hostile
//! patch ends in a typed [`Error`]; what it cannot prevent is a wrong output, so the caller hashes the output and throws
//! it away unless the diffID is the expected one.
//!
//! - [`Source`]: where old files come from. One implementation serves every codec.
//! - [`tardiff`]: the codec `application/vnd.tar-diff`; its encoder is behind the feature `publish`.
//! - `adapt` (feature `std`): `std::io` streams as [`embedded_io`] streams.
//!
//! A tar-diff is compressed with zstd as a whole. The decoder is given the *decompressed* operations, because the choice of a zstd
//! decoder belongs to whoever knows the platform: with std it is the crate `zstd` with a window limit (see
//! [`tardiff::WINDOW_LOG_MAX`]), without std a decoder such as the crate `ruzstd` (`no_std` + alloc), whose window memory
//! comes on top of this crate's.

#![cfg_attr(not(any(test, feature = "std")), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(feature = "std")]
pub mod adapt;
mod error;
mod source;
pub mod tardiff;
pub mod wherry;

#[cfg(feature = "publish")]
mod align;
#[cfg(feature = "publish")]
mod chunk;
#[cfg(feature = "publish")]
mod image;
#[cfg(feature = "publish")]
mod similar;
#[cfg(feature = "publish")]
mod tar;
#[cfg(feature = "publish")]
mod tree;

pub use error::{Class, Error};
#[cfg(feature = "publish")]
pub use image::EncodeError;
pub use source::{MAX_PATH, PathFault, Source, check_path};

//! Images on a board: what they are called, what they are made of, how they get into the store and out again.
//!
//! Everything here is blocking and streams: memory does not grow with the size of an image. Bytes from outside (a
//! registry, a layout, a delta) are hostile until a digest has proved them, and a tar is only ever unpacked inside the
//! [`cage`]. What is durable, and in which form, is written down in `STORE.md` beside this crate.

pub mod archive;
pub mod cage;
pub mod chunks;
pub mod delta;
pub mod digest;
#[cfg(fuzzing)]
pub mod fuzzed;
pub mod layout;
pub mod manifest;
pub mod platform;
pub mod pull;
pub mod push;
pub mod reference;
pub mod registry;
pub mod serve;
pub mod store;
pub mod unpack;

mod disk;
mod sys;

pub use digest::{DiffId, Digest, Hasher};
pub use platform::Platform;
pub use reference::Reference;
pub use store::{Image, Store};

/// What a failure means to whoever may try again. Retry logic reads this and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The same call may succeed later with nothing changed here: a cut link, a full disk, a busy lock.
    Transient,
    /// The same call will fail again: refused input, a missing object, an unsupported feature.
    Permanent,
    /// Bytes are not what their digest or their format says: throw them away and fetch them again.
    Corrupt,
}

//! The codec `application/vnd.wherry.delta.v1`. `FORMAT.md` beside this crate describes it to the byte.
//!
//! ```text
//! patch   = magic, length, header, { frame }          every frame decompresses alone
//! frame   = a table: the tar headers of the entries that follow it, as columns
//!         | content: hashes of its output for each 1 MiB, and what content has that no old file gives
//!
//!          header        table frame            content frame
//!   ┌──────┐    ┌────────────┐  ┌───────────────────────────────┐ all of its output made ┌──────┐
//!   │ Start├───►│ Between    ├─►│ Output: fill 1 MiB, verify it,├───────────────────────►│ Done │
//!   └──────┘    │ frames     │◄─┤ hand it out                   │  no frame left         └──────┘
//!               └────────────┘  └───────────────────────────────┘
//! ```
//!
//! What always holds: output is handed out only when its hash is the patch's; memory never exceeds what the header declares, which the
//! caller may refuse; a frame is decoded from the patch's header, the table in front of it and itself alone, so decoding can start again
//! at any frame. The hashes are not cryptographic: they tell that an old file changed, the diffID decides.

mod decode;
mod elf;
mod fault;
mod header;
mod listing;
mod map;
mod old;
mod part;
mod predict;
mod style;
mod table;
mod walk;
mod wire;

#[cfg(feature = "publish")]
mod encode;
#[cfg(test)]
mod tests;

pub use decode::{Decoder, Decompress, Layers};
#[cfg(feature = "publish")]
pub use encode::{EncodeError, Encoded, Encoder, Options};
pub use fault::{Error, Fault};
pub use header::{Frame, FrameKind, Header, Limits, Restart, SourceId};
pub use listing::{Kind, Listing};

/// The media type of a patch.
pub const MEDIA_TYPE: &str = "application/vnd.wherry.delta.v1";

/// The first bytes of a patch.
pub const MAGIC: [u8; 8] = *b"wherryd1";

/// The version of the predictor. Frozen by golden vectors: other predictions are another version.
pub const PREDICTOR: u64 = 1;

/// How much output is verified at once.
pub const CHUNK: usize = 1 << 20;

/// The largest frame, decompressed: no window of zstd's is larger.
pub const MAX_FRAME: usize = 8 << 20;

/// The heap that a decoder takes whatever the patch declares: the chunk of output, the buffers over an old file and a tile, the frame
/// descriptions of a program.
pub const FIXED_MEMORY: usize = CHUNK + old::WINDOW + part::TILE + 2 * 4 * elf::MAX_FRAMES + (64 << 10);

/// The longest header.
const MAX_HEADER: usize = 1 << 20;
/// The most source layers; images have at most 127.
const MAX_SOURCES: usize = 1 << 10;
/// The most entries of one table.
const MAX_ITEMS: usize = 1 << 16;

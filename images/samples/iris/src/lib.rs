//! The iris sample: a decision forest trained from Fisher's measurements, in a text format that both programs here
//! share. `iris-train` writes it, `iris-server` reads it.

pub mod forest;
pub mod measurements;

/// This release of the program, reported with every prediction.
pub const VERSION: u32 = if cfg!(feature = "v2") { 2 } else { 1 };

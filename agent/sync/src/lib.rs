//! The decisions of the agent.
//!
//! Owns: what a workload is ([`Pod`]), how hostile bytes become one ([`manifest::parse`]), what to do next
//! ([`plan::plan`]), what to tell a cluster ([`status`]) and how long to wait ([`Backoff`]).
//!
//! What always holds: nothing here does I/O, reads a clock, draws a random number, logs or panics. Time and
//! randomness come in as arguments, actions go out as values, and the same arguments give the same answer.
//!
//! Not trusted: the bytes given to [`manifest::parse`]. They are bounded in size, nesting, number of nodes and
//! alias expansion before anything is built from them.

pub mod backoff;
pub mod manifest;
pub mod plan;
pub mod pod;
mod quantity;
pub mod status;
mod yaml;

pub use backoff::Backoff;
pub use manifest::Problem;
pub use pod::Pod;

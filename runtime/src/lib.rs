//! An OCI bundle becomes a confined process.

pub mod config;
mod confine;
mod error;
mod foreground;
pub mod forward;
mod hooks;
mod launch;
pub mod monitor;
pub mod network;
pub mod policy;
mod resolve;
mod seal;
mod seccomp;
mod state;
mod sys;
pub mod verbs;
mod wire;

pub use error::{Class, Error};
pub use state::Root;

//! The command line that people type and the agent that keeps a board in its desired state.
//!
//! Both are clients of the same files: [`container`] knows a container's directory and who may change it, [`assemble`]
//! makes the bundle that `wherry-runtime` is given.

pub mod args;
pub mod assemble;
pub mod cli;
pub mod container;
pub mod daemon;
pub mod devices;
pub mod source;
pub mod template;
pub mod upstream;

mod budget;
mod causes;
mod delegation;
mod sys;

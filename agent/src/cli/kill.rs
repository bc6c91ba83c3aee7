//! `wherry kill`.

use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};

use super::failure::{Failure, for_each};
use super::place::Place;
use crate::container::Signal;

/// send a signal to containers' first processes
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "kill",
    example = "wherry kill iris",
    example = "wherry kill -s HUP iris"
)]
pub struct Args {
    /// the signal by name or number, SIGKILL unless given
    #[argh(option, short = 's', arg_name = "signal")]
    pub signal: Option<String>,
    /// names or ids
    #[argh(positional, arg_name = "container")]
    pub first: String,
    /// more of them
    #[argh(positional, arg_name = "more")]
    pub more: Vec<String>,
}

pub(super) fn run(args: &Args, place: &Place) -> Result<ExitCode, Failure> {
    let signal = args.signal.as_deref().map_or(Ok(Signal::KILL), Signal::parse)?;
    let containers = place.containers()?;
    for_each(&args.first, &args.more, |name| {
        let container = containers.find(name)?;
        Ok(containers.kill(&container.id, signal)?)
    })
}

//! `wherry start`.

use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};

use super::failure::{Failure, for_each};
use super::place::Place;
use crate::container::Attach;

/// start containers that have exited; what they wrote is still there
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(subcommand, name = "start", example = "wherry start iris")]
pub struct Args {
    /// names or ids
    #[argh(positional, arg_name = "container")]
    pub first: String,
    /// more of them
    #[argh(positional, arg_name = "more")]
    pub more: Vec<String>,
}

pub(super) fn run(args: &Args, place: &Place) -> Result<ExitCode, Failure> {
    let containers = place.containers()?;
    for_each(&args.first, &args.more, |name| {
        let container = containers.find(name)?;
        containers.start(&container.id, Attach::None)?;
        Ok(())
    })
}

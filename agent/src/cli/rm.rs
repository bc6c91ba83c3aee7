//! `wherry rm`.

use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};

use super::failure::{Failure, for_each};
use super::place::Place;
use crate::container;

/// remove containers and all that they wrote
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "rm",
    example = "wherry rm iris",
    example = "wherry rm -f iris web",
    note = "Directories mounted with -v are the board's and stay. A pod's container is made anew by the agent."
)]
pub struct Args {
    /// kill those that run, and do not mind those that are not there
    #[argh(switch, short = 'f')]
    pub force: bool,
    /// accepted for docker's sake: anonymous volumes always go with their container
    #[argh(switch, short = 'v')]
    pub volumes: bool,
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
        let removed = containers
            .find(name)
            .and_then(|container| containers.remove(&container.id, args.force));
        match removed {
            Err(container::Error::Gone { .. }) => Ok(()),
            Err(container::Error::NotFound(_)) if args.force => Ok(()),
            other => Ok(other?),
        }
    })
}

//! `wherry stop`.

use std::process::ExitCode;
use std::time::Duration;

use argh::{ArgsInfo, FromArgs};

use super::failure::{Failure, for_each};
use super::place::Place;

/// ask containers to end with their stop signal, and kill those that do not
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "stop",
    example = "wherry stop iris",
    example = "wherry stop -t 2 iris web",
    note = "Without -t the time is that of --stop-timeout at `wherry run`, 10 seconds unless given."
)]
pub struct Args {
    /// seconds before the kill
    #[argh(option, short = 't', arg_name = "seconds")]
    pub time: Option<u32>,
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
        let grace = Duration::from_secs(args.time.unwrap_or(container.spec.stop_grace).into());
        Ok(containers.stop(&container.id, grace)?)
    })
}

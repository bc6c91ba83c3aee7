//! `wherry inspect`.

use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use serde_json::json;

use super::failure::{Failure, print};
use super::place::Place;

/// print all that is known about containers, as JSON
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "inspect",
    example = "wherry inspect iris | jq '.[0].observed'"
)]
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
    let mut all = Vec::new();
    for name in std::iter::once(&args.first).chain(&args.more) {
        let container = containers.find(name)?;
        all.push(json!({
            "id": container.id,
            "createdAt": container.created_at,
            "directory": container.directory().display().to_string(),
            "spec": container.spec,
            "observed": container.observed,
        }));
    }
    print(&format!("{:#}\n", serde_json::Value::from(all)))?;
    Ok(ExitCode::SUCCESS)
}

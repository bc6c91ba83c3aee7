//! `wherry tag`.

use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use wherry_images::Reference;

use super::failure::Failure;
use super::place::Place;

/// give an image another name
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "tag",
    example = "wherry tag iris:v1 registry.example/iris:v1"
)]
pub struct Args {
    /// the image: a name, or the beginning of its id
    #[argh(positional, arg_name = "image")]
    pub source: String,
    /// its further name
    #[argh(positional, arg_name = "name")]
    pub target: String,
}

pub(super) fn run(args: &Args, place: &Place) -> Result<ExitCode, Failure> {
    let target = Reference::parse(&args.target)?;
    if target.digest().is_some() {
        return Err(Failure::new(format!(
            "cannot tag {}: a digest is not a name; write NAME:TAG",
            args.target
        )));
    }
    let store = place.store()?;
    let image = store.resolve(&args.source)?;
    store.tag(&image, &target)?;
    Ok(ExitCode::SUCCESS)
}

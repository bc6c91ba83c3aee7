//! `wherry load`.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use wherry_images::archive::{self, LoadOptions};

use super::failure::{Failure, print};
use super::place::Place;
use super::registry;

/// take images out of an archive that wherry, docker, podman or skopeo wrote
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "load",
    example = "wherry load -i iris.tar",
    example = "ssh builder docker save iris:v1 | wherry load"
)]
pub struct Args {
    /// the file, instead of standard input; plain, or compressed with gzip or zstd
    #[argh(option, short = 'i', arg_name = "file")]
    pub input: Option<PathBuf>,
    /// print only names and ids
    #[argh(switch, short = 'q')]
    pub quiet: bool,
    /// another platform than this board's: OS/ARCH[/VARIANT]
    #[argh(option, arg_name = "platform")]
    pub platform: Option<String>,
    /// keep the layers' blobs, as pushing and publishing deltas need them
    #[argh(switch)]
    pub keep_blobs: bool,
}

pub(super) fn run(args: &Args, place: &Place) -> Result<ExitCode, Failure> {
    let mut input: Box<dyn Read> = match &args.input {
        Some(path) => Box::new(
            File::open(path)
                .map_err(|error| Failure::about(format!("cannot read {}", path.display()), &error))?,
        ),
        None if io::stdin().is_terminal() => {
            return Err(Failure::new("no archive on standard input; give -i FILE"));
        }
        None => Box::new(io::stdin().lock()),
    };
    let platform = super::pull::platform(args.platform.as_deref())?;
    let options = LoadOptions {
        platform,
        keep_blobs: args.keep_blobs,
    };
    let store = place.store()?;
    let loaded = archive::load(&store, &mut input, &options).map_err(|error| {
        let mut failure = Failure::of(&error);
        if let archive::Error::Store(error) = &error {
            failure.line.push_str(registry::store_advice(error));
        }
        failure
    })?;
    for one in loaded {
        if one.names.is_empty() {
            print(&format!("Loaded image ID: {}\n", one.image.config_digest))?;
        }
        for name in &one.names {
            print(&format!("Loaded image: {}\n", name.familiar()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

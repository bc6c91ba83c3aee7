//! `wherry push`.

use std::io::Write as _;
use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use wherry_images::push::{self, Progress, PushOptions};
use wherry_images::{Digest, Reference};

use super::failure::{Failure, print};
use super::place::Place;
use super::registry;

/// send an image to a registry
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "push",
    example = "wherry push registry.example/iris:v1",
    example = "wherry push --creds me:secret localhost/iris:v1 192.0.2.7:5000/iris:v1",
    note = "Needs the layers' blobs, or their presence in the registry: pull with --keep-blobs what is to be pushed elsewhere."
)]
pub struct Args {
    /// print nothing but failures
    #[argh(switch, short = 'q')]
    pub quiet: bool,
    /// attach no hashes of the layers' chunks, by which boards fetch a wrong chunk alone again
    #[argh(switch)]
    pub no_chunk_hashes: bool,
    /// false for a registry without TLS, or with a certificate that proves nothing
    #[argh(option, arg_name = "bool", default = "true")]
    pub tls_verify: bool,
    /// the account: USER:PASSWORD, instead of docker's config.json
    #[argh(option, arg_name = "account")]
    pub creds: Option<String>,
    /// the image: a name, or the beginning of its id
    #[argh(positional)]
    pub image: String,
    /// the name it is pushed as, its own unless given
    #[argh(positional)]
    pub target: Option<String>,
}

pub(super) fn run(args: Args, place: &Place) -> Result<ExitCode, Failure> {
    let target = Reference::parse(args.target.as_deref().unwrap_or(&args.image))?;
    let store = place.store()?;
    let image = store.resolve(&args.image)?;
    let client = registry::publisher(args.tls_verify, args.creds.as_deref(), &target)?;
    let mut last: Option<Digest> = None;
    let mut failed = None;
    let mut show = |progress: &Progress<'_>| {
        if !args.quiet
            && progress.offset >= progress.size
            && last.replace(*progress.digest) != Some(*progress.digest)
        {
            failed = print(&format!("{}: Pushed\n", progress.digest.short()))
                .err()
                .or(failed.take());
        }
    };
    let options = PushOptions {
        chunk_hashes: !args.no_chunk_hashes,
    };
    let pushed = push::push_with(&store, &client, &image, &target, &options, &mut show).map_err(|error| {
        let advice = match &error {
            push::Error::Registry(error) => registry::advice(error),
            push::Error::Store(error) => registry::store_advice(error),
            push::Error::NoBlob { .. } => "",
        };
        let Failure { line, code } = Failure::of(&error);
        Failure {
            line: format!("cannot push {}: {line}{advice}", target.familiar()),
            code,
        }
    })?;
    if let Some(failure) = failed {
        return Err(failure);
    }
    if let Some(warning) = &pushed.warning {
        let _ = writeln!(std::io::stderr(), "wherry: warning: {warning}");
    }
    if !args.quiet {
        let tag = target.tag().map_or_else(String::new, |tag| format!("{tag}: "));
        print(&format!("{tag}digest: {} size: {}\n", pushed.digest, pushed.size))?;
    }
    Ok(ExitCode::SUCCESS)
}

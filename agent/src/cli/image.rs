//! `wherry image prune`. The other verbs of `docker image` are the ones without `image`.

use std::io::{BufRead, IsTerminal, Write as _};
use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use wherry_images::Image;
use wherry_images::store::Scope;

use super::ago;
use super::failure::{Failure, print};
use super::filter::Filter;
use super::place::Place;
use crate::container;

/// clean up images; `image ls`, `rm`, `inspect`, `pull` and the others are the verbs without `image`
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "image",
    example = "wherry image prune -af --filter until=168h"
)]
pub struct Args {
    /// what to do
    #[argh(subcommand)]
    pub verb: Verb,
}

/// The verbs of images that have no shorter form.
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(subcommand)]
#[allow(missing_docs)]
pub enum Verb {
    Prune(Prune),
}

/// remove images without a name, and what belongs to no image
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "prune",
    example = "wherry image prune",
    example = "wherry image prune -af --filter until=168h --filter label!=keep",
    note = "What a container, a desired pod or a pull in progress needs stays, whatever the flags."
)]
pub struct Prune {
    /// also images whose names no container and no pod uses, and what pulls left half-fetched
    #[argh(switch, short = 'a')]
    pub all: bool,
    /// do not ask
    #[argh(switch, short = 'f')]
    pub force: bool,
    /// only these: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[argh(option, arg_name = "filter")]
    pub filter: Vec<String>,
}

pub(super) fn run(args: &Args, place: &Place) -> Result<ExitCode, Failure> {
    let Verb::Prune(args) = &args.verb;
    let store = place.store()?;
    let filter = Filter::parse(&args.filter, &store)?;
    let all = args.all || filter.dangling == Some(false);
    let what = match all {
        true => "all images that no container and no pod uses",
        false => "all images without a name",
    };
    if !args.force && !agreed(&format!("This will remove {what}."))? {
        return Ok(ExitCode::SUCCESS);
    }
    let admits = |image: &Image| {
        filter.admits(image) && image.reference.as_ref().is_none_or(|name| filter.names(name))
    };
    let scope = match all {
        true => Scope::All(&admits),
        false => Scope::Dangling(&admits),
    };
    let done = store.collect(scope, &mut || container::in_use(store.root()))?;
    if !done.untagged.is_empty() || !done.blobs.is_empty() || !done.layers.is_empty() {
        print("Deleted Images:\n")?;
    }
    for name in &done.untagged {
        print(&format!("Untagged: {}\n", name.familiar()))?;
    }
    let told = super::rmi::told(&done);
    print(&format!("\nTotal reclaimed space: {}\n", ago::size(done.bytes)))?;
    told.map(|()| ExitCode::SUCCESS)
}

/// Asks, as docker does. Without a terminal the answer is read all the same: `yes | wherry image prune`.
fn agreed(warning: &str) -> Result<bool, Failure> {
    let mut out = std::io::stderr();
    let _ = write!(
        out,
        "WARNING! {warning}\nAre you sure you want to continue? [y/N] "
    );
    let _ = out.flush();
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.map_err(|error| Failure::about("cannot read the answer", &error))?;
    if !std::io::stdin().is_terminal() {
        let _ = writeln!(out);
    }
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

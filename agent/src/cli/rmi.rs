//! `wherry rmi`.

use std::io::Write as _;
use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use wherry_images::store::{Collected, Error, Scope};
use wherry_images::{Digest, Image, Reference, Store};

use super::failure::{Failure, print};
use super::place::Place;
use crate::container;

/// remove images that nothing uses
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "rmi",
    example = "wherry rmi registry.example/iris:v1",
    example = "wherry rmi -f 3e6c1f0a9b2d",
    note = "An image goes with its last name. What a container, a desired pod or a pull in progress needs stays."
)]
pub struct Args {
    /// take the names away from an image that a container uses, or all names of one that is given by its id
    #[argh(switch, short = 'f')]
    pub force: bool,
    /// accepted for docker's sake: parents of images are not kept as images
    #[argh(switch)]
    pub no_prune: bool,
    /// names, or beginnings of ids
    #[argh(positional, arg_name = "image")]
    pub first: String,
    /// more of them
    #[argh(positional, arg_name = "more")]
    pub more: Vec<String>,
}

pub(super) fn run(args: &Args, place: &Place) -> Result<ExitCode, Failure> {
    let store = place.store()?;
    let mut failed = None;
    for name in std::iter::once(&args.first).chain(&args.more) {
        let removed = match remove(&store, name, args.force) {
            // As docker has it, that is none for `rmi -f`.
            Err(failure) if args.force && failure.line.starts_with("no such image") => Ok(()),
            other => other,
        };
        if let Err(failure) = removed
            && let Some(Failure { line, .. }) = failed.replace(failure)
        {
            // The last one is told by whoever prints the returned failure.
            let _ = writeln!(std::io::stderr(), "wherry: {line}");
        }
    }
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// A name's record, as the person wrote it.
fn named(store: &Store, text: &str) -> Result<Option<Reference>, Error> {
    let Ok(reference) = Reference::parse(text) else {
        return Ok(None);
    };
    let made_here = (reference.registry() == "docker.io" && !text.starts_with("docker.io/"))
        .then(|| Reference::parse(&format!("localhost/{text}")).ok())
        .flatten();
    for name in [Some(reference), made_here].into_iter().flatten() {
        if store.tagged(&name)?.is_some() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn remove(store: &Store, text: &str, force: bool) -> Result<(), Failure> {
    let tags = store.tags()?;
    let by_name = named(store, text)?;
    let (target, image, names) = match &by_name {
        Some(name) => {
            let record = store.tagged(name)?.ok_or_else(|| Error::NoImage(text.into()))?;
            let image = store.resolve(&name.to_string()).ok();
            (record.target.digest, image, vec![name.clone()])
        }
        None => {
            let image = store.resolve(text)?;
            let own = tags
                .iter()
                .filter(|record| record.target.digest == image.digest)
                .map(|record| record.reference.clone());
            (image.digest, Some(image.clone()), own.collect())
        }
    };
    let all = tags
        .iter()
        .filter(|record| record.target.digest == target)
        .count();
    let is_last = by_name.is_none() || all <= 1;
    let users = match &image {
        Some(image) => container::users(store.root())?
            .remove(&image.digest)
            .unwrap_or_default(),
        None => Vec::new(),
    };
    if by_name.is_none() && names.len() > 1 && !force {
        return Err(Failure::new(format!(
            "cannot remove {text}: it has {} names, {}; remove them one by one, or all with -f",
            names.len(),
            join(&names)
        )));
    }
    if let Some(user) = users.first().filter(|_| is_last && !force) {
        return Err(Failure::new(format!(
            "cannot remove {text}: container {} ({}) uses it; remove the container first, or take the name away with -f",
            user.name,
            user.id.short()
        )));
    }
    for name in &names {
        match store.remove_tag(name) {
            Ok(()) => print(&format!("Untagged: {}\n", name.familiar()))?,
            // Another process was quicker.
            Err(Error::NoImage(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if !is_last {
        return Ok(());
    }
    collect(store, target, image.as_ref())
}

fn collect(store: &Store, target: Digest, image: Option<&Image>) -> Result<(), Failure> {
    let done = store.collect(Scope::Document(target), &mut || container::in_use(store.root()))?;
    told(&done)?;
    if let (Some(image), true) = (image, done.blobs.is_empty()) {
        // What it is made of belongs to others too, or is used.
        tracing::info!(image = %image.digest, "its content stays: something needs it");
    }
    Ok(())
}

/// What went, as docker tells it; and why nothing could.
pub(super) fn told(done: &Collected) -> Result<(), Failure> {
    let mut text = String::new();
    for digest in done
        .images
        .iter()
        .chain(done.blobs.iter().filter(|b| !done.images.contains(b)))
    {
        text.push_str(&format!("Deleted: {digest}\n"));
    }
    for diff_id in &done.layers {
        text.push_str(&format!("Deleted: {diff_id}\n"));
    }
    print(&text)?;
    match &done.damaged {
        None => Ok(()),
        Some(why) => Err(Failure::new(format!(
            "names were removed and nothing else: {why}; run wherry verify --repair first"
        ))),
    }
}

fn join(names: &[Reference]) -> String {
    let names: Vec<String> = names.iter().map(Reference::familiar).collect();
    names.join(", ")
}

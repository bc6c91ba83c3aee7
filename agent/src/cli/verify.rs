//! `wherry verify`.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use serde_json::json;
use wherry_images::Store;
use wherry_images::pull::{PullOptions, Source};
use wherry_images::store::{Finding, Item, Record, Verified};

use super::ago;
use super::failure::{Failure, print};
use super::place::Place;
use super::pull::{self, Show};
use super::registry;
use crate::container;

/// read everything in the state directory back, hash it, and name what is not what it was
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "verify",
    example = "wherry verify",
    example = "wherry verify --repair",
    note = "Each layer's tar is made again from its files and compared with its diffID. The exit code is 1 when something is damaged."
)]
pub struct Args {
    /// fetch what is damaged or missing again, from the registries that the images' names lead to
    #[argh(switch)]
    pub repair: bool,
    /// false for registries without TLS
    #[argh(option, arg_name = "bool", default = "true")]
    pub tls_verify: bool,
    /// say nothing of what is whole
    #[argh(switch, short = 'q')]
    pub quiet: bool,
    /// text, or json: one object
    #[argh(option, arg_name = "format", default = "String::from(\"text\")")]
    pub format: String,
}

pub(super) fn run(args: &Args, place: &Place) -> Result<ExitCode, Failure> {
    let as_json = match args.format.as_str() {
        "text" => false,
        "json" => true,
        other => {
            return Err(Failure::new(format!(
                "format {other:?} is not supported; use text or json"
            )));
        }
    };
    let store = place.store()?;
    let mut verified = look(&store, args.quiet || as_json)?;
    if args.repair && !verified.is_clean() {
        for (item, why) in &verified.bad {
            let _ = writeln!(std::io::stderr(), "wherry: {}: {why}", name(item));
        }
        repair(&store, &verified, args.tls_verify)?;
        verified = look(&store, true)?;
    }
    if as_json {
        let bad = verified.bad.iter();
        let bad = bad.map(|(item, why)| json!({"what": name(item), "why": why}));
        let object = json!({
            "whole": verified.whole,
            "bytes": verified.bytes,
            "unknown": verified.unknown,
            "bad": bad.collect::<Vec<_>>(),
        });
        print(&format!("{object}\n"))?;
    } else {
        summary(&verified, args.quiet)?;
    }
    Ok(match verified.is_clean() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn look(store: &Store, quiet: bool) -> Result<Verified, Failure> {
    let live = !quiet && std::io::stderr().is_terminal();
    let mut seen = 0_u64;
    let verified = store.verify(&mut |item, finding| {
        seen += 1;
        if live && matches!(finding, Finding::Whole) {
            let _ = write!(std::io::stderr(), "\r\x1b[K{seen}: {}", name(item));
        }
    });
    if live {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    Ok(verified?)
}

fn name(item: &Item) -> String {
    match item {
        Item::Blob(digest) => format!("blob {digest}"),
        Item::Layer(diff_id) => format!("layer {diff_id}"),
        Item::Tag(name) => format!("tag {name}"),
    }
}

fn summary(verified: &Verified, quiet: bool) -> Result<(), Failure> {
    let mut text = String::new();
    for (item, why) in &verified.bad {
        text.push_str(&format!("{}: {why}\n", name(item)));
    }
    for diff_id in &verified.unknown {
        text.push_str(&format!(
            "layer {diff_id}: cannot be told, it was unpacked by an earlier version; remove and pull its image to know\n"
        ));
    }
    if !quiet {
        let bad = match verified.bad.len() {
            0 => "nothing is damaged".into(),
            n => format!("{n} damaged or missing"),
        };
        text.push_str(&format!(
            "{} whole, {} read; {bad}\n",
            verified.whole,
            ago::size(verified.bytes)
        ));
    }
    print(&text)
}

/// Takes what is damaged out of the way and pulls the images that need it by the digests that they have.
fn repair(store: &Store, verified: &Verified, tls_verify: bool) -> Result<(), Failure> {
    let affected = affected(store, verified)?;
    for (item, _) in &verified.bad {
        if let Item::Layer(diff_id) = item {
            refuse_if_running(store, diff_id)?;
        }
    }
    // What the images are is read before anything is taken away: a manifest may be among it.
    let mut kept = BTreeSet::new();
    for (item, why) in &verified.bad {
        if let Item::Blob(digest) = item
            && store
                .blob(digest)?
                .is_some_and(|file| file.metadata().is_ok_and(|m| m.len() > 4 << 20))
        {
            kept.insert(*digest);
        }
        if let Item::Tag(_) = item {
            let _ = writeln!(
                std::io::stderr(),
                "wherry: {}: {why}; which name it was is lost with it, tag or pull that image again",
                name(item)
            );
        }
        store.discard(item)?;
    }
    let keep_blobs = !kept.is_empty();
    for record in affected {
        let reference = record.reference.with_digest(record.target.digest);
        let options = PullOptions {
            keep_blobs,
            ..PullOptions::default()
        };
        let client = registry::client(tls_verify, None, &reference)?;
        let mut show = Show::on_stderr();
        let known = store.tagged(&reference)?.is_some();
        pull::fetch(
            store,
            &client,
            &Source::Registry(reference.clone()),
            &options,
            &mut show,
        )
        .map_err(|failure| Failure::new(format!("{}: {}", record.reference.familiar(), failure.line)))?;
        if !known && reference != record.reference {
            // The image has its own name; this one was the pull's.
            store.remove_tag(&reference)?;
        }
    }
    Ok(())
}

/// The names whose images need something that is bad.
fn affected(store: &Store, verified: &Verified) -> Result<Vec<Record>, Failure> {
    let bad: BTreeSet<&Item> = verified.bad.iter().map(|(item, _)| item).collect();
    let mut found = Vec::new();
    for record in store.tags()? {
        let needs = match store.image(&record.target.digest) {
            Ok(image) => {
                let layers = image.manifest.layers.iter().map(|layer| Item::Blob(layer.digest));
                let trees = image.diff_ids.iter().map(|diff_id| Item::Layer(*diff_id));
                let documents = [Item::Blob(image.digest), Item::Blob(image.config_digest)];
                documents
                    .into_iter()
                    .chain(layers)
                    .chain(trees)
                    .any(|item| bad.contains(&item))
            }
            // Its manifest or its config is damaged or gone.
            Err(_) => true,
        };
        if needs {
            found.push(record);
        }
    }
    Ok(found)
}

fn refuse_if_running(store: &Store, diff_id: &wherry_images::DiffId) -> Result<(), Failure> {
    for (digest, users) in container::users(store.root())? {
        let uses = store
            .image(&digest)
            .map_or(true, |image| image.diff_ids.contains(diff_id));
        let monitored = |user: &&container::User| container::is_supervised(store.root(), &user.id);
        if let Some(user) = users.iter().filter(|_| uses).find(monitored) {
            return Err(Failure::new(format!(
                "cannot repair layer {diff_id}: container {} runs on it; stop it first (wherry stop {})",
                user.name, user.name
            )));
        }
    }
    Ok(())
}

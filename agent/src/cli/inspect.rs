//! `wherry inspect`.

use std::io::Write as _;
use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};
use wherry_images::store::Error as StoreError;
use wherry_images::{Image, Store};

use super::failure::{Failure, print};
use super::format::Format;
use super::images;
use super::place::Place;
use crate::container::{self, Containers};

/// print all that is known about containers and images, as JSON
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "inspect",
    example = "wherry inspect iris | jq '.[0].observed'",
    example = "wherry inspect --type image --format '{{json .Config.Env}}' iris:v1",
    note = "A name that a container and an image have means the container; --type image the image."
)]
pub struct Args {
    /// a template such as '{{.Id}}', or json
    #[argh(option, short = 'f', arg_name = "format", default = "String::new()")]
    pub format: String,
    /// only container, or only image
    #[argh(option, long = "type", arg_name = "type")]
    pub kind: Option<String>,
    /// names or ids
    #[argh(positional, arg_name = "name")]
    pub first: String,
    /// more of them
    #[argh(positional, arg_name = "more")]
    pub more: Vec<String>,
}

pub(super) fn run(args: &Args, place: &Place) -> Result<ExitCode, Failure> {
    let (containers, images) = match args.kind.as_deref() {
        None | Some("") => (true, true),
        Some("container") => (true, false),
        Some("image") => (false, true),
        Some(other) => {
            return Err(Failure::new(format!(
                "type {other:?} is not supported; use container or image"
            )));
        }
    };
    let format = Format::parse(&args.format)?;
    let store = place.store()?;
    // Images can be looked at without a runtime.
    let known = match containers && (!images || store.root().join("containers").exists()) {
        true => Some(place.containers()?),
        false => None,
    };
    let mut all = Vec::new();
    let mut failed = None;
    for name in std::iter::once(&args.first).chain(&args.more) {
        match find(
            name,
            known.as_ref(),
            images.then_some(&store),
            args.kind.is_none(),
        ) {
            Ok(found) => all.push(found),
            Err(failure) => {
                // As docker does it, what was found is printed all the same.
                if let Some(Failure { line, .. }) = failed.replace(failure) {
                    let _ = writeln!(std::io::stderr(), "wherry: {line}");
                }
            }
        }
    }
    match format {
        Format::Table => print(&format!("{:#}\n", Value::from(all)))?,
        Format::Json => print(&format!("{}\n", Value::from(all)))?,
        other => {
            if let Some(text) = other.list(&all, &[])? {
                print(&text)?;
            }
        }
    }
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

fn find(
    name: &str,
    containers: Option<&Containers>,
    store: Option<&Store>,
    both: bool,
) -> Result<Value, Failure> {
    if let Some(containers) = containers {
        match containers.find(name) {
            Ok(container) => {
                return Ok(json!({
                    "id": container.id,
                    "createdAt": container.created_at,
                    "directory": container.directory().display().to_string(),
                    "spec": container.spec,
                    "observed": container.observed,
                }));
            }
            Err(container::Error::NotFound(_)) if store.is_some() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let Some(store) = store else {
        return Err(Failure::new(format!("no such container: {name}")));
    };
    match store.resolve(name) {
        Ok(image) => of_image(store, &image),
        Err(StoreError::NoImage(_)) if both => Err(Failure::new(format!(
            "no such container or image: {name}; see wherry ps -a and wherry images"
        ))),
        Err(error) => Err(error.into()),
    }
}

/// Docker's keys, and the manifest.
fn of_image(store: &Store, image: &Image) -> Result<Value, Failure> {
    let records = store.tags()?;
    let own = records
        .iter()
        .filter(|record| record.target.digest == image.digest);
    let names: Vec<_> = own.map(|record| &record.reference).collect();
    let tags: Vec<String> = names.iter().map(|name| name.familiar()).collect();
    let mut digests: Vec<String> = names
        .iter()
        .map(|name| format!("{}@{}", name.familiar_name(), image.digest))
        .collect();
    digests.dedup();
    let layers: Vec<Value> = image
        .diff_ids
        .iter()
        .map(|diff_id| match store.layer(diff_id) {
            Ok(Some(path)) => path.display().to_string().into(),
            _ => Value::Null,
        })
        .collect();
    let config = &image.config;
    Ok(json!({
        "Id": image.config_digest,
        "RepoTags": tags,
        "RepoDigests": digests,
        "Parent": "",
        "Comment": config.history.last().and_then(|step| step.comment.clone()).unwrap_or_default(),
        "Created": config.created,
        "Author": config.history.last().and_then(|step| step.author.clone()).unwrap_or_default(),
        "Architecture": config.architecture,
        "Variant": config.variant.clone().unwrap_or_default(),
        "Os": config.os,
        "Size": images::size(store, image)?,
        "Config": config.config,
        "RootFS": {"Type": "layers", "Layers": image.diff_ids},
        "GraphDriver": {"Name": "wherry", "Data": {"Layers": layers}},
        "Descriptor": {
            "mediaType": image.media_type,
            "digest": image.digest,
            "size": store.document(&image.digest)?.map_or(0, |bytes| bytes.len()),
        },
        "Manifest": image.manifest,
    }))
}

//! `wherry images`.

use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use serde_json::json;
use wherry_images::store::ImageRecord;

use super::ago;
use super::failure::{Failure, print};
use super::place::Place;
use super::table;
use crate::container::Timestamp;

/// What docker writes where there is nothing to say.
const NONE: &str = "<none>";

/// list the images in the state directory
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "images",
    example = "wherry images",
    example = "wherry images --digests registry.example/iris",
    example = "wherry images --format json"
)]
pub struct Args {
    /// only ids
    #[argh(switch, short = 'q')]
    pub quiet: bool,
    /// also the digests of the manifests
    #[argh(switch)]
    pub digests: bool,
    /// whole ids
    #[argh(switch)]
    pub no_trunc: bool,
    /// table, or json: one object a line
    #[argh(option, arg_name = "format", default = "String::from(\"table\")")]
    pub format: String,
    /// only images of this name, with or without a tag
    #[argh(positional)]
    pub name: Option<String>,
}

/// Reads the value of `--format`.
pub(super) fn is_json(format: &str) -> Result<bool, Failure> {
    match format {
        "json" => Ok(true),
        "table" => Ok(false),
        other => Err(Failure::new(format!(
            "format {other:?} is not supported; use table or json"
        ))),
    }
}

pub(super) fn run(args: &Args, place: &Place) -> Result<ExitCode, Failure> {
    let as_json = is_json(&args.format)?;
    let mut images = place.store()?.images()?;
    if let Some(name) = &args.name {
        let wanted = wherry_images::Reference::parse(name)?;
        let tagged = name.contains('@') || name.rsplit('/').next().is_some_and(|last| last.contains(':'));
        images.retain(|image| match tagged {
            true => image.reference == wanted,
            false => image.reference.familiar_name() == wanted.familiar_name(),
        });
    }
    let now = Timestamp::now();
    let id = |image: &ImageRecord| match args.no_trunc {
        true => image.config_digest.to_string(),
        false => image.config_digest.short(),
    };
    if args.quiet {
        print(&images.iter().map(|image| id(image) + "\n").collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let created = |image: &ImageRecord| image.created.as_deref().and_then(Timestamp::parse);
    let since = |image: &ImageRecord| {
        created(image).map_or("N/A".into(), |moment| {
            format!("{} ago", ago::human(ago::since(moment, now)))
        })
    };
    let tag = |image: &ImageRecord| image.reference.tag().unwrap_or(NONE).to_owned();
    if as_json {
        let line = |image: &ImageRecord| {
            let object = json!({
                "Containers": "N/A",
                "CreatedAt": image.created,
                "CreatedSince": since(image),
                "Digest": image.digest,
                "ID": id(image),
                "Repository": image.reference.familiar_name(),
                "SharedSize": "N/A",
                "Size": ago::size(image.size),
                "Tag": tag(image),
                "UniqueSize": "N/A",
            });
            format!("{object}\n")
        };
        print(&images.iter().map(line).collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |image: &ImageRecord| {
        let name = image.reference.familiar_name();
        (
            name,
            tag(image),
            image.digest.to_string(),
            id(image),
            since(image),
            ago::size(image.size),
        )
    };
    let rows = images.iter().map(row);
    let text = if args.digests {
        let rows: Vec<_> = rows
            .map(|(name, tag, digest, id, since, size)| [name, tag, digest, id, since, size])
            .collect();
        table::columns(
            ["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"],
            &rows,
        )
    } else {
        let rows: Vec<_> = rows
            .map(|(name, tag, _, id, since, size)| [name, tag, id, since, size])
            .collect();
        table::columns(["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"], &rows)
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

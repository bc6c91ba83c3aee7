//! `wherry images`.

use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};
use wherry_images::store::ImageRecord;
use wherry_images::{Image, Reference, Store};

use super::ago;
use super::failure::{Failure, print};
use super::filter::Filter;
use super::format::Format;
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
    example = "wherry images --filter reference='*/iris:*' --format '{{.Repository}}:{{.Tag}}'",
    example = "wherry images --format json"
)]
pub struct Args {
    /// also images without a name
    #[argh(switch, short = 'a')]
    pub all: bool,
    /// only ids
    #[argh(switch, short = 'q')]
    pub quiet: bool,
    /// also the digests of the manifests
    #[argh(switch)]
    pub digests: bool,
    /// whole ids
    #[argh(switch)]
    pub no_trunc: bool,
    /// only some: dangling=BOOL, reference=PATTERN, label=KEY[=VALUE], before=IMAGE, since=IMAGE, until=TIME
    #[argh(option, short = 'f', arg_name = "filter")]
    pub filter: Vec<String>,
    /// table, json: one object a line, or a template such as '{{.ID}}'
    #[argh(option, arg_name = "format", default = "String::from(\"table\")")]
    pub format: String,
    /// only images of this name, with or without a tag
    #[argh(positional)]
    pub name: Option<String>,
}

/// Reads the value of `--format` of a verb that has no templates.
pub(super) fn is_json(format: &str) -> Result<bool, Failure> {
    match format {
        "json" => Ok(true),
        "table" => Ok(false),
        other => Err(Failure::new(format!(
            "format {other:?} is not supported; use table or json"
        ))),
    }
}

/// An image as it is listed, with or without a name.
struct Line {
    reference: Option<Reference>,
    digest: String,
    id: String,
    created: Option<String>,
    size: u64,
}

pub(super) fn run(args: &Args, place: &Place) -> Result<ExitCode, Failure> {
    let format = Format::parse(&args.format)?;
    let store = place.store()?;
    let lines = lines(args, &store)?;
    if args.quiet {
        let mut seen = std::collections::BTreeSet::new();
        let ids = lines
            .iter()
            .map(|line| line.id.as_str())
            .filter(|id| seen.insert(*id));
        print(&ids.map(|id| format!("{id}\n")).collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let now = Timestamp::now();
    let objects: Vec<Value> = lines.iter().map(|line| object(line, now)).collect();
    let headers = [("ID", "IMAGE ID"), ("CreatedSince", "CREATED")];
    let text = match format.list(&objects, &headers)? {
        Some(text) => text,
        None => in_columns(&objects, args.digests),
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn lines(args: &Args, store: &Store) -> Result<Vec<Line>, Failure> {
    let filter = Filter::parse(&args.filter, store)?;
    let mut images = match filter.dangling {
        Some(true) => Vec::new(),
        _ => store.images()?,
    };
    if let Some(name) = &args.name {
        let wanted = Reference::parse(name)?;
        let tagged = name.contains('@') || name.rsplit('/').next().is_some_and(|last| last.contains(':'));
        images.retain(|image| match tagged {
            true => image.reference == wanted,
            false => image.reference.familiar_name() == wanted.familiar_name(),
        });
    }
    images.retain(|image| args.filter.is_empty() || filter.lists(image, store));
    let id = |digest: wherry_images::Digest| match args.no_trunc {
        true => digest.to_string(),
        false => digest.short(),
    };
    let mut lines: Vec<Line> = images
        .into_iter()
        .map(|image: ImageRecord| Line {
            reference: Some(image.reference),
            digest: image.digest.to_string(),
            id: id(image.config_digest),
            created: image.created,
            size: image.size,
        })
        .collect();
    let unnamed = filter.dangling == Some(true) || (args.all && filter.dangling.is_none());
    if unnamed && args.name.is_none() {
        for image in store.dangling()?.into_iter().filter(|image| filter.admits(image)) {
            lines.push(Line {
                reference: None,
                digest: image.digest.to_string(),
                id: id(image.config_digest),
                size: size(store, &image)?,
                created: image.config.created,
            });
        }
    }
    Ok(lines)
}

/// Bytes of an image's files, over all layers that are unpacked here.
pub(super) fn size(store: &Store, image: &Image) -> Result<u64, Failure> {
    let mut size = 0_u64;
    for diff_id in &image.diff_ids {
        size = size.saturating_add(store.layer_info(diff_id)?.map_or(0, |info| info.data_size));
    }
    Ok(size)
}

/// Docker's keys.
fn object(line: &Line, now: Timestamp) -> Value {
    let created = line.created.as_deref().and_then(Timestamp::parse);
    let since = created.map_or("N/A".into(), |moment| {
        format!("{} ago", ago::human(ago::since(moment, now)))
    });
    let name = line.reference.as_ref();
    json!({
        "Containers": "N/A",
        "CreatedAt": line.created,
        "CreatedSince": since,
        "Digest": line.digest,
        "ID": line.id,
        "Repository": name.map_or(NONE.into(), Reference::familiar_name),
        "SharedSize": "N/A",
        "Size": ago::size(line.size),
        "Tag": name.and_then(Reference::tag).unwrap_or(NONE),
        "UniqueSize": "N/A",
    })
}

fn in_columns(objects: &[Value], digests: bool) -> String {
    let cell = |object: &Value, name: &str| object[name].as_str().unwrap_or_default().to_owned();
    if digests {
        let names = ["Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"];
        let rows: Vec<[String; 6]> = objects
            .iter()
            .map(|object| names.map(|name| cell(object, name)))
            .collect();
        let header = ["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"];
        return table::columns(header, &rows);
    }
    let names = ["Repository", "Tag", "ID", "CreatedSince", "Size"];
    let rows: Vec<[String; 5]> = objects
        .iter()
        .map(|object| names.map(|name| cell(object, name)))
        .collect();
    table::columns(["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"], &rows)
}

//! `wherry system df`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};
use wherry_images::store::Usage;
use wherry_images::{DiffId, Digest};

use super::ago;
use super::failure::{Failure, print};
use super::format::Format;
use super::place::Place;
use super::table;
use crate::container::{self, Container, Timestamp};

/// what the state directory takes
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(subcommand, name = "system", example = "wherry system df -v")]
pub struct Args {
    /// what to do
    #[argh(subcommand)]
    pub verb: Verb,
}

/// The verbs of the whole state directory.
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(subcommand)]
#[allow(missing_docs)]
pub enum Verb {
    Df(Df),
}

/// show how much disk images, containers and half-fetched blobs take
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "df",
    example = "wherry system df",
    example = "wherry system df -v",
    example = "wherry system df --format '{{.Type}} {{.Reclaimable}}'"
)]
pub struct Df {
    /// each image and container
    #[argh(switch, short = 'v')]
    pub verbose: bool,
    /// table, json, or a template such as '{{.Size}}'
    #[argh(option, arg_name = "format", default = "String::from(\"table\")")]
    pub format: String,
}

/// What there is to show.
struct Shown {
    usage: Usage,
    /// Bytes of each layer.
    layers: BTreeMap<DiffId, u64>,
    containers: Vec<(Container, u64)>,
    users: BTreeMap<Digest, usize>,
}

pub(super) fn run(args: &Args, place: &Place) -> Result<ExitCode, Failure> {
    let Verb::Df(args) = &args.verb;
    let format = Format::parse(&args.format)?;
    let store = place.store()?;
    let usage = store.usage()?;
    let containers = match store.root().join("containers").exists() {
        true => place.containers()?.list()?.containers,
        false => Vec::new(),
    };
    let users = container::users(store.root())?;
    let shown = Shown {
        layers: usage.layers.clone(),
        usage,
        containers: containers
            .into_iter()
            .map(|container| {
                let size = size_of(&container.directory().join("upper"));
                (container, size)
            })
            .collect(),
        users: users
            .into_iter()
            .map(|(digest, users)| (digest, users.len()))
            .collect(),
    };
    let rows = summary(&shown);
    if args.verbose && format == Format::Table {
        print(&details(&shown))?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = match format.list(&rows, &[("TotalCount", "TOTAL")])? {
        Some(text) => text,
        None => {
            let names = ["Type", "TotalCount", "Active", "Size", "Reclaimable"];
            let cell = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
            let rows: Vec<[String; 5]> = rows.iter().map(|row| names.map(|name| cell(row, name))).collect();
            table::columns(["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"], &rows)
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn row(kind: &str, total: usize, active: usize, size: u64, reclaimable: u64) -> Value {
    let share = match size {
        0 => String::new(),
        size => format!(" ({}%)", reclaimable.saturating_mul(100) / size),
    };
    json!({
        "Active": active.to_string(),
        "Reclaimable": format!("{}{share}", ago::size(reclaimable)),
        "Size": ago::size(size),
        "TotalCount": total.to_string(),
        "Type": kind,
    })
}

/// Docker's rows, and what docker has not: there is no build cache here, but there are blobs.
fn summary(shown: &Shown) -> Vec<Value> {
    let usage = &shown.usage;
    let ids: BTreeSet<Digest> = usage.images.iter().map(|image| image.digest).collect();
    let active: BTreeSet<Digest> = ids
        .iter()
        .copied()
        .filter(|id| shown.users.contains_key(id))
        .collect();
    let needed: BTreeSet<DiffId> = usage
        .images
        .iter()
        .filter(|image| active.contains(&image.digest))
        .flat_map(|image| image.diff_ids.iter().copied())
        .collect();
    let size: u64 = shown.layers.values().sum();
    let used: u64 = needed.iter().filter_map(|id| shown.layers.get(id)).sum();
    let running = shown
        .containers
        .iter()
        .filter(|(container, _)| container.is_running());
    let stopped = shown
        .containers
        .iter()
        .filter(|(container, _)| !container.is_running());
    vec![
        row("Images", ids.len(), active.len(), size, size - used),
        row(
            "Containers",
            shown.containers.len(),
            running.count(),
            shown.containers.iter().map(|(_, size)| size).sum(),
            stopped.map(|(_, size)| size).sum(),
        ),
        row("Local Volumes", 0, 0, 0, 0),
        row("Blobs", usage.blobs, usage.blobs, usage.blob_bytes, 0),
        row(
            "Partial Downloads",
            usage.partials,
            usage.held_partials,
            usage.partial_bytes,
            usage.partial_bytes - usage.held_partial_bytes,
        ),
    ]
}

fn details(shown: &Shown) -> String {
    let usage = &shown.usage;
    let now = Timestamp::now();
    // How many images each layer belongs to.
    let mut owners: BTreeMap<DiffId, BTreeSet<Digest>> = BTreeMap::new();
    for image in &usage.images {
        for diff_id in &image.diff_ids {
            owners.entry(*diff_id).or_default().insert(image.digest);
        }
    }
    let sum = |ids: &BTreeSet<DiffId>, shared: bool| -> u64 {
        let mine = ids
            .iter()
            .filter(|id| owners.get(*id).is_some_and(|owners| (owners.len() > 1) == shared));
        mine.filter_map(|id| shown.layers.get(id)).sum()
    };
    let rows = usage.images.iter().map(|image| {
        let ids: BTreeSet<DiffId> = image.diff_ids.iter().copied().collect();
        let (shared, unique) = (sum(&ids, true), sum(&ids, false));
        let made = image.created.as_deref().and_then(Timestamp::parse);
        let (name, tag) = match &image.reference {
            Some(name) => (name.familiar_name(), name.tag().unwrap_or("<none>").to_owned()),
            None => ("<none>".into(), "<none>".into()),
        };
        [
            name,
            tag,
            image.config_digest.short(),
            made.map_or("N/A".into(), |moment| {
                format!("{} ago", ago::human(ago::since(moment, now)))
            }),
            ago::size(shared + unique),
            ago::size(shared),
            ago::size(unique),
            shown.users.get(&image.digest).copied().unwrap_or(0).to_string(),
        ]
    });
    let header = [
        "REPOSITORY",
        "TAG",
        "IMAGE ID",
        "CREATED",
        "SIZE",
        "SHARED SIZE",
        "UNIQUE SIZE",
        "CONTAINERS",
    ];
    let images = table::columns(header, &rows.collect::<Vec<_>>());
    let rows = shown.containers.iter().map(|(container, size)| {
        let state = if container.is_running() {
            "running"
        } else {
            "not running"
        };
        [
            container.id.short(),
            container.spec.image_name.clone(),
            ago::size(*size),
            format!("{} ago", ago::human(ago::since(container.created_at, now))),
            state.into(),
            container.spec.name.clone(),
        ]
    });
    let header = ["CONTAINER ID", "IMAGE", "SIZE", "CREATED", "STATUS", "NAMES"];
    let containers = table::columns(header, &rows.collect::<Vec<_>>());
    format!("Images space usage:\n\n{images}\nContainers space usage:\n\n{containers}")
}

/// The bytes on the disk beneath a directory that a container wrote. What cannot be read (it may be the container's own
/// doing) counts for nothing; nothing is followed out of it.
fn size_of(dir: &Path) -> u64 {
    let mut seen = BTreeSet::new();
    let mut size = 0;
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.path().symlink_metadata() else {
                continue;
            };
            if meta.is_dir() {
                todo.push(entry.path());
            } else if meta.nlink() == 1 || seen.insert(meta.ino()) {
                size += meta.blocks() * 512;
            }
        }
    }
    size
}

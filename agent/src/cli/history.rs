//! `wherry history`.

use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use serde_json::{Value, json};
use wherry_images::manifest::History;
use wherry_images::{Image, Store};

use super::ago;
use super::failure::{Failure, print};
use super::format::Format;
use super::place::Place;
use super::table;
use crate::container::Timestamp;

/// The characters of a command that are shown without --no-trunc.
const COMMAND_MAX: usize = 45;

/// show the steps that made an image
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "history",
    example = "wherry history iris:v1",
    example = "wherry history --no-trunc --format '{{.CreatedBy}}' iris:v1"
)]
pub struct Args {
    /// only ids
    #[argh(switch, short = 'q')]
    pub quiet: bool,
    /// whole ids and commands
    #[argh(switch)]
    pub no_trunc: bool,
    /// sizes and times for people; false for bytes and moments
    #[argh(option, short = 'H', arg_name = "bool", default = "true")]
    pub human: bool,
    /// table, json, or a template such as '{{.CreatedBy}}'
    #[argh(option, arg_name = "format", default = "String::from(\"table\")")]
    pub format: String,
    /// the image: a name, or the beginning of its id
    #[argh(positional)]
    pub image: String,
}

pub(super) fn run(args: &Args, place: &Place) -> Result<ExitCode, Failure> {
    let format = Format::parse(&args.format)?;
    let store = place.store()?;
    let image = store.resolve(&args.image)?;
    let steps = steps(args, &store, &image)?;
    let cell = |step: &Value, name: &str| table::clean(step[name].as_str().unwrap_or_default());
    if args.quiet {
        let ids: String = steps.iter().map(|step| cell(step, "ID") + "\n").collect();
        print(&ids)?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = match format.list(&steps, &[("ID", "IMAGE")])? {
        Some(text) => text,
        None => {
            let names = ["ID", "CreatedSince", "CreatedBy", "Size", "Comment"];
            let rows: Vec<[String; 5]> = steps
                .iter()
                .map(|step| names.map(|name| cell(step, name)))
                .collect();
            table::columns(["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"], &rows)
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The newest step first. An image that tells nothing has one for each layer.
fn steps(args: &Args, store: &Store, image: &Image) -> Result<Vec<Value>, Failure> {
    let untold = vec![History::default(); image.diff_ids.len()];
    let told = &image.config.history;
    let with_layer = told.iter().filter(|step| !step.empty_layer).count();
    let history = if with_layer == image.diff_ids.len() {
        told
    } else {
        &untold
    };
    let now = Timestamp::now();
    let mut layers = image.diff_ids.iter();
    let mut steps = Vec::new();
    for step in history {
        let layer = if step.empty_layer { None } else { layers.next() };
        let size = match layer {
            Some(diff_id) => store.layer_info(diff_id)?.map_or(0, |info| info.data_size),
            None => 0,
        };
        let moment = step.created.as_deref().and_then(Timestamp::parse);
        let since = moment.map_or("N/A".into(), |moment| {
            format!("{} ago", ago::human(ago::since(moment, now)))
        });
        let command = step.created_by.clone().unwrap_or_default();
        steps.push(json!({
            "Comment": step.comment.clone().unwrap_or_default(),
            "CreatedAt": step.created,
            "CreatedBy": if args.no_trunc { command } else { table::cut(&command, COMMAND_MAX) },
            "CreatedSince": if args.human { since } else { step.created.clone().unwrap_or_default() },
            "ID": "<missing>",
            "Size": if args.human { ago::size(size) } else { size.to_string() },
        }));
    }
    if let Some(top) = steps.last_mut() {
        top["ID"] = match args.no_trunc {
            true => image.config_digest.to_string().into(),
            false => image.config_digest.short().into(),
        };
    }
    steps.reverse();
    Ok(steps)
}

//! `wherry ps`.

use std::io::Write as _;
use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use serde_json::json;

use super::ago;
use super::failure::{Failure, print};
use super::format::Format;
use super::place::Place;
use super::table;
use crate::container::{Container, Network, Source, Status, Timestamp};

/// The characters of a command that are shown without --no-trunc.
const COMMAND_MAX: usize = 20;

/// list containers
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "ps",
    example = "wherry ps",
    example = "wherry ps -aq",
    example = "wherry ps -a --format json | jq -r .Names"
)]
pub struct Args {
    /// also those that do not run
    #[argh(switch, short = 'a')]
    pub all: bool,
    /// only ids
    #[argh(switch, short = 'q')]
    pub quiet: bool,
    /// whole ids and commands
    #[argh(switch)]
    pub no_trunc: bool,
    /// table, json: one object a line, or a template such as '{{.Names}}'
    #[argh(option, arg_name = "format", default = "String::from(\"table\")")]
    pub format: String,
}

pub(super) fn run(args: &Args, place: &Place) -> Result<ExitCode, Failure> {
    let format = Format::parse(&args.format)?;
    let listing = place.containers()?.list()?;
    let now = Timestamp::now();
    let mut shown: Vec<&Container> = listing
        .containers
        .iter()
        .filter(|container| args.all || container.is_running())
        .collect();
    shown.reverse();
    let id = |container: &Container| {
        if args.no_trunc {
            container.id.hex()
        } else {
            container.id.short()
        }
    };
    if args.quiet {
        print(
            &shown
                .iter()
                .map(|container| id(container) + "\n")
                .collect::<String>(),
        )?;
    } else if format != Format::Table {
        let objects: Vec<_> = shown
            .iter()
            .map(|container| object(container, &id(container), args.no_trunc, now))
            .collect();
        print(
            &format
                .list(&objects, &[("ID", "CONTAINER ID")])?
                .unwrap_or_default(),
        )?;
    } else {
        let rows: Vec<[String; 7]> = shown
            .iter()
            .map(|container| {
                [
                    id(container),
                    container.spec.image_name.clone(),
                    command(container, args.no_trunc),
                    format!("{} ago", ago::human(ago::since(container.created_at, now))),
                    status(container, now),
                    ports(container),
                    container.spec.name.clone(),
                ]
            })
            .collect();
        let header = [
            "CONTAINER ID",
            "IMAGE",
            "COMMAND",
            "CREATED",
            "STATUS",
            "PORTS",
            "NAMES",
        ];
        print(&table::columns(header, &rows))?;
    }
    for (id, error) in &listing.damaged {
        let failure = Failure::of(error);
        let _ = writeln!(
            std::io::stderr(),
            "wherry: container {} is left out: {}",
            id.short(),
            failure.line
        );
    }
    Ok(if listing.damaged.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn command(container: &Container, whole: bool) -> String {
    let words = container.spec.args.join(" ");
    format!(
        "\"{}\"",
        if whole {
            words
        } else {
            table::cut(&words, COMMAND_MAX)
        }
    )
}

fn status(container: &Container, now: Timestamp) -> String {
    let observed = &container.observed;
    let ago = |moment: Option<Timestamp>| ago::human(ago::since(moment.unwrap_or(now), now));
    match observed.status {
        Status::Created => "Created".into(),
        // A board's clock may have leapt since it was started; the ticks of this boot have not.
        Status::Running => match observed.uptime() {
            Some(uptime) => format!("Up {}", ago::human(uptime)),
            None => format!("Up {}", ago(observed.started_at)),
        },
        Status::Exited => format!(
            "Exited ({}) {} ago",
            observed.exit_code.unwrap_or(-1),
            ago(observed.finished_at)
        ),
    }
}

fn state(container: &Container) -> &'static str {
    match container.observed.status {
        Status::Created => "created",
        Status::Running => "running",
        Status::Exited => "exited",
    }
}

fn ports(container: &Container) -> String {
    if !container.is_running() || container.spec.network != Network::Private {
        return String::new();
    }
    let ports: Vec<String> = container.spec.ports.iter().map(ToString::to_string).collect();
    ports.join(", ")
}

/// Docker's keys.
fn object(container: &Container, id: &str, whole: bool, now: Timestamp) -> serde_json::Value {
    let spec = &container.spec;
    let labels: Vec<String> = spec
        .labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let mounts = spec.mounts.iter().filter_map(|mount| match &mount.source {
        Source::Bind(path) => Some(path.display().to_string()),
        Source::Tmpfs { .. } => None,
    });
    let network = match spec.network {
        Network::Host => "host",
        Network::None => "none",
        Network::Private => "private",
    };
    json!({
        "Command": command(container, whole),
        "CreatedAt": container.created_at,
        "ID": id,
        "Image": spec.image_name,
        "Labels": labels.join(","),
        "LocalVolumes": "0",
        "Mounts": mounts.collect::<Vec<_>>().join(","),
        "Names": spec.name,
        "Networks": network,
        "Ports": ports(container),
        "RunningFor": format!("{} ago", ago::human(ago::since(container.created_at, now))),
        "Size": "0B",
        "State": state(container),
        "Status": status(container, now),
    })
}

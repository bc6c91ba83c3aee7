//! `update`: other limits for a container that is there.

use std::io::Read;

use serde_json::{Map, Value, json};

use super::{Update, pause};
use crate::cgroup::{Resources, parse_bytes};
use crate::config;
use crate::error::{Context, Error};
use crate::state::{Root, Status};

/// Carries out `update`.
///
/// # Errors
///
/// Names a limit that is malformed or that cannot be enforced: nobody asks for one in order to be warned.
pub fn run(root: &Root, options: &Update) -> Result<(), Error> {
    let resources = resources(options)?;
    let directory = root.find(&options.id)?;
    let record = directory.record()?;
    let status = directory.status(record.as_ref());
    match record {
        Some(record) if !matches!(status, Status::Creating | Status::Stopped) => {
            pause::needed(&record.cgroup, &directory.id, "update")?.update(resources)
        }
        _ => Err(Error::Status {
            id: directory.id.clone(),
            verb: "update",
            status: status.as_str(),
        }),
    }
}

fn resources(options: &Update) -> Result<Resources, Error> {
    let document = match options.resources.as_deref() {
        None => flags(options)?,
        Some(name) => {
            let what = || format!("--resources {name}");
            let mut text = Vec::new();
            let source: Box<dyn Read> = match name {
                "-" => Box::new(std::io::stdin()),
                path => Box::new(std::fs::File::open(path).context(what)?),
            };
            source
                .take(config::MAX_BYTES)
                .read_to_end(&mut text)
                .context(what)?;
            serde_json::from_slice(&text).map_err(|e| Error::Usage(format!("{}: {e}", what())))?
        }
    };
    serde_json::from_value(document).map_err(|e| Error::Usage(format!("update: {e}")))
}

/// The flags as `linux.resources`.
fn flags(options: &Update) -> Result<Value, Error> {
    let mut document = json!({});
    let mut set = |part: &str, field: &str, value: Value| {
        let parts = document
            .as_object_mut()
            .map(|parts| parts.entry(part).or_insert_with(|| Value::Object(Map::new())));
        if let Some(part) = parts {
            part[field] = value;
        }
    };
    for (flag, field, text) in [
        ("--memory", "limit", &options.memory),
        ("--memory-reservation", "reservation", &options.memory_reservation),
        ("--memory-swap", "swap", &options.memory_swap),
    ] {
        if let Some(text) = text {
            let bytes = parse_bytes(text)
                .ok_or_else(|| Error::Usage(format!("{flag} {text:?}: expected bytes, as 64m or -1")))?;
            set("memory", field, bytes.into());
        }
    }
    let wide = |number: Option<u64>| number.map(Value::from);
    for (part, field, value) in [
        ("cpu", "quota", options.cpu_quota.map(Value::from)),
        ("cpu", "period", wide(options.cpu_period)),
        ("cpu", "burst", wide(options.cpu_burst)),
        ("cpu", "shares", wide(options.cpu_share)),
        ("cpu", "idle", options.cpu_idle.map(Value::from)),
        ("cpu", "cpus", options.cpuset_cpus.clone().map(Value::from)),
        ("cpu", "mems", options.cpuset_mems.clone().map(Value::from)),
        ("pids", "limit", options.pids_limit.map(Value::from)),
        ("blockIO", "weight", options.blkio_weight.map(Value::from)),
    ] {
        if let Some(value) = value {
            set(part, field, value);
        }
    }
    if document == json!({}) {
        return Err(Error::Usage("update: expected a limit, or --resources".into()));
    }
    Ok(document)
}

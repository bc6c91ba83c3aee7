//! `state`: the OCI state document.

use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::State;
use crate::error::{Context, Error};
use crate::state::{Directory, Record, Root, Status};

/// The annotation under which `state` names guarantees lost and fields not honoured, one a line.
pub const WARNINGS: &str = "dev.wherry.warnings";

/// How long a creation that is under way is waited for: what follows it is what is asked. A hook of that very creation
/// asks in vain.
const CREATION: Duration = Duration::from_millis(500);

/// Carries out `state`.
///
/// # Errors
///
/// If there is no such container.
pub fn run(root: &Root, options: &State, out: &mut dyn Write) -> Result<(), Error> {
    let directory = root.find(&options.id)?;
    let record = directory.settled_record(CREATION)?;
    let status = directory.status(record.as_ref());
    let document = match &record {
        Some(record) => document(&directory, record, status),
        None => json!({"ociVersion": "1.2.0", "id": directory.id, "status": status.as_str(), "bundle": ""}),
    };
    let text = serde_json::to_string_pretty(&document).map_err(|e| Error::Corrupt(e.to_string()))?;
    writeln!(out, "{text}").context(|| "stdout")
}

/// The state document of a container.
pub(super) fn document(directory: &Directory, record: &Record, status: Status) -> Value {
    let mut document = for_hooks(directory, record, status);
    if !record.warnings.is_empty() {
        document["annotations"][WARNINGS] = record.warnings.join("\n").into();
    }
    document
}

/// The same for hooks, to whom nothing is added that the bundle does not say.
pub(super) fn for_hooks(directory: &Directory, record: &Record, status: Status) -> Value {
    let pid = if status == Status::Stopped {
        0
    } else {
        record.init.pid
    };
    json!({
        "ociVersion": record.oci_version,
        "id": directory.id,
        "status": status.as_str(),
        "pid": pid,
        "bundle": record.bundle,
        "annotations": record.annotations,
    })
}

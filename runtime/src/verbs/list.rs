//! `list`: the containers of a root directory.

use std::io::Write;

use super::List;
use crate::error::{Context, Error};
use crate::state::Root;

/// Carries out `list`.
///
/// # Errors
///
/// If the root directory cannot be read. A container that vanishes meanwhile is left out.
pub fn run(root: &Root, options: &List, out: &mut dyn Write) -> Result<(), Error> {
    let mut documents = Vec::new();
    for id in root.ids()? {
        if let Ok(directory) = root.find(&id)
            && let Ok(Some(record)) = directory.record()
        {
            let status = directory.status(Some(&record));
            documents.push(super::state::document(&directory, &record, status));
        }
    }
    let what = || "stdout";
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    match options.format.as_str() {
        _ if options.quiet => {
            for document in &documents {
                writeln!(out, "{}", text(&document["id"])).context(what)?;
            }
        }
        "table" => {
            writeln!(out, "{:<24} {:<8} {:<8} BUNDLE", "ID", "PID", "STATUS").context(what)?;
            for document in &documents {
                let (id, status, bundle) = (&document["id"], &document["status"], &document["bundle"]);
                writeln!(
                    out,
                    "{:<24} {:<8} {:<8} {}",
                    text(id),
                    document["pid"],
                    text(status),
                    text(bundle)
                )
                .context(what)?;
            }
        }
        "json" => {
            let text = serde_json::to_string(&documents).map_err(|e| Error::Corrupt(e.to_string()))?;
            writeln!(out, "{text}").context(what)?;
        }
        other => {
            return Err(Error::Usage(format!(
                "--format {other:?}: expected table or json"
            )));
        }
    }
    Ok(())
}

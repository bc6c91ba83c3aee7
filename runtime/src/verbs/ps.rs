//! `ps`: the processes of a container.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Command;

use super::Ps;
use crate::error::{Context, Error};
use crate::state::{self, Record, Root, Status};

/// Carries out `ps`.
///
/// # Errors
///
/// If the container has no process, or for a table the host has no `ps`.
pub fn run(root: &Root, options: &Ps, out: &mut dyn Write) -> Result<(), Error> {
    let directory = root.find(&options.id)?;
    let record = directory.record()?;
    let status = directory.status(record.as_ref());
    let record = match record {
        Some(record) if !matches!(status, Status::Creating | Status::Stopped) => record,
        _ => {
            return Err(Error::Status {
                id: directory.id.clone(),
                verb: "list the processes of",
                status: status.as_str(),
            });
        }
    };
    let processes = processes(&record)?;
    match options.format.as_str() {
        "json" => {
            let text = serde_json::to_string(&processes).map_err(|e| Error::Corrupt(e.to_string()))?;
            writeln!(out, "{text}").context(|| "stdout")
        }
        "table" => table(&processes, &options.args, out),
        other => Err(Error::Usage(format!(
            "--format {other:?}: expected table or json"
        ))),
    }
}

/// The processes of a running container: those of its cgroup, or else what descends from init and from `exec`.
pub(super) fn processes(record: &Record) -> Result<Vec<i32>, Error> {
    if let Some(cgroup) = &record.cgroup {
        let found = cgroup.processes()?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let mut parents = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").context(|| "/proc")?.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(pid) = pid
            && let Ok(parent) = state::parent(pid)
        {
            parents.insert(pid, parent);
        }
    }
    Ok(descendants(&parents, record.init.pid, record.spawner.pid))
}

/// Init, the spawner's children and all that descends from them: an orphan in the container becomes init's child.
fn descendants(parents: &BTreeMap<i32, i32>, init: i32, spawner: i32) -> Vec<i32> {
    let is_ours = |pid: i32| {
        let mut at = pid;
        // A tree has fewer levels than processes; a list read while it changes may have a circle.
        for _ in 0..parents.len() {
            if at == init {
                return true;
            }
            match parents.get(&at) {
                Some(parent) if *parent == spawner => return true,
                Some(parent) => at = *parent,
                None => return false,
            }
        }
        false
    };
    parents.keys().copied().filter(|pid| is_ours(*pid)).collect()
}

/// The lines of the host's `ps` (by default `ps -ef`) that are about these processes.
fn table(processes: &[i32], args: &[String], out: &mut dyn Write) -> Result<(), Error> {
    let mut command = Command::new("ps");
    if args.is_empty() {
        command.arg("-ef");
    }
    let output = command
        .args(args)
        .output()
        .context(|| "ps (a table is made by the host's; use --format json)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let Some(column) = header.split_ascii_whitespace().position(|name| name == "PID") else {
        return Err(Error::Usage(format!(
            "ps {}: its output has no column PID",
            args.join(" ")
        )));
    };
    writeln!(out, "{header}").context(|| "stdout")?;
    for line in lines {
        let pid = line
            .split_ascii_whitespace()
            .nth(column)
            .and_then(|field| field.parse().ok());
        if pid.is_some_and(|pid| processes.contains(&pid)) {
            writeln!(out, "{line}").context(|| "stdout")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_descends_from_init_and_from_exec() {
        let tree = [
            (1, 0),
            (10, 1),
            (11, 10),
            (12, 1),
            (20, 11),
            (21, 20),
            (30, 12),
            (31, 30),
            (40, 41),
            (41, 40),
        ];
        assert_eq!(descendants(&tree.into(), 11, 12), [11, 20, 21, 30, 31]);
        assert_eq!(descendants(&BTreeMap::new(), 11, 12), [0; 0]);
    }
}

//! What cgroup v1 needs besides: limits in an order, processor sets that begin empty, a freezer without events.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::resources::Setting;
use super::{read, write, write_setting};
use crate::error::Error;

/// How often what tells nobody is looked at again.
pub(super) const LOOK: Duration = Duration::from_millis(10);

/// Writes the settings of the given controllers; lines of files that are not there go to `warnings`.
pub(super) fn write_all(
    directories: &BTreeMap<String, PathBuf>,
    settings: &[Setting],
    controllers: &BTreeSet<&str>,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    let mut again = None;
    for setting in settings {
        let controller = setting.controller();
        let name = if controller == "io" { "blkio" } else { controller };
        let Some(directory) = directories.get(name).filter(|_| controllers.contains(controller)) else {
            continue;
        };
        match write_setting(directory, setting) {
            // A higher limit needs the sum with swap, which comes next, to be raised first.
            Err(_) if setting.field == "memory.limit" => again = Some((directory, setting)),
            result => warnings.extend(result?),
        }
    }
    if let Some((directory, setting)) = again {
        warnings.extend(write_setting(directory, setting)?);
    }
    Ok(())
}

/// Gives a new processor set what the one above has: with an empty one no process can enter.
pub(super) fn inherit_cpuset(directory: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let Some(above) = directory.parent()
            && read(&directory.join(file))?.trim().is_empty()
        {
            write(&directory.join(file), read(&above.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// Whether the freezer holds or is about to hold its processes.
pub(super) fn is_frozen(directory: &Path) -> bool {
    read(&directory.join("freezer.state")).is_ok_and(|state| state.trim() != "THAWED")
}

/// Freezes or thaws, and waits; false if it took longer than `patience`.
pub(super) fn freeze(directory: &Path, frozen: bool, patience: Duration) -> io::Result<bool> {
    let file = directory.join("freezer.state");
    let wanted = if frozen { "FROZEN" } else { "THAWED" };
    let deadline = Instant::now() + patience;
    loop {
        // Again each time: a process that was made meanwhile keeps it at FREEZING.
        write(&file, wanted)?;
        if read(&file)?.trim() == wanted {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(LOOK);
    }
}

//! `delete`: nothing is left of a container.

use std::time::Duration;

use super::Delete;
use crate::error::Error;
use crate::state::{Directory, Record, Root, Status};
use crate::{cgroup, hooks};

/// How long a killed init may take, which ends when the last process of its pid namespace has; and a creation.
const KILLED: Duration = Duration::from_secs(10);

/// How long the spawner may take to notice that init ended before it is killed.
const NOTICED: Duration = Duration::from_secs(2);

fn refuse(directory: &Directory, status: Status) -> Result<Vec<String>, Error> {
    Err(Error::Status {
        id: directory.id.clone(),
        verb: "delete",
        status: status.as_str(),
    })
}

/// Removes the container that this process made and that has ended. The spawner is its child.
pub(super) fn finish(directory: &Directory, record: &Record) -> Result<Vec<String>, Error> {
    // Somebody else may be deleting it: then there is nothing left to do here.
    if !directory.lock(KILLED)? || !directory.is_current()? {
        return Ok(Vec::new());
    }
    let state = super::state::for_hooks(directory, record, Status::Stopped).to_string();
    if let Some(cgroup) = &record.cgroup {
        cgroup.remove()?;
    }
    let failed = hooks::run_all(&record.hooks.poststop, "poststop", &state);
    directory.remove()?;
    // It ends by itself, and takes the mounts with it meanwhile.
    if !record.spawner.wait_end(NOTICED) {
        let _ = record.spawner.signal(libc::SIGKILL);
        record.spawner.wait_end(NOTICED);
    }
    Ok(failed)
}

/// Carries out `delete`. The result are lines about hooks that failed, which do not stop it.
///
/// # Errors
///
/// If the container runs and `--force` is not given, or cannot be killed.
pub fn run(root: &Root, options: &Delete) -> Result<Vec<String>, Error> {
    let directory = match root.find(&options.id) {
        Err(Error::NotFound(_)) if options.force => return Ok(Vec::new()),
        directory => directory?,
    };
    delete(&directory, options.force)
}

pub(super) fn delete(directory: &Directory, force: bool) -> Result<Vec<String>, Error> {
    // A creator holds the lock until the container is recorded; whoever deletes holds it to the end.
    if !directory.lock(if force { KILLED } else { Duration::ZERO })? {
        return refuse(directory, Status::Creating);
    }
    if !directory.is_current()? {
        return if force {
            Ok(Vec::new())
        } else {
            Err(Error::NotFound(directory.id.clone()))
        };
    }
    let record = directory.record()?;
    remove(directory, record, force)
}

/// Removes a container whose lock is held; `record` is what is kept of it.
fn remove(directory: &Directory, record: Option<Record>, force: bool) -> Result<Vec<String>, Error> {
    let mut failed = Vec::new();
    let cgroup = match &record {
        Some(record) => record.cgroup.clone(),
        None => directory.cgroup(),
    };
    if let Some(record) = &record {
        let status = directory.status(Some(record));
        if status != Status::Stopped {
            if !force {
                return refuse(directory, status);
            }
            kill(directory, record)?;
        }
        if !record.spawner.wait_end(NOTICED) {
            let _ = record.spawner.signal(libc::SIGKILL);
            record.spawner.wait_end(NOTICED);
        }
        let state = super::state::for_hooks(directory, record, Status::Stopped).to_string();
        if let Some(cgroup) = &cgroup {
            cgroup.remove()?;
        }
        failed = hooks::run_all(&record.hooks.poststop, "poststop", &state);
    }
    if let (None, Some(cgroup)) = (&record, cgroup) {
        cgroup.remove()?;
    }
    directory.remove()?;
    Ok(failed)
}

fn kill(directory: &Directory, record: &Record) -> Result<(), Error> {
    match record.init.signal(libc::SIGKILL) {
        Err(error) if record.init.is_alive() => return Err(error),
        _ => {}
    }
    if let Some(cgroup) = record.cgroup.as_ref().filter(|cgroup| cgroup.is_frozen()) {
        // In cgroup v1 a frozen process does not even die.
        cgroup.freeze(false)?;
    }
    cgroup::thaw(record.init.pid);
    if record.init.wait_end(KILLED) {
        return Ok(());
    }
    Err(Error::Launch {
        code: 1,
        line: format!(
            "container {}: process {} did not end {} s after SIGKILL",
            directory.id,
            record.init.pid,
            KILLED.as_secs()
        ),
    })
}

//! `pause` and `resume`: all processes of a container stop where they are, and go on.

use super::{Pause, Resume};
use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::state::{Root, Status};

/// Carries out `pause`.
///
/// # Errors
///
/// If the container does not run, or has no cgroup to freeze.
pub fn pause(root: &Root, options: &Pause) -> Result<(), Error> {
    freeze(root, &options.id, true)
}

/// Carries out `resume`.
///
/// # Errors
///
/// If the container is not paused.
pub fn resume(root: &Root, options: &Resume) -> Result<(), Error> {
    freeze(root, &options.id, false)
}

fn freeze(root: &Root, id: &str, frozen: bool) -> Result<(), Error> {
    let (verb, from) = if frozen {
        ("pause", &[Status::Created, Status::Running][..])
    } else {
        ("resume", &[Status::Paused][..])
    };
    let directory = root.find(id)?;
    let record = directory.record()?;
    let status = directory.status(record.as_ref());
    match record {
        Some(record) if from.contains(&status) => needed(&record.cgroup, id, verb)?.freeze(frozen),
        _ => Err(Error::Status {
            id: id.to_owned(),
            verb,
            status: status.as_str(),
        }),
    }
}

/// The cgroup that a verb needs.
pub(super) fn needed<'a>(cgroup: &'a Option<Cgroup>, id: &str, verb: &str) -> Result<&'a Cgroup, Error> {
    cgroup.as_ref().ok_or_else(|| {
        Error::Usage(format!(
            "container {id}: {verb} needs a cgroup and it has none, no part of a hierarchy is delegated to this user (see Delegate= in systemd.resource-control(5))"
        ))
    })
}

//! `start`: init executes its program.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::Start;
use crate::error::{Context, Error};
use crate::launch::{self, Message};
use crate::state::{Directory, Record, Root, Status};
use crate::{hooks, verbs, wire};

/// How long a creation that is under way is waited for.
const CREATION: Duration = Duration::from_secs(10);

/// Carries out `start`.
///
/// # Errors
///
/// If the container is not waiting for it, or its program cannot be executed (126, 127).
pub fn run(root: &Root, options: &Start) -> Result<(), Error> {
    let directory = root.find(&options.id)?;
    let record = directory.settled_record(CREATION)?;
    match (directory.status(record.as_ref()), record) {
        (Status::Created, Some(record)) => start(&directory, &record),
        (status, _) => Err(Error::Status {
            id: directory.id.clone(),
            verb: "start",
            status: status.as_str(),
        }),
    }
}

fn start(directory: &Directory, record: &Record) -> Result<(), Error> {
    let spawner = directory.connect()?;
    wire::send(&spawner, Message::Start as u8, &[], &[]).context(|| "spawner")?;
    answered(directory, record, &spawner)?;
    poststart(directory, record).inspect_err(|_| {
        // As the specification has it: the container is stopped and its end follows. The first error is the one to tell.
        let _ = verbs::delete::delete(directory, true);
    })
}

/// What follows a request to start: its answer, then the poststart hooks.
pub(super) fn started(directory: &Directory, record: &Record, spawner: &OwnedFd) -> Result<(), Error> {
    answered(directory, record, spawner)?;
    poststart(directory, record)
}

fn poststart(directory: &Directory, record: &Record) -> Result<(), Error> {
    let state = verbs::state::for_hooks(directory, record, Status::Running).to_string();
    hooks::run(&record.hooks.poststart, "poststart", &state)
}

/// Waits for the spawner's answer to a request to start.
fn answered(directory: &Directory, record: &Record, spawner: &OwnedFd) -> Result<(), Error> {
    loop {
        match wire::receive(spawner).context(|| "spawner")? {
            Some(packet) if packet.kind == Message::Done as u8 => break,
            Some(packet) if packet.kind == Message::Listener as u8 => {
                verbs::send_listener(directory, record, packet, record.init.pid)?;
            }
            Some(packet) => return Err(launch::reported(&packet)),
            None => {
                return Err(Error::Launch {
                    code: 1,
                    line: format!("container {}: its spawner died", directory.id),
                });
            }
        }
    }
    Ok(())
}

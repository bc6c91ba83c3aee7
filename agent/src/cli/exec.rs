//! `wherry exec`: this process becomes `wherry-runtime exec`.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use argh::{ArgsInfo, FromArgs};

use super::failure::Failure;
use super::place::Place;
use super::terminal;
use crate::assemble;
use crate::container::{self, Containers};

/// run a command in a running container
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "exec",
    example = "wherry exec -it iris sh",
    example = "wherry exec -e DEBUG=1 -w /srv iris ls -l",
    note = "Exits with the command's code; 126 if it cannot be run, 127 if it is not found."
)]
pub struct Args {
    /// run in the background
    #[argh(switch, short = 'd')]
    pub detach: bool,
    /// give it this standard input
    #[argh(switch, short = 'i')]
    pub interactive: bool,
    /// give it a terminal
    #[argh(switch, short = 't')]
    pub tty: bool,
    /// set NAME=VALUE, or NAME to the value it has here
    #[argh(option, short = 'e', arg_name = "name[=value]")]
    pub env: Vec<String>,
    /// the user, and group, by name or number
    #[argh(option, short = 'u', arg_name = "user[:group]")]
    pub user: Option<String>,
    /// the working directory
    #[argh(option, short = 'w', arg_name = "path")]
    pub workdir: Option<String>,
    /// name or id
    #[argh(positional)]
    pub container: String,
    /// the command and its arguments
    #[argh(positional, greedy)]
    pub command: Vec<String>,
}

pub(super) fn run(args: Args, place: &Place) -> Result<ExitCode, Failure> {
    if args.command.is_empty() {
        return Err(Failure::new(
            "exec: no command given; write wherry exec CONTAINER COMMAND",
        ));
    }
    if args.tty && args.interactive && !terminal::is_stdin() {
        return Err(Failure::new(
            "exec -t: standard input is not a terminal; leave -t out",
        ));
    }
    let containers = place.containers()?;
    let container = containers.find(&args.container)?;
    let not_running = || container::Error::NotRunning {
        name: container.spec.name.clone(),
    };
    if !container.is_running() {
        return Err(not_running().into());
    }
    let root = container::started_root(container.directory())?.ok_or_else(not_running)?;
    let mut command = Command::new(containers.runtime());
    command.arg("--root").arg(root).arg("exec");
    if args.tty {
        command.arg("--tty");
    }
    if args.detach {
        command.arg("--detach");
    }
    if let Some(user) = &args.user {
        command.arg("--user").arg(user_id(&containers, &container, user)?);
    }
    if let Some(path) = &args.workdir {
        command.arg("--cwd").arg(path);
    }
    if args.tty && !args.env.iter().any(|line| line.split('=').next() == Some("TERM")) {
        command.arg("--env").arg("TERM=xterm");
    }
    for line in &args.env {
        if let Some((name, value)) = super::run::env_flag(line)? {
            command.arg("--env").arg(format!("{name}={value}"));
        }
    }
    if !args.interactive {
        let null = File::open("/dev/null").map_err(|error| Failure::about("/dev/null", &error))?;
        command.stdin(null);
    }
    command.arg(container.id.hex()).args(&args.command);
    let error = command.exec();
    Err(Failure::about(
        format!("cannot run {}", containers.runtime().display()),
        &error,
    ))
}

/// `uid:gid` of a user of the container, which is the one that it runs as.
fn user_id(containers: &Containers, container: &container::Container, user: &str) -> Result<String, Failure> {
    let store = containers.store();
    let mut layers = Vec::new();
    for diff_id in &store.image(&container.spec.image)?.diff_ids {
        layers.extend(store.layer(diff_id)?);
    }
    let find = |user: &str| assemble::find_user(user, &container.directory().join("upper"), &layers);
    let (wanted, there) = (find(user)?, find(&container.spec.user)?);
    if (wanted.uid, wanted.gid) == (there.uid, there.gid) {
        return Ok(format!("{}:{}", wanted.uid, wanted.gid));
    }
    Err(Failure::new(format!(
        "exec -u {user}: {}:{} does not exist in this container, only {}:{} does; use wherry run -u {user}",
        wanted.uid, wanted.gid, there.uid, there.gid
    )))
}

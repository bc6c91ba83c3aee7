//! `wherry run`.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use wherry_images::pull::{PullOptions, Source};
use wherry_images::{Image, Platform, Reference, Store};

use super::attach::{self, Ours};
use super::failure::{Failure, print};
use super::place::Place;
use super::pull::{self, Show};
use super::registry;
use super::terminal::{self, Raw};
use crate::assemble;
use crate::container::{
    Attach, Container, Containers, LimitFlags, Limits, Mount, Network, Port, Signal, Spec,
};
use crate::devices::Request;
use crate::sys::Signals;

/// make a container of an image and start it
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "run",
    example = "wherry run --rm -it registry.example/alpine sh",
    example = "wherry run -d --name iris -p 5001:5000 -v ./data:/data registry.example/iris:v1",
    example = "wherry run --rm --network host registry.example/tool --help",
    note = "All after the image's name belongs to the command in the container.",
    note = "The user in the container is the image's own, mapped to you: the only id there. A private network is reached through -p and reaches nothing outside; --network host is the board's own.",
    note = "Exits with the command's code; 125 if wherry failed, 126 if the command cannot be run, 127 if it is not found."
)]
pub struct Args {
    /// run in the background and print the id
    #[argh(switch, short = 'd')]
    pub detach: bool,
    /// give it this standard input
    #[argh(switch, short = 'i')]
    pub interactive: bool,
    /// give it a terminal
    #[argh(switch, short = 't')]
    pub tty: bool,
    /// remove it when it has exited
    #[argh(switch)]
    pub rm: bool,
    /// its name, else one is made up
    #[argh(option, arg_name = "name", default = "String::new()")]
    pub name: String,
    /// set NAME=VALUE, or NAME to the value it has here
    #[argh(option, short = 'e', arg_name = "name[=value]")]
    pub env: Vec<String>,
    /// read NAME=VALUE lines from a file
    #[argh(option, arg_name = "file")]
    pub env_file: Vec<String>,
    /// mount a directory or file: HOST_PATH:CONTAINER_PATH[:ro]
    #[argh(option, short = 'v', arg_name = "mount")]
    pub volume: Vec<String>,
    /// mount memory: CONTAINER_PATH[:size=64m]
    #[argh(option, arg_name = "mount")]
    pub tmpfs: Vec<String>,
    /// publish a TCP port: [IP:]HOST_PORT:CONTAINER_PORT
    #[argh(option, short = 'p', arg_name = "ports")]
    pub publish: Vec<String>,
    /// the working directory
    #[argh(option, short = 'w', arg_name = "path")]
    pub workdir: Option<String>,
    /// the user, and group, by name or number
    #[argh(option, short = 'u', arg_name = "user[:group]")]
    pub user: Option<String>,
    /// the command instead of the image's; "" takes the image's away
    #[argh(option, arg_name = "command")]
    pub entrypoint: Option<String>,
    /// host, none or private, which it is unless given
    #[argh(option, arg_name = "network", long = "network")]
    pub network: Option<String>,
    /// the same, in docker's older spelling
    #[argh(option, arg_name = "network", hidden_help)]
    pub net: Option<String>,
    /// its host name, the short id unless given
    #[argh(option, short = 'h', arg_name = "name", default = "String::new()")]
    pub hostname: String,
    /// a label: NAME[=VALUE]
    #[argh(option, short = 'l', arg_name = "label")]
    pub label: Vec<String>,
    /// make the root file system read-only, and the image's volumes empty directories
    #[argh(switch)]
    pub read_only: bool,
    /// a capability more, or ALL
    #[argh(option, arg_name = "cap")]
    pub cap_add: Vec<String>,
    /// a capability less, or ALL
    #[argh(option, arg_name = "cap")]
    pub cap_drop: Vec<String>,
    /// a line of /etc/hosts: NAME:ADDRESS
    #[argh(option, arg_name = "host")]
    pub add_host: Vec<String>,
    /// missing, always or never: when to ask the registry
    #[argh(option, arg_name = "when", default = "String::from(\"missing\")")]
    pub pull: String,
    /// false for a registry without TLS, or with a certificate that proves nothing
    #[argh(option, arg_name = "bool", default = "true")]
    pub tls_verify: bool,
    /// memory it may use, as 512m
    #[argh(option, short = 'm', arg_name = "bytes")]
    pub memory: Option<String>,
    /// memory and swap together, -1 for any swap; twice the memory unless given
    #[argh(option, arg_name = "bytes")]
    pub memory_swap: Option<String>,
    /// memory kept for it when memory is short
    #[argh(option, arg_name = "bytes")]
    pub memory_reservation: Option<String>,
    /// processors it may use, as 1.5
    #[argh(option, arg_name = "number")]
    pub cpus: Option<String>,
    /// its share of processor time beside others, 1024 by default
    #[argh(option, short = 'c', arg_name = "shares")]
    pub cpu_shares: Option<i64>,
    /// the processors it runs on, as 0-2,4
    #[argh(option, arg_name = "list")]
    pub cpuset_cpus: Option<String>,
    /// processes and threads it may have
    #[argh(option, arg_name = "number")]
    pub pids_limit: Option<i64>,
    /// who is ended first when memory is short, -1000 to 1000
    #[argh(option, arg_name = "score")]
    pub oom_score_adj: Option<i32>,
    /// a limit of each process: NAME=SOFT[:HARD], as nofile=1024
    #[argh(option, arg_name = "limit")]
    pub ulimit: Vec<String>,
    /// a device: HOST_PATH[:CONTAINER_PATH][:rwm], or a CDI name as nvidia.com/gpu=0
    #[argh(option, arg_name = "device")]
    pub device: Vec<String>,
    /// GPUs by NVIDIA's CDI names: all, a number, or device=0,1
    #[argh(option, arg_name = "gpus")]
    pub gpus: Option<String>,
    /// keep-groups: your own groups, which it has anyway
    #[argh(option, arg_name = "group")]
    pub group_add: Vec<String>,
    /// landlock=off, seccomp=unconfined or a profile's file, no-new-privileges=false, apparmor=PROFILE
    #[argh(option, arg_name = "option")]
    pub security_opt: Vec<String>,
    /// the signal that `stop` sends first
    #[argh(option, arg_name = "signal")]
    pub stop_signal: Option<String>,
    /// seconds that `stop` waits before the kill
    #[argh(option, arg_name = "seconds")]
    pub stop_timeout: Option<u32>,
    /// the image: NAME[:TAG], or the beginning of its id
    #[argh(positional)]
    pub image: String,
    /// the command's words
    #[argh(positional, greedy)]
    pub command: Vec<String>,
}

pub(super) fn run(args: Args, place: &Place) -> Result<ExitCode, Failure> {
    if args.tty && args.interactive && !args.detach && !terminal::is_stdin() {
        return Err(Failure::new(
            "run -t: standard input is not a terminal; leave -t out",
        ));
    }
    let containers = place.containers()?;
    let image = find_image(containers.store(), &args)?;
    let (host, platform) = (Platform::host(), image.config.platform());
    if !host.runs(&platform) {
        // As with docker only a warning: an emulator may be registered, or the image may call itself wrongly.
        let _ = writeln!(
            std::io::stderr(),
            "wherry: warning: {} is for {platform}, this board is {host}",
            args.image
        );
    }
    let spec = spec(&args, &image)?;
    if args.detach {
        let container = containers.create(&spec)?;
        start(&containers, &container, Attach::None)?;
        print(&format!("{}\n", container.id))?;
        return Ok(ExitCode::SUCCESS);
    }
    let signals = attach::block_signals()?;
    let container = containers.create(&spec)?;
    start(&containers, &container, Attach::Wait)?;
    let code = match attach::connect(container.directory()) {
        Ok(socket) => foreground(&containers, &container, socket, &signals),
        Err(failure) => {
            // Nobody else will ever attach to it.
            let _ = containers.kill(&container.id, Signal::KILL);
            Err(failure)
        }
    };
    if args.rm {
        remove(&containers, &container);
    }
    code
}

/// Starts it; with `--rm` a container that cannot be started leaves nothing behind.
fn start(containers: &Containers, container: &Container, attach: Attach) -> Result<(), Failure> {
    match containers.start(&container.id, attach) {
        Ok(_) => {
            // It may have ended already: then nobody can tell any more, and it makes no difference.
            for line in containers.lost_limits(container).unwrap_or_default() {
                let _ = writeln!(std::io::stderr(), "wherry: warning: {line}");
            }
            Ok(())
        }
        Err(error) => {
            if container.spec.auto_remove {
                remove(containers, container);
            }
            Err(error.into())
        }
    }
}

/// Another process may have removed it already; what cannot be removed now is removed by the next command.
fn remove(containers: &Containers, container: &Container) {
    if let Err(error) = containers.remove(&container.id, true) {
        tracing::debug!(container = %container.id, %error, "not removed");
    }
}

fn foreground(
    containers: &Containers,
    container: &Container,
    socket: UnixStream,
    signals: &Signals,
) -> Result<ExitCode, Failure> {
    let spec = &container.spec;
    let raw = if spec.tty && terminal::is_stdin() {
        Some(Raw::enter().map_err(|error| Failure::about("cannot set up the terminal", &error))?)
    } else {
        None
    };
    let ours = Ours {
        stdin: spec.open_stdin,
        tty: spec.tty,
    };
    let code = attach::session(socket, signals, ours, |number| {
        // A container that has ended meanwhile needs no signal: its exit code is on the way.
        if let Some(signal) = Signal::from_number(number) {
            let _ = containers.kill(&container.id, signal);
        }
    });
    drop(raw);
    let lost = || {
        Failure::new(format!(
            "container {}: its monitor went away; see wherry logs {}",
            spec.name, spec.name
        ))
    };
    let code = code?;
    let observed = containers.load(&container.id).map(|now| now.observed);
    if let Ok(observed) = &observed
        && observed.started_at.is_none()
        && let Some(error) = &observed.error
    {
        let code = observed
            .exit_code
            .filter(|code| matches!(code, 126 | 127))
            .unwrap_or(125);
        return Err(Failure {
            line: error.clone(),
            code: u8::try_from(code).unwrap_or(125),
        });
    }
    let recorded = || observed.ok()?.exit_code.and_then(|code| u8::try_from(code).ok());
    code.or_else(recorded).map(ExitCode::from).ok_or_else(lost)
}

/// The image in the store, pulled first if `--pull` says so.
fn find_image(store: &Store, args: &Args) -> Result<Image, Failure> {
    let pull = || {
        let source = Source::parse(&args.image).map_err(|error| Failure::of(&error))?;
        let name = match &source {
            Source::Registry(reference) => reference,
            Source::Layout { name, .. } => name,
        };
        let client = registry::client(args.tls_verify, None, name)?;
        let pulled = pull::fetch(
            store,
            &client,
            &source,
            &PullOptions::default(),
            &mut Show::on_stderr(),
        )?;
        let image = store.image(&pulled.digest)?;
        Ok(Image {
            reference: Some(name.clone()),
            ..image
        })
    };
    match args.pull.as_str() {
        "always" => pull(),
        "never" => Ok(store.resolve(&args.image)?),
        "missing" => match store.resolve(&args.image) {
            Ok(image) if store.missing_layers(&image).is_empty() => Ok(image),
            Ok(_) | Err(wherry_images::store::Error::NoImage(_)) => pull(),
            Err(error) => Err(error.into()),
        },
        other => Err(Failure::new(format!(
            "run --pull {other:?}: expected missing, always or never"
        ))),
    }
}

/// The flags over what the image says.
fn spec(args: &Args, image: &Image) -> Result<Spec, Failure> {
    let entrypoint = args.entrypoint.as_ref().map(|word| {
        if word.is_empty() {
            vec![]
        } else {
            vec![word.clone()]
        }
    });
    let name = image
        .reference
        .as_ref()
        .map_or_else(|| args.image.clone(), Reference::familiar);
    let mut spec = Spec::from_image(image, &name, entrypoint.as_deref(), &args.command)?;
    spec.name = args.name.clone();
    for path in &args.env_file {
        let failed =
            |error: &dyn std::error::Error| Failure::about(format!("cannot read env file {path}"), error);
        let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
        let env = assemble::parse_env_file(&text, |name| std::env::var(name).ok())
            .map_err(|(line, why)| Failure::new(format!("env file {path}, line {line}: {why}")))?;
        assemble::merge_env(&mut spec.env, env);
    }
    for line in &args.env {
        assemble::merge_env(&mut spec.env, env_flag(line)?);
    }
    let here = std::env::current_dir().map_err(|error| Failure::about("current directory", &error))?;
    for volume in &args.volume {
        spec.mounts.push(Mount::parse(volume, &here)?);
    }
    for tmpfs in &args.tmpfs {
        spec.mounts.push(Mount::parse_tmpfs(tmpfs)?);
    }
    spec.ports = args
        .publish
        .iter()
        .map(|port| Port::parse(port))
        .collect::<Result<_, _>>()?;
    spec.network = network(
        args.network
            .as_deref()
            .or(args.net.as_deref())
            .unwrap_or("private"),
    )?;
    check_ports(spec.network, &spec.ports)?;
    if let Some(path) = &args.workdir {
        if !path.starts_with('/') {
            return Err(Failure::new(format!(
                "run -w {path:?}: expected an absolute path in the container"
            )));
        }
        spec.cwd = path.clone();
    }
    if let Some(user) = &args.user {
        spec.user = user.clone();
    }
    spec.hostname = args.hostname.clone();
    for label in &args.label {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        spec.labels.insert(name.into(), value.into());
    }
    spec.readonly_root = args.read_only;
    spec.cap_add = args.cap_add.clone();
    spec.cap_drop = args.cap_drop.clone();
    for host in &args.add_host {
        // Docker takes both NAME:ADDRESS and NAME=ADDRESS.
        let pair = host.split_once('=').or_else(|| host.split_once(':'));
        let (name, address) =
            pair.ok_or_else(|| Failure::new(format!("run --add-host {host:?}: expected NAME:ADDRESS")))?;
        let address = address.trim_start_matches('[').trim_end_matches(']');
        if address.parse::<std::net::IpAddr>().is_err() {
            return Err(Failure::new(format!(
                "run --add-host {host:?}: {address:?} is not an IP address"
            )));
        }
        spec.extra_hosts.push((name.into(), address.into()));
    }
    spec.tty = args.tty;
    spec.open_stdin = args.interactive;
    spec.auto_remove = args.rm;
    let flags = LimitFlags {
        memory: args.memory.as_deref(),
        memory_swap: args.memory_swap.as_deref(),
        memory_reservation: args.memory_reservation.as_deref(),
        cpus: args.cpus.as_deref(),
        cpu_shares: args.cpu_shares,
        cpuset_cpus: args.cpuset_cpus.as_deref(),
        pids_limit: args.pids_limit,
        oom_score_adj: args.oom_score_adj,
        ulimit: &args.ulimit,
    };
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    spec.limits = Limits::parse(&flags, processors)?;
    for device in &args.device {
        spec.devices.push(Request::parse(device)?);
    }
    if let Some(gpus) = &args.gpus {
        spec.devices.extend(Request::parse_gpus(gpus)?);
    }
    if let Some(group) = args.group_add.iter().find(|group| *group != "keep-groups") {
        return Err(Failure::new(format!(
            "run --group-add {group:?}: one group id exists in a container, and your own groups are kept; use -u USER:GROUP"
        )));
    }
    for option in &args.security_opt {
        spec.security.add(option, |path| std::fs::read(path))?;
    }
    if let Some(signal) = &args.stop_signal {
        spec.stop_signal = Signal::parse(signal)?;
    }
    if let Some(seconds) = args.stop_timeout {
        spec.stop_grace = seconds;
    }
    Ok(spec)
}

/// Refuses what a network would leave unpublished without a word.
fn check_ports(network: Network, ports: &[Port]) -> Result<(), Failure> {
    let mapped = |port: &&Port| port.host_port != 0 && port.host_port != port.container_port;
    match network {
        Network::None if !ports.is_empty() => Err(Failure::new(
            "run -p: nothing is published with --network none; use --network private",
        )),
        Network::Host => ports.iter().find(mapped).map_or(Ok(()), |port| {
            let inside = port.container_port;
            Err(Failure::new(format!(
                "run -p {}:{inside}: with --network host no port is mapped; write -p {inside}:{inside}, or use \
                 --network private",
                port.host_port
            )))
        }),
        Network::None | Network::Private => Ok(()),
    }
}

fn network(text: &str) -> Result<Network, Failure> {
    match text {
        "host" => Ok(Network::Host),
        "none" => Ok(Network::None),
        "private" | "bridge" | "default" => Ok(Network::Private),
        other => Err(Failure::new(format!(
            "run --network {other:?}: there are no named networks; use host, none or private"
        ))),
    }
}

/// `NAME=VALUE`, or `NAME` with the value that it has in this process, which may be none.
pub(super) fn env_flag(line: &str) -> Result<Option<(String, String)>, Failure> {
    let name = line.split('=').next().unwrap_or_default();
    if name.is_empty() {
        return Err(Failure::new(format!(
            "-e {line:?}: the variable has no name; write NAME=VALUE"
        )));
    }
    Ok(match line.split_once('=') {
        Some((name, value)) => Some((name.into(), value.into())),
        None => std::env::var(name).ok().map(|value| (name.into(), value)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_the_host_network_a_mapping_is_refused() {
        for (port, refused) in [
            ("8080:80", true),
            ("127.0.0.1:8080:80", true),
            ("80:80", false),
            ("80", false),
        ] {
            let ports = [Port::parse(port).unwrap()];
            assert_eq!(check_ports(Network::Host, &ports).is_err(), refused, "{port}");
            assert!(check_ports(Network::Private, &ports).is_ok(), "{port}");
            assert!(check_ports(Network::None, &ports).is_err(), "{port}");
        }
    }
}

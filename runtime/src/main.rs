//! The runtime command line.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use argh::FromArgs;
use wherry_runtime::cgroup::Manager;
use wherry_runtime::{Error, Root, forward, monitor, verbs};

/// run OCI bundles as confined containers, without root
#[derive(FromArgs)]
struct Args {
    /// directory of the containers' state
    #[argh(option)]
    root: Option<PathBuf>,
    /// file that errors are appended to
    #[argh(option)]
    log: Option<PathBuf>,
    /// format of the log: text or json
    #[argh(option, default = "String::from(\"text\")")]
    log_format: String,
    /// accepted, engines pass it: cgroups are made without systemd, in what it has delegated to the caller
    #[argh(switch)]
    #[expect(dead_code, reason = "accepted without effect, and said so")]
    systemd_cgroup: bool,
    /// who makes cgroups: cgroupfs (default), systemd (the same, in what it has delegated), or disabled
    #[argh(option, default = "Manager::default()")]
    cgroup_manager: Manager,
    /// accepted, engines pass it: there is nothing more to tell
    #[argh(switch)]
    #[expect(dead_code, reason = "accepted without effect, and said so")]
    debug: bool,
    /// print the version
    #[argh(switch)]
    version: bool,
    #[argh(subcommand)]
    verb: Option<Verb>,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Verb {
    Create(verbs::Create),
    Start(verbs::Start),
    State(verbs::State),
    Kill(verbs::Kill),
    Delete(verbs::Delete),
    Run(verbs::Run),
    Spec(verbs::Spec),
    Exec(verbs::Exec),
    Pause(verbs::Pause),
    Resume(verbs::Resume),
    Update(verbs::Update),
    Events(verbs::Events),
    Ps(verbs::Ps),
    Features(verbs::Features),
    List(verbs::List),
    Monitor(monitor::Args),
    Forward(forward::Args),
}

/// Options that take no value: every other one takes the next word.
const SWITCHES: &[&str] = &[
    "--systemd-cgroup",
    "--version",
    "--debug",
    "--no-pivot",
    "--no-new-keyring",
    "--all",
    "-a",
    "--force",
    "--stats",
    "-f",
    "--tty",
    "-t",
    "--detach",
    "--keep",
    "--rootless",
    "--no-new-privs",
    "-d",
    "--quiet",
    "-q",
    "--help",
    "help",
];

/// Makes `--name=value` two words, up to the words of a program to run.
fn split_values(words: impl Iterator<Item = String>) -> Vec<String> {
    let mut split = Vec::new();
    let mut words = words.peekable();
    let (mut positionals, mut exec) = (0, false);
    while let Some(word) = words.next() {
        if exec && positionals == 2 {
            split.push(word);
            continue;
        }
        match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => {
                split.extend([name.to_owned(), value.to_owned()])
            }
            _ if word.starts_with('-') && word.len() > 1 => {
                let takes_value = !SWITCHES.contains(&word.as_str());
                split.push(word);
                if takes_value {
                    split.extend(words.next());
                }
            }
            _ => {
                exec |= positionals == 0 && matches!(word.as_str(), "exec" | "ps");
                positionals += 1;
                split.push(word);
            }
        }
    }
    split
}

fn main() -> ExitCode {
    let mut words = std::env::args();
    let program = words.next().unwrap_or_default();
    let words = split_values(words);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut out = std::io::stdout().lock();
    let args = match Args::from_args(&["wherry-runtime"], &words) {
        Ok(args) => args,
        Err(early) => {
            let text = early.output.trim_end();
            return match early.status {
                Ok(()) => {
                    let _ = writeln!(out, "{text}");
                    ExitCode::SUCCESS
                }
                Err(()) => {
                    let line = text.lines().next().unwrap_or("malformed command line");
                    let _ = writeln!(std::io::stderr(), "wherry-runtime: {line} (see {program} --help)");
                    ExitCode::FAILURE
                }
            };
        }
    };
    if args.version {
        let _ = writeln!(out, "wherry-runtime version {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    if let Err(line) = check_log(&args) {
        let _ = writeln!(std::io::stderr(), "wherry-runtime: {line}");
        return ExitCode::FAILURE;
    }
    let Some(verb) = args.verb else {
        let _ = writeln!(
            std::io::stderr(),
            "wherry-runtime: a verb is missing (see {program} --help)"
        );
        return ExitCode::FAILURE;
    };
    let result = match verb {
        Verb::Spec(options) => verbs::spec::run(&options)
            .map(|()| ExitCode::SUCCESS)
            .map_err(|e| (e.to_string(), e.exit_code())),
        Verb::Monitor(options) => monitor::run(options).map_err(|e| (e.to_string(), e.exit_code())),
        Verb::Forward(options) => forward::run(options).map_err(|e| (e.to_string(), e.exit_code())),
        verb => {
            run(&args.root, args.cgroup_manager, verb, &mut out).map_err(|e| (e.to_string(), e.exit_code()))
        }
    };
    match result {
        Ok(code) => code,
        Err((line, code)) => {
            let _ = writeln!(std::io::stderr(), "wherry-runtime: {line}");
            if let Some(path) = &args.log {
                let _ = log(path, &args.log_format, &line);
            }
            ExitCode::from(code)
        }
    }
}

fn run(root: &Option<PathBuf>, manager: Manager, verb: Verb, out: &mut dyn Write) -> Result<ExitCode, Error> {
    let root = Root::open(root.as_deref())?;
    match verb {
        Verb::Create(options) => verbs::create::run(&root, &options, manager)?,
        Verb::Start(options) => verbs::start::run(&root, &options)?,
        Verb::State(options) => verbs::state::run(&root, &options, out)?,
        Verb::Kill(options) => verbs::kill::run(&root, &options)?,
        Verb::List(options) => verbs::list::run(&root, &options, out)?,
        Verb::Run(options) => return verbs::run::run(&root, options, manager).map(ExitCode::from),
        Verb::Exec(options) => return verbs::exec::run(&root, &options).map(ExitCode::from),
        Verb::Pause(options) => verbs::pause::pause(&root, &options)?,
        Verb::Resume(options) => verbs::pause::resume(&root, &options)?,
        Verb::Update(options) => verbs::update::run(&root, &options)?,
        Verb::Events(options) => verbs::events::run(&root, &options, out)?,
        Verb::Ps(options) => verbs::ps::run(&root, &options, out)?,
        Verb::Features(_) => verbs::features::run(out)?,
        // Dispatched before: they have no use for the root directory.
        Verb::Monitor(_) | Verb::Forward(_) | Verb::Spec(_) => {}
        Verb::Delete(options) => {
            for line in verbs::delete::run(&root, &options)? {
                let _ = writeln!(std::io::stderr(), "wherry-runtime: {line}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Where errors are to go must be there before there is one.
fn check_log(args: &Args) -> Result<(), String> {
    if !matches!(args.log_format.as_str(), "text" | "json") {
        return Err(format!(
            "--log-format {:?}: expected text or json",
            args.log_format
        ));
    }
    let Some(path) = &args.log else { return Ok(()) };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.map(drop)
        .map_err(|e| format!("--log {}: {e}", path.display()))
}

/// Appends an error to the log, in the form that engines read.
fn log(path: &PathBuf, format: &str, line: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    let line = match format {
        "json" => serde_json::json!({"level": "error", "msg": line}).to_string(),
        _ => format!("level=error msg={line:?}"),
    };
    writeln!(file, "{line}")
}

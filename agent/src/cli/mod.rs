//! The command line: one file for each verb, docker's flags and output shapes.
//!
//! What fails says so in one line on standard error, `wherry: <what> <where>: <cause>; <what to do>`, and the exit code
//! is docker's: 125 when wherry itself failed in `run` or the command line is wrong, 126 and 127 when the command could
//! not be run or found, 1 for other failures, and else the container's own.

mod ago;
mod attach;
mod completion;
mod delta;
mod doctor;
mod exec;
mod failure;
mod filter;
mod format;
mod history;
mod image;
mod images;
mod inspect;
mod kill;
mod load;
mod login;
mod logs;
mod place;
mod plan;
mod ps;
mod pull;
mod push;
mod registry;
mod rm;
mod rmi;
mod run;
mod save;
mod serve;
mod start;
mod stop;
mod system;
mod table;
mod tag;
mod terminal;
mod verify;
mod version;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};

use failure::Failure;
use place::Place;

/// What a wrong command line exits with: docker's code.
const USAGE: u8 = 125;

/// Run containers without root, and keep a board in its desired state.
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    name = "wherry",
    example = "wherry pull registry.example/iris:v1\nwherry run -d --name iris -p 5001:5000 registry.example/iris:v1\nwherry ps\nwherry logs -f iris\nwherry exec -it iris sh\nwherry rm -f iris",
    note = "State lives in --root DIR or $WHERRY_ROOT, else in $XDG_DATA_HOME/wherry or ~/.local/share/wherry.\nContainers are started with wherry-runtime: $WHERRY_RUNTIME, else the one beside this program, else that in PATH.",
    note = "wherry doctor tests what this board can do; wherry VERB --help shows a verb's flags."
)]
pub struct Wherry {
    /// the state directory
    #[argh(option, arg_name = "dir")]
    pub root: Option<PathBuf>,
    /// what to do
    #[argh(subcommand)]
    pub verb: Verb,
}

/// The verbs. One value exists for each process, so nothing is gained by boxing the larger ones.
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(subcommand)]
#[allow(missing_docs, clippy::large_enum_variant)]
pub enum Verb {
    Pull(pull::Args),
    Push(push::Args),
    Plan(plan::Args),
    Login(login::Args),
    Logout(login::LogoutArgs),
    Tag(tag::Args),
    Images(images::Args),
    Rmi(rmi::Args),
    Image(image::Args),
    History(history::Args),
    Save(save::Args),
    Load(load::Args),
    Verify(verify::Args),
    Run(run::Args),
    Start(start::Args),
    Stop(stop::Args),
    Kill(kill::Args),
    Ps(ps::Args),
    Logs(logs::Args),
    Exec(exec::Args),
    Inspect(inspect::Args),
    Rm(rm::Args),
    Serve(serve::Args),
    Delta(delta::Args),
    Agent(crate::daemon::Args),
    System(system::Args),
    Doctor(doctor::Args),
    Completion(completion::Args),
    Man(completion::ManArgs),
    Version(version::Args),
}

/// Runs the command line of this process.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let result = understand(words).and_then(|parsed| match parsed {
        Parsed::Help(text) => failure::print(&text).map(|()| ExitCode::SUCCESS),
        Parsed::Wherry(wherry) => dispatch(*wherry),
    });
    result.unwrap_or_else(|failure| {
        let _ = writeln!(std::io::stderr(), "wherry: {}", failure.line);
        ExitCode::from(failure.code)
    })
}

enum Parsed {
    Wherry(Box<Wherry>),
    Help(String),
}

fn understand(words: impl IntoIterator<Item = OsString>) -> Result<Parsed, Failure> {
    let usage = |line: String| Failure { line, code: USAGE };
    let mut typed = Vec::new();
    for word in words {
        let word = word
            .into_string()
            .map_err(|word| usage(format!("argument {word:?} is not UTF-8; rename it")))?;
        typed.push(word);
    }
    match typed.first().map(String::as_str) {
        None => typed.push("--help".into()),
        Some("help") => {
            typed.remove(0);
            typed.push("--help".into());
        }
        Some("--version" | "-v") => *typed.first_mut().unwrap_or(&mut String::new()) = "version".into(),
        Some(_) => {}
    }
    shorter(&mut typed);
    let normal = crate::args::normalise(&typed, &Wherry::get_args_info()).map_err(usage)?;
    let words: Vec<&str> = normal.iter().map(String::as_str).collect();
    match Wherry::from_args(&["wherry"], &words) {
        Ok(wherry) => Ok(Parsed::Wherry(Box::new(wherry))),
        Err(exit) if exit.status.is_ok() => Ok(Parsed::Help(exit.output)),
        Err(exit) => Err(usage(one_line(&exit.output))),
    }
}

/// `image ls` and the like are the verbs without `image`, which has the rest.
fn shorter(typed: &mut Vec<String>) {
    // Behind `--root DIR`, where that is given.
    let at = match typed.first().map(String::as_str) {
        Some("--root") => 2,
        Some(first) if first.starts_with("--root=") => 1,
        _ => 0,
    };
    if typed.get(at).map(String::as_str) != Some("image") {
        return;
    }
    let verb: &[&str] = match typed.get(at + 1).map(String::as_str) {
        Some("ls" | "list") => &["images"],
        Some("rm" | "remove") => &["rmi"],
        Some("inspect") => &["inspect", "--type", "image"],
        Some("history") => &["history"],
        Some("load") => &["load"],
        Some("pull") => &["pull"],
        Some("push") => &["push"],
        Some("save") => &["save"],
        Some("tag") => &["tag"],
        _ => return,
    };
    typed.splice(at..at + 2, verb.iter().map(|word| (*word).to_owned()));
}

/// The parser's message, which is several lines with a list in it.
fn one_line(message: &str) -> String {
    let parts: Vec<&str> = message
        .split('\n')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect();
    let line = parts.join(" ");
    let mut letters = line.chars();
    letters
        .next()
        .map(|first| first.to_lowercase().chain(letters).collect())
        .unwrap_or_default()
}

fn dispatch(wherry: Wherry) -> Result<ExitCode, Failure> {
    let place = Place::new(wherry.root);
    match wherry.verb {
        Verb::Pull(args) => pull::run(args, &place),
        Verb::Push(args) => push::run(args, &place),
        Verb::Plan(args) => plan::run(&args, &place),
        Verb::Login(args) => login::run(args),
        Verb::Logout(args) => login::logout(&args),
        Verb::Tag(args) => tag::run(&args, &place),
        Verb::Images(args) => images::run(&args, &place),
        Verb::Rmi(args) => rmi::run(&args, &place),
        Verb::Image(args) => image::run(&args, &place),
        Verb::History(args) => history::run(&args, &place),
        Verb::Save(args) => save::run(&args, &place),
        Verb::Load(args) => load::run(&args, &place),
        Verb::Verify(args) => verify::run(&args, &place),
        Verb::Run(args) => run::run(args, &place).map_err(Failure::of_run),
        Verb::Start(args) => start::run(&args, &place),
        Verb::Stop(args) => stop::run(&args, &place),
        Verb::Kill(args) => kill::run(&args, &place),
        Verb::Ps(args) => ps::run(&args, &place),
        Verb::Logs(args) => logs::run(&args, &place),
        Verb::Exec(args) => exec::run(args, &place),
        Verb::Inspect(args) => inspect::run(&args, &place),
        Verb::Rm(args) => rm::run(&args, &place),
        Verb::Serve(args) => serve::run(args, &place),
        Verb::Delta(args) => delta::run(args, &place),
        Verb::Agent(args) => crate::daemon::run(args, &place.root()?, &place::find_runtime()?)
            .map_err(|error| Failure::of(&error)),
        Verb::System(args) => system::run(&args, &place),
        Verb::Doctor(args) => doctor::run(&args, &place),
        Verb::Completion(args) => completion::run(&args),
        Verb::Man(args) => completion::man(&args),
        Verb::Version(args) => version::run(&args, &place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Parsed, Failure> {
        understand(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn every_verb_teaches() {
        for command in Wherry::get_args_info().commands {
            let Ok(Parsed::Help(text)) = parsed(&format!("{} --help", command.name)) else {
                panic!("{}", command.name)
            };
            assert!(
                text.contains("Usage: wherry") && text.contains("Examples:"),
                "{}: {text}",
                command.name
            );
        }
    }

    #[test]
    fn the_long_forms_of_docker() {
        for (long, short) in [
            ("image ls -a", "images -a"),
            ("image rm x", "rmi x"),
            ("--root /x image inspect y", "--root /x inspect --type image y"),
            ("--root=/x image save y", "--root=/x save y"),
            ("image prune", "image prune"),
            ("run image ls", "run image ls"),
        ] {
            let mut typed: Vec<String> = long.split(' ').map(str::to_owned).collect();
            shorter(&mut typed);
            assert_eq!(typed.join(" "), short);
        }
    }

    #[test]
    fn a_wrong_line_is_one_line_and_125() {
        for line in [
            "run",
            "exec",
            "tag a",
            "ps what",
            "logs --tail",
            "stop -t x box",
            "bogus",
            "run --rm",
        ] {
            let Err(failure) = parsed(line) else {
                panic!("{line}")
            };
            assert_eq!(failure.code, 125, "{line}");
            assert!(
                !failure.line.contains('\n') && failure.line.len() > 10,
                "{line}: {}",
                failure.line
            );
        }
    }
}

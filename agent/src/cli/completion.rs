//! `wherry completion` and `wherry man`: both are printed from the definitions that the command line is parsed by.

use std::fmt::Write as _;
use std::process::ExitCode;

use argh::{ArgsInfo, CommandInfoWithArgs, FlagInfo, FlagInfoKind, FromArgs, Optionality};

use super::Wherry;
use super::failure::{Failure, print};

/// print what makes a shell complete wherry's command line
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "completion",
    example = "wherry completion bash > ~/.local/share/bash-completion/completions/wherry",
    example = "wherry completion zsh > ~/.zfunc/_wherry",
    example = "wherry completion fish > ~/.config/fish/completions/wherry.fish"
)]
pub struct Args {
    /// bash, zsh or fish
    #[argh(positional)]
    pub shell: String,
}

/// print a manual page
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "man",
    example = "wherry man | man -l -",
    example = "wherry man image prune > wherry-image-prune.1"
)]
pub struct ManArgs {
    /// the verb, as it is typed; none for the whole program
    #[argh(positional, arg_name = "verb")]
    pub verb: Vec<String>,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let top = Wherry::get_args_info();
    let text = match args.shell.as_str() {
        "bash" => bash(&top),
        "zsh" => zsh(&top),
        "fish" => fish(&top),
        other => {
            return Err(Failure::new(format!(
                "shell {other:?} is not supported; use bash, zsh or fish"
            )));
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man(args: &ManArgs) -> Result<ExitCode, Failure> {
    let top = Wherry::get_args_info();
    let mut command = &top;
    let mut path = String::from("wherry");
    for word in &args.verb {
        let found = command.commands.iter().find(|known| known.name == word);
        let found = found
            .ok_or_else(|| Failure::new(format!("{path}: no such command {word:?}; see {path} --help")))?;
        command = &found.command;
        path = format!("{path} {word}");
    }
    print(&page(&path, command))?;
    Ok(ExitCode::SUCCESS)
}

fn long<'a>(flag: &'a FlagInfo<'_>) -> &'a str {
    flag.long.trim_start_matches("--")
}

fn shown<'a>(command: &'a CommandInfoWithArgs) -> impl Iterator<Item = &'a FlagInfo<'a>> {
    command
        .flags
        .iter()
        .filter(|flag| !flag.hidden && long(flag) != "help")
}

/// Every command with its path behind the program's name, the top one first.
fn all(top: &CommandInfoWithArgs) -> Vec<(String, &CommandInfoWithArgs)> {
    let mut found = vec![(String::new(), top)];
    let mut at = 0;
    while let Some((path, command)) = found.get(at).cloned() {
        for sub in &command.commands {
            found.push((format!("{path} {}", sub.name).trim().to_owned(), &sub.command));
        }
        at += 1;
    }
    found
}

/// What a positional argument of a verb is: names that wherry itself can list.
fn names(path: &str) -> Option<&'static str> {
    match path {
        "run" | "push" | "tag" | "rmi" | "history" | "save" | "pull" => {
            Some("wherry images --format '{{.Repository}}:{{.Tag}}'")
        }
        "start" | "stop" | "kill" | "logs" | "exec" | "rm" | "inspect" => {
            Some("wherry ps -a --format '{{.Names}}'")
        }
        _ => None,
    }
}

fn bash(top: &CommandInfoWithArgs) -> String {
    let mut text = String::from(
        "# Completion of wherry for bash; made by `wherry completion bash`.\n_wherry() {\n\
         \x20   local cur=${COMP_WORDS[COMP_CWORD]} path= word i\n\
         \x20   for ((i = 1; i < COMP_CWORD; i++)); do\n        word=${COMP_WORDS[i]}\n        case $word in\n\
         \x20       --root) ((i++)) ;;\n        -*) ;;\n        *)\n            case \"$path $word\" in\n",
    );
    let commands = all(top);
    let known: Vec<String> = commands
        .iter()
        .filter(|(path, _)| !path.is_empty())
        .map(|(path, _)| {
            let (above, name) = path.rsplit_once(' ').unwrap_or(("", path));
            format!("\"{above} {name}\"")
        })
        .collect();
    let _ = write!(
        text,
        "            {}) path=${{path:+$path }}$word ;;\n            *) [ -n \"$path\" ] && break ;;\n            esac\n            ;;\n        esac\n    done\n    case $path in\n",
        known.join(" | ")
    );
    for (path, command) in &commands {
        let flags: Vec<String> = shown(command)
            .flat_map(|flag| {
                let short = flag.short.map(|letter| format!("-{letter}"));
                short.into_iter().chain([format!("--{}", long(flag))])
            })
            .chain(["--help".into()])
            .collect();
        let verbs: Vec<&str> = command.commands.iter().map(|sub| sub.name).collect();
        let words = match (verbs.is_empty(), names(path)) {
            (false, _) => format!("\"{}\"", verbs.join(" ")),
            (true, Some(list)) => format!("\"$({list} 2>/dev/null)\""),
            (true, None) => "\"\"".into(),
        };
        let _ = write!(
            text,
            "    \"{path}\")\n        if [[ $cur == -* ]]; then\n            mapfile -t COMPREPLY < <(compgen -W \"{}\" -- \"$cur\")\n        else\n            mapfile -t COMPREPLY < <(compgen -W {words} -- \"$cur\")\n        fi\n        ;;\n",
            flags.join(" ")
        );
    }
    text.push_str("    esac\n}\ncomplete -o default -F _wherry wherry\n");
    text
}

/// A description for zsh and fish, in single quotes.
fn quoted(text: &str) -> String {
    text.replace('\'', "'\\''")
}

fn zsh(top: &CommandInfoWithArgs) -> String {
    let mut text =
        String::from("#compdef wherry\n# Completion of wherry for zsh; made by `wherry completion zsh`.\n");
    for (path, command) in all(top) {
        let name = format!("_wherry {path}").trim().replace([' ', '-'], "_");
        let _ = writeln!(text, "{name}() {{\n    local state line\n    _arguments -C \\");
        for flag in shown(command) {
            let about: String = quoted(flag.description).replace(['[', ']', ':'], " ");
            let takes = match &flag.kind {
                FlagInfoKind::Switch => String::new(),
                FlagInfoKind::Option { arg_name } => format!(":{arg_name}:_files"),
            };
            let _ = writeln!(text, "        '*--{}[{about}]{takes}' \\", long(flag));
            if let Some(letter) = flag.short {
                let _ = writeln!(text, "        '*-{letter}[{about}]{takes}' \\");
            }
        }
        if command.commands.is_empty() {
            match names(&path) {
                Some(list) => {
                    let _ = writeln!(
                        text,
                        "        '*:name:->names'\n    [[ $state == names ]] && compadd -- ${{(f)\"$({list} 2>/dev/null)\"}}"
                    );
                }
                None => text.push_str("        '*:file:_files'\n"),
            }
        } else {
            text.push_str("        '1:command:->commands' '*::argument:->arguments'\n    case $state in\n    commands)\n        local -a verbs=(\n");
            for sub in &command.commands {
                let about = quoted(sub.command.description).replace(':', "\\:");
                let _ = writeln!(text, "            '{}:{about}'", sub.name);
            }
            text.push_str(
                "        )\n        _describe command verbs ;;\n    arguments)\n        case $line[1] in\n",
            );
            for sub in &command.commands {
                let inner = format!("{name} {}", sub.name).replace([' ', '-'], "_");
                let _ = writeln!(text, "        {}) {inner} ;;", sub.name);
            }
            text.push_str("        esac ;;\n    esac\n");
        }
        text.push_str("}\n");
    }
    text.push_str("_wherry \"$@\"\n");
    text
}

fn fish(top: &CommandInfoWithArgs) -> String {
    let mut text = String::from("# Completion of wherry for fish; made by `wherry completion fish`.\n");
    for (path, command) in all(top) {
        // Every word of the path was typed, and none of the next ones.
        let typed = path.split(' ').filter(|word| !word.is_empty());
        let mut when: Vec<String> = typed
            .map(|word| format!("__fish_seen_subcommand_from {word}"))
            .collect();
        if path.is_empty() {
            when.push("__fish_use_subcommand".into());
        }
        let verbs: Vec<&str> = command.commands.iter().map(|sub| sub.name).collect();
        if !verbs.is_empty() && !path.is_empty() {
            when.push(format!("not __fish_seen_subcommand_from {}", verbs.join(" ")));
        }
        let when = when.join("; and ");
        for sub in &command.commands {
            let about = quoted(sub.command.description);
            let _ = writeln!(
                text,
                "complete -c wherry -n '{when}' -f -a {} -d '{about}'",
                sub.name
            );
        }
        for flag in shown(command) {
            let short = flag.short.map_or(String::new(), |letter| format!(" -s {letter}"));
            let takes = match flag.kind {
                FlagInfoKind::Switch => "",
                FlagInfoKind::Option { .. } => " -r",
            };
            let about = quoted(flag.description);
            let _ = writeln!(
                text,
                "complete -c wherry -n '{when}' -l {}{short}{takes} -d '{about}'",
                long(flag)
            );
        }
        if let Some(list) = names(&path) {
            let _ = writeln!(text, "complete -c wherry -n '{when}' -a \"({list})\"");
        }
    }
    text
}

/// What roff would take for its own.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let lines = text.lines().map(|line| match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}"),
        false => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn page(path: &str, command: &CommandInfoWithArgs) -> String {
    let title = path.replace(' ', "-");
    let mut text = format!(
        ".TH {} 1 \"\" \"wherry {}\" \"wherry\"\n.SH NAME\n{} \\- {}\n.SH SYNOPSIS\n.B {}\n",
        roff(&title.to_uppercase()),
        env!("CARGO_PKG_VERSION"),
        roff(&title),
        roff(command.description),
        roff(path)
    );
    if shown(command).next().is_some() {
        text.push_str("[\\fIoptions\\fR]\n");
    }
    if !command.commands.is_empty() {
        text.push_str("\\fIcommand\\fR ...\n");
    }
    for positional in command.positionals.iter().filter(|p| !p.hidden) {
        let name = roff(positional.name);
        text.push_str(&match positional.optionality {
            Optionality::Required => format!("\\fI{name}\\fR\n"),
            Optionality::Optional => format!("[\\fI{name}\\fR]\n"),
            Optionality::Repeating | Optionality::Greedy => format!("[\\fI{name}\\fR ...]\n"),
        });
    }
    if !command.commands.is_empty() {
        text.push_str(".SH COMMANDS\n");
        for sub in &command.commands {
            let _ = writeln!(
                text,
                ".TP\n.B {}\n{}",
                roff(sub.name),
                roff(sub.command.description)
            );
        }
    }
    text.push_str(".SH OPTIONS\n");
    for flag in shown(command) {
        let short = flag
            .short
            .map_or(String::new(), |letter| format!("\\-{letter}, "));
        let takes = match &flag.kind {
            FlagInfoKind::Switch => String::new(),
            FlagInfoKind::Option { arg_name } => format!(" \\fI{}\\fR", roff(arg_name)),
        };
        let _ = writeln!(
            text,
            ".TP\n\\fB{short}\\-\\-{}\\fR{takes}\n{}",
            roff(long(flag)),
            roff(flag.description)
        );
    }
    text.push_str(".TP\n\\fB\\-\\-help\\fR\nprint a short help\n");
    for positional in command.positionals.iter().filter(|p| !p.hidden) {
        let _ = writeln!(
            text,
            ".TP\n\\fI{}\\fR\n{}",
            roff(positional.name),
            roff(positional.description)
        );
    }
    if !command.notes.is_empty() {
        text.push_str(".SH NOTES\n");
        for note in command.notes {
            let _ = writeln!(text, "{}\n.PP", roff(note));
        }
    }
    if !command.examples.is_empty() {
        text.push_str(".SH EXAMPLES\n.nf\n");
        for example in command.examples {
            let _ = writeln!(text, "{}", roff(example));
        }
        text.push_str(".fi\n");
    }
    if path != "wherry" {
        text.push_str(".SH SEE ALSO\n.BR wherry (1)\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// Says loudly, and to whoever counts, what was not run.
    fn skip(program: &str) {
        let line =
            format!("completion and man, the part that {program} judges: this machine lacks {program}");
        eprintln!("SKIPPED: {line}");
        if let Some(path) = std::env::var_os("WHERRY_SKIP_LOG") {
            let log = std::fs::OpenOptions::new().append(true).create(true).open(path);
            writeln!(log.unwrap(), "{line}").unwrap();
        }
    }

    /// Has a program read the text and gives what it complains of; `None` where there is no such program.
    fn judged(program: &str, args: &[&str], text: &str) -> Option<String> {
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            skip(program);
            return None;
        };
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program}: {said}");
        Some(said)
    }

    #[test]
    fn shells_understand_them() {
        let top = Wherry::get_args_info();
        for (program, text) in [("bash", bash(&top)), ("zsh", zsh(&top)), ("fish", fish(&top))] {
            for word in ["system", "prune", "keep-blobs", "rmi", "no-trunc"] {
                assert!(text.contains(word), "{program}: {word}");
            }
            if let Some(said) = judged(program, &["-n"], &text) {
                assert_eq!(said, "", "{program}");
            }
        }
    }

    #[test]
    fn bash_completes() {
        let top = Wherry::get_args_info();
        for (line, want) in [
            ("wherry im", "images image"),
            ("wherry image p", "prune"),
            ("wherry --root /x system d", "df"),
            ("wherry rmi --f", "--force"),
            ("wherry image prune -a --fi", "--filter"),
        ] {
            let script = format!(
                "{}\nCOMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _wherry; echo \"${{COMPREPLY[*]}}\"",
                bash(&top)
            );
            let output = Command::new("bash").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), want, "{line}");
        }
    }

    #[test]
    fn fish_completes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("wherry.fish");
        std::fs::write(&file, fish(&Wherry::get_args_info())).unwrap();
        for (line, want) in [
            ("wherry image p", "prune"),
            ("wherry sys", "system"),
            ("wherry rmi --f", "--force"),
            ("wherry rmi ir", "iris:v1"),
            ("wherry image prune --al", "--all"),
        ] {
            // In the place of the program, which a unit test has not.
            let program = "function wherry; echo iris:v1; end";
            let script = format!("{program}; source {}; complete -C '{line}'", file.display());
            let output = Command::new("fish")
                .env("HOME", dir.path())
                .args(["-c", &script])
                .output();
            let Ok(output) = output else {
                return skip("fish");
            };
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let first = said.split(['\t', '\n']).next();
            assert_eq!(
                first,
                Some(want),
                "{line}: {said}{}",
                String::from_utf8_lossy(&output.stderr)
            );
            assert!(
                output.stderr.is_empty(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }

    #[test]
    fn every_verb_has_a_page() {
        let top = Wherry::get_args_info();
        for (path, command) in all(&top) {
            let page = page(format!("wherry {path}").trim(), command);
            assert!(
                page.contains(".SH NAME") && page.contains(".SH OPTIONS"),
                "{path}"
            );
            assert!(page.lines().all(|line| !line.starts_with("..")), "{path}");
            if let Some(said) = judged("groff", &["-man", "-Tutf8", "-ww"], &page) {
                assert_eq!(said, "", "{path}\n{page}");
            }
        }
    }
}

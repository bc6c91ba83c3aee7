//! From what people type to what the parser understands.
//!
//! The definitions in [`crate::cli`] are the only list of flags; this pre-pass reads it and rewrites docker's spellings
//! into its own: `-it` into `-i -t`, `-p5001:5000` into `--publish 5001:5000`, `--name=x` into `--name x`. What follows
//! an image's or container's name in `run` and `exec` belongs to the command there and is passed on untouched. A flag
//! that docker has and wherry has not is refused by its name with the reason.
//!
//! [`normalise`] is a pure function of the words and the definitions.

mod refused;

use argh::{CommandInfoWithArgs, FlagInfo, FlagInfoKind, Optionality};

/// What people type in front of all this.
const PROGRAM: &str = "wherry";
/// Flags that may be given with or without `=true` and `=false` although they carry a value.
const BOOLEAN: [&str; 1] = ["tls-verify"];

/// Rewrites the words after the program's name. `Err` is the reason, which names the word.
pub fn normalise(words: &[String], top: &CommandInfoWithArgs) -> Result<Vec<String>, String> {
    let mut command = top;
    let mut path = String::from(PROGRAM);
    let mut out = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let hint = || format!("see {path} --help");
        if word == "--" {
            out.push(word.clone());
            out.extend(words.cloned());
            break;
        }
        if word == "--help" || (word == "-h" && short(command, 'h').is_none()) {
            out.push("--help".into());
        } else if let Some(long) = word.strip_prefix("--") {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (long, None),
            };
            let flag = command
                .flags
                .iter()
                .find(|flag| flag.long.trim_start_matches("--") == name);
            let flag = flag.ok_or_else(|| unknown(&path, &format!("--{name}"), &hint()))?;
            push(&mut out, flag, value, &mut words, &hint())?;
        } else if let Some(cluster) = word.strip_prefix('-').filter(|cluster| !cluster.is_empty()) {
            for (at, letter) in cluster.char_indices() {
                let flag =
                    short(command, letter).ok_or_else(|| unknown(&path, &format!("-{letter}"), &hint()))?;
                let rest = cluster.get(at + letter.len_utf8()..).unwrap_or_default();
                let takes_value = matches!(flag.kind, FlagInfoKind::Option { .. });
                if takes_value || rest.starts_with('=') {
                    let value = rest.strip_prefix('=').unwrap_or(rest);
                    let value = (!rest.is_empty()).then_some(value);
                    push(&mut out, flag, value, &mut words, &hint())?;
                    break;
                }
                push(&mut out, flag, None, &mut words, &hint())?;
            }
        } else if !command.commands.is_empty() {
            let found = command.commands.iter().find(|known| known.name == word);
            let Some(found) = found else {
                return Err(match refused::command(&path, word) {
                    Some(reason) => format!("{path} {word}: {reason}"),
                    None => format!("{path}: no such command {word:?}; {}", hint()),
                });
            };
            command = &found.command;
            path = format!("{path} {word}");
            out.push(word.clone());
        } else if command
            .positionals
            .iter()
            .any(|positional| positional.optionality == Optionality::Greedy)
        {
            out.push("--".into());
            out.push(word.clone());
            out.extend(words.cloned());
            break;
        } else {
            out.push(word.clone());
        }
    }
    Ok(out)
}

fn short<'a>(command: &'a CommandInfoWithArgs, letter: char) -> Option<&'a FlagInfo<'a>> {
    command.flags.iter().find(|flag| flag.short == Some(letter))
}

fn unknown(path: &str, flag: &str, hint: &str) -> String {
    let verb = path.rsplit(' ').next().unwrap_or_default();
    match refused::flag(verb, flag) {
        Some(reason) => format!("{verb} {flag}: {reason}"),
        None => format!("{verb}: unknown flag {flag}; {hint}"),
    }
}

fn push<'a>(
    out: &mut Vec<String>,
    flag: &FlagInfo<'_>,
    value: Option<&str>,
    words: &mut impl Iterator<Item = &'a String>,
    hint: &str,
) -> Result<(), String> {
    let name = flag.long.trim_start_matches("--");
    match (&flag.kind, value) {
        (FlagInfoKind::Switch, None | Some("true" | "1")) => out.push(format!("--{name}")),
        (FlagInfoKind::Switch, Some("false" | "0")) => {}
        (FlagInfoKind::Switch, Some(value)) => {
            return Err(format!(
                "flag --{name}: {value:?} is neither true nor false; {hint}"
            ));
        }
        (FlagInfoKind::Option { .. }, value) => {
            let value = match value {
                Some(value) => value.to_owned(),
                None if BOOLEAN.contains(&name) => "true".into(),
                None => words
                    .next()
                    .ok_or_else(|| format!("flag --{name}: a value is missing; {hint}"))?
                    .clone(),
            };
            out.push(format!("--{name}"));
            out.push(value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use argh::ArgsInfo;

    fn check(line: &str) -> Result<String, String> {
        let words: Vec<String> = line
            .split(' ')
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect();
        normalise(&words, &crate::cli::Wherry::get_args_info()).map(|words| words.join(" "))
    }

    #[test]
    fn as_people_type_it() {
        for (typed, understood) in [
            ("run -it alpine sh", "run --interactive --tty -- alpine sh"),
            ("run -itd alpine", "run --interactive --tty --detach -- alpine"),
            ("run -p5001:5000 iris", "run --publish 5001:5000 -- iris"),
            ("run -p=5001:5000 iris", "run --publish 5001:5000 -- iris"),
            (
                "run -dp 5001:5000 iris",
                "run --detach --publish 5001:5000 -- iris",
            ),
            ("run --name=x iris", "run --name x -- iris"),
            ("run --name x iris", "run --name x -- iris"),
            ("run --name= iris", "run --name  -- iris"),
            (
                "run -eFOO=bar -e A=b=c iris",
                "run --env FOO=bar --env A=b=c -- iris",
            ),
            ("run --env=FOO=--bar iris", "run --env FOO=--bar -- iris"),
            ("run --rm=false -d=true iris", "run --detach -- iris"),
            ("run -h box iris", "run --hostname box -- iris"),
            ("run iris -h --rm -it -- x", "run -- iris -h --rm -it -- x"),
            ("run --rm -- iris -x -- y", "run --rm -- iris -x -- y"),
            ("run --entrypoint -x iris", "run --entrypoint -x -- iris"),
            (
                "exec -it box sh -c ls",
                "exec --interactive --tty -- box sh -c ls",
            ),
            (
                "exec -w/tmp -u1000:1000 box id",
                "exec --workdir /tmp --user 1000:1000 -- box id",
            ),
            ("ps -aq --no-trunc", "ps --all --quiet --no-trunc"),
            ("--root /x ps", "--root /x ps"),
            ("--root=/x ps -a", "--root /x ps --all"),
            ("rm box -f", "rm box --force"),
            ("stop -t5 box other", "stop --time 5 box other"),
            ("logs -fn5 box", "logs --follow --tail 5 box"),
            ("logs --tail=all box", "logs --tail all box"),
            ("delta push a b", "delta push a b"),
            ("pull --tls-verify=false x", "pull --tls-verify false x"),
            ("pull --tls-verify x", "pull --tls-verify true x"),
            ("ps -h", "ps --help"),
            ("run --help", "run --help"),
        ] {
            assert_eq!(check(typed).as_deref(), Ok(understood), "{typed}");
        }
    }

    #[test]
    fn what_is_refused_and_why() {
        for (typed, reason) in [
            (
                "run --nmae=x iris",
                "run: unknown flag --nmae; see wherry run --help",
            ),
            ("run -iz iris", "run: unknown flag -z; see wherry run --help"),
            (
                "run --name",
                "flag --name: a value is missing; see wherry run --help",
            ),
            (
                "run -p",
                "flag --publish: a value is missing; see wherry run --help",
            ),
            (
                "run --rm=maybe iris",
                "flag --rm: \"maybe\" is neither true nor false; see wherry run --help",
            ),
            (
                "frobnicate",
                "wherry: no such command \"frobnicate\"; see wherry --help",
            ),
            (
                "delta pull a b",
                "wherry delta: no such command \"pull\"; see wherry delta --help",
            ),
            ("--rooot /x ps", "wherry: unknown flag --rooot; see wherry --help"),
        ] {
            assert_eq!(check(typed).unwrap_err(), reason, "{typed}");
        }
        for (typed, part) in [
            ("run --privileged x", "run --privileged: "),
            ("run --restart=always x", "run --restart: "),
            ("build .", "wherry build: "),
            ("exec --privileged x", "exec --privileged: "),
        ] {
            let error = check(typed).unwrap_err();
            assert!(
                error.starts_with(part) && error.len() > part.len() + 20,
                "{typed}: {error}"
            );
        }
    }
}

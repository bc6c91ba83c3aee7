//! `wherry login` and `wherry logout`.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use wherry_images::registry::login::{Kept, forget, keep};
use wherry_images::registry::{Client, Login, Options, docker_config_path};

use super::failure::{Failure, print};
use super::registry;
use super::terminal::Hidden;

/// The longest password that is read. Tokens of cloud registries reach 8 KB.
const MAX_SECRET: u64 = 64 * 1024;
/// Where a name without a registry is logged in, as with docker.
const HUB: &str = "docker.io";

/// log in to a registry
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "login",
    example = "wherry login -u me registry.example",
    example = "wherry login -u me --password-stdin registry.example <token",
    note = "The login is tried, then kept in docker's config.json ($DOCKER_CONFIG or ~/.docker), readable by you alone, or with the credential helper that this file names. docker and podman find it there, too."
)]
pub struct Args {
    /// the account's name
    #[argh(option, short = 'u', arg_name = "name")]
    pub username: Option<String>,
    /// the password; other users of the machine can see it: better --password-stdin
    #[argh(option, short = 'p', arg_name = "password")]
    pub password: Option<String>,
    /// read the password from standard input
    #[argh(switch)]
    pub password_stdin: bool,
    /// false for a registry without TLS, or with a certificate that proves nothing
    #[argh(option, arg_name = "bool", default = "true")]
    pub tls_verify: bool,
    /// the registry, docker.io unless given
    #[argh(positional)]
    pub registry: Option<String>,
}

/// forget the login of a registry
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(subcommand, name = "logout", example = "wherry logout registry.example")]
pub struct LogoutArgs {
    /// the registry, docker.io unless given
    #[argh(positional)]
    pub registry: Option<String>,
}

pub(super) fn run(args: Args) -> Result<ExitCode, Failure> {
    let registry = host(args.registry.as_deref())?;
    let config = config()?;
    let user = match args.username {
        Some(user) => user,
        None if args.password_stdin => {
            return Err(Failure::new("--password-stdin: give the account with --username"));
        }
        None => ask("Username: ")?,
    };
    let secret = match args.password {
        Some(_) if args.password_stdin => {
            return Err(Failure::new("--password and --password-stdin: give one of them"));
        }
        Some(secret) => secret,
        None if args.password_stdin => from_stdin()?,
        None => hidden("Password: ")?,
    };
    if user.is_empty() || user.contains(':') || secret.is_empty() {
        return Err(Failure::new("expected a name without a colon and a password"));
    }
    let login = Login::Password {
        user: user.clone(),
        secret: secret.clone(),
    };
    let insecure = if args.tls_verify {
        Vec::new()
    } else {
        vec![registry.clone()]
    };
    let client = Client::new(Options {
        insecure,
        login: Some(login),
        ..Options::default()
    });
    let failed = |error: &wherry_images::registry::Error| {
        let Failure { line, code } = Failure::of(error);
        let advice = match error {
            wherry_images::registry::Error::Denied { .. } => "; check the name and the password",
            other => registry::advice(other),
        };
        Failure {
            line: format!("cannot log in to {registry}: {line}{advice}"),
            code,
        }
    };
    client.try_login(&registry).map_err(|error| failed(&error))?;
    match keep(&config, &registry, &user, &secret).map_err(|error| failed(&error))? {
        Kept::Helper(_) => {}
        Kept::File => {
            let line = format!(
                "the password is in {}, readable by you alone; a credential helper hides it better",
                config.display()
            );
            let _ = writeln!(io::stderr(), "wherry: warning: {line}");
        }
    }
    print("Login Succeeded\n")?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn logout(args: &LogoutArgs) -> Result<ExitCode, Failure> {
    let registry = host(args.registry.as_deref())?;
    let config = config()?;
    let found = forget(&config, &registry)
        .map_err(|error| Failure::about(format!("cannot log out of {registry}"), &error))?;
    print(&if found {
        format!("Removing login credentials for {registry}\n")
    } else {
        format!("Not logged in to {registry}\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The registry's host: people paste addresses.
fn host(typed: Option<&str>) -> Result<String, Failure> {
    let typed = typed.unwrap_or(HUB);
    let rest = typed
        .strip_prefix("https://")
        .or_else(|| typed.strip_prefix("http://"));
    let host = rest.unwrap_or(typed).split('/').next().unwrap_or(typed);
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => HUB,
        host => host,
    };
    let known =
        wherry_images::Reference::parse("docker.io/library/login").and_then(|any| any.at_registry(host));
    known
        .map(|reference| reference.registry().to_owned())
        .map_err(|_| Failure::new(format!("registry {typed:?}: expected HOST[:PORT]")))
}

fn config() -> Result<std::path::PathBuf, Failure> {
    docker_config_path().ok_or_else(|| Failure::new("neither DOCKER_CONFIG nor HOME is set; set one of them"))
}

fn from_stdin() -> Result<String, Failure> {
    let mut text = String::new();
    io::stdin()
        .take(MAX_SECRET)
        .read_to_string(&mut text)
        .map_err(|error| Failure::about("cannot read the password from standard input", &error))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

/// One line from the person at the terminal.
fn ask(prompt: &str) -> Result<String, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(
            "nobody to ask: give --username, and the password with --password-stdin",
        ));
    }
    let _ = write!(io::stderr(), "{prompt}");
    let mut line = String::new();
    io::stdin()
        .lock()
        .take(MAX_SECRET)
        .read_line(&mut line)
        .map_err(|error| Failure::about("cannot read from the terminal", &error))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// As [`ask`], with nothing of the answer shown.
fn hidden(prompt: &str) -> Result<String, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(
            "nobody to ask: give the password with --password-stdin",
        ));
    }
    let hidden = Hidden::enter().map_err(|error| Failure::about("cannot hide what is typed", &error))?;
    let answer = ask(prompt);
    drop(hidden);
    let _ = writeln!(io::stderr());
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_as_people_type_them() {
        for (typed, wanted) in [
            (None, Some("docker.io")),
            (Some("https://index.docker.io/v1/"), Some("docker.io")),
            (Some("reg.example:5000"), Some("reg.example:5000")),
            (Some("http://reg.example/v2/"), Some("reg.example")),
            (Some("a b"), None),
            (Some(""), None),
        ] {
            assert_eq!(host(typed).ok().as_deref(), wanted, "{typed:?}");
        }
    }
}

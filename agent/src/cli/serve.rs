//! `wherry serve`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use wherry_images::serve::{Account, Guard, Options, Server, Tls};

use super::failure::{Failure, print};
use super::place::Place;

/// The longest token that is read.
const TOKEN_MAX: u64 = 4096;
/// The shortest: writing is guarded by it alone.
const TOKEN_MIN: usize = 16;
/// The longest accounts file that is read.
const ACCOUNTS_MAX: u64 = 64 * 1024;
/// The shortest password.
const SECRET_MIN: usize = 8;

/// be a registry for the images in the state directory
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "serve",
    example = "wherry serve",
    example = "wherry serve --listen 0.0.0.0:5000 --token-file ./token",
    example = "wherry serve --listen 0.0.0.0:5000 --accounts-file ./accounts --tls-cert cert.pem --tls-key key.pem",
    note = "An image is served under its name without the registry: docker.io/library/x as library/x. What is pushed as NAME is localhost/NAME in wherry images and goes before others of that name. Layers are served from their blobs: pull with --keep-blobs.",
    note = "Reading is open to whoever reaches the address, unless there are accounts. Writing needs the token, as a Bearer token or as the password of any account, or a writing account, or the Unix socket serve.sock in the state directory, which only you can open. docker, podman, skopeo and crane log in as to any registry.",
    note = "An accounts file has a line for each account, NAME:PASSWORD to read and write or NAME:PASSWORD:ro to read, and may be readable by you alone. A file is read once: restart to take up a new one or a new certificate."
)]
pub struct Args {
    /// the address, 127.0.0.1:5000 unless given; port 0 takes a free one
    #[argh(option, arg_name = "host:port", default = "String::from(\"127.0.0.1:5000\")")]
    pub listen: String,
    /// a file with the token for writing, at least 16 characters
    #[argh(option, arg_name = "file")]
    pub token_file: Option<PathBuf>,
    /// a file with accounts, NAME:PASSWORD[:ro] a line; with one, reading needs an account too
    #[argh(option, arg_name = "file")]
    pub accounts_file: Option<PathBuf>,
    /// a certificate (PEM) to speak TLS with
    #[argh(option, arg_name = "file")]
    pub tls_cert: Option<PathBuf>,
    /// its private key (PEM)
    #[argh(option, arg_name = "file")]
    pub tls_key: Option<PathBuf>,
}

pub(super) fn run(args: Args, place: &Place) -> Result<ExitCode, Failure> {
    let token = args.token_file.as_deref().map(token).transpose()?;
    let listen = address(&args.listen)?;
    let store = place.store()?;
    let unix = Some(store.root().join("serve.sock"));
    let accounts = args.accounts_file.as_deref().map(accounts).transpose()?;
    let tls = match (args.tls_cert, args.tls_key) {
        (Some(certificate), Some(key)) => Some(Tls { certificate, key }),
        (None, None) => None,
        _ => return Err(Failure::new("--tls-cert and --tls-key: give both")),
    };
    let writing = match (&token, &accounts) {
        (None, None) => "over",
        (Some(_), None) => "with the token or over",
        (None, Some(_)) => "with an account or over",
        (Some(_), Some(_)) => "with the token, an account or over",
    };
    let scheme = if tls.is_some() { " with TLS" } else { "" };
    let options = Options {
        listen,
        token,
        unix: unix.clone(),
    };
    let guard = Guard {
        accounts: accounts.unwrap_or_default(),
        tls,
    };
    let server =
        Server::guarded(options, guard, store).map_err(|error| Failure::about("cannot serve", &error))?;
    let address = server.addr().map_err(|error| Failure::of(&error))?;
    let socket = unix.map(|path| path.display().to_string()).unwrap_or_default();
    print(&format!(
        "serving on {address}{scheme}; writing {writing} {socket}\n"
    ))?;
    server.run().map_err(|error| Failure::of(&error))?;
    Ok(ExitCode::SUCCESS)
}

/// Reads a small file of secrets.
fn read(what: &str, path: &Path, most: u64) -> Result<String, Failure> {
    use std::io::Read as _;
    let failed = |error: &dyn std::error::Error| {
        Failure::about(format!("cannot read {what} file {}", path.display()), error)
    };
    let file = std::fs::File::open(path).map_err(|error| failed(&error))?;
    let mut text = String::new();
    file.take(most)
        .read_to_string(&mut text)
        .map_err(|error| failed(&error))?;
    Ok(text)
}

fn token(path: &Path) -> Result<String, Failure> {
    let text = read("token", path, TOKEN_MAX)?;
    let token = text.trim();
    if token.len() < TOKEN_MIN || token.contains(char::is_whitespace) {
        let why = format!("expected one word of at least {TOKEN_MIN} characters");
        return Err(Failure::new(format!(
            "token file {}: {why}; head -c 24 /dev/urandom | base64 makes one",
            path.display()
        )));
    }
    Ok(token.to_owned())
}

fn accounts(path: &Path) -> Result<Vec<Account>, Failure> {
    use std::os::unix::fs::PermissionsExt as _;
    let refuse = |why: String| Failure::new(format!("accounts file {}: {why}", path.display()));
    let text = read("accounts", path, ACCOUNTS_MAX)?;
    let mode = std::fs::metadata(path).map_or(0, |found| found.permissions().mode());
    if mode & 0o077 != 0 {
        return Err(refuse("others can read it; chmod 600 it".to_owned()));
    }
    let accounts = parse_accounts(&text).map_err(refuse)?;
    if accounts.is_empty() {
        return Err(refuse("no account in it; write NAME:PASSWORD lines".to_owned()));
    }
    Ok(accounts)
}

/// `NAME:PASSWORD[:ro]` a line; empty lines and those that begin with `#` say nothing.
fn parse_accounts(text: &str) -> Result<Vec<Account>, String> {
    let mut accounts: Vec<Account> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut parts = line.split(':');
        let (name, secret, mode, rest) = (parts.next(), parts.next(), parts.next(), parts.next());
        let account = match (name, secret, mode, rest) {
            (Some(name), Some(secret), mode @ (None | Some("ro")), None)
                if !name.is_empty() && secret.len() >= SECRET_MIN =>
            {
                Account {
                    name: name.to_owned(),
                    secret: secret.to_owned(),
                    writes: mode.is_none(),
                }
            }
            // Not the line itself: it has a password in it.
            _ => {
                return Err(format!(
                    "line {}: expected NAME:PASSWORD or NAME:PASSWORD:ro, the password with at least {SECRET_MIN} characters and no colon",
                    number + 1
                ));
            }
        };
        if accounts.iter().any(|known| known.name == account.name) {
            return Err(format!(
                "line {}: the account {:?} is there twice",
                number + 1,
                account.name
            ));
        }
        accounts.push(account);
    }
    Ok(accounts)
}

fn address(text: &str) -> Result<SocketAddr, Failure> {
    let text = if text.starts_with(':') {
        format!("0.0.0.0{text}")
    } else {
        text.to_owned()
    };
    let mut addresses = text
        .to_socket_addrs()
        .map_err(|error| Failure::about(format!("--listen {text:?}: expected HOST:PORT"), &error))?;
    addresses
        .next()
        .ok_or_else(|| Failure::new(format!("--listen {text:?}: no such address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_by_the_line() {
        let accounts = parse_accounts("# who\n\nmaker:long-enough\nboard:also-long:ro\n").unwrap();
        let told: Vec<_> = accounts
            .iter()
            .map(|a| (a.name.as_str(), a.secret.as_str(), a.writes))
            .collect();
        assert_eq!(
            told,
            [("maker", "long-enough", true), ("board", "also-long", false)]
        );
        for (text, said) in [
            ("maker", "line 1"),
            ("a:12345678\nmaker:short", "line 2"),
            (":12345678", "line 1"),
            ("a:12345678:rw", "line 1"),
            ("a:12345678:ro:x", "line 1"),
            ("a:12345678\na:87654321", "\"a\" is there twice"),
        ] {
            let error = parse_accounts(text).unwrap_err();
            assert!(error.contains(said) && !error.contains("1234"), "{error}");
        }
    }
}

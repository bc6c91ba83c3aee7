//! `wherry serve`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;

use argh::{ArgsInfo, FromArgs};
use wherry_images::serve::{Options, Server};

use super::failure::{Failure, print};
use super::place::Place;

/// The longest token that is read.
const TOKEN_MAX: u64 = 4096;
/// The shortest: writing is guarded by it alone.
const TOKEN_MIN: usize = 16;

/// be a registry for the images in the state directory
#[derive(FromArgs, ArgsInfo, Debug, PartialEq)]
#[argh(
    subcommand,
    name = "serve",
    example = "wherry serve",
    example = "wherry serve --listen 0.0.0.0:5000 --token-file ./token",
    note = "An image is served under its name without the registry: docker.io/library/x as library/x. What is pushed as NAME is localhost/NAME in wherry images and goes before others of that name. Layers are served from their blobs: pull with --keep-blobs.",
    note = "Reading is open to whoever reaches the address. Writing needs the token, as a Bearer token or as the password of any account, or the Unix socket serve.sock in the state directory, which only you can open."
)]
pub struct Args {
    /// the address, 127.0.0.1:5000 unless given; port 0 takes a free one
    #[argh(option, arg_name = "host:port", default = "String::from(\"127.0.0.1:5000\")")]
    pub listen: String,
    /// a file with the token for writing, at least 16 characters
    #[argh(option, arg_name = "file")]
    pub token_file: Option<PathBuf>,
}

pub(super) fn run(args: Args, place: &Place) -> Result<ExitCode, Failure> {
    let token = args.token_file.as_deref().map(token).transpose()?;
    let listen = address(&args.listen)?;
    let store = place.store()?;
    let unix = Some(store.root().join("serve.sock"));
    let writing = if token.is_some() {
        "with the token or over"
    } else {
        "over"
    };
    let options = Options {
        listen,
        token,
        unix: unix.clone(),
    };
    let server = Server::bind(options, store).map_err(|error| Failure::about("cannot serve", &error))?;
    let address = server.addr().map_err(|error| Failure::of(&error))?;
    let socket = unix.map(|path| path.display().to_string()).unwrap_or_default();
    print(&format!("serving on {address}; writing {writing} {socket}\n"))?;
    server.run().map_err(|error| Failure::of(&error))?;
    Ok(ExitCode::SUCCESS)
}

fn token(path: &std::path::Path) -> Result<String, Failure> {
    use std::io::Read as _;
    let failed = |error: &dyn std::error::Error| {
        Failure::about(format!("cannot read token file {}", path.display()), error)
    };
    let file = std::fs::File::open(path).map_err(|error| failed(&error))?;
    let mut text = String::new();
    file.take(TOKEN_MAX)
        .read_to_string(&mut text)
        .map_err(|error| failed(&error))?;
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

//! The files through which a container knows names: `hosts` and `resolv.conf`, and the board's facts behind them.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use super::Error;
use super::security::Machine;
use crate::container::{Id, Network, Spec};

/// The container's own address in a private network: where published ports are dialled.
const PRIVATE_ADDRESS: &str = "10.88.0.2";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved writes the servers behind its stub.
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";
/// Longer configuration files of the board are cut off.
const FILE_MAX: usize = 1 << 20;

/// The board's facts that go into a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The user who runs wherry.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The board's name.
    pub name: String,
    /// Its `/etc/hosts`.
    pub hosts: String,
    /// Its `/etc/resolv.conf`, with the servers that a stub resolver asks.
    pub resolv_conf: String,
    /// Its processor and kernel.
    pub(super) machine: Machine,
}

impl Host {
    /// Reads the facts as they are now.
    pub fn read() -> Result<Self, Error> {
        let stub = read(RESOLV_CONF)?;
        let loopback_only = servers(&stub).all(|server| server.is_loopback());
        let behind = if loopback_only {
            read(RESOLVED_CONF)?
        } else {
            String::new()
        };
        Ok(Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            hosts: read("/etc/hosts")?,
            machine: Machine::this(),
            resolv_conf: if behind.is_empty() { stub } else { behind },
        })
    }
}

fn read(path: &str) -> Result<String, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(bytes.get(..FILE_MAX).unwrap_or(&bytes)).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(Error::Host {
            path: Path::new(path).to_owned(),
            source,
        }),
    }
}

fn server(line: &str) -> Option<IpAddr> {
    let mut words = line.split_whitespace();
    let address = (words.next()? == "nameserver").then(|| words.next())??;
    address.split('%').next()?.parse().ok()
}

fn servers(resolv_conf: &str) -> impl Iterator<Item = IpAddr> {
    resolv_conf.lines().filter_map(server)
}

/// With a network of its own a container cannot reach a name server on the board's loopback.
pub(super) fn resolv_conf(host: &Host, network: Network) -> String {
    let keep =
        |line: &&str| network == Network::Host || !server(line).is_some_and(|server| server.is_loopback());
    host.resolv_conf
        .lines()
        .filter(keep)
        .fold(String::new(), |text, line| text + line + "\n")
}

pub(super) fn hosts(host: &Host, spec: &Spec, hostname: &str, id: &Id) -> Result<String, Error> {
    let mut text = String::new();
    match spec.network {
        Network::Host => {
            text.push_str(&host.hosts);
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
        }
        Network::None | Network::Private => {
            text.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
            let address = if spec.network == Network::Private {
                PRIVATE_ADDRESS
            } else {
                "127.0.0.1"
            };
            let names = if hostname == id.short() {
                hostname.into()
            } else {
                format!("{hostname} {}", id.short())
            };
            let _ = writeln!(text, "{address}\t{names}");
        }
    }
    for (name, address) in &spec.extra_hosts {
        let address: IpAddr = address.parse().map_err(|_| {
            Error::Value(format!(
                "host entry {name}:{address}: {address:?} is not an IP address; write NAME:ADDRESS"
            ))
        })?;
        let _ = writeln!(text, "{address}\t{name}");
    }
    Ok(text)
}

//! Published ports without root and without a helper: TCP connections to the host are carried into a container's network
//! namespace.
//!
//! The listening sockets are made in the host's namespace, before the container starts, so that a taken port is a clear
//! error. The forwarder then joins the user and network namespace of the container's first process and dials
//! [`CONTAINER_ADDRESS`], the second address that the runtime gives to the loopback device of a new network namespace.
//! A service inside sees that address as its peer: not a loopback peer, which some services trust, and not the real
//! source, which is lost. A service that listens on 127.0.0.1 only is not reached, as under docker.
//!
//! It trusts nothing that comes over a connection, and holds two descriptors for each idle one.

mod relay;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use argh::FromArgs;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType};

use crate::Class;
use crate::monitor::sys::{self, Forked};

/// Where a container with a network namespace of its own is reached inside it.
pub const CONTAINER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);

/// Connections that wait to be accepted; the system's own limit (`somaxconn`) applies below it.
const BACKLOG: i32 = 4096;

/// Carry TCP connections from the host into a container.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "forward")]
pub struct Args {
    /// a process in the container's namespaces; the forwarder ends with it
    #[argh(option)]
    pub pid: i32,
    /// a port to publish, repeatable: HOST_PORT:CONTAINER_PORT, with an address before it to listen there only
    #[argh(option, short = 'p')]
    pub publish: Vec<Publish>,
}

/// One published TCP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// Where the host listens.
    pub host: SocketAddr,
    /// The port inside the container.
    pub container_port: u16,
}

impl std::str::FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, container_port) = text
            .rsplit_once(':')
            .ok_or_else(|| format!("{text}: expected HOST_PORT:CONTAINER_PORT"))?;
        let port = |text: &str| match text.parse::<u16>() {
            Ok(0) | Err(_) => Err(format!("{text}: not a port between 1 and 65535")),
            Ok(port) => Ok(port),
        };
        let host = match host.parse::<SocketAddr>() {
            Ok(host) if host.port() != 0 => host,
            Ok(_) => return Err(format!("{host}: not a port between 1 and 65535")),
            Err(_) if host.contains(':') => return Err(format!("{host}: not an address and a port")),
            Err(_) => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port(host)?),
        };
        Ok(Self {
            host,
            container_port: port(container_port)?,
        })
    }
}

/// Why ports are not published.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's side of a port cannot be had.
    #[error("port {host}/tcp: {}", explain(*.source, .host.port()))]
    Listen {
        /// The address and port.
        host: SocketAddr,
        /// The system's reason.
        #[source]
        source: Errno,
    },
    /// The process's namespaces cannot be joined.
    #[error("ports: namespaces of process {pid}: {source}")]
    Namespace {
        /// A process of the container.
        pid: i32,
        /// The system's reason.
        #[source]
        source: Errno,
    },
    /// The container uses the network of the host.
    #[error("ports: process {pid} is in the network namespace of the host: its ports are there already")]
    HostNetwork {
        /// A process of the container.
        pid: i32,
    },
    /// The forwarder's process cannot be made or cannot go on.
    #[error("port forwarder: {0}")]
    Process(#[source] Errno),
}

impl Error {
    /// Whether trying again is of use.
    pub fn class(&self) -> Class {
        match self {
            Self::Listen {
                source: Errno::ADDRINUSE,
                ..
            }
            | Self::Process(_) => Class::Transient,
            Self::Listen { .. } | Self::Namespace { .. } | Self::HostNetwork { .. } => Class::Permanent,
        }
    }

    /// The process's exit code for this error.
    pub fn exit_code(&self) -> u8 {
        1
    }
}

fn explain(source: Errno, port: u16) -> String {
    match source {
        Errno::ADDRINUSE => "already in use on this host".to_owned(),
        Errno::ADDRNOTAVAIL => "the address is not one of this host's".to_owned(),
        Errno::AFNOSUPPORT => "this host has no such address family (IPv6 is off)".to_owned(),
        Errno::ACCESS if port < 1024 => format!(
            "permission denied: ports below 1024 need the sysctl net.ipv4.ip_unprivileged_port_start <= {port}"
        ),
        other => other.to_string(),
    }
}

/// A bound socket of the host and the port of the container that it stands for.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    container_port: u16,
}

/// Binds and listens on every port, or on none.
pub(crate) fn listen(ports: &[Publish]) -> Result<Vec<Listener>, Error> {
    ports
        .iter()
        .map(|port| {
            let socket = bind(port.host).map_err(|source| Error::Listen {
                host: port.host,
                source,
            })?;
            Ok(Listener {
                socket,
                container_port: port.container_port,
            })
        })
        .collect()
}

fn bind(host: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if host.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if host.is_ipv6() {
        // `::` and `0.0.0.0` are two ports that can be published side by side.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &host)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// The namespaces of a container.
#[derive(Debug)]
pub(crate) struct Target {
    pid: i32,
    /// None when it is the one that we are in.
    user: Option<fs::File>,
    net: fs::File,
}

impl Target {
    /// Opens the namespaces of a process of the container.
    pub(crate) fn of(pid: Pid) -> Result<Self, Error> {
        let pid = pid.as_raw_nonzero().get();
        let failed = |source| Error::Namespace { pid, source };
        let net = other_namespace(pid, "net")
            .map_err(failed)?
            .ok_or(Error::HostNetwork { pid })?;
        let user = other_namespace(pid, "user").map_err(failed)?;
        Ok(Self { pid, user, net })
    }

    fn join(&self) -> Result<(), Error> {
        let user = self
            .user
            .iter()
            .map(|user| (user.as_fd(), LinkNameSpaceType::User));
        for (namespace, kind) in user.chain([(self.net.as_fd(), LinkNameSpaceType::Network)]) {
            rustix::thread::move_into_link_name_space(namespace, Some(kind)).map_err(|source| {
                Error::Namespace {
                    pid: self.pid,
                    source,
                }
            })?;
        }
        Ok(())
    }
}

/// Opens a namespace of `pid` unless this process is in it.
fn other_namespace(pid: i32, kind: &str) -> Result<Option<fs::File>, Errno> {
    let theirs = fs::File::open(format!("/proc/{pid}/ns/{kind}"));
    let ours = fs::File::open(format!("/proc/self/ns/{kind}"));
    let (theirs, ours) = theirs
        .and_then(|theirs| Ok((theirs, ours?)))
        .map_err(|error| errno(&error))?;
    let (a, b) = (rustix::fs::fstat(&theirs)?, rustix::fs::fstat(&ours)?);
    Ok(((a.st_dev, a.st_ino) != (b.st_dev, b.st_ino)).then_some(theirs))
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Forks a forwarder, which ends with this process at the latest.
pub(crate) fn spawn(listeners: &[Listener], target: &Target) -> Result<Pid, Error> {
    let parent = rustix::process::getpid();
    match sys::fork().map_err(Error::Process)? {
        Forked::Parent(pid) => Ok(pid),
        Forked::Child => sys::exit(u8::from(become_forwarder(listeners, target, parent).is_err())),
    }
}

fn become_forwarder(listeners: &[Listener], target: &Target, parent: Pid) -> Result<(), Error> {
    let mut keep: Vec<RawFd> = listeners
        .iter()
        .map(|listener| listener.socket.as_raw_fd())
        .collect();
    keep.extend([0, 1, 2, target.net.as_raw_fd()]);
    keep.extend(target.user.as_ref().map(AsRawFd::as_raw_fd));
    sys::close_all_except(&keep).map_err(|error| Error::Process(errno(&error)))?;
    sys::unblock_signals().map_err(Error::Process)?;
    confine(target)?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Error::Process)?;
    if rustix::process::getppid() != Some(parent) {
        // It ended before the line above.
        return Ok(());
    }
    // Should it fail, this process stays a little larger than it needs to be.
    let _ = sys::forget_program_pages();
    relay::serve(listeners, None).map_err(Error::Process)
}

/// Joins the container's namespaces and gives up everything that comes with them.
fn confine(target: &Target) -> Result<(), Error> {
    target.join()?;
    rustix::thread::set_no_new_privs(true).map_err(Error::Process)?;
    let none = CapabilitySet::empty();
    let none = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    rustix::thread::set_capabilities(None, none).map_err(Error::Process)
}

/// Forwards in the foreground until the process `args.pid` ends.
pub fn run(args: Args) -> Result<ExitCode, Error> {
    let pid = Pid::from_raw(args.pid).filter(|_| args.pid > 0);
    let pid = pid.ok_or(Error::Namespace {
        pid: args.pid,
        source: Errno::SRCH,
    })?;
    let listeners = listen(&args.publish)?;
    let target = Target::of(pid)?;
    let until = rustix::process::pidfd_open(pid, PidfdFlags::empty());
    let until = until.map_err(|source| Error::Namespace {
        pid: args.pid,
        source,
    })?;
    confine(&target)?;
    drop(target);
    // Should it fail, this process stays a little larger than it needs to be.
    let _ = sys::forget_program_pages();
    relay::serve(&listeners, Some(until)).map_err(Error::Process)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_are_parsed() {
        let table = [
            ("5001:5000", Some(("0.0.0.0:5001", 5000))),
            ("127.0.0.1:5001:5000", Some(("127.0.0.1:5001", 5000))),
            ("[::]:80:8080", Some(("[::]:80", 8080))),
            ("[fe80::1]:80:8080", Some(("[fe80::1]:80", 8080))),
            ("5001", None),
            ("0:5000", None),
            ("127.0.0.1:0:5000", None),
            ("5001:0", None),
            ("5001:66000", None),
            ("::1:80:8080", None),
            ("host:80:8080", None),
            ("", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|(host, container_port)| Publish {
                host: host.parse().unwrap(),
                container_port,
            });
            assert_eq!(text.parse::<Publish>().ok(), expected, "{text}");
        }
    }

    #[test]
    fn a_taken_port_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = taken.local_addr().unwrap();
        let error = listen(&[Publish {
            host,
            container_port: 80,
        }])
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("port {host}/tcp: already in use on this host")
        );
    }

    #[test]
    fn an_address_of_another_host_is_named() {
        let host = "192.0.2.7:4000".parse().unwrap();
        let error = listen(&[Publish {
            host,
            container_port: 80,
        }])
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "port 192.0.2.7:4000/tcp: the address is not one of this host's"
        );
    }

    #[test]
    fn the_host_network_is_refused() {
        let error = Target::of(rustix::process::getpid()).unwrap_err();
        assert!(matches!(error, Error::HostNetwork { .. }), "{error}");
    }
}

//! The store as a registry: an OCI distribution endpoint for one board, one shop floor, one test.
//!
//! Blocking, a thread for each connection up to a cap, with TLS where there is a certificate. Reading is open to whoever reaches the
//! address unless there are accounts; writing needs the token or a writing account (Bearer, Basic, or by the token service that
//! `/v2/` names) or the Unix socket, which only the same user can open. What is pushed as `iris:v1`
//! is `localhost/iris:v1` in the store, listed by `images` and run by that name; every other image of the store is served under its
//! name without the registry, unless something of that name was pushed. Only layers whose blobs were kept can be fetched.
//!
//! ```text
//!   accept -> Connection (http.rs) -> Route (route.rs) -> Access (access.rs) -> Api (api.rs) -> Store
//!                                                             uploads.rs: partials held open between their requests
//!                                                             referrers.rs: who refers to which manifest
//!                                                             remove.rs: deleting
//! ```
//!
//! What always holds: a manifest is accepted only when everything it lists is here with the size it names; a tag moves after the
//! manifest is durable; a client can hold a thread and a file, but no memory that it chooses the size of.

mod access;
mod api;
#[cfg(fuzzing)]
pub(crate) mod fuzzed;
mod http;
mod referrers;
mod remove;
mod route;
mod tls;
mod uploads;

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::FlockOperation;

use crate::Class;
use crate::store::{self, Store};
use access::Access;
pub use access::Account;
use api::{Api, Way};
use http::{Answer, Broken, Connection, Stream};
pub use tls::Files as Tls;

/// The longest blob that is taken.
const MAX_BLOB: u64 = 64 << 30;
/// The most connections at once; each is a thread and a buffer. Over the Unix socket there may be as many again, so that
/// strangers who hold all of the others keep nobody from administering.
const MAX_CONNECTIONS: usize = 64;
/// How long to wait where connections cannot be taken: no descriptors or no memory are left, and asking again at once changes nothing.
const EXHAUSTED: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};
/// A connection's thread needs little: buffers are on the heap. A TLS handshake takes the most.
const STACK: usize = 512 * 1024;

/// Why a server does not start or stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which one.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// Another server has the store.
    #[error("the store {0} is being served already")]
    Served(PathBuf),
    /// The certificate cannot be used.
    #[error("certificate: {0}")]
    Tls(String),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The system refuses.
    #[error("{what}: {source}")]
    System {
        /// What was done.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl Error {
    /// What the failure means to whoever may try again.
    pub fn class(&self) -> Class {
        match self {
            Error::Served(_) => Class::Transient,
            Error::Store(e) => e.class(),
            Error::Listen { .. } | Error::Tls(_) | Error::System { .. } => Class::Permanent,
        }
    }
}

/// Where and for whom a server answers.
#[derive(Clone)]
pub struct Options {
    /// The TCP address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The token for writing. Without one and without accounts, writing is possible over `unix` only.
    pub token: Option<String>,
    /// A Unix socket for the same user, made with mode 0600.
    pub unix: Option<PathBuf>,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("listen", &self.listen)
            .field("unix", &self.unix)
            .finish_non_exhaustive()
    }
}

/// What guards a registry beyond its token.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// Who may read and write. With any, reading needs one too.
    pub accounts: Vec<Account>,
    /// The certificate to speak TLS with over TCP.
    pub tls: Option<Tls>,
}

/// A registry that is listening.
pub struct Server {
    tcp: TcpListener,
    unix: Option<UnixListener>,
    stop: Arc<OwnedFd>,
    api: Arc<Api>,
    tls: Option<Arc<rustls::ServerConfig>>,
    /// Held as long as the server lives: uploads and referrers have one writer.
    _serving: File,
}

/// Ends a server from another thread.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<OwnedFd>);

impl Stopper {
    /// Makes [`Server::run`] return. Answers under way are finished by their threads.
    pub fn stop(&self) {
        // An event counter takes the write unless it is at its end, and then it is signalled anyway.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("tcp", &self.tcp)
            .field("unix", &self.unix)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Listens. Connections are answered once [`Server::run`] is called.
    pub fn bind(options: Options, store: Store) -> Result<Server, Error> {
        Server::guarded(options, Guard::default(), store)
    }

    /// As [`Server::bind`], with accounts or TLS.
    pub fn guarded(options: Options, guard: Guard, store: Store) -> Result<Server, Error> {
        let system = |what: &str| {
            let what = what.to_owned();
            move |source: std::io::Error| Error::System { what, source }
        };
        let tls = guard
            .tls
            .as_ref()
            .map(tls::load)
            .transpose()
            .map_err(Error::Tls)?;
        let lock = store.root().join("serving");
        let serving = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock)
            .map_err(system(&lock.display().to_string()))?;
        match rustix::fs::flock(&serving, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Served(store.root().to_owned())),
            Err(e) => return Err(system("lock")(e.into())),
        }
        let tcp = TcpListener::bind(options.listen).map_err(|source| Error::Listen {
            address: options.listen.to_string(),
            source,
        })?;
        let unix = options.unix.as_deref().map(listen_unix).transpose()?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| system("eventfd")(e.into()))?;
        for result in [
            tcp.set_nonblocking(true),
            unix.as_ref().map_or(Ok(()), |u| u.set_nonblocking(true)),
        ] {
            result.map_err(system("set non-blocking"))?;
        }
        let api = Arc::new(Api::new(store, Access::new(options.token, guard.accounts))?);
        Ok(Server {
            tcp,
            unix,
            stop: Arc::new(stop),
            api,
            tls,
            _serving: serving,
        })
    }

    /// The TCP address, with the port that was taken.
    pub fn addr(&self) -> Result<SocketAddr, Error> {
        self.tcp.local_addr().map_err(|source| Error::System {
            what: "address".to_owned(),
            source,
        })
    }

    /// What ends [`Server::run`].
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    /// Answers until it is stopped.
    pub fn run(&self) -> Result<(), Error> {
        let (open, open_local) = (Arc::default(), Arc::default());
        loop {
            let mut waited = vec![
                PollFd::new(&*self.stop, PollFlags::IN),
                PollFd::new(&self.tcp, PollFlags::IN),
            ];
            if let Some(unix) = &self.unix {
                waited.push(PollFd::new(unix, PollFlags::IN));
            }
            match poll(&mut waited, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    return Err(Error::System {
                        what: "poll".to_owned(),
                        source: e.into(),
                    });
                }
            }
            let ready = |n: usize| waited.get(n).is_some_and(|fd| !fd.revents().is_empty());
            if ready(0) {
                return Ok(());
            }
            if ready(1) {
                match self.tcp.accept() {
                    Ok((stream, peer)) if stream.set_nonblocking(false).is_ok() => {
                        // Answers are written whole: waiting to fill a packet only delays them.
                        let _ = stream.set_nodelay(true);
                        tracing::debug!(%peer, "connection");
                        match &self.tls {
                            None => self.start(Box::new(stream), Way::Plain, &open),
                            Some(config) => match tls::TlsStream::new(config.clone(), stream) {
                                Ok(stream) => self.start(Box::new(stream), Way::Secure, &open),
                                Err(error) => tracing::error!(%error, "no TLS for a connection"),
                            },
                        }
                    }
                    Ok(_) => {}
                    Err(e) => self.rest(&e),
                }
            }
            if ready(2)
                && let Some(unix) = &self.unix
            {
                match unix.accept() {
                    Ok((stream, _)) if stream.set_nonblocking(false).is_ok() => {
                        let own = rustix::process::geteuid();
                        match rustix::net::sockopt::socket_peercred(&stream) {
                            Ok(peer) if peer.uid == own || peer.uid.is_root() => {
                                self.start(Box::new(stream), Way::Local, &open_local)
                            }
                            _ => tracing::warn!("another user's connection to the Unix socket is refused"),
                        }
                    }
                    Ok(_) => {}
                    Err(e) => self.rest(&e),
                }
            }
        }
    }

    /// After a connection that could not be taken; not longer than until the server is stopped.
    fn rest(&self, error: &std::io::Error) {
        use std::io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
        if matches!(error.kind(), WouldBlock | ConnectionAborted | Interrupted) {
            return;
        }
        tracing::warn!(%error, "a connection cannot be taken");
        // Whatever comes of it, the loop asks again.
        let _ = poll(&mut [PollFd::new(&*self.stop, PollFlags::IN)], Some(&EXHAUSTED));
    }

    fn start(&self, stream: Box<dyn Stream>, way: Way, open: &Arc<AtomicUsize>) {
        let slot = Slot::take(open);
        let api = self.api.clone();
        let mut connection = Connection::new(stream);
        let Some(slot) = slot else {
            let mut busy = Answer::new(503).field("Retry-After", 1);
            let _ = connection.answer(&mut busy, false, true);
            return;
        };
        let thread = std::thread::Builder::new()
            .name("serve".to_owned())
            .stack_size(STACK);
        let spawned = thread.spawn(move || {
            let _slot = slot;
            converse(&mut connection, &api, way);
        });
        if let Err(e) = spawned {
            tracing::error!(error = %e, "no thread for a connection");
        }
    }
}

/// A place among the connections; free again when dropped.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(open: &Arc<AtomicUsize>) -> Option<Slot> {
        let slot = Slot(open.clone());
        (open.fetch_add(1, Ordering::AcqRel) < MAX_CONNECTIONS).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One connection, request after request.
fn converse(connection: &mut Connection, api: &Api, way: Way) {
    loop {
        let mut head = match connection.head() {
            Ok(Some(head)) => head,
            Ok(None) | Err(Broken::Gone) => return,
            Err(Broken::Refused(status, why)) => {
                let mut answer = Answer::new(status)
                    .field("Content-Type", "text/plain")
                    .bytes(format!("{why}\n").into_bytes());
                let _ = connection.answer(&mut answer, false, true);
                return;
            }
        };
        let mut body = connection.body(&mut head);
        let mut answer = api.answer(&head, &mut body, way);
        let rest = body.rest();
        let close = head.close || rest.closes();
        tracing::debug!(
            method = head.method,
            path = head.path,
            status = answer.status,
            "answered"
        );
        let sent = connection.answer(&mut answer, head.method == "HEAD", close);
        // What is still on its way is read away even when the end is near: closing on it would take the answer along.
        if sent.is_err() || !connection.drain(rest) || close {
            return;
        }
    }
}

fn listen_unix(path: &Path) -> Result<UnixListener, Error> {
    let failed = |source| Error::Listen {
        address: path.display().to_string(),
        source,
    };
    // A socket that nobody listens on was left behind. One that answers is another store's, or another program's.
    let left_behind = std::fs::symlink_metadata(path)
        .is_ok_and(|found| std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()))
        && UnixStream::connect(path).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused);
    if left_behind {
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

#[cfg(test)]
mod tests;

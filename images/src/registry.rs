//! The client of an OCI distribution registry: manifests, blobs, referrers, over links that break.
//!
//! Blocking, one connection at a time. What always holds:
//!
//! * a byte that arrived is not asked for again, unless its blob turned out to be wrong;
//! * nothing is kept because a registry said so: manifests and blobs count once their digest does;
//! * credentials go to the registry's own origin and to the token service it names, never along a redirect, never into a log;
//! * every body, header and list is bounded before it takes memory.
//!
//! ```text
//! blob.rs repair.rs upload.rs                    what is asked for, of mirrors first
//! manifest.rs referrers.rs
//!        exchange.rs                             one request: login, redirects, status -> Failure
//!        retry.rs range.rs auth.rs endpoint.rs   decisions, no I/O
//!        limits.rs steady.rs                     how fast at most, how fast at least
//!        settings.rs login.rs credential.rs      what the owner says: mirrors, limits, logins
//!        wire.rs tls.rs                          the link
//! ```

mod auth;
mod blob;
mod credential;
mod endpoint;
mod exchange;
#[cfg(fuzzing)]
pub(crate) mod fuzzed;
mod limits;
pub mod login;
mod manifest;
mod range;
mod referrers;
mod repair;
mod retry;
mod settings;
mod steady;
mod tls;
mod upload;
mod wire;

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod quirks;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::Class;
use crate::digest::Digest;
use crate::reference::Reference;

pub use auth::{Login, docker_config_path};
pub use limits::{Limits, Window, parse_bytes};
pub use manifest::{Fetched, Head};

use endpoint::Url;
use exchange::Failure;
use retry::{Fault, Next, Retry};
use settings::Settings;

/// Without a byte for this long a connection is taken for dead. LTE hand-overs take 2-5 s.
const STALL: Duration = Duration::from_secs(8);
/// The longest wait for one address to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a registry that has answered before is waited for without one new byte.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a mirror is waited for: the registry itself comes after it.
const MIRROR_PATIENCE: Duration = Duration::from_secs(10);
/// How often a waiting client looks whether it was cancelled.
const CANCEL_LOOK: Duration = Duration::from_millis(100);

/// Why a registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answered, or not for long enough.
    #[error("registry {host}: {reason}")]
    Unreachable {
        /// The registry.
        host: String,
        /// What the last try met.
        reason: String,
    },
    /// The registry has no such thing.
    #[error("{what}: not found in registry {host}")]
    NotFound {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
    },
    /// The registry wants another account, or any.
    #[error("{what}: registry {host} denies access: {reason}")]
    Denied {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// What it said, and what could be done.
        reason: String,
    },
    /// The registry answered with an error status.
    #[error("{what}: registry {host} answered {status}{detail}")]
    Status {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// HTTP status.
        status: u16,
        /// The registry's own words, with a separator in front, or nothing.
        detail: String,
    },
    /// The bytes are not those of the digest.
    #[error("{what}: expected {expected}, got {got} after {size} bytes")]
    Digest {
        /// What was fetched: `manifest` or `layer` with its digest.
        what: String,
        /// The digest asked for.
        expected: Digest,
        /// The digest of what came.
        got: Digest,
        /// How much came.
        size: u64,
    },
    /// The registry, or something that answers in its place, does not speak the protocol.
    #[error("{what}: registry {host}: {reason}")]
    Protocol {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// What was wrong.
        reason: String,
    },
    /// TLS cannot be set up or does not verify.
    #[error("registry {host}: {reason}")]
    Tls {
        /// The registry.
        host: String,
        /// What was wrong.
        reason: String,
    },
    /// The login file cannot be used.
    #[error("registry login: {0}")]
    Login(String),
    /// The settings file cannot be used.
    #[error("registry settings: {0}")]
    Settings(String),
    /// The byte budget is used up.
    #[error("the budget of {budget} bytes is used up; what has arrived is kept")]
    Spent {
        /// What there was.
        budget: u64,
    },
    /// It is not the time to use the link.
    #[error("the link may be used {window} only; what has arrived is kept")]
    Closed {
        /// When it may be.
        window: Window,
    },
    /// A document is not what its media type says.
    #[error("{what}: {source}")]
    Document {
        /// Which one.
        what: String,
        /// What is wrong with it.
        source: crate::manifest::Error,
    },
    /// The store could not take or give bytes.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// A local file could not be read.
    #[error("{what}: {source}")]
    Local {
        /// Which one.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// The caller asked for it to stop.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// What the failure means to whoever may try again.
    pub fn class(&self) -> Class {
        match self {
            Error::Unreachable { .. } | Error::Cancelled | Error::Spent { .. } | Error::Closed { .. } => {
                Class::Transient
            }
            Error::Status { status, .. } if *status == 429 || *status >= 500 => Class::Transient,
            Error::Digest { .. } => Class::Corrupt,
            Error::Store(e) => e.class(),
            Error::Document { source, .. } => source.class(),
            _ => Class::Permanent,
        }
    }

    /// Whether nothing more may be asked of anybody: another mirror, or another way to the same bytes, is no help.
    pub fn ends_all(&self) -> bool {
        matches!(
            self,
            Error::Cancelled | Error::Spent { .. } | Error::Closed { .. } | Error::Settings(_)
        )
    }
}

/// How a [`Client`] behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Registries (`host[:port]`) whose TLS is not verified and that may speak plain HTTP. Loopback always may.
    pub insecure: Vec<String>,
    /// The account to use, at whichever registry; without one docker's config.json is asked.
    pub login: Option<Login>,
    /// docker's config.json; by default `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
    pub docker_config: Option<PathBuf>,
    /// A file of TLS root certificates (PEM) in place of the system's; by default `$SSL_CERT_FILE`.
    pub roots: Option<PathBuf>,
    /// Folders (`certs.d`) with certificates of single registries; by default those of docker and podman.
    pub certs: Vec<PathBuf>,
    /// The owner's settings file; by default `$WHERRY_REGISTRIES`, else the user's, else the system's.
    pub settings: Option<PathBuf>,
    /// Whether the settings' mirrors are asked. A publisher asks the registry itself: what a mirror has is no sign of what it has.
    pub mirrors: bool,
    /// What the link may be used for, where the settings do not say less.
    pub limits: Limits,
    /// How long a registry that has answered before is waited for without one new byte.
    pub patience: Duration,
    /// Set by another thread to make every call return [`Error::Cancelled`] within moments.
    pub cancel: Option<Arc<AtomicBool>>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            insecure: Vec::new(),
            login: None,
            docker_config: auth::docker_config_path(),
            roots: std::env::var_os("SSL_CERT_FILE").map(PathBuf::from),
            certs: tls::usual_folders(),
            settings: settings::path(),
            mirrors: true,
            limits: Limits::default(),
            patience: PATIENCE,
            cancel: None,
        }
    }
}

/// What crossed the link since the client was made: TLS, headers and bodies, as far as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    /// Bytes received.
    pub down: u64,
    /// Bytes sent.
    pub up: u64,
}

/// A client of registries. Cheap to make; drop it when a pull or push is done, connections and certificates go with it.
pub struct Client {
    options: Options,
    meter: Arc<wire::Meter>,
    addresses: Arc<wire::Addresses>,
    /// Plain HTTP and verified TLS are set up apart: the certificates are read only when TLS is spoken.
    plain: OnceLock<ureq::Agent>,
    /// By whether they verify, and whose certificates they have.
    secure: Mutex<HashMap<(bool, Option<PathBuf>), ureq::Agent>>,
    settings: Result<Settings, String>,
    /// How long a body may be slow.
    grace: Duration,
    hosts: Mutex<HashMap<String, Host>>,
}

/// What was learnt about one registry.
#[derive(Default, Clone)]
struct Host {
    /// It answered at least once.
    reached: bool,
    /// It is a mirror, and it was given up on.
    mirror: bool,
    given_up: bool,
    /// Its account, once the login file was read and a helper asked.
    account: Option<auth::Account>,
    /// TLS or not, once decided.
    secure: Option<bool>,
    /// It was asked whether it wants TLS after all.
    asked_for_tls: bool,
    /// The last bearer challenge, so that a token for another scope needs no 401 first.
    challenge: Option<auth::Challenge>,
    /// Tokens by scope, with the moment from which they are no longer used.
    tokens: HashMap<String, (auth::Token, Instant)>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("options", &self.options)
            .field("wire", &self.wire())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client with no connection yet.
    pub fn new(mut options: Options) -> Client {
        let settings = settings::load(options.settings.as_deref());
        if let Ok(settings) = &settings {
            let (own, said) = (&mut options.limits, &settings.limits);
            own.rate = own.rate.into_iter().chain(said.rate).min();
            own.window = own.window.or(said.window);
        }
        Client {
            meter: Arc::new(wire::Meter::paced(options.limits.rate, options.cancel.clone())),
            options,
            addresses: Arc::default(),
            plain: OnceLock::new(),
            secure: Mutex::default(),
            settings,
            grace: steady::GRACE,
            hosts: Mutex::default(),
        }
    }

    /// What crossed the link so far.
    pub fn wire(&self) -> Wire {
        Wire {
            down: self.meter.down(),
            up: self.meter.up(),
        }
    }

    fn host<T>(&self, authority: &str, change: impl FnOnce(&mut Host) -> T) -> T {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        change(hosts.entry(authority.to_owned()).or_default())
    }

    /// Fails when the client was cancelled or may not use the link any more.
    fn check_allowed(&self) -> Result<(), Error> {
        if let Some(flag) = &self.options.cancel
            && flag.load(Ordering::Relaxed)
        {
            return Err(Error::Cancelled);
        }
        let Limits { budget, window, .. } = &self.options.limits;
        if let Some(budget) = *budget
            && self.allowance() == 0
        {
            return Err(Error::Spent { budget });
        }
        match *window {
            Some(window) if !window.is_open(exchange::unix_now()) => Err(Error::Closed { window }),
            _ => Ok(()),
        }
    }

    /// How many bytes the budget still allows.
    fn allowance(&self) -> u64 {
        let Wire { down, up } = self.wire();
        let budget = self.options.limits.budget.unwrap_or(u64::MAX);
        budget.saturating_sub(down.saturating_add(up))
    }

    fn settings(&self) -> Result<&Settings, Error> {
        self.settings
            .as_ref()
            .map_err(|reason| Error::Settings(reason.clone()))
    }

    /// The same thing at the mirrors of its registry, if they are asked.
    fn mirrors_of(&self, reference: &Reference) -> Result<Vec<Reference>, Error> {
        let settings = self.settings()?;
        Ok(if self.options.mirrors {
            settings.mirrors(reference)
        } else {
            Vec::new()
        })
    }

    /// Asks the mirrors of `reference`'s registry, then the registry itself.
    fn through<T>(
        &self,
        reference: &Reference,
        mut ask: impl FnMut(&Reference) -> Result<T, Error>,
    ) -> Result<T, Error> {
        for mirror in self.mirrors_of(reference)? {
            let given_up = self.host(mirror.api_host(), |host| {
                host.mirror = true;
                host.given_up
            });
            if given_up {
                continue;
            }
            match ask(&mirror) {
                Ok(value) => return Ok(value),
                Err(error) if error.ends_all() => return Err(error),
                // Not the mirror's doing.
                Err(error @ (Error::Store(_) | Error::Local { .. })) => return Err(error),
                Err(error) => {
                    tracing::debug!(mirror = mirror.registry(), %error, "the mirror does not have it");
                    if matches!(error, Error::Unreachable { .. } | Error::Tls { .. }) {
                        self.host(mirror.api_host(), |host| host.given_up = true);
                    }
                }
            }
        }
        ask(reference)
    }

    fn pause(&self, wait: Duration) -> Result<(), Error> {
        let until = Instant::now() + wait;
        loop {
            self.check_allowed()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(CANCEL_LOOK));
        }
    }

    fn is_insecure(&self, authority: &str) -> Result<bool, Error> {
        let mut hosts = self.options.insecure.iter();
        Ok(hosts.any(|host| host.eq_ignore_ascii_case(authority)) || self.settings()?.is_insecure(authority))
    }

    fn retry(&self, reference: &Reference) -> Retry {
        let (reached, mirror) = self.host(reference.api_host(), |host| (host.reached, host.mirror));
        let patience = if mirror { MIRROR_PATIENCE } else { Duration::MAX };
        Retry::new(reached, patience.min(self.options.patience))
    }

    /// Repeats a small request until it succeeds, fails for good, or is given up on.
    fn persist<T>(
        &self,
        reference: &Reference,
        what: &str,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let mut retry = self.retry(reference);
        loop {
            self.check_allowed()?;
            let begun = Instant::now();
            let (fault, reason) = match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(*error),
                Err(Failure::Retry(fault, reason)) => (fault, reason),
            };
            self.wait_or_give_up(&mut retry, reference, what, fault, &reason, begun.elapsed())?;
        }
    }

    /// After a fault: waits as `retry` decides, or returns the error. True when the prefix is to be thrown away.
    fn wait_or_give_up(
        &self,
        retry: &mut Retry,
        reference: &Reference,
        what: &str,
        fault: Fault,
        reason: &str,
        spent: Duration,
    ) -> Result<bool, Error> {
        if self.host(reference.api_host(), |host| host.reached) {
            retry.answered();
        }
        match retry.after(fault, spent, random()) {
            Next::Wait(wait) => {
                tracing::debug!(
                    what,
                    ?fault,
                    reason,
                    wait_ms = wait.as_millis() as u64,
                    "trying again"
                );
                self.pause(wait)?;
                Ok(false)
            }
            Next::StartOver => {
                tracing::warn!(what, "the registry does not serve ranges of it: starting over");
                Ok(true)
            }
            Next::GiveUp => {
                let host = reference.registry().to_owned();
                Err(match fault {
                    Fault::Foreign => Error::Protocol {
                        what: what.to_owned(),
                        host,
                        reason: reason.to_owned(),
                    },
                    _ => Error::Unreachable {
                        host,
                        reason: reason.to_owned(),
                    },
                })
            }
        }
    }

    /// The address of `path` below `/v2/REPOSITORY/`.
    fn url(&self, reference: &Reference, path: &str) -> Result<Url, Failure> {
        let secure = self.speaks_tls(reference)?;
        Ok(Url::at(
            secure,
            reference.api_host(),
            &format!("/v2/{}/{path}", reference.repository()),
        ))
    }
}

/// Jitter; not a secret.
fn random() -> u32 {
    use ring::rand::SecureRandom;
    let mut bytes = [0; 4];
    // Without randomness the jitter is constant, which is no fault.
    let _ = ring::rand::SystemRandom::new().fill(&mut bytes);
    u32::from_ne_bytes(bytes)
}

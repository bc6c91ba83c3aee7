//! The link below HTTP: which bytes crossed it, and which of a host's addresses answered last.
//!
//! [`Counted`] stands between TCP and TLS, so that handshakes, headers and what TLS adds are all counted; only what a cut
//! threw away before it was read, and TCP/IP's own headers, are not known here.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, NextTimeout, TcpConnector, Transport,
};

/// Bytes that crossed the link, both ways, since the client was made.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    down: AtomicU64,
    up: AtomicU64,
}

impl Meter {
    /// Bytes received.
    pub(crate) fn down(&self) -> u64 {
        self.down.load(Ordering::Relaxed)
    }

    /// Bytes sent.
    pub(crate) fn up(&self) -> u64 {
        self.up.load(Ordering::Relaxed)
    }
}

/// Opens TCP connections, the address that answered last first, and counts what crosses them.
#[derive(Debug)]
pub(crate) struct CountedTcp {
    pub(crate) meter: Arc<Meter>,
    pub(crate) addresses: Arc<Addresses>,
}

impl<In: Transport> Connector<In> for CountedTcp {
    type Out = Counted<Either<In, Either<(), <TcpConnector as Connector<()>>::Out>>>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        let meter = self.meter.clone();
        if let Some(proxy) = chained {
            return Ok(Some(Counted {
                inner: Either::A(proxy),
                meter,
                live: false,
            }));
        }
        let host = details
            .uri
            .authority()
            .map(|a| a.as_str().to_owned())
            .unwrap_or_default();
        let mut failed = Error::HostNotFound;
        for address in self.addresses.order(&host, &details.addrs) {
            let mut addrs = details.resolver.empty();
            addrs.push(address);
            let one = ConnectionDetails {
                uri: details.uri,
                addrs,
                config: details.config,
                request_level: details.request_level,
                resolver: details.resolver,
                // Each address has the connect timeout for itself: a dead one must not eat the next one's.
                now: (details.current_time)(),
                timeout: details.timeout,
                current_time: details.current_time.clone(),
                run_connector: details.run_connector.clone(),
                register_shutdown: details.register_shutdown.clone(),
            };
            match Connector::<()>::connect(&TcpConnector::default(), &one, None) {
                Ok(Some(tcp)) => {
                    self.addresses.answered(&host, address);
                    return Ok(Some(Counted {
                        inner: Either::B(Either::B(tcp)),
                        meter,
                        live: true,
                    }));
                }
                Ok(None) => {}
                Err(e) => failed = e,
            }
        }
        Err(failed)
    }
}

/// A connection whose bytes are counted.
pub(crate) struct Counted<T> {
    inner: T,
    meter: Arc<Meter>,
    live: bool,
}

impl<T: Transport> Transport for Counted<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.inner.transmit_output(amount, timeout)?;
        if self.live {
            self.meter.up.fetch_add(amount as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let before = self.inner.buffers().input().len();
        let result = self.inner.await_input(timeout);
        let after = self.inner.buffers().input().len();
        if self.live {
            self.meter
                .down
                .fetch_add(after.saturating_sub(before) as u64, Ordering::Relaxed);
        }
        result
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

impl<T> fmt::Debug for Counted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Counted")
    }
}

/// What is remembered of each host: the addresses its name stood for, and the one that answered.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    resolved: Mutex<HashMap<String, Vec<SocketAddr>>>,
    last: Mutex<HashMap<String, SocketAddr>>,
}

impl Addresses {
    fn order(&self, host: &str, resolved: &ResolvedSocketAddrs) -> Vec<SocketAddr> {
        let mut list: Vec<SocketAddr> = resolved.iter().copied().collect();
        let last = self
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(host)
            .copied();
        if let Some(at) = last.and_then(|last| list.iter().position(|a| *a == last)) {
            list.swap(0, at);
        }
        list
    }

    fn answered(&self, host: &str, address: SocketAddr) {
        self.last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(host.to_owned(), address);
    }
}

/// The system's resolver; a name that does not resolve just now keeps the addresses it had.
#[derive(Debug)]
pub(crate) struct RememberingResolver {
    pub(crate) addresses: Arc<Addresses>,
}

impl Resolver for RememberingResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
        let mut known = self
            .addresses
            .resolved
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match DefaultResolver::default().resolve(uri, config, timeout) {
            Ok(found) => {
                known.insert(host, found.iter().copied().collect());
                Ok(found)
            }
            Err(e) => {
                let Some(kept) = known.get(&host) else {
                    tracing::debug!(%host, error = %e, "name does not resolve");
                    return Err(Error::HostNotFound);
                };
                let mut addrs = self.empty();
                kept.iter().for_each(|address| addrs.push(*address));
                Ok(addrs)
            }
        }
    }
}

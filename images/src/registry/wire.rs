//! The link below HTTP: which bytes crossed it, and which of a host's addresses answered last.
//!
//! [`Counted`] stands between TCP and TLS, so that handshakes, headers and what TLS adds are all counted; only what a cut
//! threw away before it was read, and TCP/IP's own headers, are not known here.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, NextTimeout, TcpConnector, Transport,
};
use ureq::{Proxy, ProxyProtocol};

use super::limits::Pace;

/// Bytes that crossed the link, both ways, since the client was made.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    down: AtomicU64,
    up: AtomicU64,
    /// What keeps each direction at its rate.
    pace: Option<(Pace, Pace)>,
}

impl Meter {
    /// One that keeps both directions at `rate`.
    pub(crate) fn paced(rate: Option<u64>, cancel: Option<Arc<AtomicBool>>) -> Meter {
        let pace = rate.map(|_| (Pace::new(rate, cancel.clone()), Pace::new(rate, cancel)));
        Meter {
            pace,
            ..Meter::default()
        }
    }

    fn received(&self, bytes: usize) {
        self.down.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some((down, _)) = &self.pace {
            down.moved(bytes);
        }
    }

    fn sent(&self, bytes: usize) {
        self.up.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some((_, up)) = &self.pace {
            up.moved(bytes);
        }
    }

    /// Bytes received.
    pub(crate) fn down(&self) -> u64 {
        self.down.load(Ordering::Relaxed)
    }

    /// Bytes sent.
    pub(crate) fn up(&self) -> u64 {
        self.up.load(Ordering::Relaxed)
    }
}

/// The proxy that the environment names for TLS or for plain HTTP: `https_proxy`, `http_proxy`, else `all_proxy`, in small letters
/// or in capitals, less the hosts of `no_proxy`. One that cannot be read is none, and is told to the log.
pub(crate) fn proxy(secure: bool, env: impl Fn(&str) -> Option<String>) -> Option<Proxy> {
    let set = |name: &str| {
        let found = env(name).or_else(|| env(&name.to_ascii_uppercase()));
        found
            .map(|value| value.trim().to_owned())
            .filter(|value| !value.is_empty())
    };
    let name = if secure { "https_proxy" } else { "http_proxy" };
    let address = set(name).or_else(|| set("all_proxy"))?;
    let read = || {
        let proxy = Proxy::new(&address)?;
        if !matches!(proxy.protocol(), ProxyProtocol::Http) {
            return Err(Error::InvalidProxyUrl);
        }
        let mut builder = Proxy::builder(proxy.protocol())
            .host(proxy.host())
            .port(proxy.port());
        if let Some(user) = proxy.username() {
            builder = builder.username(user);
        }
        if let Some(password) = proxy.password() {
            builder = builder.password(password);
        }
        for host in set("no_proxy").iter().flat_map(|hosts| hosts.split(',')) {
            builder = builder.no_proxy(host.trim());
        }
        builder.build()
    };
    match read() {
        Ok(proxy) => Some(proxy),
        // Not the address itself: it may carry a password.
        Err(error) => {
            tracing::warn!(variable = name, %error, "the proxy cannot be used: expected http://HOST:PORT");
            None
        }
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
        if let (true, Some((_, up))) = (self.live, &self.meter.pace) {
            up.wait();
        }
        self.inner.transmit_output(amount, timeout)?;
        if self.live {
            self.meter.sent(amount);
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        if let (true, Some((down, _))) = (self.live, &self.meter.pace) {
            down.wait();
        }
        let before = self.inner.buffers().input().len();
        let result = self.inner.await_input(timeout);
        let after = self.inner.buffers().input().len();
        if self.live {
            self.meter.received(after.saturating_sub(before));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_by_scheme_and_by_host() {
        let env = |pairs: &'static [(&str, &str)]| {
            move |name: &str| {
                pairs
                    .iter()
                    .find(|(n, _)| *n == name)
                    .map(|(_, v)| (*v).to_owned())
            }
        };
        let both = [
            ("https_proxy", "http://u:p@tls.example:3128"),
            ("HTTP_PROXY", "plain.example:8080"),
            ("no_proxy", "lan.example, .corp.example"),
        ];
        let both: &'static [(&str, &str)] = Box::leak(Box::new(both));
        let secure = proxy(true, env(both)).unwrap();
        assert_eq!(
            (secure.host(), secure.port(), secure.username()),
            ("tls.example", 3128, Some("u"))
        );
        let plain = proxy(false, env(both)).unwrap();
        assert_eq!(
            (plain.host(), plain.port(), plain.username()),
            ("plain.example", 8080, None)
        );
        for (uri, past) in [
            ("http://lan.example/", true),
            ("http://a.corp.example/", true),
            ("http://other.example/", false),
        ] {
            assert_eq!(plain.is_no_proxy(&uri.parse().unwrap()), past, "{uri}");
        }
        assert!(proxy(true, env(&[("http_proxy", "x:1")])).is_none());
        assert_eq!(proxy(true, env(&[("ALL_PROXY", "x:1")])).unwrap().port(), 1);
        for wrong in ["", "socks5://x:1", "http://"] {
            let wrong: &'static str = wrong;
            assert!(
                proxy(true, |name| (name == "https_proxy").then(|| wrong.to_owned())).is_none(),
                "{wrong}"
            );
        }
    }
}

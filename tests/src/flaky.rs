//! The fault proxy: a transparent TCP relay that makes a good link bad, in a way that can be repeated.
//!
//! Connection `k` (0, 1, 2, ... in the order of acceptance) draws its faults from the seed and `k` alone, so its plan
//! does not depend on timing. Counted bytes are bytes that reached the kernel of the peer: before a reset the proxy
//! waits until the peer has acknowledged them.

use rustix::net::sockopt::set_socket_linger;
use serde::Serialize;
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Result, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Bytes relayed at once.
const CHUNK: usize = 16 * 1024;
/// Chunks on their way through the delay in one direction; more wait in the kernel.
const IN_FLIGHT: usize = 256;
/// How long a reset waits for the counted bytes to be acknowledged.
const FLUSH: Duration = Duration::from_secs(2);

/// What happens to a connection whose bytes are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutMode {
    /// A reset.
    Rst,
    /// An orderly end: the client sees a short body.
    Fin,
    /// Nothing more arrives, and nothing is closed, for [`Options::stall`]; then a reset.
    Stall,
}

/// The faults of a link; the default is a good link.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 takes any.
    pub listen: String,
    /// Whom to relay to.
    pub upstream: SocketAddr,
    /// The start of all random numbers.
    pub seed: u64,
    /// Downstream (server to client) bytes of each connection before it is cut, drawn evenly from the range.
    pub cut: Option<RangeInclusive<u64>>,
    /// How it is cut.
    pub cut_mode: CutMode,
    /// Stop cutting after this many cuts; 0 is never.
    pub cut_first: u64,
    /// How long a stall lasts.
    pub stall: Duration,
    /// Added to each chunk in both directions, without lowering throughput.
    pub latency: Duration,
    /// Downstream bytes in a second, over all connections.
    pub rate: Option<u64>,
    /// In every period (first) the link is down for the last part of it (second).
    pub outage: Option<(Duration, Duration)>,
    /// One bit of this downstream byte, counted over all connections, arrives wrong. Once.
    pub flip: Option<u64>,
}

impl Options {
    /// A good link to `upstream`, listening on any loopback port.
    pub fn good(upstream: SocketAddr) -> Self {
        Self {
            listen: "127.0.0.1:0".to_owned(),
            upstream,
            seed: 1,
            cut: None,
            cut_mode: CutMode::Rst,
            cut_first: 0,
            stall: Duration::from_secs(60),
            latency: Duration::ZERO,
            rate: None,
            outage: None,
            flip: None,
        }
    }
}

/// What went over the link since the start or the last [`Proxy::reset_counters`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Bytes handed to clients.
    pub down: u64,
    /// Bytes handed to the server.
    pub up: u64,
    /// Connections accepted, also those refused because the link was down.
    pub connections: u64,
    /// Connections reset at once because the link was down.
    pub refused: u64,
    /// Connections that the server did not take.
    pub upstream_failed: u64,
    /// Connections cut by their plan.
    pub cuts: u64,
    /// Connections ended by the link going down.
    pub dropped: u64,
    /// Bits that arrived wrong.
    pub flipped: u64,
}

#[derive(Default)]
struct Tally {
    down: AtomicU64,
    up: AtomicU64,
    connections: AtomicU64,
    refused: AtomicU64,
    upstream_failed: AtomicU64,
    cuts: AtomicU64,
    dropped: AtomicU64,
    flipped: AtomicU64,
}

struct Shared {
    options: Options,
    tally: Tally,
    /// Cuts over the whole run, which a reset of the counters leaves alone.
    cuts_fired: AtomicU64,
    link_up: AtomicBool,
    stopping: AtomicBool,
    live: Mutex<HashMap<u64, (TcpStream, TcpStream)>>,
    bucket: Bucket,
}

/// A running proxy; dropping it closes every connection.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Starts to listen.
    pub fn start(options: Options) -> Result<Self> {
        let listener = TcpListener::bind(&options.listen)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            bucket: Bucket::new(options.rate),
            options,
            tally: Tally::default(),
            cuts_fired: AtomicU64::new(0),
            link_up: AtomicBool::new(true),
            stopping: AtomicBool::new(false),
            live: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || accept(&listener, &accepting));
        if let Some((period, down)) = shared.options.outage {
            let scheduled = Arc::clone(&shared);
            std::thread::spawn(move || {
                while !scheduled.stopping.load(Ordering::SeqCst) {
                    std::thread::sleep(period.saturating_sub(down));
                    scheduled.set_link(false);
                    std::thread::sleep(down);
                    scheduled.set_link(true);
                }
            });
        }
        Ok(Self { address, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes the link down (live connections are reset, new ones are reset at once) or up again.
    pub fn set_link(&self, up: bool) {
        self.shared.set_link(up);
    }

    /// What went over the link.
    pub fn counters(&self) -> Counters {
        let tally = &self.shared.tally;
        let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Counters {
            down: read(&tally.down),
            up: read(&tally.up),
            connections: read(&tally.connections),
            refused: read(&tally.refused),
            upstream_failed: read(&tally.upstream_failed),
            cuts: read(&tally.cuts),
            dropped: read(&tally.dropped),
            flipped: read(&tally.flipped),
        }
    }

    /// Counts from zero again. The connections' plans go on from where they are.
    pub fn reset_counters(&self) {
        let tally = &self.shared.tally;
        for counter in [
            &tally.down,
            &tally.up,
            &tally.connections,
            &tally.refused,
            &tally.upstream_failed,
            &tally.cuts,
            &tally.dropped,
            &tally.flipped,
        ] {
            counter.store(0, Ordering::SeqCst);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.set_link(false);
        // The accepting thread looks at the flag when it is woken by a connection.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn live(&self) -> MutexGuard<'_, HashMap<u64, (TcpStream, TcpStream)>> {
        self.live
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn set_link(&self, up: bool) {
        self.link_up.store(up, Ordering::SeqCst);
        if !up {
            for (_, (client, server)) in self.live().drain() {
                self.tally.dropped.fetch_add(1, Ordering::SeqCst);
                reset(&client);
                reset(&server);
            }
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for (number, client) in (0..).zip(listener.incoming()) {
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        shared.tally.connections.fetch_add(1, Ordering::SeqCst);
        if !shared.link_up.load(Ordering::SeqCst) {
            shared.tally.refused.fetch_add(1, Ordering::SeqCst);
            reset(&client);
            continue;
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            let _ = relay(&shared, number, client);
        });
    }
}

/// Ends the connection with a reset, now, whoever else still holds the socket: dissolving the association does that.
/// A kernel that refuses it while a thread waits on the socket (6.5 to 6.6) resets at the last close instead.
fn reset(stream: &TcpStream) {
    let _ = set_socket_linger(stream, Some(Duration::ZERO));
    if rustix::net::connect_unspec(stream).is_err() {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn relay(shared: &Arc<Shared>, number: u64, client: TcpStream) -> Result<()> {
    let server = match TcpStream::connect_timeout(&shared.options.upstream, Duration::from_secs(5)) {
        Ok(server) => server,
        Err(error) => {
            shared.tally.upstream_failed.fetch_add(1, Ordering::SeqCst);
            reset(&client);
            return Err(error);
        }
    };
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    shared
        .live()
        .insert(number, (client.try_clone()?, server.try_clone()?));
    if !shared.link_up.load(Ordering::SeqCst) {
        shared.set_link(false);
        return Ok(());
    }
    let budget = shared
        .options
        .cut
        .clone()
        .map(|range| draw(shared.options.seed, number, &range));
    let up = {
        let (shared, from, to) = (Arc::clone(shared), client.try_clone()?, server.try_clone()?);
        std::thread::spawn(move || {
            let delayed = read_ahead(from, shared.options.latency);
            let _ = deliver(&delayed, &to, &shared.tally.up, None, None, None);
            let _ = to.shutdown(Shutdown::Write);
        })
    };
    let armed =
        shared.options.cut_first == 0 || shared.cuts_fired.load(Ordering::SeqCst) < shared.options.cut_first;
    let delayed = read_ahead(server.try_clone()?, shared.options.latency);
    let ended = deliver(
        &delayed,
        &client,
        &shared.tally.down,
        budget.filter(|_| armed),
        Some(&shared.bucket),
        shared.options.flip.map(|at| (at, &shared.tally.flipped)),
    );
    // The server learns at once that its client has gone.
    reset(&server);
    match ended {
        Ended::Cut => {
            shared.cuts_fired.fetch_add(1, Ordering::SeqCst);
            shared.tally.cuts.fetch_add(1, Ordering::SeqCst);
            match shared.options.cut_mode {
                CutMode::Rst => {
                    flush(&client);
                    reset(&client);
                }
                CutMode::Fin => {
                    let _ = client.shutdown(Shutdown::Both);
                }
                CutMode::Stall => {
                    flush(&client);
                    stall(shared, &client);
                }
            }
        }
        Ended::Eof => {
            let _ = client.shutdown(Shutdown::Write);
        }
        Ended::Peer => reset(&client),
    }
    shared.live().remove(&number);
    let _ = client.shutdown(Shutdown::Both);
    let _ = up.join();
    Ok(())
}

/// Keeps the connection open and silent for the length of a stall, or until the client leaves or the proxy stops.
fn stall(shared: &Shared, client: &TcpStream) {
    let end = Instant::now() + shared.options.stall;
    while Instant::now() < end && !shared.stopping.load(Ordering::SeqCst) {
        if rustix::net::sockopt::socket_error(client).is_ok_and(|pending| pending.is_err())
            || client.peer_addr().is_err()
        {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    reset(client);
}

enum Ended {
    /// The source closed.
    Eof,
    /// The bytes of the connection are used up.
    Cut,
    /// The receiver has gone.
    Peer,
}

/// Reads into a queue whose entries fall due after the latency, so that a delay does not lower throughput.
fn read_ahead(mut from: TcpStream, latency: Duration) -> Receiver<(Instant, Vec<u8>)> {
    let (sender, receiver): (SyncSender<(Instant, Vec<u8>)>, _) = sync_channel(IN_FLIGHT);
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => {
                    if sender
                        .send((Instant::now() + latency, buffer[..read].to_vec()))
                        .is_err()
                    {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}

fn deliver(
    chunks: &Receiver<(Instant, Vec<u8>)>,
    mut to: &TcpStream,
    counter: &AtomicU64,
    budget: Option<u64>,
    bucket: Option<&Bucket>,
    flip: Option<(u64, &AtomicU64)>,
) -> Ended {
    let mut left = budget;
    while let Ok((due, mut bytes)) = chunks.recv() {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if let Some(left) = &mut left {
            bytes.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= bytes.len() as u64;
        }
        // Small slices keep a capped rate smooth.
        let step = if bucket.is_some_and(|bucket| bucket.rate.is_some()) {
            4096
        } else {
            CHUNK
        };
        for slice in bytes.chunks_mut(step) {
            if let Some(bucket) = bucket {
                bucket.take(slice.len());
            }
            if let Some((at, flipped)) = flip {
                flip_once(slice, counter.load(Ordering::SeqCst), at, flipped);
            }
            if to.write_all(slice).is_err() {
                return Ended::Peer;
            }
            counter.fetch_add(slice.len() as u64, Ordering::SeqCst);
        }
        if left == Some(0) {
            return Ended::Cut;
        }
    }
    Ended::Eof
}

/// Turns a bit of byte `at` when it is in `slice`, which begins at byte `from`, unless it was done before.
fn flip_once(slice: &mut [u8], from: u64, at: u64, flipped: &AtomicU64) {
    let place = at.checked_sub(from).and_then(|place| usize::try_from(place).ok());
    if let Some(byte) = place.and_then(|place| slice.get_mut(place))
        && flipped.swap(1, Ordering::SeqCst) == 0
    {
        *byte ^= 1;
    }
}

/// Waits until the peer has acknowledged what was written: a reset discards what is still queued.
fn flush(stream: &TcpStream) {
    let end = Instant::now() + FLUSH;
    while crate::kernel::unsent(stream) > 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// An even draw from the range for connection `number`: SplitMix64 of seed and number.
fn draw(seed: u64, number: u64, range: &RangeInclusive<u64>) -> u64 {
    let mut mixed = seed ^ number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    let span = range
        .end()
        .saturating_sub(*range.start())
        .saturating_add(1)
        .max(1);
    range.start() + mixed % span
}

/// A token bucket over all connections of one direction.
struct Bucket {
    rate: Option<u64>,
    tokens: Mutex<(f64, Instant)>,
}

impl Bucket {
    fn new(rate: Option<u64>) -> Self {
        Self {
            rate,
            tokens: Mutex::new((0.0, Instant::now())),
        }
    }

    fn take(&self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let mut tokens = self
            .tokens
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        // At most a tenth of a second is saved up: a pause does not become a burst.
        let saved = tokens.0 + (now - tokens.1).as_secs_f64() * rate as f64;
        tokens.0 = saved.min(rate as f64 / 10.0) - bytes as f64;
        tokens.1 = now;
        if tokens.0 < 0.0 {
            let debt = Duration::from_secs_f64(-tokens.0 / rate as f64);
            drop(tokens);
            std::thread::sleep(debt);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends the same bytes to everyone and closes.
    fn source(bytes: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || (&stream).write_all(&vec![7; bytes]));
            }
        });
        address
    }

    fn fetch(proxy: &Proxy) -> (usize, Option<ErrorKind>) {
        let mut stream = TcpStream::connect(proxy.address()).expect("connect");
        stream
            .set_read_timeout(Some(Duration::from_millis(500)))
            .expect("timeout");
        let mut bytes = Vec::new();
        let error = stream.read_to_end(&mut bytes).err().map(|error| error.kind());
        (bytes.len(), error)
    }

    #[test]
    fn a_cut_delivers_exactly_its_bytes_and_ends_as_told() {
        let upstream = source(1_000_000);
        for (mode, expected) in [
            (CutMode::Rst, Some(ErrorKind::ConnectionReset)),
            (CutMode::Fin, None),
            (CutMode::Stall, Some(ErrorKind::WouldBlock)),
        ] {
            let mut options = Options::good(upstream);
            options.cut = Some(262_144..=262_144);
            options.cut_mode = mode;
            let proxy = Proxy::start(options).expect("start");
            assert_eq!(fetch(&proxy), (262_144, expected), "{mode:?}");
            let counters = proxy.counters();
            assert_eq!(
                (counters.down, counters.connections, counters.cuts),
                (262_144, 1, 1),
                "{mode:?}"
            );
        }
    }

    #[test]
    fn one_bit_is_turned_once() {
        let mut options = Options::good(source(100_000));
        options.flip = Some(70_000);
        let proxy = Proxy::start(options).expect("start");
        let wrong = || {
            let mut stream = TcpStream::connect(proxy.address()).expect("connect");
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).expect("read");
            let places = bytes.iter().enumerate().filter(|(_, byte)| **byte != 7);
            places.map(|(at, byte)| (at, *byte)).collect::<Vec<_>>()
        };
        assert_eq!(wrong(), [(70_000, 6)]);
        assert_eq!(wrong(), []);
        assert_eq!(proxy.counters().flipped, 1);
    }

    #[test]
    fn the_plan_of_a_connection_follows_from_the_seed() {
        let upstream = source(1_000_000);
        let lengths = |seed| -> Vec<usize> {
            let mut options = Options::good(upstream);
            (options.seed, options.cut) = (seed, Some(1_000..=500_000));
            let proxy = Proxy::start(options).expect("start");
            (0..4).map(|_| fetch(&proxy).0).collect()
        };
        assert_eq!(lengths(7), lengths(7));
        assert_ne!(lengths(7), lengths(8));
    }

    #[test]
    fn a_link_goes_down_and_up() {
        let mut options = Options::good(source(100));
        options.cut_first = 1;
        let proxy = Proxy::start(options).expect("start");
        assert_eq!(fetch(&proxy), (100, None));
        proxy.set_link(false);
        assert_eq!(fetch(&proxy).0, 0);
        proxy.set_link(true);
        assert_eq!(fetch(&proxy), (100, None));
        assert_eq!(proxy.counters().refused, 1);
    }
}

//! The links, and what is wanted on each of them.

use std::net::SocketAddr;
use std::time::Duration;
use wherry_tests::flaky::{CutMode, Options};

const MIB: u64 = 1 << 20;
/// Of links whose time counts: about a good LTE link.
const RATE: u64 = 6_000_000;
/// The outage: so long of each period.
const PERIOD: f64 = 10.0;
const DOWN: f64 = 4.0;

/// What is wrong with a link, or with the board.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// Each connection ends after so many bytes, from and to.
    Cuts(u64, u64),
    /// The first two connections fall silent.
    Stalls,
    /// Down for a part of each period.
    Outage,
    /// The client is killed when half has arrived, and started again.
    Kill,
    /// One byte arrives wrong.
    Flip,
    /// Nothing.
    None,
}

/// What is wanted of Wherry.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted {
    /// Delivered over needed.
    Ratio(f64),
    /// Bytes delivered beyond those needed.
    Again(u64),
    /// In all.
    Seconds(f64),
    /// Times what the link itself would take.
    Ideal(f64),
    /// No more than the whole layer again.
    OnceMore,
}

/// One row for each client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    /// What the table calls it.
    pub(crate) name: &'static str,
    /// What is wrong.
    pub(crate) fault: Fault,
    /// Whether the image has chunk hashes.
    pub(crate) hashed: bool,
    /// What is wanted.
    pub(crate) wanted: Wanted,
}

/// All of them.
pub(crate) fn all() -> Vec<Scenario> {
    let scenario = |name, fault, hashed, wanted| Scenario {
        name,
        fault,
        hashed,
        wanted,
    };
    vec![
        scenario("clean", Fault::None, true, Wanted::Ratio(1.001)),
        scenario(
            "cut each 1-8 MB",
            Fault::Cuts(MIB, 8 * MIB),
            true,
            Wanted::Ratio(1.005),
        ),
        scenario(
            "cut each 0.5-4 MB",
            Fault::Cuts(MIB / 2, 4 * MIB),
            true,
            Wanted::Ratio(1.005),
        ),
        scenario(
            "cut each 256 KB",
            Fault::Cuts(MIB / 4, MIB / 4),
            true,
            Wanted::Ratio(1.005),
        ),
        scenario("two stalls of 60 s", Fault::Stalls, true, Wanted::Seconds(20.0)),
        scenario("outage 4 s of 10", Fault::Outage, true, Wanted::Ideal(1.1)),
        scenario("kill -9 at half", Fault::Kill, true, Wanted::Again(128 * 1024)),
        scenario("flipped byte, hashed", Fault::Flip, true, Wanted::Ratio(1.01)),
        scenario("flipped byte, plain", Fault::Flip, false, Wanted::OnceMore),
    ]
}

impl Scenario {
    /// The link to the registry.
    pub(crate) fn link(&self, upstream: SocketAddr) -> Options {
        let mut options = Options::good(upstream);
        match self.fault {
            Fault::Cuts(least, most) => options.cut = Some(least..=most),
            Fault::Stalls => {
                options.cut = Some(10 * MIB..=40 * MIB);
                options.cut_mode = CutMode::Stall;
                options.cut_first = 2;
            }
            Fault::Outage => {
                options.rate = Some(RATE);
                options.outage = Some((Duration::from_secs_f64(PERIOD), Duration::from_secs_f64(DOWN)));
            }
            // Slow enough to be killed at half.
            Fault::Kill => options.rate = Some(20_000_000),
            // Within the largest layer, also of a client that fetches all layers at once.
            Fault::Flip => options.flip = Some(90_000_000),
            Fault::None => {}
        }
        options
    }

    /// How long the link itself takes for so many bytes, in seconds: up for the first part of each period.
    pub(crate) fn ideal(&self, bytes: u64) -> f64 {
        let up = bytes as f64 / RATE as f64;
        let whole = (up / (PERIOD - DOWN)).floor();
        whole * PERIOD + (up - whole * (PERIOD - DOWN))
    }
}

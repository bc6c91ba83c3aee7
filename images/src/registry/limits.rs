//! What a link may be used for: how fast, how much in all, at which hours.
//!
//! The rate is kept where bytes are read from the socket (`wire.rs`), so that TLS and headers count; the sender is slowed by TCP
//! itself. The budget bounds each request's range, so that it is not overrun by what is on its way. Hours are UTC: a board's
//! time zone is a guess.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The slowest rate that is accepted: below it a registry takes the client for dead.
const SLOWEST: u64 = 1000;
/// How much of a pause is made up for by going faster afterwards.
const BURST: Duration = Duration::from_millis(100);
/// How often a waiting client looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(100);
/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// What a client may use of the link; the default is all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in a second, each way.
    pub rate: Option<u64>,
    /// Bytes in all, both ways together.
    pub budget: Option<u64>,
    /// When.
    pub window: Option<Window>,
}

/// A part of each day, UTC, from the first minute to before the last; over midnight when the last is the earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    from: u16,
    to: u16,
}

impl Window {
    /// Whether it is open at a moment in seconds since 1970.
    pub fn is_open(&self, unix: u64) -> bool {
        let minute = u16::try_from(unix / 60 % u64::from(DAY)).unwrap_or(0);
        if self.from <= self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

impl FromStr for Window {
    type Err = String;

    /// Reads `HH:MM-HH:MM`.
    fn from_str(text: &str) -> Result<Self, String> {
        let minute = |text: &str| {
            let (hour, minute) = text.trim().split_once(':')?;
            let number = |text: &str, below: u16| -> Option<u16> {
                let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
                text.parse().ok().filter(|n| digits && *n < below)
            };
            Some(number(hour, 24)? * 60 + number(minute, 60)?)
        };
        let pair = text.split_once('-');
        match pair.and_then(|(from, to)| Some((minute(from)?, minute(to)?))) {
            Some((from, to)) if from != to => Ok(Window { from, to }),
            _ => Err(format!(
                "window {text:?}: expected HH:MM-HH:MM (UTC), such as 01:00-05:30"
            )),
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [from, to] = [self.from, self.to].map(|m| (m / 60, m % 60));
        write!(f, "{:02}:{:02}-{:02}:{:02} UTC", from.0, from.1, to.0, to.1)
    }
}

/// Reads a number of bytes: digits and perhaps `k`, `m` or `g` (1000 each, as links are sold).
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let (digits, unit) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 1000),
        Some(b'm') => (&lower[..lower.len() - 1], 1_000_000),
        Some(b'g') => (&lower[..lower.len() - 1], 1_000_000_000),
        _ => (lower.as_str(), 1),
    };
    let number = digits
        .parse::<u64>()
        .ok()
        .filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
    number
        .and_then(|n| n.checked_mul(unit))
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("{text:?}: expected a number of bytes, such as 500k or 20m"))
}

/// Keeps one direction at a rate.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: Option<u64>,
    cancel: Option<Arc<AtomicBool>>,
    /// When the bytes so far will have been paid for.
    paid: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(rate: Option<u64>, cancel: Option<Arc<AtomicBool>>) -> Pace {
        Pace {
            rate: rate.map(|rate| rate.max(SLOWEST)),
            cancel,
            paid: Mutex::default(),
        }
    }

    /// Waits until the bytes so far are paid for, or the client is cancelled.
    pub(crate) fn wait(&self) {
        if self.rate.is_none() {
            return;
        }
        let paid = *self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(left) = paid.and_then(|paid| paid.checked_duration_since(Instant::now())) {
            let cancelled = self
                .cancel
                .as_ref()
                .is_some_and(|flag| flag.load(Ordering::Relaxed));
            if left.is_zero() || cancelled {
                return;
            }
            std::thread::sleep(left.min(LOOK));
        }
    }

    /// So many bytes crossed.
    pub(crate) fn moved(&self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let now = Instant::now();
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let from = match *paid {
            Some(paid) => now.checked_sub(BURST).map_or(paid, |least| paid.max(least)),
            None => now,
        };
        *paid = Some(from + cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows() {
        let at = |hour: u64, minute: u64| 1_700_006_400 + hour * 3600 + minute * 60;
        let night: Window = "22:30-05:00".parse().unwrap();
        let day: Window = " 09:00 - 17:00 ".parse().unwrap();
        assert_eq!(
            (1_700_006_400 % 86400, night.to_string().as_str()),
            (0, "22:30-05:00 UTC")
        );
        for (hour, minute, in_night, in_day) in [
            (22, 29, false, false),
            (22, 30, true, false),
            (4, 59, true, false),
            (5, 0, false, false),
            (9, 0, false, true),
            (17, 0, false, false),
        ] {
            let open = (night.is_open(at(hour, minute)), day.is_open(at(hour, minute)));
            assert_eq!(open, (in_night, in_day), "{hour}:{minute}");
        }
        for wrong in [
            "",
            "1-2",
            "01:00",
            "24:00-01:00",
            "01:60-02:00",
            "01:00-01:00",
            "+1:00-02:00",
        ] {
            assert!(wrong.parse::<Window>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn bytes() {
        for (text, wanted) in [
            ("500k", Some(500_000)),
            ("20M", Some(20_000_000)),
            ("1g", Some(1_000_000_000)),
            ("7", Some(7)),
            ("0", None),
            ("", None),
            ("k", None),
            ("-1", None),
            ("+1", None),
            ("99999999999g", None),
        ] {
            assert_eq!(parse_bytes(text).ok(), wanted, "{text}");
        }
    }

    #[test]
    fn a_pace_is_kept() {
        let pace = Pace::new(Some(1_000_000), None);
        let begun = Instant::now();
        for _ in 0..20 {
            pace.wait();
            pace.moved(20_000);
        }
        pace.wait();
        let took = begun.elapsed().as_secs_f64();
        assert!((0.38..0.6).contains(&took), "{took}");
        let free = Pace::new(None, None);
        free.moved(usize::MAX);
        free.wait();
    }
}

//! When to try again, how long to wait first, and when to stop: a decision without a clock, a socket or randomness of its own.
//!
//! ```text
//!             new byte                         new byte
//!          +------------+                   +-----------+
//!          v            |                   v           |
//!   Unreached --answer--> Reached --fault--> Waiting --try--> Reached
//!      | a few refusals     | no new byte for `patience`,
//!      v                    | too many busy or server faults
//!   GaveUp <----------------+
//! ```
//!
//! What always holds: a fault that follows new bytes starts the count again, so a link that delivers anything at all is never
//! given up on; a registry that never answered is given up on within seconds, with the first reason it gave.

use std::time::Duration;

/// Tries at a registry that has not answered once. Three with short waits tell "not there" from "just restarting".
const UNREACHED_TRIES: u32 = 4;
/// Tries while the registry answers "busy" (429, 503) and no byte comes.
const BUSY_TRIES: u32 = 20;
/// Tries while the registry answers with its own fault (500, 502, 504).
const FAULT_TRIES: u32 = 6;
/// Tries while the registry ignores the range (a pull-through cache that is still filling).
const WHOLE_TRIES: u32 = 5;
/// Times a transfer starts over without getting farther than before: no ranges and a link that does not last for the whole.
const MAX_STARTS: u32 = 4;
/// First wait after a cut that brought nothing; a cut after new bytes is not waited for at all.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Waits stay at this through a short outage, so that its end is noticed soon: trying where there is no link costs nothing.
const SHORT_WAIT: Duration = Duration::from_millis(500);
/// The first wait of a long outage, and the longest after a registry's own fault.
const OUTAGE_WAIT: Duration = Duration::from_secs(1);
/// Tries after which an outage is a long one and waits grow on.
const SHORT_OUTAGE_TRIES: u32 = 60;
/// The longest wait that is our own idea: a board on LTE wakes its radio for each try.
const LONG_WAIT: Duration = Duration::from_secs(15);
/// A longer `Retry-After` is not waited for: the caller is told instead.
pub(crate) const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// How a try ended, when it did not end well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nobody listens, or the name does not resolve.
    Absent,
    /// The connection was made or attempted and broke: reset, early end, stall.
    Cut,
    /// 429 or 503, with what `Retry-After` asked for.
    Busy(Option<Duration>),
    /// 500, 502, 504, 408: the registry's own trouble.
    Server,
    /// The whole blob came where its rest was asked for.
    Whole,
    /// Something else than the blob came (a portal's page, another length).
    Foreign,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Wait, then try again.
    Wait(Duration),
    /// Throw the partial's bytes away, then try again: its range is not served.
    StartOver,
    /// Stop, and report the fault.
    GiveUp,
}

/// The state of one transfer's tries.
#[derive(Debug, Clone)]
pub(crate) struct Retry {
    reached: bool,
    fresh: bool,
    fruitless: u32,
    busy: u32,
    server: u32,
    whole: u32,
    starts: u32,
    waited: Duration,
    patience: Duration,
}

impl Retry {
    /// A transfer from a registry that has (`reached`) or has not answered before; gives up after `patience` without a new byte.
    pub(crate) fn new(reached: bool, patience: Duration) -> Retry {
        Retry {
            reached,
            fresh: false,
            fruitless: 0,
            busy: 0,
            server: 0,
            whole: 0,
            starts: 0,
            waited: Duration::ZERO,
            patience,
        }
    }

    /// The registry answered something.
    pub(crate) fn answered(&mut self) {
        self.reached = true;
    }

    /// New bytes are safe.
    pub(crate) fn progressed(&mut self) {
        *self = Retry {
            fresh: true,
            ..Retry::new(true, self.patience)
        };
    }

    /// Decides after `fault`; the try that met it took `spent`. `random` is any number, used for jitter of up to a quarter.
    pub(crate) fn after(&mut self, fault: Fault, spent: Duration, random: u32) -> Next {
        let first_after_bytes = std::mem::take(&mut self.fresh);
        self.fruitless = self.fruitless.saturating_add(1);
        self.waited = self.waited.saturating_add(spent);
        let wait = match fault {
            Fault::Absent if !self.reached => {
                if self.fruitless >= UNREACHED_TRIES {
                    return Next::GiveUp;
                }
                FIRST_WAIT * 2u32.saturating_pow(self.fruitless)
            }
            Fault::Cut if first_after_bytes => return Next::Wait(Duration::ZERO),
            Fault::Cut | Fault::Absent => self.outage_wait(),
            Fault::Busy(asked) => {
                self.busy += 1;
                let wait = asked.unwrap_or_else(|| self.outage_wait().max(OUTAGE_WAIT));
                if self.busy >= BUSY_TRIES || wait > MAX_RETRY_AFTER {
                    return Next::GiveUp;
                }
                // Obeyed to the letter: jitter only adds, and patience does not count time the registry asked for.
                return Next::Wait(wait + jitter(wait.min(Duration::from_secs(4)), random));
            }
            Fault::Server | Fault::Foreign => {
                self.server += 1;
                if self.server >= FAULT_TRIES {
                    return Next::GiveUp;
                }
                OUTAGE_WAIT.min(FIRST_WAIT * 2u32.saturating_pow(self.server + 1))
            }
            Fault::Whole => {
                self.whole += 1;
                if self.whole >= WHOLE_TRIES {
                    self.whole = 0;
                    self.starts += 1;
                    return if self.starts > MAX_STARTS {
                        Next::GiveUp
                    } else {
                        Next::StartOver
                    };
                }
                // The cache is filling from its upstream: 1, 2, 2, 2 s, which patience does not count.
                let wait = Duration::from_secs(if self.whole == 1 { 1 } else { 2 });
                return Next::Wait(wait + jitter(wait, random));
            }
        };
        let wait = wait + jitter(wait, random);
        self.waited = self.waited.saturating_add(wait);
        if self.waited > self.patience {
            return Next::GiveUp;
        }
        Next::Wait(wait)
    }

    fn outage_wait(&self) -> Duration {
        let tries = self.fruitless.saturating_sub(1);
        if tries < SHORT_OUTAGE_TRIES {
            return SHORT_WAIT.min(FIRST_WAIT * 2u32.saturating_pow(tries.min(8)));
        }
        LONG_WAIT.min(OUTAGE_WAIT * 2u32.saturating_pow((tries - SHORT_OUTAGE_TRIES).min(8)))
    }
}

/// Up to a quarter of `wait`.
fn jitter(wait: Duration, random: u32) -> Duration {
    wait.mul_f64(f64::from(random) / f64::from(u32::MAX) / 4.0)
}

/// Reads `Retry-After`: seconds, or an HTTP date against `now` (seconds since 1970).
pub(crate) fn parse_retry_after(value: &str, now: u64) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    http_date(value).map(|at| Duration::from_secs(at.saturating_sub(now)))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` as seconds since 1970 (RFC 9110 5.6.7; the two obsolete forms are not read).
fn http_date(value: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut words = value.split_once(", ")?.1.split(' ');
    let day = words
        .next()?
        .parse::<u64>()
        .ok()
        .filter(|d| (1..=31).contains(d))?;
    let name = words.next()?;
    let month = MONTHS.iter().position(|m| *m == name)? as u64 + 1;
    let year = words
        .next()?
        .parse::<u64>()
        .ok()
        .filter(|y| (1970..=9999).contains(y))?;
    let mut clock = words
        .next()?
        .split(':')
        .map(|n| n.parse::<u64>().ok().filter(|n| *n <= 60));
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if words.next()? != "GMT" || words.next().is_some() {
        return None;
    }
    // Days since 1970 by the civil calendar: years begin in March, so that the leap day ends them.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day;
    Some(days.checked_sub(719_469)? * 86400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(120);

    fn waits(retry: &mut Retry, fault: Fault, most: usize) -> (Vec<Duration>, Option<Next>) {
        let mut waits = Vec::new();
        for _ in 0..most {
            match retry.after(fault, Duration::ZERO, 0) {
                Next::Wait(wait) => waits.push(wait),
                end => return (waits, Some(end)),
            }
        }
        (waits, None)
    }

    #[test]
    fn a_registry_that_is_not_there_is_given_up_within_seconds() {
        let (waits, end) = waits(&mut Retry::new(false, PATIENCE), Fault::Absent, 100);
        assert_eq!(end, Some(Next::GiveUp));
        assert_eq!(waits.len() as u32, UNREACHED_TRIES - 1);
        assert!(
            waits.iter().sum::<Duration>() < Duration::from_secs(3),
            "{waits:?}"
        );
    }

    #[test]
    fn a_registry_that_was_there_is_waited_for() {
        let mut retry = Retry::new(true, PATIENCE);
        let (waits, end) = waits(&mut retry, Fault::Absent, 1000);
        assert_eq!(end, Some(Next::GiveUp));
        let total: Duration = waits.iter().sum();
        assert!(total > PATIENCE - LONG_WAIT * 2 && total <= PATIENCE, "{total:?}");
        // An outage's end is noticed within half a second for the first half minute.
        assert!(
            waits
                .iter()
                .take(SHORT_OUTAGE_TRIES as usize)
                .all(|w| *w <= SHORT_WAIT)
        );
        assert!(waits.iter().all(|w| *w <= LONG_WAIT));
    }

    #[test]
    fn new_bytes_start_the_count_again() {
        let mut retry = Retry::new(false, PATIENCE);
        for _ in 0..100_000 {
            retry.progressed();
            assert_eq!(
                retry.after(Fault::Cut, Duration::from_secs(60), 7),
                Next::Wait(Duration::ZERO)
            );
        }
        assert!(matches!(retry.after(Fault::Cut, Duration::ZERO, 0), Next::Wait(w) if !w.is_zero()));
    }

    #[test]
    fn busy_is_obeyed() {
        let mut retry = Retry::new(true, Duration::from_secs(1));
        let asked = Some(Duration::from_secs(20));
        for _ in 0..BUSY_TRIES - 1 {
            assert!(
                matches!(retry.after(Fault::Busy(asked), Duration::ZERO, u32::MAX),
                Next::Wait(w) if w >= Duration::from_secs(20) && w <= Duration::from_secs(21))
            );
        }
        assert_eq!(retry.after(Fault::Busy(asked), Duration::ZERO, 0), Next::GiveUp);
        let late = Some(MAX_RETRY_AFTER + Duration::from_secs(1));
        assert_eq!(
            Retry::new(true, PATIENCE).after(Fault::Busy(late), Duration::ZERO, 0),
            Next::GiveUp
        );
        assert!(
            matches!(Retry::new(true, PATIENCE).after(Fault::Busy(None), Duration::ZERO, 0),
            Next::Wait(w) if w >= OUTAGE_WAIT)
        );
    }

    #[test]
    fn an_ignored_range_costs_the_prefix_only_after_several_tries() {
        let (waits, end) = waits(&mut Retry::new(true, PATIENCE), Fault::Whole, 100);
        assert_eq!(
            (waits.len() as u32, end),
            (WHOLE_TRIES - 1, Some(Next::StartOver))
        );
        assert!(waits.iter().all(|w| (1..=2).contains(&w.as_secs())));
    }

    #[test]
    fn the_registrys_own_faults_are_few() {
        for fault in [Fault::Server, Fault::Foreign] {
            let (waits, end) = waits(&mut Retry::new(true, PATIENCE), fault, 100);
            assert_eq!((waits.len() as u32, end), (FAULT_TRIES - 1, Some(Next::GiveUp)));
        }
    }

    #[test]
    fn jitter_adds_at_most_a_quarter() {
        let plain = Retry::new(true, PATIENCE).after(Fault::Cut, Duration::ZERO, 0);
        let most = Retry::new(true, PATIENCE).after(Fault::Cut, Duration::ZERO, u32::MAX);
        assert_eq!(
            (plain, most),
            (Next::Wait(FIRST_WAIT), Next::Wait(FIRST_WAIT * 5 / 4))
        );
    }

    #[test]
    fn retry_after() {
        let now = 784_111_777;
        for (value, wanted) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:40 GMT", Some(3)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("Thu, 29 Feb 2024 00:00:00 GMT", Some(1_709_164_800 - now)),
            ("Sun, 06 Nov 1994 08:49:40 CET", None),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(
                parse_retry_after(value, now),
                wanted.map(Duration::from_secs),
                "{value}"
            );
        }
    }
}

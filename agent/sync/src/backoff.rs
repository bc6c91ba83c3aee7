//! How long to wait before trying again.
//!
//! Randomness is a parameter, so that a table test can name the exact delay and a fleet of boards that lost the
//! same link does not come back in the same second.

use std::time::Duration;

/// An exponential backoff: nothing after no failure, `first` after one, doubling up to `cap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
}

impl Backoff {
    /// A backoff that starts at `first` and never waits longer than `cap`.
    #[must_use]
    pub const fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap }
    }

    /// The wait after `failures` failures in a row, without jitter.
    #[must_use]
    pub fn delay(&self, failures: u32) -> Duration {
        if failures == 0 {
            return Duration::ZERO;
        }
        // 2^20 times any useful first delay is past any useful cap; the shift stays defined.
        let doublings = (failures - 1).min(20);
        self.first.saturating_mul(1 << doublings).min(self.cap)
    }

    /// The wait after `failures` failures, shortened by up to a quarter by `random` (uniform over `u32`).
    #[must_use]
    pub fn jittered(&self, failures: u32, random: u32) -> Duration {
        let delay = self.delay(failures);
        let quarter = delay / 4;
        let cut = quarter.as_micros().saturating_mul(u128::from(random)) / u128::from(u32::MAX);
        delay.saturating_sub(Duration::from_micros(u64::try_from(cut).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn doubles_from_first_to_cap() {
        let backoff = Backoff::new(SECOND * 10, SECOND * 300);
        let seconds: Vec<u64> = (0..9).map(|failures| backoff.delay(failures).as_secs()).collect();
        assert_eq!(seconds, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(backoff.delay(u32::MAX), SECOND * 300);
    }

    #[test]
    fn jitter_takes_at_most_a_quarter() {
        let backoff = Backoff::new(SECOND * 4, SECOND * 64);
        assert_eq!(backoff.jittered(0, u32::MAX), Duration::ZERO);
        assert_eq!(backoff.jittered(1, 0), SECOND * 4);
        assert_eq!(backoff.jittered(1, u32::MAX), SECOND * 3);
        let half = backoff.jittered(3, u32::MAX / 2);
        assert!(half > SECOND * 13 && half < SECOND * 15, "{half:?}");
    }
}

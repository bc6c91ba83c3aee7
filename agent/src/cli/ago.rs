//! Durations and sizes as docker words them.

use std::time::Duration;

use crate::container::Timestamp;

/// `About an hour`, `3 days`.
pub(super) fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours) = (seconds / 60, (seconds as f64 / 3600.0).round() as u64);
    match (seconds, minutes, hours) {
        (0, ..) => "Less than a second".into(),
        (1, ..) => "1 second".into(),
        (..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".into(),
        (_, ..60, _) => format!("{minutes} minutes"),
        (.., 1) => "About an hour".into(),
        (.., ..48) => format!("{hours} hours"),
        (.., ..336) => format!("{} days", hours / 24),
        (.., ..1440) => format!("{} weeks", hours / 24 / 7),
        (.., ..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// How long ago that was; a moment in the future counts as now.
pub(super) fn since(moment: Timestamp, now: Timestamp) -> Duration {
    (now.get() - moment.get()).try_into().unwrap_or_default()
}

/// `1.23MB`, in powers of 1000 with three digits.
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if value < 1000.0 || unit == "TB" {
            let digits = if unit == "B" || value >= 100.0 {
                0
            } else if value >= 10.0 {
                1
            } else {
                2
            };
            let text = format!("{value:.digits$}");
            let text = if digits > 0 {
                text.trim_end_matches('0').trim_end_matches('.')
            } else {
                &text
            };
            return format!("{text}{unit}");
        }
        value /= 1000.0;
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_docker_words_it() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (150, "2 minutes"),
            (3600, "About an hour"),
            (7300, "2 hours"),
            (86_400, "24 hours"),
            (200_000, "2 days"),
            (1_300_000, "2 weeks"),
            (8_000_000, "3 months"),
            (70_000_000, "2 years"),
        ] {
            assert_eq!(human(Duration::from_secs(seconds)), text, "{seconds}");
        }
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1234, "1.23kB"),
            (45_600_000, "45.6MB"),
            (7_800_000_000, "7.8GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_negative_age() {
        let early = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let late = Timestamp::parse("2026-01-01T00:01:40Z").unwrap();
        assert_eq!(since(early, late), Duration::from_secs(100));
        assert_eq!(since(late, early), Duration::ZERO);
    }
}

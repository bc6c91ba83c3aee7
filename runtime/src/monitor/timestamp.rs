//! UTC time as RFC 3339 with nanoseconds, thirty bytes, without a time zone database or an allocation.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Length of every formatted timestamp: `2026-11-20T23:50:01.123456789Z`.
pub(crate) const LENGTH: usize = 30;

/// The present moment of the system's clock, formatted.
pub(crate) fn now() -> [u8; LENGTH] {
    format(clock_gettime(ClockId::Realtime))
}

/// The present moment as text for a record.
pub(crate) fn now_text() -> String {
    String::from_utf8_lossy(&now()).into_owned()
}

/// Formats a moment. Years outside 0-9999 (a broken clock) are shown as year 0 or 9999.
fn format(moment: Timespec) -> [u8; LENGTH] {
    let seconds = moment.tv_sec;
    let (year, month, day) = civil(seconds.div_euclid(86_400));
    let of_day = seconds.rem_euclid(86_400);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    let fields = [
        (0, 4, year.clamp(0, 9999)),
        (5, 2, month),
        (8, 2, day),
        (11, 2, of_day / 3600),
        (14, 2, of_day / 60 % 60),
        (17, 2, of_day % 60),
        (20, 9, moment.tv_nsec),
    ];
    for (start, width, value) in fields {
        let mut rest = value.unsigned_abs();
        for digit in text[start..start + width].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }
    text
}

/// Year, month and day of a day counted from 1970-01-01 (Howard Hinnant's `civil_from_days`).
fn civil(day: i64) -> (i64, i64, i64) {
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_formatted_as_rfc_3339() {
        let table = [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_827_696, 789, "2000-02-29T12:34:56.000000789Z"),
            (1_795_218_601, 123_456_789, "2026-11-20T23:50:01.123456789Z"),
            (4_107_542_399, 999_999_999, "2100-02-28T23:59:59.999999999Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
            (-1, 5, "1969-12-31T23:59:59.000000005Z"),
            (i64::MAX / 1_000_000, 0, "9999-"),
        ];
        for (tv_sec, tv_nsec, expected) in table {
            let text = format(Timespec { tv_sec, tv_nsec });
            let text = std::str::from_utf8(&text).unwrap();
            assert!(text.starts_with(expected), "{tv_sec}: {text}");
        }
    }
}

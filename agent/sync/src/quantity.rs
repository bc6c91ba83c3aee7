//! Kubernetes' quantities: `500m`, `0.5`, `128Mi`, `1e3`.

/// Digits that are read: more than any amount of a board needs.
const MAX_DIGITS: usize = 18;

/// Reads a quantity in parts of a unit, `per_unit` of them to one, rounded up as Kubernetes does. `None` if it is not one,
/// is negative, or too large.
pub(crate) fn parse(text: &str, per_unit: u64) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.len() > MAX_DIGITS || fraction.contains('.') {
        return None;
    }
    let ten = |power: u32| 10u128.checked_pow(power);
    let (times, by) = match suffix {
        "" => (1, 1),
        "n" => (1, ten(9)?),
        "u" => (1, ten(6)?),
        "m" => (1, ten(3)?),
        "k" => (ten(3)?, 1),
        "M" => (ten(6)?, 1),
        "G" => (ten(9)?, 1),
        "T" => (ten(12)?, 1),
        "P" => (ten(15)?, 1),
        "E" => (ten(18)?, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            match exponent {
                0..=18 => (ten(exponent.unsigned_abs())?, 1),
                -18..0 => (1, ten(exponent.unsigned_abs())?),
                _ => return None,
            }
        }
    };
    let by = ten(u32::try_from(fraction.len()).ok()?)?.checked_mul(by)?;
    let parts = digits
        .parse::<u128>()
        .ok()?
        .checked_mul(times)?
        .checked_mul(per_unit.into())?;
    u64::try_from(parts.div_ceil(by)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_as_kubernetes_reads_them() {
        for (text, per_unit, expected) in [
            ("500m", 1000, Some(500)),
            ("0.5", 1000, Some(500)),
            (".5", 1000, Some(500)),
            ("2", 1000, Some(2000)),
            ("2.", 1000, Some(2000)),
            ("+1", 1, Some(1)),
            ("100u", 1000, Some(1)),
            ("1n", 1000, Some(1)),
            ("0", 1000, Some(0)),
            ("128Mi", 1, Some(128 << 20)),
            ("1.5Gi", 1, Some(3 << 29)),
            ("1G", 1, Some(1_000_000_000)),
            ("1e3", 1, Some(1000)),
            ("15E-1", 1, Some(2)),
            ("1E", 1, Some(1_000_000_000_000_000_000)),
            ("16Ei", 1, None),
            ("99999999999999999999", 1, None),
            ("1e99", 1, None),
            ("", 1, None),
            (".", 1, None),
            ("-1", 1, None),
            ("1.2.3", 1, None),
            ("1 Mi", 1, None),
            ("1Q", 1, None),
            ("Mi", 1, None),
            ("1mi", 1, None),
            ("1e", 1, None),
        ] {
            assert_eq!(parse(text, per_unit), expected, "{text:?}");
        }
    }
}

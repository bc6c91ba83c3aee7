//! How much of the disk images may take, as the environment says: `WHERRY_RESERVE` stays free, `WHERRY_QUOTA` is the most.

use std::env;

use wherry_images::store::Budget;

/// The budget of this process. A value that is no size is told and counts as none: a board must not stop pulling over it.
pub(crate) fn of_environment() -> Budget {
    let read = |name: &str| {
        let text = env::var(name).ok().filter(|text| !text.is_empty())?;
        let size = parse(&text);
        if size.is_none() {
            tracing::warn!(name, text, "not a size such as 512M: passed over");
        }
        size
    };
    Budget {
        reserve: read("WHERRY_RESERVE"),
        quota: read("WHERRY_QUOTA"),
    }
}

/// Bytes, or K, M, G, T of 1024 each, with or without a B behind it.
fn parse(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let text = text.strip_suffix('b').unwrap_or(&text);
    let text = text.strip_suffix('i').unwrap_or(text);
    let shift = match text.chars().last()? {
        'k' => 10,
        'm' => 20,
        'g' => 30,
        't' => 40,
        _ => 0,
    };
    let digits = if shift == 0 {
        text
    } else {
        text.get(..text.len() - 1)?
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, want) in [
            ("0", Some(0)),
            ("1000", Some(1000)),
            ("512M", Some(512 << 20)),
            ("2g", Some(2 << 30)),
            ("64MiB", Some(64 << 20)),
            ("3KB", Some(3072)),
            ("", None),
            ("M", None),
            ("1.5G", None),
            ("-1", None),
            ("99999999999T", None),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
    }
}

//! What a registry's answer to a request for (the rest of) a blob means, and where its lists go on.
//!
//! Pure: headers in, verdict out. The rule that always holds: a body is appended to a partial file only when the answer
//! says, in its own words, that it begins where the partial ends and that the whole is as long as the manifest says.

/// A `Content-Range` value (RFC 9110 14.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentRange {
    /// `bytes first-last/total`; `total` is absent for `*`.
    Part {
        /// Offset of the first byte.
        first: u64,
        /// Offset of the last byte, inclusive.
        last: u64,
        /// Length of the whole.
        total: Option<u64>,
    },
    /// `bytes */total`: nothing there.
    Unsatisfied {
        /// Length of the whole.
        total: u64,
    },
}

impl ContentRange {
    /// Reads a value. Anything that contradicts itself is none.
    pub(crate) fn parse(value: &str) -> Option<ContentRange> {
        let (unit, rest) = value.trim().split_once(' ')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (range, total) = rest.trim().split_once('/')?;
        let total = if total == "*" { None } else { Some(number(total)?) };
        if range == "*" {
            return total.map(|total| ContentRange::Unsatisfied { total });
        }
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        if last < first || total.is_some_and(|total| last >= total) {
            return None;
        }
        Some(ContentRange::Part { first, last, total })
    }
}

fn number(text: &str) -> Option<u64> {
    if text.is_empty() || text.len() > 19 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// What an answer said, reduced to what the verdict needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer<'a> {
    /// HTTP status.
    pub(crate) status: u16,
    /// `Content-Length`, if any.
    pub(crate) length: Option<u64>,
    /// `Content-Range`, if any.
    pub(crate) range: Option<&'a str>,
    /// `Content-Type`, if any.
    pub(crate) media_type: Option<&'a str>,
}

/// What to do with an answer to "the blob of `size` bytes, from `have` on".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The body continues the partial: append it.
    Append,
    /// The whole body came although a part was asked for: close at once, wait, ask again.
    Whole,
    /// The registry has nothing beyond `have`: its blob is shorter than the manifest says, or the partial is wrong.
    PastEnd,
    /// Not the blob at all (a portal's page, another length): nothing of it may be kept.
    Foreign(String),
    /// Some other status: for the caller to judge.
    Status,
}

/// Judges an answer to a request for the bytes `have..size`.
pub(crate) fn judge(have: u64, size: u64, answer: &Answer<'_>) -> Verdict {
    let page = answer
        .media_type
        .is_some_and(|t| t.trim_start().to_ascii_lowercase().starts_with("text/html"));
    match answer.status {
        200 | 206 if page => Verdict::Foreign(
            "a web page instead of the blob: a captive portal or a proxy answers for the registry".to_owned(),
        ),
        200 => match answer.length {
            Some(length) if length != size => {
                Verdict::Foreign(format!("{length} bytes, the manifest says {size}"))
            }
            _ if have == 0 => Verdict::Append,
            _ => Verdict::Whole,
        },
        206 => match answer.range.and_then(ContentRange::parse) {
            Some(ContentRange::Part { first, last, total })
                if first == have
                    && last < size
                    && total.is_none_or(|total| total == size)
                    && answer.length.is_none_or(|length| length == last - first + 1) =>
            {
                Verdict::Append
            }
            _ => Verdict::Foreign(format!(
                "content-range {:?} of {} bytes, asked for {have}-{} of {size}",
                answer.range.unwrap_or(""),
                answer
                    .length
                    .map_or_else(|| "unknown".to_owned(), |l| l.to_string()),
                size.saturating_sub(1)
            )),
        },
        416 => Verdict::PastEnd,
        _ => Verdict::Status,
    }
}

/// The target of `rel="next"` in a `Link` value (RFC 8288), by which tag and referrer lists go on.
pub(crate) fn next_link(value: &str) -> Option<&str> {
    let mut rest = value;
    while let Some(start) = rest.find('<') {
        let after = &rest[start + 1..];
        let end = after.find('>')?;
        let (target, parameters) = (&after[..end], &after[end + 1..]);
        // A comma inside a quoted parameter would end the link early; registries send none.
        let stop = parameters.find(",").unwrap_or(parameters.len());
        let is_next = parameters[..stop].split(';').any(|p| {
            let Some((name, value)) = p.split_once('=') else {
                return false;
            };
            name.trim().eq_ignore_ascii_case("rel")
                && value
                    .trim()
                    .trim_matches('"')
                    .split_ascii_whitespace()
                    .any(|r| r.eq_ignore_ascii_case("next"))
        });
        if is_next && !target.is_empty() {
            return Some(target);
        }
        rest = &parameters[stop..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let part = |first, last, total| Some(ContentRange::Part { first, last, total });
        for (value, wanted) in [
            ("bytes 0-9/10", part(0, 9, Some(10))),
            ("Bytes 5-9/*", part(5, 9, None)),
            ("bytes */10", Some(ContentRange::Unsatisfied { total: 10 })),
            ("bytes */*", None),
            ("bytes 9-5/10", None),
            ("bytes 0-10/10", None),
            ("bytes -5/10", None),
            ("bytes 0-99999999999999999999/*", None),
            ("bytes +1-5/10", None),
            ("items 0-9/10", None),
            ("", None),
        ] {
            assert_eq!(ContentRange::parse(value), wanted, "{value}");
        }
    }

    #[test]
    fn verdicts() {
        let size = 100;
        let answer = |status, length, range, media_type| Answer {
            status,
            length,
            range,
            media_type,
        };
        let octets = Some("application/octet-stream");
        type Check = fn(&Verdict) -> bool;
        let cases: Vec<(u64, Answer<'_>, Check)> = vec![
            (0, answer(200, Some(100), None, octets), |v| *v == Verdict::Append),
            (0, answer(200, None, None, None), |v| *v == Verdict::Append),
            (0, answer(200, Some(99), None, octets), |v| {
                matches!(v, Verdict::Foreign(_))
            }),
            (
                0,
                answer(200, Some(100), None, Some("text/html; charset=utf-8")),
                |v| matches!(v, Verdict::Foreign(_)),
            ),
            (10, answer(200, Some(100), None, octets), |v| *v == Verdict::Whole),
            (10, answer(206, Some(90), Some("bytes 10-99/100"), octets), |v| {
                *v == Verdict::Append
            }),
            (10, answer(206, Some(50), Some("bytes 10-59/100"), octets), |v| {
                *v == Verdict::Append
            }),
            (10, answer(206, None, Some("bytes 10-99/*"), octets), |v| {
                *v == Verdict::Append
            }),
            (10, answer(206, Some(91), Some("bytes 9-99/100"), octets), |v| {
                matches!(v, Verdict::Foreign(_))
            }),
            (10, answer(206, Some(90), Some("bytes 10-99/101"), octets), |v| {
                matches!(v, Verdict::Foreign(_))
            }),
            (10, answer(206, Some(89), Some("bytes 10-99/100"), octets), |v| {
                matches!(v, Verdict::Foreign(_))
            }),
            (10, answer(206, Some(90), None, octets), |v| {
                matches!(v, Verdict::Foreign(_))
            }),
            (10, answer(416, None, Some("bytes */10"), None), |v| {
                *v == Verdict::PastEnd
            }),
            (10, answer(404, None, None, Some("text/html")), |v| {
                *v == Verdict::Status
            }),
        ];
        for (have, answer, check) in cases {
            let verdict = judge(have, size, &answer);
            assert!(check(&verdict), "{have} {answer:?} -> {verdict:?}");
        }
    }

    #[test]
    fn links() {
        for (value, wanted) in [
            (
                r#"</v2/a/tags/list?n=2&last=b>; rel="next""#,
                Some("/v2/a/tags/list?n=2&last=b"),
            ),
            ("<x>; rel=prev, <y>; rel=next", Some("y")),
            (r#"<x>; title="a"; rel="prev next""#, Some("x")),
            ("<x>", None),
            ("<x; rel=next", None),
            ("<>; rel=next", None),
            ("", None),
        ] {
            assert_eq!(next_link(value), wanted, "{value}");
        }
    }
}

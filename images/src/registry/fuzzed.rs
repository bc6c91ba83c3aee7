//! For `crate::fuzzed`.

use super::auth;
use super::endpoint::Url;
use super::limits::{Window, parse_bytes};
use super::range::{Answer, ContentRange, Verdict, judge, next_link};
use super::retry::parse_retry_after;

/// A `WWW-Authenticate` value, and a token service's answer.
pub fn challenges(text: &str) {
    let found = auth::parse_challenges(text);
    assert!(found.len() <= text.len());
    for challenge in found {
        if let auth::Challenge::Bearer { realm, .. } = challenge {
            let _ = Url::parse(&realm).map(|url| url.with_query("scope", "a b").text());
        }
    }
    if let Ok(token) = auth::parse_token(text.as_bytes()) {
        assert!(token.value.bytes().all(|b| b.is_ascii_graphic()));
    }
}

/// docker's config.json.
pub fn account(bytes: &[u8]) {
    for registry in ["docker.io", "reg.example:5000"] {
        let _ = auth::parse_account(bytes, registry);
    }
}

/// `Link`, `Location`, `Retry-After`, and what an owner writes.
pub fn headers(text: &str) {
    if let Some(base) = Url::parse("https://reg.example/v2/a/tags/list?n=1") {
        for target in [next_link(text), Some(text)].into_iter().flatten() {
            if let Some(url) = base.join(target) {
                assert!(!url.authority.contains(['@', '/', ' ']), "{url}");
                assert!(!url.text().contains(['\r', '\n', ' ']), "{url}");
            }
        }
    }
    let _ = parse_retry_after(text, 1_700_000_000);
    let _ = (text.parse::<Window>(), parse_bytes(text));
}

/// An answer to a request for a part of a blob: what is appended begins and ends where it has to.
pub fn verdict(
    have: u64,
    size: u64,
    status: u16,
    length: Option<u64>,
    range: Option<&str>,
    kind: Option<&str>,
) {
    let answer = Answer {
        status,
        length,
        range,
        media_type: kind,
    };
    if judge(have, size, &answer) != Verdict::Append {
        return;
    }
    match (status, range.and_then(ContentRange::parse)) {
        (200, _) => assert!(have == 0 && length.is_none_or(|l| l == size)),
        (206, Some(ContentRange::Part { first, last, total })) => {
            assert!(first == have && last < size && total.is_none_or(|t| t == size));
            assert!(length.is_none_or(|l| l == last - first + 1));
        }
        other => panic!("appended: {other:?}"),
    }
}

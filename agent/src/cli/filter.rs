//! `--filter` of the verbs that list and remove images.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use wherry_images::store::ImageRecord;
use wherry_images::{Image, Reference, Store};

use super::failure::Failure;

/// What an image must be. Filters of one kind are alternatives, those of different kinds hold together.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Filter {
    /// Whether it has no name.
    pub(super) dangling: Option<bool>,
    labels: Vec<(String, Option<String>)>,
    without: Vec<(String, Option<String>)>,
    patterns: Vec<String>,
    /// Made before this moment.
    before: Option<OffsetDateTime>,
    /// Made after this moment.
    since: Option<OffsetDateTime>,
}

impl Filter {
    /// Reads what was typed, each `KEY=VALUE`. `store` is asked for the images that `before` and `since` name.
    pub(super) fn parse(typed: &[String], store: &Store) -> Result<Self, Failure> {
        let mut filter = Self::default();
        for text in typed {
            let wrong = |reason: &str| Failure::new(format!("--filter {text}: {reason}"));
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| wrong("write it as KEY=VALUE"))?;
            match key {
                "dangling" => {
                    filter.dangling = Some(match value {
                        "true" | "1" => true,
                        "false" | "0" => false,
                        _ => return Err(wrong("true or false")),
                    });
                }
                "label" => filter.labels.push(label(value)),
                "label!" => filter.without.push(label(value)),
                "reference" => filter.patterns.push(value.into()),
                "before" | "since" => {
                    let image = store.resolve(value)?;
                    let moment = created(image.config.created.as_deref());
                    let moment = moment.ok_or_else(|| wrong("that image does not say when it was made"))?;
                    match key {
                        "before" => filter.before = Some(moment),
                        _ => filter.since = Some(moment),
                    }
                }
                "until" => {
                    let moment =
                        until(value).ok_or_else(|| wrong("a time such as 2026-01-31T12:00:00Z or 24h"))?;
                    filter.before = Some(moment);
                }
                _ => {
                    return Err(wrong(
                        "there are dangling, label, label!, reference, before, since and until",
                    ));
                }
            }
        }
        Ok(filter)
    }

    /// Whether an image is one of those meant, as far as it is not about its name.
    pub(super) fn admits(&self, image: &Image) -> bool {
        let labels = &image.config.config.labels;
        let has = |(key, value): &(String, Option<String>)| {
            let found = labels.get(key);
            value
                .as_ref()
                .map_or(found.is_some(), |value| found == Some(value))
        };
        let made = created(image.config.created.as_deref());
        self.labels.iter().all(has)
            && !self.without.iter().any(has)
            && self
                .before
                .is_none_or(|before| made.is_some_and(|made| made < before))
            && self
                .since
                .is_none_or(|since| made.is_some_and(|made| made > since))
    }

    /// Whether a name is one of those meant.
    pub(super) fn names(&self, reference: &Reference) -> bool {
        let short = reference.familiar();
        let bare = reference.familiar_name();
        self.patterns.is_empty()
            || self
                .patterns
                .iter()
                .any(|pattern| matches(pattern, &short) || matches(pattern, &bare))
    }

    /// Both, for an image that has a name.
    pub(super) fn lists(&self, record: &ImageRecord, store: &Store) -> bool {
        self.names(&record.reference) && store.image(&record.digest).is_ok_and(|image| self.admits(&image))
    }
}

fn label(text: &str) -> (String, Option<String>) {
    match text.split_once('=') {
        Some((key, value)) => (key.into(), Some(value.into())),
        None => (text.into(), None),
    }
}

fn created(text: Option<&str>) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text?, &Rfc3339).ok()
}

/// A moment, a date, or that long ago: `1h30m`, `24h`, `7d`.
fn until(text: &str) -> Option<OffsetDateTime> {
    if let Ok(moment) = OffsetDateTime::parse(text, &Rfc3339) {
        return Some(moment);
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return OffsetDateTime::from_unix_timestamp(seconds).ok();
    }
    if let Ok(midnight) = OffsetDateTime::parse(&format!("{text}T00:00:00Z"), &Rfc3339) {
        return Some(midnight);
    }
    let mut total = Duration::ZERO;
    let mut digits = String::new();
    for c in text.chars() {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        let seconds = match c {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 24 * 3600,
            _ => return None,
        };
        let count: u64 = digits.parse().ok()?;
        total = total.checked_add(Duration::from_secs(count.checked_mul(seconds)?))?;
        digits.clear();
    }
    let complete = digits.is_empty() && !text.is_empty();
    complete
        .then(|| OffsetDateTime::now_utc().checked_sub(total.try_into().ok()?))
        .flatten()
}

/// Shell patterns: `*` stops at a slash, `?` is one character.
fn matches(pattern: &str, text: &str) -> bool {
    // The places in the pattern that the text so far may stand at.
    let pattern: Vec<char> = pattern.chars().collect();
    let mut at = vec![0_usize];
    let skip_stars = |at: &mut Vec<usize>| {
        let mut i = 0;
        while let Some(place) = at.get(i).copied() {
            if pattern.get(place) == Some(&'*') && !at.contains(&(place + 1)) {
                at.push(place + 1);
            }
            i += 1;
        }
    };
    skip_stars(&mut at);
    for c in text.chars() {
        let mut next = Vec::new();
        for place in at {
            let step = match pattern.get(place) {
                Some('*') if c != '/' => place,
                Some('?') if c != '/' => place + 1,
                Some(p) if *p == c => place + 1,
                _ => continue,
            };
            if !next.contains(&step) {
                next.push(step);
            }
        }
        skip_stars(&mut next);
        at = next;
    }
    at.contains(&pattern.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, want) in [
            ("iris", "iris", true),
            ("iris", "iris:v1", false),
            ("iris:*", "iris:v1", true),
            ("*/iris", "reg/iris", true),
            ("*/iris", "reg/a/iris", false),
            ("*", "a/b", false),
            ("i?is", "iris", true),
            ("**s", "iris", true),
            ("", "", true),
            ("*a*a*a*a*a*a*a*a*b", &"a".repeat(5000), false),
        ] {
            assert_eq!(matches(pattern, text), want, "{pattern} {text}");
        }
    }

    #[test]
    fn moments() {
        let now = OffsetDateTime::now_utc();
        for (text, seconds) in [("24h", 86_400), ("1h30m", 5400), ("7d", 604_800), ("10s", 10)] {
            let ago = (now - until(text).unwrap()).whole_seconds();
            assert!((ago - seconds).abs() < 5, "{text}: {ago}");
        }
        assert_eq!(until("2026-01-31").unwrap().unix_timestamp(), 1_769_817_600);
        assert_eq!(until("1769817600").unwrap().unix_timestamp(), 1_769_817_600);
        for text in ["", "x", "5", "1y", "h", "99999999999999999999d"] {
            assert!(until(text).is_none() || text == "5", "{text}");
        }
    }
}

//! Lists and watches: selectors, resource versions, pages, bookmarks.

use super::refusal::{Refusal, Target};
use super::store::Change;
use super::{Inner, selected, version_of};
use crate::http::{Answer, Request, Response, Stream};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a quiet watch gets a bookmark, and how long before its end it gets the last.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// How long a list waits for a version from the future.
const FUTURE: Duration = Duration::from_secs(3);

type Pairs = Vec<(String, String)>;

/// The query's fieldSelector; a field that the resource cannot be selected by is 400.
pub(super) fn field_selector(request: &Request, resource: &str) -> Result<Pairs, Refusal> {
    let known: &[&str] = match resource {
        "pods" => &[
            "metadata.name",
            "metadata.namespace",
            "spec.nodeName",
            "status.phase",
            "status.podIP",
        ],
        _ => &["metadata.name", "metadata.namespace"],
    };
    let pairs = pairs(request.parameter("fieldSelector").unwrap_or_default());
    match pairs.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        Some((name, _)) => Err(Refusal::new(
            400,
            "BadRequest",
            format!("field label not supported: {name}"),
        )),
        None => Ok(pairs),
    }
}

/// `a=b,c==d`.
fn pairs(text: &str) -> Pairs {
    text.split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| {
            (
                name.trim().to_owned(),
                value.trim_start_matches('=').trim().to_owned(),
            )
        })
        .collect()
}

fn in_scope(object: &Value, target: &Target, fields: &Pairs, labels: &Pairs) -> bool {
    target
        .namespace
        .as_ref()
        .is_none_or(|namespace| object["metadata"]["namespace"] == namespace.as_str())
        && selected(object, fields, labels)
}

fn parse_version(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| {
        format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        )
    })
}

/// The rules that lists and watches share about their options.
fn check_options(request: &Request, watch: bool) -> Result<(), Refusal> {
    let matching = request.parameter("resourceVersionMatch");
    let initial = request.parameter("sendInitialEvents").is_some();
    let mut causes = Vec::new();
    if watch {
        if initial && matching != Some("NotOlderThan") {
            causes.push((
                "resourceVersionMatch",
                "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        if matching.is_some() && !initial {
            causes.push((
                "resourceVersionMatch",
                "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
    } else {
        if matching.is_some()
            && request
                .parameter("resourceVersion")
                .unwrap_or_default()
                .is_empty()
        {
            causes.push((
                "resourceVersionMatch",
                "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if initial {
            causes.push((
                "sendInitialEvents",
                "Forbidden: sendInitialEvents is forbidden for list",
            ));
        }
    }
    if causes.is_empty() {
        Ok(())
    } else {
        Err(Refusal::invalid_options(&causes))
    }
}

fn token(version: i64, start: &str) -> String {
    let text = format!("{{\"v\":\"meta.k8s.io/v1\",\"rv\":{version},\"start\":\"{start}\\u0000\"}}");
    STANDARD_NO_PAD.encode(text)
}

/// A continue token's version and the place after which to go on.
fn read_token(text: &str) -> Result<(u64, String), Refusal> {
    let bad = |why: String| {
        Refusal::new(
            400,
            "BadRequest",
            format!("invalid continue token: continue key is not valid: {why}"),
        )
    };
    let bytes = STANDARD_NO_PAD
        .decode(text)
        .map_err(|error| bad(error.to_string()))?;
    let token: Value = serde_json::from_slice(&bytes).map_err(|_| {
        let first = bytes.first().map_or(' ', |byte| char::from(*byte));
        bad(format!(
            "invalid character '{first}' looking for beginning of value"
        ))
    })?;
    let start = token["start"]
        .as_str()
        .unwrap_or_default()
        .trim_end_matches('\0')
        .trim_matches('/')
        .to_owned();
    Ok((token["rv"].as_u64().unwrap_or(0), start))
}

/// A GET of a collection.
pub(super) fn list(
    inner: &Arc<Inner>,
    target: &Target,
    kind: &str,
    api_version: &str,
    fields: &Pairs,
    request: &Request,
) -> Result<Answer, Refusal> {
    check_options(request, false)?;
    let labels = pairs(request.parameter("labelSelector").unwrap_or_default());
    let given = request.parameter("resourceVersion").unwrap_or_default();
    let wanted = if given.is_empty() {
        0
    } else {
        parse_version(given)
            .map_err(|why| Refusal::new(400, "BadRequest", format!("invalid resource version: {why}")))?
    };
    let current = inner.state().store.revision();
    if wanted > current {
        std::thread::sleep(FUTURE);
        let message = format!("Timeout: Too large resource version: {wanted}, current: {current}");
        let cause = json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
        let details = json!({"causes": [cause], "retryAfterSeconds": 1});
        return Err(Refusal {
            details,
            ..Refusal::new(504, "Timeout", message)
        });
    }
    let state = inner.state();
    let exact = request.parameter("resourceVersionMatch") == Some("Exact");
    if exact && wanted < state.store.oldest() {
        return Err(Refusal::new(
            410,
            "Expired",
            "The resourceVersion for the provided list is too old.",
        ));
    }
    let (version, after) = match request.parameter("continue").filter(|text| !text.is_empty()) {
        None => (if exact { wanted } else { state.store.revision() }, String::new()),
        Some(text) => {
            let (version, after) = read_token(text)?;
            if version < state.store.oldest() {
                let message = "The provided continue parameter is too old to display a consistent list result. You \
                               can start a new list without the continue parameter, or use the continue token in \
                               this response to retrieve the remainder of the results. Continuing with the provided \
                               token results in an inconsistent list - objects that were created, modified, or \
                               deleted between the time the first chunk was returned and now may show up in the list.";
                let metadata = json!({"continue": token(-1, &after)});
                return Err(Refusal {
                    metadata,
                    ..Refusal::new(410, "Expired", message)
                });
            }
            (version, after)
        }
    };
    let objects = state.store.list_at(&target.resource, version);
    drop(state);
    let limit = request
        .parameter("limit")
        .and_then(|text| text.parse().ok())
        .filter(|limit| *limit > 0);
    let mut items = Vec::new();
    let mut next = None;
    for (key, object) in objects {
        let place = if key.namespace.is_empty() {
            key.name.clone()
        } else {
            format!("{}/{}", key.namespace, key.name)
        };
        if !after.is_empty() && place <= after {
            continue;
        }
        // The server pages before it selects: a full page has a successor as soon as any object follows.
        if limit.is_some_and(|limit: usize| items.len() == limit) {
            let last: &Value = &items[items.len() - 1];
            let name = |field: &str| last["metadata"][field].as_str().unwrap_or_default().to_owned();
            next = Some(token(
                i64::try_from(version).unwrap_or(0),
                &format!("/{}/{}", name("namespace"), name("name")),
            ));
            break;
        }
        if in_scope(&object, target, fields, &labels) {
            let mut item = object;
            if let Some(members) = item.as_object_mut() {
                members.shift_remove("kind");
                members.shift_remove("apiVersion");
            }
            items.push(item);
        }
    }
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let Some(next) = next {
        metadata["continue"] = json!(next);
    }
    let list = json!({"kind": format!("{kind}List"), "apiVersion": api_version, "metadata": metadata, "items": items});
    Ok(Answer::Whole(Response::new(
        200,
        "application/json",
        list.to_string(),
    )))
}

/// One watch: what it selects and how far it has come.
struct Watch {
    inner: Arc<Inner>,
    target: Target,
    kind: String,
    api_version: String,
    fields: Pairs,
    labels: Pairs,
    bookmarks: bool,
    /// The initial state is sent first, with a mark at its end where bookmarks are asked for.
    initial: bool,
    from: u64,
    end: Option<Instant>,
}

/// A GET with `watch=true`.
pub(super) fn watch(
    inner: &Arc<Inner>,
    target: &Target,
    kind: &str,
    api_version: &str,
    fields: &Pairs,
    request: &Request,
) -> Result<Answer, Refusal> {
    check_options(request, true)?;
    let given = request.parameter("resourceVersion").unwrap_or_default();
    let from = if given.is_empty() {
        0
    } else {
        parse_version(given).map_err(|why| Refusal::new(500, "", why))?
    };
    let seconds = request
        .parameter("timeoutSeconds")
        .and_then(|text| text.parse().ok());
    let truth = |name: &str| {
        request
            .parameter(name)
            .is_some_and(|value| matches!(value, "true" | "1"))
    };
    let watch = Watch {
        inner: Arc::clone(inner),
        target: target.clone(),
        kind: kind.to_owned(),
        api_version: api_version.to_owned(),
        fields: fields.clone(),
        labels: pairs(request.parameter("labelSelector").unwrap_or_default()),
        bookmarks: truth("allowWatchBookmarks"),
        initial: from == 0 || truth("sendInitialEvents"),
        from,
        end: seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds)),
    };
    Ok(Answer::Streamed(
        "application/json",
        Box::new(move |stream| watch.run(stream)),
    ))
}

impl Watch {
    fn run(mut self, stream: &mut Stream<'_>) -> std::io::Result<()> {
        if self.initial {
            let (revision, objects) = {
                let state = self.inner.state();
                let revision = state.store.revision();
                (revision, state.store.list_at(&self.target.resource, revision))
            };
            for (_, object) in objects {
                if in_scope(&object, &self.target, &self.fields, &self.labels) {
                    send(stream, "ADDED", &object)?;
                }
            }
            if self.bookmarks {
                self.bookmark(stream, revision, true)?;
            }
            self.from = revision;
        } else {
            let (oldest, revision) = {
                let state = self.inner.state();
                (state.store.oldest(), state.store.revision())
            };
            if self.from < oldest {
                let message = format!("too old resource version: {} ({revision})", self.from);
                return send(stream, "ERROR", &Refusal::new(410, "Expired", message).status());
            }
        }
        let mut bookmark = Instant::now() + BOOKMARK_EVERY;
        let mut last_sent = false;
        loop {
            let changes: Vec<Change> = self.inner.state().store.since(self.from).to_vec();
            for change in changes {
                self.from = change.revision;
                self.event(stream, &change)?;
            }
            let now = Instant::now();
            if self.end.is_some_and(|end| now >= end) {
                return Ok(());
            }
            let near_end = self.end.is_some_and(|end| now + BOOKMARK_BEFORE_END >= end);
            if self.bookmarks && (now >= bookmark || (near_end && !last_sent)) {
                let revision = self.inner.state().store.revision();
                self.bookmark(stream, revision.max(self.from), false)?;
                bookmark = now + BOOKMARK_EVERY;
                last_sent |= near_end;
            }
            // A client that has gone is noticed here; a change wakes the wait.
            if stream.closed_within(Duration::from_millis(1)) {
                return Ok(());
            }
            let state = self.inner.state();
            if state.store.since(self.from).is_empty() {
                let wait = self.end.map_or(Duration::from_millis(200), |end| {
                    end.saturating_duration_since(now)
                });
                let _ = self
                    .inner
                    .changed
                    .wait_timeout(state, wait.min(Duration::from_millis(200)));
            }
        }
    }

    fn event(&self, stream: &mut Stream<'_>, change: &Change) -> std::io::Result<()> {
        if change.key.resource != self.target.resource {
            return Ok(());
        }
        let was = change
            .before
            .as_ref()
            .is_some_and(|old| in_scope(old, &self.target, &self.fields, &self.labels));
        let is = !change.deleted && in_scope(&change.object, &self.target, &self.fields, &self.labels);
        match (was, is) {
            (false, true) => send(stream, "ADDED", &change.object),
            (true, true) => send(stream, "MODIFIED", &change.object),
            (true, false) => send(stream, "DELETED", &change.object),
            (false, false) => Ok(()),
        }
    }

    fn bookmark(&self, stream: &mut Stream<'_>, revision: u64, initial_end: bool) -> std::io::Result<()> {
        let mut object = json!({
            "kind": self.kind,
            "apiVersion": self.api_version,
            "metadata": {"resourceVersion": revision.to_string()},
        });
        if initial_end {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        match self.target.resource.as_str() {
            "pods" => {
                object["spec"] = json!({"containers": null});
                object["status"] = json!({});
            }
            _ => object["spec"] = json!({}),
        }
        debug_assert_eq!(version_of(&object), revision);
        send(stream, "BOOKMARK", &object)
    }
}

fn send(stream: &mut Stream<'_>, kind: &str, object: &Value) -> std::io::Result<()> {
    let mut line = json!({"type": kind, "object": object}).to_string();
    line.push('\n');
    stream.send(line.as_bytes())
}

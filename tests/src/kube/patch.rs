//! The three patch forms: strategic merge, merge (RFC 7386) and JSON patch (RFC 6902, the operations add, replace,
//! remove and test).

use super::refusal::Refusal;
use serde_json::{Map, Value, json};

/// A patch form, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `application/strategic-merge-patch+json`
    Strategic,
    /// `application/merge-patch+json`
    Merge,
    /// `application/json-patch+json`
    Json,
}

impl Form {
    /// By content type; a form the server does not take is 415.
    pub(super) fn of(content_type: &str) -> Result<Self, Refusal> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/json-patch+json" => Ok(Self::Json),
            _ => Err(Refusal {
                details: json!({}),
                ..Refusal::new(415, "UnsupportedMediaType", "415: Unsupported Media Type")
            }),
        }
    }
}

/// The lists that merge by a key; all others are replaced whole. `containerStatuses` is not among them.
fn merge_key(path: &str) -> Option<&'static str> {
    match path {
        "/status/conditions" | "/status/addresses" => Some("type"),
        "/status/podIPs" | "/status/hostIPs" => Some("ip"),
        "/metadata/ownerReferences" => Some("uid"),
        "/spec/containers" | "/spec/volumes" => Some("name"),
        _ => None,
    }
}

/// The patched object.
pub(super) fn apply(form: Form, current: &Value, patch: &Value) -> Result<Value, Refusal> {
    let mut patched = current.clone();
    match form {
        Form::Merge => merge(&mut patched, patch),
        Form::Strategic => strategic(&mut patched, patch, "")?,
        Form::Json => {
            for operation in patch.as_array().ok_or_else(|| bad("a JSON patch is a list"))? {
                operate(&mut patched, operation)?;
            }
        }
    }
    Ok(patched)
}

fn bad(why: &str) -> Refusal {
    Refusal::new(400, "BadRequest", why)
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let members = object(target);
    for (name, value) in patch {
        if value.is_null() {
            members.shift_remove(name);
        } else {
            merge(members.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// The members of the value, which becomes an empty object when it is none.
fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(members) => members,
        _ => unreachable!("made an object above"),
    }
}

fn strategic(target: &mut Value, patch: &Value, path: &str) -> Result<(), Refusal> {
    match patch {
        Value::Object(patch) => {
            match patch.get("$patch").and_then(Value::as_str) {
                Some("replace") => {
                    let mut whole = patch.clone();
                    whole.shift_remove("$patch");
                    *target = Value::Object(whole);
                    return Ok(());
                }
                Some(directive) => return Err(bad(&format!("$patch {directive} is not known for a map"))),
                None => {}
            }
            let members = object(target);
            for (name, value) in patch {
                let at = format!("{path}/{name}");
                if name.starts_with("$setElementOrder/") {
                    continue;
                }
                if name.starts_with('$') {
                    return Err(bad(&format!("{name} is not known to this double")));
                }
                match (value, merge_key(&at)) {
                    (Value::Null, _) => {
                        members.shift_remove(name);
                    }
                    (Value::Array(elements), Some(key)) => {
                        let order = patch.get(&format!("$setElementOrder/{name}"));
                        let current = members
                            .get(name)
                            .and_then(Value::as_array)
                            .cloned()
                            .unwrap_or_default();
                        let merged = merge_list(current, elements, key, order, &at)?;
                        members.insert(name.clone(), Value::Array(merged));
                    }
                    (Value::Object(_), _) => strategic(members.entry(name).or_insert(json!({})), value, &at)?,
                    (other, _) => {
                        members.insert(name.clone(), strip_directives(other));
                    }
                }
            }
            Ok(())
        }
        other => {
            *target = other.clone();
            Ok(())
        }
    }
}

/// A list without a merge key is replaced whole; an element that is only a directive is none of its elements.
fn strip_directives(value: &Value) -> Value {
    match value {
        Value::Array(elements) => elements
            .iter()
            .filter(|element| element.get("$patch").is_none())
            .cloned()
            .collect(),
        other => other.clone(),
    }
}

fn merge_list(
    mut current: Vec<Value>,
    elements: &[Value],
    key: &str,
    order: Option<&Value>,
    path: &str,
) -> Result<Vec<Value>, Refusal> {
    let replace =
        |element: &Value| element.get("$patch") == Some(&json!("replace")) && element.get(key).is_none();
    if elements.iter().any(replace) {
        return Ok(elements
            .iter()
            .filter(|element| !replace(element))
            .cloned()
            .collect());
    }
    let mut added = Vec::new();
    for element in elements {
        let wanted = element
            .get(key)
            .ok_or_else(|| bad(&format!("an element of {path} has no {key}")))?;
        let found = current.iter().position(|known| known.get(key) == Some(wanted));
        match (element.get("$patch").and_then(Value::as_str), found) {
            (Some("delete"), Some(index)) => {
                current.remove(index);
            }
            (Some("delete"), None) => {}
            (Some(directive), _) => {
                return Err(bad(&format!("$patch {directive} is not known for an element")));
            }
            (None, Some(index)) => strategic(&mut current[index], element, &format!("{path}[]"))?,
            (None, None) => added.push(element.clone()),
        }
    }
    // What is new comes first, unless the patch tells the order.
    added.extend(current);
    if let Some(order) = order.and_then(Value::as_array) {
        let place = |element: &Value| {
            order
                .iter()
                .position(|wanted| wanted.get(key) == element.get(key))
        };
        added.sort_by_key(|element| place(element).unwrap_or(usize::MAX));
    }
    Ok(added)
}

fn operate(target: &mut Value, operation: &Value) -> Result<(), Refusal> {
    let text = |name: &str| operation.get(name).and_then(Value::as_str).unwrap_or_default();
    let path = text("path");
    let (parent, last) = path
        .rsplit_once('/')
        .ok_or_else(|| bad("a JSON patch needs a path"))?;
    let last = last.replace("~1", "/").replace("~0", "~");
    let missing = || {
        Refusal::new(
            422,
            "Invalid",
            format!("the server rejected our request: no {path}"),
        )
    };
    let value = operation.get("value").cloned().unwrap_or_default();
    let holder = target.pointer_mut(parent).ok_or_else(missing)?;
    match (text("op"), holder) {
        ("test", holder) => {
            let found = match holder {
                Value::Array(elements) => last.parse::<usize>().ok().and_then(|index| elements.get(index)),
                other => other.get(&last),
            };
            if found == Some(&value) {
                Ok(())
            } else {
                Err(missing())
            }
        }
        ("add", Value::Array(elements)) => {
            let index = if last == "-" {
                elements.len()
            } else {
                last.parse().map_err(|_| missing())?
            };
            if index > elements.len() {
                return Err(missing());
            }
            elements.insert(index, value);
            Ok(())
        }
        ("replace" | "remove", Value::Array(elements)) => {
            let index = last
                .parse::<usize>()
                .ok()
                .filter(|index| *index < elements.len())
                .ok_or_else(missing)?;
            if text("op") == "remove" {
                elements.remove(index);
            } else {
                elements[index] = value;
            }
            Ok(())
        }
        ("add", Value::Object(members)) => {
            members.insert(last, value);
            Ok(())
        }
        ("replace", Value::Object(members)) if members.contains_key(&last) => {
            members.insert(last, value);
            Ok(())
        }
        ("remove", Value::Object(members)) if members.contains_key(&last) => {
            members.shift_remove(&last);
            Ok(())
        }
        ("add" | "replace" | "remove", _) => Err(missing()),
        (other, _) => Err(bad(&format!(
            "the JSON patch operation {other:?} is not known to this double"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_merge_by_key_or_not_at_all() {
        let current = json!({"status": {
            "conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "True"}],
            "containerStatuses": [{"name": "a"}, {"name": "b"}],
        }});
        for (patch, expected) in [
            (
                json!({"status": {"conditions": [{"type": "B", "status": "False"}]}}),
                json!([{"type": "A", "status": "True"}, {"type": "B", "status": "False"}]),
            ),
            (
                json!({"status": {"conditions": [{"type": "C", "status": "True"}]}}),
                json!([{"type": "C", "status": "True"}, {"type": "A", "status": "True"}, {"type": "B", "status": "True"}]),
            ),
            (
                json!({"status": {"conditions": [{"$patch": "delete", "type": "A"}]}}),
                json!([{"type": "B", "status": "True"}]),
            ),
            (
                json!({"status": {"conditions": [{"$patch": "replace"}, {"type": "D", "status": "True"}]}}),
                json!([{"type": "D", "status": "True"}]),
            ),
            (
                json!({"status": {
                    "$setElementOrder/conditions": [{"type": "B"}, {"type": "A"}],
                    "conditions": [{"type": "A", "status": "False"}],
                }}),
                json!([{"type": "B", "status": "True"}, {"type": "A", "status": "False"}]),
            ),
        ] {
            let patched = apply(Form::Strategic, &current, &patch).expect("apply");
            assert_eq!(patched["status"]["conditions"], expected, "{patch}");
            assert_eq!(
                patched["status"]["containerStatuses"],
                current["status"]["containerStatuses"]
            );
        }
        let whole = json!({"status": {"containerStatuses": [{"name": "c"}]}});
        let patched = apply(Form::Strategic, &current, &whole).expect("apply");
        assert_eq!(patched["status"]["containerStatuses"], json!([{"name": "c"}]));
    }

    #[test]
    fn merge_and_json_patches_do_what_their_rfcs_say() {
        let current = json!({"a": {"b": 1, "c": [1, 2]}, "d": true});
        let merged = apply(
            Form::Merge,
            &current,
            &json!({"a": {"b": null, "c": [3]}, "e": {}}),
        )
        .expect("merge");
        assert_eq!(merged, json!({"a": {"c": [3]}, "d": true, "e": {}}));
        let patch = json!([
            {"op": "test", "path": "/d", "value": true},
            {"op": "replace", "path": "/a/c/1", "value": 5},
            {"op": "add", "path": "/a/c/-", "value": 6},
            {"op": "remove", "path": "/d"},
        ]);
        assert_eq!(
            apply(Form::Json, &current, &patch).expect("json"),
            json!({"a": {"b": 1, "c": [1, 5, 6]}})
        );
        assert_eq!(
            apply(Form::Json, &current, &json!([{"op": "remove", "path": "/x"}])).map_err(|e| e.code),
            Err(422)
        );
    }
}

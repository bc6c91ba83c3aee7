//! Errors as the API server words them: a `Status` object with a code, a reason and details.

use crate::http::Response;
use serde_json::{Value, json};

/// What is being asked about, in the words of the API's messages.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Target {
    /// The API group, empty for the core group.
    pub(super) group: String,
    /// The plural resource name: `pods`.
    pub(super) resource: String,
    /// The namespace, where the path has one.
    pub(super) namespace: Option<String>,
    /// The object's name, where the path (or the new object) has one.
    pub(super) name: Option<String>,
    /// `status` and the like.
    pub(super) subresource: Option<String>,
}

impl Target {
    /// `leases.coordination.k8s.io`, `pods`.
    pub(super) fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.resource.clone()
        } else {
            format!("{}.{}", self.resource, self.group)
        }
    }

    /// The name or nothing.
    pub(super) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// `pods "x"`, or `pods` where no object is named.
    fn subject(&self) -> String {
        match &self.name {
            Some(name) => format!("{} \"{name}\"", self.qualified()),
            None => self.qualified(),
        }
    }

    fn details(&self) -> Value {
        let mut details = json!({});
        if let Some(name) = &self.name {
            details["name"] = json!(name);
        }
        if !self.group.is_empty() {
            details["group"] = json!(self.group);
        }
        details["kind"] = json!(self.resource);
        details
    }
}

/// A refused request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refusal {
    /// The HTTP status.
    pub(super) code: u16,
    /// The machine-readable reason; empty where the API gives none.
    pub(super) reason: &'static str,
    /// The text for people.
    pub(super) message: String,
    /// The `details` member, null for none.
    pub(super) details: Value,
    /// The `metadata` member.
    pub(super) metadata: Value,
}

impl Refusal {
    /// Any refusal without details.
    pub(super) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: Value::Null,
            metadata: json!({}),
        }
    }

    fn about(code: u16, reason: &'static str, target: &Target, message: String) -> Self {
        Self {
            details: target.details(),
            ..Self::new(code, reason, message)
        }
    }

    /// 404.
    pub(super) fn not_found(target: &Target) -> Self {
        Self::about(404, "NotFound", target, format!("{} not found", target.subject()))
    }

    /// 409 for a POST.
    pub(super) fn exists(target: &Target) -> Self {
        Self::about(
            409,
            "AlreadyExists",
            target,
            format!("{} already exists", target.subject()),
        )
    }

    /// 409 for a stale resourceVersion.
    pub(super) fn conflict(target: &Target) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {}: the object has been modified; please apply your changes to the \
             latest version and try again",
            target.subject()
        );
        Self::about(409, "Conflict", target, message)
    }

    /// 409 for a precondition of a DELETE that does not hold: `what` is `UID` or `ResourceVersion`.
    pub(super) fn precondition(target: &Target, kind: &str, what: &str, wanted: &str, found: &str) -> Self {
        let after = if what == "UID" {
            "deleted and then recreated"
        } else {
            "modified"
        };
        let message = format!(
            "Operation cannot be fulfilled on {kind} \"{}\": the {what} in the precondition ({wanted}) does not match \
             the {what} in record ({found}). The object might have been {after}",
            target.name()
        );
        let mut named = target.clone();
        named.resource = kind.to_owned();
        Self::about(409, "Conflict", &named, message)
    }

    /// 403 with the server's reason for it.
    pub(super) fn forbidden(target: &Target, why: impl std::fmt::Display) -> Self {
        Self::about(
            403,
            "Forbidden",
            target,
            format!("{} is forbidden: {why}", target.subject()),
        )
    }

    /// 422 by one field of an object of that kind.
    pub(super) fn invalid_kind(
        target: &Target,
        kind: &str,
        field: &str,
        cause: &'static str,
        text: &str,
        times: usize,
    ) -> Self {
        let qualified = if target.group.is_empty() {
            kind.to_owned()
        } else {
            format!("{kind}.{}", target.group)
        };
        let mut named = target.clone();
        named.resource = kind.to_owned();
        let mut details = named.details();
        details["causes"] = vec![json!({"reason": cause, "message": text, "field": field}); times].into();
        let message = format!("{qualified} \"{}\" is invalid: {field}: {text}", target.name());
        Self {
            details,
            ..Self::new(422, "Invalid", message)
        }
    }

    /// 422 by one field, named by the resource.
    pub(super) fn invalid(target: &Target, field: &str, text: &str) -> Self {
        let mut details = target.details();
        details["causes"] = json!([{"reason": "FieldValueInvalid", "message": text, "field": field}]);
        let message = format!("{} is invalid: {field}: {text}", target.subject());
        Self {
            details,
            ..Self::new(422, "Invalid", message)
        }
    }

    /// 422 for a patch whose result has a field of a wrong type or form.
    pub(super) fn invalid_patch(patch: &str, why: &str) -> Self {
        let text = format!("Invalid value: {patch:?}: {why}");
        let details = json!({"causes": [{"reason": "FieldValueInvalid", "message": text, "field": "patch"}]});
        Self {
            details,
            ..Self::new(422, "Invalid", format!(" \"\" is invalid: patch: {text}"))
        }
    }

    /// 422 by the query of a list or watch: pairs of field and text.
    pub(super) fn invalid_options(causes: &[(&str, &str)]) -> Self {
        let texts: Vec<String> = causes
            .iter()
            .map(|(field, text)| format!("{field}: {text}"))
            .collect();
        let joined = if texts.len() == 1 {
            texts[0].clone()
        } else {
            format!("[{}]", texts.join(", "))
        };
        let causes: Vec<Value> = causes
            .iter()
            .map(|(field, text)| json!({"reason": "FieldValueForbidden", "message": text, "field": field}))
            .collect();
        let details = json!({"group": "meta.k8s.io", "kind": "ListOptions", "causes": causes});
        Self {
            details,
            ..Self::new(
                422,
                "Invalid",
                format!("ListOptions.meta.k8s.io \"\" is invalid: {joined}"),
            )
        }
    }

    /// The `Status` object.
    pub(super) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.metadata,
            "status": "Failure",
            "message": self.message,
        });
        if !self.reason.is_empty() {
            status["reason"] = json!(self.reason);
        }
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status["code"] = json!(self.code);
        status
    }

    /// The answer.
    pub(super) fn response(&self) -> Response {
        let mut response = Response::new(self.code, "application/json", self.status().to_string());
        if let Some(seconds) = self.details.get("retryAfterSeconds") {
            response
                .headers
                .push(("retry-after".to_owned(), seconds.to_string()));
        }
        response
    }
}

//! `--format` as docker has it: `table`, `table TEMPLATE`, `json`, or a Go template for each object.

use serde_json::{Map, Value};

use super::failure::Failure;
use super::table::{clean, rows};
use crate::template::Template;

/// How a list is to be printed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Format {
    /// The verb's own table.
    Table,
    /// One object a line.
    Json,
    /// A template for each object.
    Lines(Template),
    /// A template for each object, under a header, in columns.
    Columns(Template),
}

impl Format {
    /// Reads the value of `--format`.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let wrong = |reason: String| Failure::new(format!("--format: {reason}"));
        match text {
            "" | "table" => return Ok(Self::Table),
            "json" => return Ok(Self::Json),
            _ => {}
        }
        // A shell passes these on as they are typed.
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        if let Some(columns) = text.strip_prefix("table ") {
            return Template::parse(columns.trim()).map(Self::Columns).map_err(wrong);
        }
        if !text.contains("{{") {
            return Err(Failure::new(format!(
                "format {text:?} is not supported; use table, json or a template such as '{{{{.ID}}}}'"
            )));
        }
        Template::parse(&text).map(Self::Lines).map_err(wrong)
    }

    /// The objects printed, `None` for the verb's own table. `headers` names the columns that are not just the field in capitals.
    pub(super) fn list(
        &self,
        objects: &[Value],
        headers: &[(&str, &str)],
    ) -> Result<Option<String>, Failure> {
        let wrong = |reason: String| Failure::new(format!("--format: {reason}"));
        match self {
            Self::Table => Ok(None),
            Self::Json => Ok(Some(objects.iter().map(|object| format!("{object}\n")).collect())),
            Self::Lines(template) => {
                let mut text = String::new();
                for object in objects {
                    text.push_str(&template.render(object).map_err(wrong)?);
                    text.push('\n');
                }
                Ok(Some(text))
            }
            Self::Columns(template) => {
                let line = |object: &Value| -> Result<Vec<String>, Failure> {
                    let text = template.render(object).map_err(wrong)?;
                    Ok(text.split('\t').map(clean).collect())
                };
                let mut all = Vec::new();
                if let Some(first) = objects.first() {
                    all.push(line(&header(first, headers))?);
                }
                for object in objects {
                    all.push(line(object)?);
                }
                Ok(Some(rows(&all)))
            }
        }
    }
}

/// An object of the same fields, each its own heading.
fn header(object: &Value, headers: &[(&str, &str)]) -> Value {
    let Some(fields) = object.as_object() else {
        return Value::Null;
    };
    let heading = |name: &String| {
        let known = headers.iter().find(|(field, _)| field == name);
        known.map_or_else(|| spaced(name), |(_, heading)| (*heading).to_owned())
    };
    let named = fields.keys().map(|name| (name.clone(), heading(name).into()));
    Value::Object(named.collect::<Map<_, _>>())
}

/// `CreatedSince` is `CREATED SINCE`.
fn spaced(name: &str) -> String {
    let mut text = String::new();
    let mut lower = false;
    for c in name.chars() {
        if lower && c.is_uppercase() {
            text.push(' ');
        }
        lower = c.is_lowercase();
        text.extend(c.to_uppercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(format: &str) -> Result<String, String> {
        let objects = [
            json!({"ID": "abc", "Repository": "iris", "CreatedSince": "now"}),
            json!({"ID": "d", "Repository": "a\u{1b}[1m", "CreatedSince": "then"}),
        ];
        let list = Format::parse(format).and_then(|format| format.list(&objects, &[("ID", "IMAGE ID")]));
        list.map(|text| text.unwrap_or("its own table".into()))
            .map_err(|failure| failure.line)
    }

    #[test]
    fn as_docker_has_it() {
        for (format, want) in [
            ("table", "its own table"),
            ("", "its own table"),
            ("{{.ID}}", "abc\nd\n"),
            ("{{.ID}}\\t{{.Repository}}", "abc\tiris\nd\ta\u{1b}[1m\n"),
            (
                "table {{.ID}}\\t{{.CreatedSince}}",
                "IMAGE ID   CREATED SINCE\nabc        now\nd          then\n",
            ),
            ("table {{.Repository}}", "REPOSITORY\niris\na?[1m\n"),
        ] {
            assert_eq!(check(format).as_deref(), Ok(want), "{format}");
        }
        assert!(check("json").unwrap().starts_with("{\"ID\":\"abc\""));
        for (format, part) in [
            ("yaml", "is not supported; use table, json or a template"),
            ("{{.Nothing}}", "no field \"Nothing\"; there are ID, Repository"),
            ("{{", "{{ without }}"),
        ] {
            let error = check(format).unwrap_err();
            assert!(error.contains(part), "{format}: {error}");
        }
    }
}

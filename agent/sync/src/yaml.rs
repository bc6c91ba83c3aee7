//! Hostile YAML (and JSON, which is YAML) as a tree whose every value knows its line.
//!
//! A tree between the parser and the types costs one copy of a file that is at most 1 MiB, and buys that each
//! refusal names its field and its line, several at once, instead of the first one the parser stumbles over.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use serde_saphyr::options::DuplicateKeyPolicy;

use crate::manifest::Problem;

/// The largest file read as YAML. A Pod is a few kilobytes; Kubernetes' own limit on an object is 1.5 MiB.
pub(crate) const MAX_BYTES: usize = 1 << 20;

/// One value and the line on which it starts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) line: u64,
    pub(crate) value: Value,
}

/// A value as YAML's core schema types it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    /// Any other number, in its shortest spelling.
    Number(String),
    String(String),
    List(Vec<Node>),
    Map(Vec<(String, u64, Node)>),
}

impl Value {
    /// The kind of the value, for a message.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) | Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// Reads every document of `bytes`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<Node>, Problem> {
    if bytes.len() > MAX_BYTES {
        return Err(Problem::file(format!(
            "{} bytes are more than the {MAX_BYTES} that are read",
            bytes.len()
        )));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count()
            + 1;
        Problem {
            path: String::new(),
            line: line as u64,
            what: "not UTF-8".to_owned(),
        }
    })?;
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 100_000,
            max_aliases: 200,
            max_anchors: 200,
            max_recorded_anchor_events: 20_000,
            max_recorded_anchor_bytes: MAX_BYTES,
            max_depth: 32,
            flow_nesting_limit: 32,
            max_documents: 64,
            max_nodes: 50_000,
            max_total_scalar_bytes: 2 * MAX_BYTES,
            max_merge_keys: 100,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 20_000 },
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options::<Node>(text, options).map_err(|error| Problem {
        path: String::new(),
        line: error.location().map_or(0, |location| location.line()),
        what: one_line(&error.without_snippet().to_string()),
    })
}

/// The parser's messages may run over several lines and end with a place that [`Problem`] already has.
fn one_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default().trim();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    let end = line.find(" at line ").unwrap_or(line.len());
    line[..end].trim_end_matches([':', '.', ' ']).to_owned()
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            line: spanned.referenced.line(),
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tree)
    }
}

struct Tree;

impl<'de> Visitor<'de> for Tree {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or_else(|_| Value::Number(value.to_string()), Value::Integer))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_bytes<E: serde::de::Error>(self, _: &[u8]) -> Result<Value, E> {
        Err(E::custom("binary values are not supported"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        // No size hint: a length from the file never sizes an allocation.
        let mut list = Vec::new();
        while let Some(node) = access.next_element::<Node>()? {
            list.push(node);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map: Vec<(String, u64, Node)> = Vec::new();
        // A key is text as it is written: `y:` and `1:` are names here, not a boolean and a number.
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            map.push((key.value, key.referenced.line(), access.next_value()?));
        }
        Ok(Value::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Node {
        parse(text.as_bytes()).unwrap().into_iter().next().unwrap()
    }

    #[test]
    fn every_value_knows_its_line() {
        let Value::Map(root) = one("a: 1\nb:\n  c:\n  - x\n  - y: true\n    z:\n").value else {
            panic!()
        };
        assert_eq!(
            (root[0].0.as_str(), root[0].1, &root[0].2.value),
            ("a", 1, &Value::Integer(1))
        );
        let Value::Map(b) = &root[1].2.value else { panic!() };
        let Value::List(c) = &b[0].2.value else { panic!() };
        assert_eq!((c[0].line, &c[0].value), (4, &Value::String("x".to_owned())));
        let Value::Map(item) = &c[1].value else { panic!() };
        assert_eq!((item[0].1, &item[0].2.value), (5, &Value::Bool(true)));
        assert_eq!((item[1].1, &item[1].2.value), (6, &Value::Null));
    }

    #[test]
    fn scalars_are_typed_by_the_core_schema() {
        for (text, value) in [
            ("'1'", Value::String("1".to_owned())),
            ("1", Value::Integer(1)),
            ("-7", Value::Integer(-7)),
            ("1.5", Value::Number("1.5".to_owned())),
            (
                "99999999999999999999999",
                Value::Number("100000000000000000000000".to_owned()),
            ),
            ("null", Value::Null),
            ("~", Value::Null),
            ("hello", Value::String("hello".to_owned())),
            ("|\n  a\n  b\n", Value::String("a\nb\n".to_owned())),
        ] {
            let Value::Map(map) = one(&format!("v: {text}")).value else {
                panic!("{text}")
            };
            assert_eq!(map[0].2.value, value, "{text}");
        }
    }

    #[test]
    fn json_is_yaml() {
        let Value::Map(root) = one("{\"a\": [1, \"x\\u00e9\"],\n \"b\": {}}").value else {
            panic!()
        };
        let Value::List(a) = &root[0].2.value else {
            panic!()
        };
        assert_eq!(a[1].value, Value::String("x\u{e9}".to_owned()));
        assert_eq!(root[1].1, 2);
    }

    #[test]
    fn hostile_input_is_refused_quickly() {
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..12 {
            let alias = format!("*a{},", level - 1).repeat(10);
            bomb.push_str(&format!(
                "a{level}: &a{level} [{}]\n",
                alias.trim_end_matches(',')
            ));
        }
        // Two hundred aliases of one long list stay below every limit but that on what aliases replay.
        let long = format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(9_000), "*a,".repeat(150));
        let deep = "[".repeat(10_000);
        let block = (0..200)
            .map(|depth| format!("{}a:\n", " ".repeat(depth)))
            .collect::<String>();
        let documents = "---\na: 1\n".repeat(1000);
        let big = " ".repeat(MAX_BYTES + 1);
        for (name, text) in [
            ("bomb", &bomb),
            ("long", &long),
            ("deep", &deep),
            ("block", &block),
            ("docs", &documents),
            ("big", &big),
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{name} was accepted");
        }
        assert_eq!(parse(b"a: b\nc: \xff\n").unwrap_err().line, 2);
    }

    #[test]
    fn syntax_errors_and_doubled_keys_name_their_line() {
        assert_eq!(parse(b"a: 1\nb: [1, 2\nc: 3\n").unwrap_err().line, 3);
        let doubled = parse(b"a: 1\nb: 2\na: 3\n").unwrap_err();
        assert_eq!(doubled.line, 3, "{doubled}");
        assert!(!doubled.to_string().contains('\n'), "{doubled}");
    }
}

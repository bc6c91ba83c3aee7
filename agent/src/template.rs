//! The part of Go's templates that people use with `--format`: fields, `json`, `range`, `if`, `with`, pipes and docker's functions.
//!
//! Parsing and rendering are pure: text and a JSON value in, text or the reason out. What a template names and the value
//! lacks is `<no value>` as in Go's maps, but for the outermost object, where it is a mistake that is told with the names there are.

mod parse;

use serde_json::Value;

use parse::{Node, Pipe, Term};

/// What Go prints for what is not there.
const NO_VALUE: &str = "<no value>";
/// The largest text that is made: a template can loop over loops.
const MAX_TEXT: usize = 64 << 20;

/// A template, parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    nodes: Vec<Node>,
}

/// Variables in force, the innermost last.
type Variables = Vec<(String, Value)>;

impl Template {
    /// Reads a template. `Err` is the reason.
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(Self {
            nodes: parse::parse(text)?,
        })
    }

    /// Renders it for one value.
    pub fn render(&self, value: &Value) -> Result<String, String> {
        let mut run = Run {
            root: value,
            out: String::new(),
            variables: vec![("$".into(), value.clone())],
        };
        run.nodes(&self.nodes, value)?;
        Ok(run.out)
    }
}

struct Run<'a> {
    root: &'a Value,
    out: String,
    variables: Variables,
}

impl Run<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<(), String> {
        for node in nodes {
            if self.out.len() > MAX_TEXT {
                return Err("the template makes too much text".into());
            }
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Emit(pipe) => {
                    let value = self.pipe(pipe, dot)?;
                    self.out.push_str(&text(&value));
                }
                Node::Set(name, pipe) => {
                    let value = self.pipe(pipe, dot)?;
                    self.variables.push((name.clone(), value));
                }
                Node::If(pipe, then, other) => {
                    let chosen = if is_true(&self.pipe(pipe, dot)?) {
                        then
                    } else {
                        other
                    };
                    self.scoped(chosen, dot)?;
                }
                Node::With(pipe, then, other) => {
                    let value = self.pipe(pipe, dot)?;
                    match is_true(&value) {
                        true => self.scoped(then, &value)?,
                        false => self.scoped(other, dot)?,
                    }
                }
                Node::Range(names, pipe, body, other) => self.range(names, pipe, body, other, dot)?,
            }
        }
        Ok(())
    }

    fn scoped(&mut self, nodes: &[Node], dot: &Value) -> Result<(), String> {
        let depth = self.variables.len();
        self.nodes(nodes, dot)?;
        self.variables.truncate(depth);
        Ok(())
    }

    fn range(
        &mut self,
        names: &[String],
        pipe: &Pipe,
        body: &[Node],
        other: &[Node],
        dot: &Value,
    ) -> Result<(), String> {
        let value = self.pipe(pipe, dot)?;
        let items: Vec<(Value, Value)> = match value {
            Value::Array(items) => (0..)
                .zip(items)
                .map(|(at, item): (u64, _)| (at.into(), item))
                .collect(),
            Value::Object(map) => {
                let mut items: Vec<_> = map.into_iter().map(|(key, item)| (key.into(), item)).collect();
                // As Go does it.
                items.sort_by(|(a, _): &(Value, _), (b, _)| a.as_str().cmp(&b.as_str()));
                items
            }
            Value::Null => Vec::new(),
            other => return Err(format!("range can't iterate over {}", text(&other))),
        };
        if items.is_empty() {
            return self.scoped(other, dot);
        }
        for (key, item) in items {
            let depth = self.variables.len();
            match names {
                [] => {}
                [one] => self.variables.push((one.clone(), item.clone())),
                [first, second, ..] => {
                    self.variables.push((first.clone(), key));
                    self.variables.push((second.clone(), item.clone()));
                }
            }
            self.nodes(body, &item)?;
            self.variables.truncate(depth);
        }
        Ok(())
    }

    fn pipe(&self, pipe: &Pipe, dot: &Value) -> Result<Value, String> {
        let mut last: Option<Value> = None;
        for command in &pipe.0 {
            last = Some(self.command(command, last, dot)?);
        }
        last.ok_or_else(|| "a pipe with nothing in it".into())
    }

    fn command(&self, terms: &[Term], piped: Option<Value>, dot: &Value) -> Result<Value, String> {
        let Some((first, rest)) = terms.split_first() else {
            return Err("a command with nothing in it".into());
        };
        let mut values = rest
            .iter()
            .map(|term| self.term(term, dot))
            .collect::<Result<Vec<_>, _>>()?;
        values.extend(piped);
        match first {
            Term::Function(name) => call(name, values),
            term if values.is_empty() => self.term(term, dot),
            _ => Err("only a function takes arguments".into()),
        }
    }

    fn term(&self, term: &Term, dot: &Value) -> Result<Value, String> {
        match term {
            Term::Value(value) => Ok(value.clone()),
            Term::Field(path) => self.field(dot, path),
            Term::Variable(name, path) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                let (_, value) = known.ok_or_else(|| format!("undefined variable {name:?}"))?;
                self.field(value, path)
            }
            Term::Function(name) => call(name, Vec::new()),
            Term::Group(pipe, path) => self.field(&self.pipe(pipe, dot)?, path),
        }
    }

    fn field(&self, value: &Value, path: &[String]) -> Result<Value, String> {
        let mut found = value;
        for name in path {
            let is_outermost = std::ptr::eq(found, self.root);
            found = match found {
                Value::Object(map) => match map.get(name) {
                    Some(value) => value,
                    None if is_outermost => {
                        let known: Vec<&str> = map.keys().map(String::as_str).collect();
                        return Err(format!("no field {name:?}; there are {}", known.join(", ")));
                    }
                    None => return Ok(Value::Null),
                },
                Value::Null => return Ok(Value::Null),
                _ => return Err(format!("can't evaluate field {name:?} in {}", text(found))),
            };
        }
        Ok(found.clone())
    }
}

/// A value as Go prints it.
fn text(value: &Value) -> String {
    match value {
        Value::Null => NO_VALUE.into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(text).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(map) => {
            let mut items: Vec<String> = map
                .iter()
                .map(|(key, value)| format!("{key}:{}", text(value)))
                .collect();
            items.sort();
            format!("map[{}]", items.join(" "))
        }
        other => other.to_string(),
    }
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// The functions that there are; [`parse`] takes no other word for one.
const FUNCTIONS: [&str; 23] = [
    "json", "len", "index", "join", "split", "upper", "lower", "title", "println", "print", "printf", "eq",
    "ne", "not", "and", "or", "lt", "gt", "truncate", "pad", "html", "js", "urlquery",
];

fn call(name: &str, values: Vec<Value>) -> Result<Value, String> {
    let count = values.len();
    let wrong = || format!("{name}: wrong number of arguments, {count}");
    let one = || values.first().filter(|_| count == 1).ok_or_else(wrong);
    let two = || match values.as_slice() {
        [a, b] => Ok((a, b)),
        _ => Err(wrong()),
    };
    let words = || values.iter().map(text).collect::<Vec<_>>();
    Ok(match name {
        "json" => one()?.to_string().into(),
        "len" => match one()? {
            Value::String(text) => text.len().into(),
            Value::Array(items) => items.len().into(),
            Value::Object(map) => map.len().into(),
            other => return Err(format!("len of {}", text(other))),
        },
        "index" => index(&values)?,
        "join" => {
            let (list, between) = two()?;
            let items = list.as_array().ok_or("join: not a list")?;
            let items: Vec<String> = items.iter().map(text).collect();
            items.join(&text(between)).into()
        }
        "split" => {
            let (whole, at) = two()?;
            let (whole, at) = (text(whole), text(at));
            whole.split(at.as_str()).map(Value::from).collect()
        }
        "upper" => text(one()?).to_uppercase().into(),
        "lower" => text(one()?).to_lowercase().into(),
        "title" => title(&text(one()?)).into(),
        "print" => words().join(" ").into(),
        "println" => (words().join(" ") + "\n").into(),
        "printf" => printf(&values)?.into(),
        "eq" => {
            let (first, rest) = values.split_first().ok_or_else(wrong)?;
            rest.iter().any(|other| other == first).into()
        }
        "ne" => {
            let (a, b) = two()?;
            (a != b).into()
        }
        "lt" | "gt" => {
            let (a, b) = two()?;
            let order = match (a.as_f64(), b.as_f64()) {
                (Some(a), Some(b)) => a.partial_cmp(&b),
                _ => Some(text(a).cmp(&text(b))),
            };
            (order
                == Some(if name == "lt" {
                    std::cmp::Ordering::Less
                } else {
                    std::cmp::Ordering::Greater
                }))
            .into()
        }
        "not" => (!is_true(one()?)).into(),
        "and" => last_of(&values, |value| !is_true(value)).ok_or_else(wrong)?,
        "or" => last_of(&values, is_true).ok_or_else(wrong)?,
        "truncate" => {
            let (whole, most) = two()?;
            let most = most.as_u64().ok_or("truncate: not a length")?;
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            text(whole).chars().take(most).collect::<String>().into()
        }
        "pad" => match values.as_slice() {
            [whole, before, after] => {
                let blanks = |n: &Value| " ".repeat(n.as_u64().unwrap_or(0).min(1000) as usize);
                format!("{}{}{}", blanks(before), text(whole), blanks(after)).into()
            }
            _ => return Err(wrong()),
        },
        _ => return Err(format!("function {name:?} is not supported")),
    })
}

/// The first value that decides, else the last.
fn last_of(values: &[Value], decides: impl Fn(&Value) -> bool) -> Option<Value> {
    let deciding = values.iter().find(|value| decides(value));
    deciding.or(values.last()).cloned()
}

fn index(values: &[Value]) -> Result<Value, String> {
    let (first, keys) = values.split_first().ok_or("index: of nothing")?;
    let mut found = first;
    for key in keys {
        found = match (found, key) {
            (Value::Object(map), key) => match map.get(&text(key)) {
                Some(value) => value,
                None => return Ok(Value::Null),
            },
            (Value::Array(items), Value::Number(at)) => {
                let at = at.as_u64().and_then(|at| usize::try_from(at).ok());
                let item = at.and_then(|at| items.get(at));
                item.ok_or_else(|| format!("index out of range: {key}"))?
            }
            (Value::Null, _) => return Ok(Value::Null),
            (other, key) => return Err(format!("can't index {} with {}", text(other), text(key))),
        };
    }
    Ok(found.clone())
}

fn title(text: &str) -> String {
    let mut start = true;
    let upper = |c: char| {
        let first = std::mem::replace(&mut start, c.is_whitespace());
        if first {
            c.to_uppercase().collect::<String>()
        } else {
            c.to_string()
        }
    };
    text.chars().map(upper).collect()
}

/// `%s`, `%v`, `%d`, `%q` and `%%`, each with a width.
fn printf(values: &[Value]) -> Result<String, String> {
    let (format, mut values) = match values.split_first() {
        Some((Value::String(format), values)) => (format, values.iter()),
        _ => return Err("printf: the first argument is no format".into()),
    };
    let mut out = String::new();
    let mut letters = format.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut width = String::new();
        while let Some(c) = letters.next_if(|c| c.is_ascii_digit() || *c == '-') {
            width.push(c);
        }
        let left = width.starts_with('-');
        let width: usize = width.trim_start_matches('-').parse().unwrap_or(0).min(1000);
        let piece = match letters.next() {
            Some('%') => "%".into(),
            Some('s' | 'v' | 'd') => text(values.next().ok_or("printf: an argument is missing")?),
            Some('q') => format!(
                "{:?}",
                text(values.next().ok_or("printf: an argument is missing")?)
            ),
            other => return Err(format!("printf: %{} is not supported", other.unwrap_or(' '))),
        };
        out.push_str(&if left {
            format!("{piece:<width$}")
        } else {
            format!("{piece:>width$}")
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests;

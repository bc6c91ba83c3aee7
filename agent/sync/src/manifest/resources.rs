//! `resources` of a container: processors and memory.

use super::check::clip;
use super::{Fields, Reader};
use crate::pod::{Amounts, Resources};
use crate::quantity;
use crate::yaml::{Node, Value};

impl Reader {
    pub(super) fn resources(&mut self, path: &str, node: &Node) -> Resources {
        let mut fields = self.fields(path.to_owned(), node);
        let limits = self.amounts(&mut fields, "limits");
        let requests = self.amounts(&mut fields, "requests");
        // As the API server does: what is limited is asked for, where nothing else is.
        let resources = Resources {
            limits,
            requests: Amounts {
                cpu: requests.cpu.or(limits.cpu),
                memory: requests.memory.or(limits.memory),
            },
        };
        let over = |request: Option<u64>, limit: Option<u64>| {
            request.zip(limit).is_some_and(|(request, limit)| request > limit)
        };
        for (name, over) in [
            ("cpu", over(resources.requests.cpu, limits.cpu)),
            ("memory", over(resources.requests.memory, limits.memory)),
        ] {
            if over {
                let path = format!("{path}.requests.{name}");
                self.refuse(
                    &path,
                    node.line,
                    format!("must be less than or equal to the {name} limit"),
                );
            }
        }
        self.finish(fields, &["claims"]);
        resources
    }

    fn amounts(&mut self, fields: &mut Fields<'_>, name: &str) -> Amounts {
        let Some(node) = fields.take(name) else {
            return Amounts::default();
        };
        let mut item = self.fields(fields.path(name), node);
        let mut amount = |item: &mut Fields<'_>, name: &str, per_unit: u64| {
            let node = item.take(name)?;
            let path = item.path(name);
            let text = match &node.value {
                Value::String(text) | Value::Number(text) => text.clone(),
                Value::Integer(number) => number.to_string(),
                _ => {
                    self.wanted(&path, node, "a quantity");
                    return None;
                }
            };
            let parsed = quantity::parse(&text, per_unit);
            if parsed.is_none() {
                let what = format!("{:?} is not a quantity (as 500m, 0.5, 128Mi)", clip(&text));
                self.refuse(&path, node.line, what);
            }
            parsed
        };
        let amounts = Amounts {
            cpu: amount(&mut item, "cpu", 1000),
            memory: amount(&mut item, "memory", 1),
        };
        for (name, line, _) in std::mem::take(&mut item.rest) {
            let path = item.path(&clip(name));
            self.refuse(&path, *line, "not supported yet: cpu and memory are");
        }
        amounts
    }
}

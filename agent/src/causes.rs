//! An error and its causes in one line.

use std::error::Error;

/// The error and its causes in one line, fit for a log and a terminal. A cause that its parent has already told is not
/// told again.
pub(crate) fn line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Link(&'static str, #[source] Option<Box<Link>>);

    #[test]
    fn causes_are_told_once_and_in_one_line() {
        let chain = |top, below| Link(top, Some(Box::new(Link(below, None))));
        for (error, told) in [
            (Link("alone", None), "alone"),
            (
                chain("cannot open a", "no such file"),
                "cannot open a: no such file",
            ),
            (chain("a: no such file", "no such file"), "a: no such file"),
            (chain("yaml", "here\n  ^ \u{1b}[31m"), "yaml: here   ^  [31m"),
        ] {
            assert_eq!(line(&error), told);
        }
    }
}

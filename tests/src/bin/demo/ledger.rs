//! What the demo says, claims and adds up.

use std::time::Instant;

/// The story so far, and the claims that failed.
pub(crate) struct Ledger {
    start: Instant,
    rows: Vec<(String, String)>,
    failed: usize,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            rows: Vec::new(),
            failed: 0,
        }
    }

    /// One line of the story, with the seconds since the start.
    pub(crate) fn say(&self, line: &str) {
        println!("{:6.1}  {line}", self.start.elapsed().as_secs_f64());
    }

    /// A line that must be true.
    pub(crate) fn claim(&mut self, line: &str, holds: bool) {
        if holds {
            self.say(line);
        } else {
            self.failed += 1;
            self.say(&format!("DOES NOT HOLD: {line}"));
        }
    }

    /// A row of the table at the end.
    pub(crate) fn row(&mut self, what: &str, value: String) {
        self.rows.push((what.to_owned(), value));
    }

    /// Prints the table and returns how many claims failed.
    pub(crate) fn close(self) -> usize {
        println!();
        let width = self
            .rows
            .iter()
            .map(|(what, _)| what.chars().count())
            .max()
            .unwrap_or(0);
        for (what, value) in &self.rows {
            println!("  {what:<width$}  {value:>22}");
        }
        println!(
            "  {:<width$}  {:>22}",
            "the whole demo",
            format!("{:.1} s", self.start.elapsed().as_secs_f64())
        );
        self.failed
    }
}

/// `1,234,567 bytes`.
pub(crate) fn bytes(count: u64) -> String {
    let digits = count.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + " bytes"
}

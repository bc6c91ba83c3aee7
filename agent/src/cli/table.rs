//! Columns as docker prints them: each as wide as its longest cell and three spaces.

/// The space between columns.
const GAP: usize = 3;

/// Lays out rows beneath a header. Control characters, which come from foreign images, do not reach the terminal.
pub(super) fn columns<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = std::iter::once(header.map(str::to_owned))
        .chain(rows.iter().map(|row| row.clone().map(|cell| clean(&cell))))
        .collect();
    let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
    self::rows(&rows)
}

/// Lays out lines of cells, each column as wide as its widest.
pub(super) fn rows(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + GAP - cell.chars().count()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A text without what a terminal would act upon.
pub(super) fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// At most `max` characters, the last one an ellipsis when something was cut.
pub(super) fn cut(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.into();
    }
    text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let rows = [
            ["a".into(), "x\u{1b}[1m".into()],
            ["long name".into(), String::new()],
        ];
        assert_eq!(
            columns(["NAME", "WHAT"], &rows),
            "NAME        WHAT\na           x?[1m\nlong name\n"
        );
        assert_eq!(columns(["A", "B"], &[]), "A   B\n");
        assert_eq!(
            (cut("abcdef", 4).as_str(), cut("abcd", 4).as_str()),
            ("abc…", "abcd")
        );
    }
}

//! The iris measurements: 150 flowers, four lengths in centimetres each, three classes (R. A. Fisher, 1936).

/// The four columns, in the order of the file and of every sample.
pub const FEATURES: [&str; 4] = ["sepal_length", "sepal_width", "petal_length", "petal_width"];

/// The three classes; a class is an index into this list everywhere else.
pub const CLASSES: [&str; 3] = ["setosa", "versicolor", "virginica"];

/// One flower.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flower {
    /// Centimetres, in the order of [`FEATURES`].
    pub lengths: [f32; 4],
    /// An index into [`CLASSES`].
    pub class: usize,
}

/// Reads the CSV form: a header line, then one flower to a line. The error names the line.
pub fn parse(text: &str) -> Result<Vec<Flower>, String> {
    let mut lines = text.lines();
    let header = format!("{},class", FEATURES.join(","));
    if lines.next() != Some(header.as_str()) {
        return Err(format!("line 1: expected the header {header:?}"));
    }
    lines
        .enumerate()
        .map(|(index, line)| flower(line).map_err(|error| format!("line {}: {error}", index + 2)))
        .collect()
}

fn flower(line: &str) -> Result<Flower, String> {
    let fields: Vec<&str> = line.split(',').collect();
    let [a, b, c, d, class] = fields[..] else {
        return Err(format!("expected 5 fields, got {}", fields.len()));
    };
    let mut lengths = [0.0; 4];
    for (length, field) in lengths.iter_mut().zip([a, b, c, d]) {
        *length = field.parse().map_err(|_| format!("{field:?} is not a length"))?;
    }
    let class = CLASSES
        .iter()
        .position(|name| *name == class)
        .ok_or_else(|| format!("unknown class {class:?}"))?;
    Ok(Flower { lengths, class })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published class means, to three places: the data here is the data everybody means by "iris".
    #[test]
    fn the_measurements_are_fishers() -> Result<(), String> {
        let flowers = parse(include_str!("../iris.csv"))?;
        assert_eq!(flowers.len(), 150);
        let published = [
            [5.006, 3.428, 1.462, 0.246],
            [5.936, 2.770, 4.260, 1.326],
            [6.588, 2.974, 5.552, 2.026],
        ];
        for (class, means) in published.iter().enumerate() {
            let of_class: Vec<_> = flowers.iter().filter(|flower| flower.class == class).collect();
            assert_eq!(of_class.len(), 50);
            for (feature, expected) in means.iter().enumerate() {
                let mean = of_class.iter().map(|flower| flower.lengths[feature]).sum::<f32>() / 50.0;
                assert!(
                    (mean - expected).abs() < 0.0005,
                    "{} of {}: {mean}",
                    FEATURES[feature],
                    CLASSES[class]
                );
            }
        }
        Ok(())
    }

    #[test]
    fn a_bad_line_is_named() {
        let header = "sepal_length,sepal_width,petal_length,petal_width,class\n";
        for (line, expected) in [
            ("5,3,1", "line 2: expected 5 fields, got 3"),
            ("5,3,1,x,setosa", "line 2: \"x\" is not a length"),
            ("5,3,1,2,rose", "line 2: unknown class \"rose\""),
        ] {
            assert_eq!(parse(&format!("{header}{line}\n")), Err(expected.to_owned()));
        }
    }
}

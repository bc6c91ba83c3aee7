//! A random forest, written plainly: bootstrap samples, axis-parallel splits by Gini impurity, majority by averaged
//! leaf shares. The same seed gives the same bytes: the randomness is a fixed generator, and ties go to the first.
//!
//! The file form is text, one node to a line, each tree in depth-first order:
//!
//! ```text
//! iris-forest 1
//! version 2 trees 15 depth 4 seed 7
//! split 2 2.45          go left when feature 2 <= 2.45
//! leaf 50 0 0           flowers of each class that came here in training
//! ```

use crate::measurements::{CLASSES, FEATURES, Flower};

/// The first line of the file form.
const MAGIC: &str = "iris-forest 1";
/// A tree deeper than this is not one of ours; it bounds the reader's recursion.
const MAX_DEPTH: usize = 16;
/// More trees than this are not one of ours; it bounds the reader's memory with [`MAX_DEPTH`].
const MAX_TREES: usize = 1000;

/// How a forest is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Training {
    /// The release that the model belongs to.
    pub version: u32,
    /// How many trees vote.
    pub trees: usize,
    /// How many splits lie above a leaf, at most.
    pub depth: usize,
    /// The start of the random numbers.
    pub seed: u64,
}

/// A trained forest.
#[derive(Debug, Clone, PartialEq)]
pub struct Forest {
    /// How it was trained, as the file says.
    pub training: Training,
    trees: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Split {
        feature: usize,
        at: f32,
        left: Box<Node>,
        right: Box<Node>,
    },
    Leaf([u32; 3]),
}

impl Forest {
    /// Trains a forest from the flowers.
    pub fn train(flowers: &[Flower], training: Training) -> Self {
        let mut random = Random(training.seed);
        let trees = (0..training.trees)
            .map(|_| {
                let sample: Vec<Flower> = (0..flowers.len())
                    .map(|_| flowers[random.below(flowers.len())])
                    .collect();
                grow(&sample, training.depth, &mut random)
            })
            .collect();
        Self { training, trees }
    }

    /// The probability of each class, in the order of [`CLASSES`].
    pub fn probabilities(&self, lengths: &[f32; 4]) -> [f32; 3] {
        let mut sum = [0.0; 3];
        for tree in &self.trees {
            let counts = tree.descend(lengths);
            let total = counts.iter().sum::<u32>().max(1) as f32;
            for (class, count) in counts.iter().enumerate() {
                sum[class] += *count as f32 / total;
            }
        }
        sum.map(|share| share / self.trees.len().max(1) as f32)
    }

    /// The most probable class; the first of equals.
    pub fn class(probabilities: &[f32; 3]) -> &'static str {
        let mut best = 0;
        for class in 1..probabilities.len() {
            if probabilities[class] > probabilities[best] {
                best = class;
            }
        }
        CLASSES[best]
    }

    /// The file form.
    pub fn to_text(&self) -> String {
        let Training {
            version,
            trees,
            depth,
            seed,
        } = self.training;
        let mut text = format!("{MAGIC}\nversion {version} trees {trees} depth {depth} seed {seed}\n");
        for tree in &self.trees {
            tree.write(&mut text);
        }
        text
    }

    /// Reads the file form. The error names the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut reader = Reader {
            lines: text.lines(),
            line: 0,
        };
        if reader.next()? != MAGIC {
            return Err(format!("line 1: expected {MAGIC:?}"));
        }
        let words: Vec<&str> = reader.next()?.split(' ').collect();
        let ["version", version, "trees", trees, "depth", depth, "seed", seed] = words[..] else {
            return Err("line 2: expected version, trees, depth and seed".to_owned());
        };
        let training = Training {
            version: reader.number(version)?,
            trees: reader.number(trees)?,
            depth: reader.number(depth)?,
            seed: reader.number(seed)?,
        };
        if training.trees > MAX_TREES {
            return Err(format!(
                "line 2: {} trees are more than {MAX_TREES}",
                training.trees
            ));
        }
        let trees = (0..training.trees)
            .map(|_| reader.node(0))
            .collect::<Result<_, _>>()?;
        match reader.lines.next() {
            Some(_) => Err(format!(
                "line {}: nothing may follow the last tree",
                reader.line + 1
            )),
            None => Ok(Self { training, trees }),
        }
    }
}

impl Node {
    fn descend(&self, lengths: &[f32; 4]) -> &[u32; 3] {
        match self {
            Node::Leaf(counts) => counts,
            Node::Split {
                feature,
                at,
                left,
                right,
            } => {
                if lengths[*feature] <= *at {
                    left.descend(lengths)
                } else {
                    right.descend(lengths)
                }
            }
        }
    }

    fn write(&self, text: &mut String) {
        match self {
            Node::Leaf([a, b, c]) => text.push_str(&format!("leaf {a} {b} {c}\n")),
            Node::Split {
                feature,
                at,
                left,
                right,
            } => {
                text.push_str(&format!("split {feature} {at}\n"));
                left.write(text);
                right.write(text);
            }
        }
    }
}

struct Reader<'a> {
    lines: std::str::Lines<'a>,
    line: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<&'a str, String> {
        self.line += 1;
        self.lines
            .next()
            .ok_or_else(|| format!("line {}: the file ends too soon", self.line))
    }

    fn number<T: std::str::FromStr>(&self, word: &str) -> Result<T, String> {
        word.parse()
            .map_err(|_| format!("line {}: {word:?} is not a number", self.line))
    }

    fn node(&mut self, depth: usize) -> Result<Node, String> {
        if depth > MAX_DEPTH {
            return Err(format!("line {}: a tree deeper than {MAX_DEPTH}", self.line));
        }
        let words: Vec<&str> = self.next()?.split(' ').collect();
        match words[..] {
            ["leaf", a, b, c] => Ok(Node::Leaf([self.number(a)?, self.number(b)?, self.number(c)?])),
            ["split", feature, at] => {
                let feature = self.number(feature)?;
                if feature >= FEATURES.len() {
                    return Err(format!("line {}: no feature {feature}", self.line));
                }
                let at = self.number(at)?;
                Ok(Node::Split {
                    feature,
                    at,
                    left: Box::new(self.node(depth + 1)?),
                    right: Box::new(self.node(depth + 1)?),
                })
            }
            _ => Err(format!("line {}: expected a split or a leaf", self.line)),
        }
    }
}

/// A multiplicative generator (SplitMix64): small, and the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

fn counts(flowers: &[Flower]) -> [u32; 3] {
    let mut counts = [0; 3];
    for flower in flowers {
        counts[flower.class] += 1;
    }
    counts
}

/// Twice the number of wrongly drawn pairs: zero when all flowers are of one class.
fn impurity(counts: &[u32; 3]) -> f64 {
    let total = f64::from(counts.iter().sum::<u32>());
    if total == 0.0 {
        0.0
    } else {
        total - counts.iter().map(|c| f64::from(*c).powi(2)).sum::<f64>() / total
    }
}

fn grow(flowers: &[Flower], depth: usize, random: &mut Random) -> Node {
    let all = counts(flowers);
    // Two of the four features are looked at for each split: that is what makes the trees differ.
    let first = random.below(FEATURES.len());
    let second = (first + 1 + random.below(FEATURES.len() - 1)) % FEATURES.len();
    let mut best: Option<(f64, usize, f32)> = None;
    if depth > 0 && impurity(&all) > 0.0 {
        for feature in [first, second] {
            let mut values: Vec<f32> = flowers.iter().map(|flower| flower.lengths[feature]).collect();
            values.sort_by(f32::total_cmp);
            values.dedup();
            for pair in values.windows(2) {
                let at = (pair[0] + pair[1]) / 2.0;
                let mut left = [0; 3];
                for flower in flowers.iter().filter(|flower| flower.lengths[feature] <= at) {
                    left[flower.class] += 1;
                }
                let right = [all[0] - left[0], all[1] - left[1], all[2] - left[2]];
                let cost = impurity(&left) + impurity(&right);
                if best.is_none_or(|(least, ..)| cost < least) {
                    best = Some((cost, feature, at));
                }
            }
        }
    }
    let Some((_, feature, at)) = best else {
        return Node::Leaf(all);
    };
    let (left, right): (Vec<Flower>, Vec<Flower>) =
        flowers.iter().partition(|flower| flower.lengths[feature] <= at);
    Node::Split {
        feature,
        at,
        left: Box::new(grow(&left, depth - 1, random)),
        right: Box::new(grow(&right, depth - 1, random)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained(trees: usize, depth: usize) -> Result<(Vec<Flower>, Forest), String> {
        let flowers = crate::measurements::parse(include_str!("../iris.csv"))?;
        let forest = Forest::train(
            &flowers,
            Training {
                version: 1,
                trees,
                depth,
                seed: 7,
            },
        );
        Ok((flowers, forest))
    }

    #[test]
    fn a_forest_knows_its_flowers() -> Result<(), String> {
        let (flowers, forest) = trained(9, 3)?;
        let right = flowers
            .iter()
            .filter(|flower| Forest::class(&forest.probabilities(&flower.lengths)) == CLASSES[flower.class])
            .count();
        assert!(right >= 140, "{right} of 150");
        Ok(())
    }

    #[test]
    fn training_is_deterministic_and_the_file_form_round_trips() -> Result<(), String> {
        let (_, forest) = trained(15, 4)?;
        let (_, again) = trained(15, 4)?;
        assert_eq!(forest.to_text(), again.to_text());
        assert_eq!(Forest::parse(&forest.to_text())?, forest);
        Ok(())
    }

    #[test]
    fn a_bad_file_is_refused_by_line() {
        for (text, expected) in [
            ("", "line 1: the file ends too soon"),
            ("iris-forest 9\n", "line 1: expected \"iris-forest 1\""),
            (
                "iris-forest 1\nversion 1 trees 1 depth 1 seed 1\n",
                "line 3: the file ends too soon",
            ),
            (
                "iris-forest 1\nversion 1 trees 9999 depth 1 seed 1\n",
                "line 2: 9999 trees are more than 1000",
            ),
            (
                "iris-forest 1\nversion 1 trees 1 depth 1 seed 1\nsplit 4 1\n",
                "line 3: no feature 4",
            ),
            (
                "iris-forest 1\nversion 1 trees 0 depth 1 seed 1\nleaf 1 1 1\n",
                "line 3: nothing may follow the last tree",
            ),
        ] {
            assert_eq!(Forest::parse(text).err().as_deref(), Some(expected));
        }
        let deep = format!(
            "iris-forest 1\nversion 1 trees 1 depth 1 seed 1\n{}",
            "split 0 1\n".repeat(40)
        );
        assert_eq!(
            Forest::parse(&deep).err().as_deref(),
            Some("line 19: a tree deeper than 16")
        );
    }
}

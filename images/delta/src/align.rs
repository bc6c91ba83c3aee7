//! Which bytes of a new file come from where in an old file: the scan of bsdiff over a suffix array.

use std::ops::Range;

/// A stretch of the new file that resembles a stretch of the old file, and the bytes after it that resemble nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Where the stretch begins in the old file.
    pub(crate) old: usize,
    /// The stretch in the new file. Most of its bytes equal the old ones.
    pub(crate) like: Range<usize>,
    /// The bytes after it that are new.
    pub(crate) fresh: Range<usize>,
}

/// How many bytes better than the present alignment another one must be.
const BETTER: usize = 8;
/// After so many steps on which nothing is decided, decide: repetitive data would make the scan quadratic.
const MAX_UNDECIDED: u32 = 100;

/// Where every two-byte prefix begins in the suffix array: two thirds of the search are one look-up.
struct Index<'a> {
    old: &'a [u8],
    suffixes: Vec<i32>,
    heads: Vec<u32>,
}

impl<'a> Index<'a> {
    fn new(old: &'a [u8]) -> Self {
        let mut suffixes = vec![0; old.len()];
        divsufsort::sort_in_place(old, &mut suffixes);
        let mut heads = vec![0u32; (1 << 16) + 1];
        for pair in old.windows(2) {
            heads[usize::from(u16::from_be_bytes([pair[0], pair[1]])) + 1] += 1;
        }
        // The last byte alone sorts in front of all pairs that begin with it.
        if let Some(&last) = old.last() {
            heads[usize::from(last) << 8] += 1;
        }
        for at in 1..heads.len() {
            heads[at] += heads[at - 1];
        }
        Self { old, suffixes, heads }
    }

    /// The position in the old file of the longest match for the front of `new`, and its length.
    fn longest(&self, new: &[u8]) -> (usize, usize) {
        let [first, second, ..] = *new else { return (0, 0) };
        let pair = usize::from(u16::from_be_bytes([first, second]));
        let (mut low, mut high) = (self.heads[pair] as usize, self.heads[pair + 1] as usize);
        let mut best = (0, 0);
        while low < high {
            let middle = low + (high - low) / 2;
            let position = self.suffixes[middle] as usize;
            let suffix = &self.old[position..];
            let length = common(suffix, new);
            if length > best.1 {
                best = (position, length);
            }
            if length == new.len() {
                break;
            }
            if length == suffix.len() || suffix[length] < new[length] {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        best
    }
}

/// How many bytes two slices have in common at the front.
fn common(a: &[u8], b: &[u8]) -> usize {
    const WORD: usize = 16;
    let most = a.len().min(b.len());
    let mut length = 0;
    while length + WORD <= most && a[length..length + WORD] == b[length..length + WORD] {
        length += WORD;
    }
    while length < most && a[length] == b[length] {
        length += 1;
    }
    length
}

/// Aligns `new` with `old`. The pieces cover `new` in order, without gaps.
///
/// Takes five bytes of memory for each byte of `old`. `old` is at most `i32::MAX` bytes long.
pub(crate) fn align(old: &[u8], new: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    if old.is_empty() || new.is_empty() {
        pieces.push(Piece {
            old: 0,
            like: 0..0,
            fresh: 0..new.len(),
        });
        return pieces;
    }
    let index = Index::new(old);
    let same = |old_at: i64, new_at: usize| {
        usize::try_from(old_at)
            .ok()
            .and_then(|at| old.get(at))
            .is_some_and(|&byte| byte == new[new_at])
    };

    let mut scan = 0;
    let (mut found, mut length) = (0usize, 0usize);
    // The end of what is decided, in both files. `shift` of the present alignment is last_old - last_new.
    let (mut last_new, mut last_old) = (0usize, 0usize);
    while scan < new.len() {
        let shift = last_old as i64 - last_new as i64;
        let mut score = 0usize;
        let mut undecided = 0;
        let mut before = (0usize, 0usize);
        scan += length;
        let mut scored = scan;
        while scan < new.len() {
            (found, length) = index.longest(&new[scan..]);
            while scored < scan + length {
                score += usize::from(same(scored as i64 + shift, scored));
                scored += 1;
            }
            if (length == score && length != 0) || length > score + BETTER {
                break;
            }
            let steady = before.0 <= length + BETTER
                && length <= before.0
                && before.1 <= score + BETTER
                && score <= before.1;
            undecided = if steady && score < length {
                undecided + 1
            } else {
                0
            };
            if undecided > MAX_UNDECIDED {
                break;
            }
            if same(scan as i64 + shift, scan) {
                score = score.saturating_sub(1);
            }
            before = (length, score);
            scan += 1;
        }
        if length == score && scan < new.len() {
            continue;
        }

        // The end of the present alignment: as far forward as half of the bytes match.
        let forward = {
            let (mut hits, mut best, mut best_at) = (0i64, 0i64, 0);
            let most = (scan - last_new).min(old.len() - last_old);
            for at in 0..most {
                hits += i64::from(old[last_old + at] == new[last_new + at]);
                if hits * 2 - (at as i64 + 1) > best {
                    best = hits * 2 - (at as i64 + 1);
                    best_at = at + 1;
                }
            }
            best_at
        };
        // The begin of the next one: as far backward.
        let backward = if scan < new.len() {
            let (mut hits, mut best, mut best_at) = (0i64, 0i64, 0);
            for at in 1..=(scan - last_new).min(found) {
                hits += i64::from(old[found - at] == new[scan - at]);
                if hits * 2 - at as i64 > best {
                    best = hits * 2 - at as i64;
                    best_at = at;
                }
            }
            best_at
        } else {
            0
        };
        let (forward, backward) = settle(old, new, (last_old, last_new), (found, scan), forward, backward);

        let like = last_new..last_new + forward;
        let fresh = like.end..scan - backward;
        if !(like.is_empty() && fresh.is_empty()) {
            pieces.push(Piece {
                old: last_old,
                like,
                fresh,
            });
        }
        last_new = scan - backward;
        last_old = if scan < new.len() {
            found - backward
        } else {
            last_old
        };
    }
    pieces
}

/// Where the end of one alignment and the begin of the next overlap, finds the byte at which to change.
fn settle(
    old: &[u8],
    new: &[u8],
    (last_old, last_new): (usize, usize),
    (found, scan): (usize, usize),
    forward: usize,
    backward: usize,
) -> (usize, usize) {
    let overlap = (last_new + forward + backward).saturating_sub(scan);
    if overlap == 0 {
        return (forward, backward);
    }
    let (mut score, mut best, mut best_at) = (0i64, 0i64, 0);
    for at in 0..overlap {
        let left = forward - overlap + at;
        score += i64::from(new[last_new + left] == old[last_old + left]);
        score -= i64::from(new[scan - backward + at] == old[found - backward + at]);
        if score > best {
            best = score;
            best_at = at + 1;
        }
    }
    (forward - overlap + best_at, backward - best_at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Checks the pieces' promise and returns how many bytes are fresh or unlike.
    fn cost(old: &[u8], new: &[u8]) -> usize {
        let mut at = 0;
        let mut cost = 0;
        for piece in align(old, new) {
            assert_eq!(piece.like.start, at);
            assert_eq!(piece.like.end, piece.fresh.start);
            let old = &old[piece.old..piece.old + piece.like.len()];
            cost += new[piece.like.clone()]
                .iter()
                .zip(old)
                .filter(|(new, old)| new != old)
                .count();
            cost += piece.fresh.len();
            at = piece.fresh.end;
        }
        assert_eq!(at, new.len());
        cost
    }

    fn noise(length: usize, mut seed: u32) -> Vec<u8> {
        (0..length)
            .map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 17;
                seed ^= seed << 5;
                seed as u8
            })
            .collect()
    }

    #[test]
    fn known_edits() {
        let old = noise(20_000, 1);
        let other = noise(500, 2);
        let mut changed = old.clone();
        for at in (0..changed.len()).step_by(97) {
            changed[at] = changed[at].wrapping_add(1);
        }
        for (what, new, most) in [
            ("the same", old.clone(), 0),
            ("empty", vec![], 0),
            (
                "an insertion",
                [&old[..9_000], &other, &old[9_000..]].concat(),
                510,
            ),
            ("a deletion", [&old[..9_000], &old[9_500..]].concat(), 10),
            ("a swap", [&old[10_000..], &old[..10_000]].concat(), 10),
            ("a byte here and there", changed, 220),
            ("nothing in common", noise(4_000, 3), 4_000),
        ] {
            let found = cost(&old, &new);
            assert!(found <= most, "{what}: {found} bytes, expected at most {most}");
        }
        assert_eq!(cost(&[], &other), other.len());
    }

    /// Runs of one byte at shifting offsets: quadratic without a limit on undecided steps.
    #[test]
    fn repetitive_data_ends() {
        let old = [vec![0; 200_000], noise(1_000, 4), vec![0; 200_000]].concat();
        let new = [vec![0; 150_000], noise(1_000, 5), vec![0; 300_000]].concat();
        assert!(cost(&old, &new) < 110_000);
    }

    proptest! {
        #[test]
        fn pieces_cover_the_new_file(old in prop::collection::vec(0u8..4, 0..300), new in prop::collection::vec(0u8..4, 0..300)) {
            cost(&old, &new);
        }
    }
}

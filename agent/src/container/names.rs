//! Names for containers that were not given one.

/// What a boat looks like.
const QUALITIES: [&str; 32] = [
    "amber", "brave", "bright", "brisk", "calm", "clever", "crimson", "distant", "early", "gentle", "golden",
    "grey", "hardy", "keen", "lively", "lucky", "merry", "mild", "nimble", "proud", "quick", "quiet",
    "ready", "sandy", "silver", "steady", "stout", "swift", "tidy", "trim", "wild", "young",
];
/// What floats, and where.
const BOATS: [&str; 32] = [
    "barge", "barque", "beacon", "brig", "buoy", "canoe", "clipper", "cutter", "dinghy", "dory", "ferry",
    "gig", "harbour", "hulk", "jetty", "kayak", "ketch", "lugger", "oar", "pier", "pilot", "pontoon", "punt",
    "quay", "raft", "rudder", "schooner", "skiff", "sloop", "tender", "trawler", "yawl",
];

/// A name for these random bytes. From the second attempt on a number makes another collision unlikely.
pub(crate) fn suggest(random: [u8; 4], attempt: u32) -> String {
    let [quality, boat, high, low] = random;
    let pick =
        |list: &[&'static str; 32], byte: u8| list.get(usize::from(byte % 32)).copied().unwrap_or_default();
    let name = format!("{}_{}", pick(&QUALITIES, quality), pick(&BOATS, boat));
    if attempt == 0 {
        name
    } else {
        format!("{name}{}", u16::from_be_bytes([high, low]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::check_name;

    #[test]
    fn every_suggestion_is_a_valid_name() {
        for byte in 0..=u8::MAX {
            assert!(check_name(&suggest([byte, !byte, byte, 7], 0)).is_ok());
        }
        assert_eq!(suggest([0, 0, 1, 2], 0), "amber_barge");
        assert_eq!(suggest([0, 0, 1, 2], 1), "amber_barge258");
    }
}

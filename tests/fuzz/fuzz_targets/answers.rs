//! What a registry says in headers and what docker's client left in its file: challenges, tokens, links, locations, waits, ranges, logins.
//! The first byte chooses which.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wherry_images::fuzzed;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    if kind % 4 == 0 {
        return fuzzed::account(rest);
    }
    if kind % 4 == 1 {
        let Some((numbers, rest)) = rest.split_first_chunk::<5>() else {
            return;
        };
        let text = String::from_utf8_lossy(rest);
        let (range, media_type) = text.split_once('\n').unwrap_or((&text, ""));
        let [have, size, status, length, which] = *numbers;
        let status = [200, 206, 416, 404][usize::from(status % 4)];
        let length = (which & 1 == 0).then_some(u64::from(length));
        let range = (which & 2 == 0).then_some(range);
        let media_type = (which & 4 == 0).then_some(media_type);
        return fuzzed::verdict(have.into(), size.into(), status, length, range, media_type);
    }
    let text = String::from_utf8_lossy(rest);
    if kind % 4 == 2 {
        fuzzed::challenges(&text);
    } else {
        fuzzed::headers(&text);
    }
});

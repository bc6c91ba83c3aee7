//! Requests to a served registry, one after the other on a connection: heads, routes, logins and bodies.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| wherry_images::fuzzed::request(bytes));

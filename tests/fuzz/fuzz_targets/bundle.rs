//! A bundle's `config.json`, read and planned: any bytes end in a plan or in an error of one line that names something,
//! and never in a panic. A plan that was accepted is accepted again when the document is written anew.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let bundle = Path::new("/nonexistent/bundle");
    match wherry_runtime::check(bytes, bundle) {
        Err(error) => {
            let line = error.to_string();
            assert!(!line.is_empty() && !line.contains('\n'), "{line:?}");
        }
        Ok(warnings) => {
            // Duplicate keys aside, which a document read into a value has lost.
            if let Ok(value) = serde_json::from_slice::<serde_json::Value>(bytes) {
                let again = wherry_runtime::check(value.to_string().as_bytes(), bundle);
                assert_eq!(again.ok(), Some(warnings));
            }
        }
    }
});

//! Any bytes as posted loads, in the binary form and as JSON: loads or an error, never a panic. Loads that
//! are read, written and read again stay the same.
#![no_main]
use evenkeel_serve::{Loads, binary};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Loads::from_json(bytes);
    if let Ok(loads) = binary::decode(bytes) {
        assert_eq!(binary::decode(&binary::encode(&loads)).as_ref(), Ok(&loads));
    }
});

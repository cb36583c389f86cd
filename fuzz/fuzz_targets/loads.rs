//! Any bytes as posted loads, in the compact form and as JSON: an answer or an error, never a panic; what is read is written and
//! read again as it was.
#![no_main]
use evenkeel::serve::{Loads, binary};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Loads::from_json(bytes);
    if let Ok(loads) = binary::decode(bytes) {
        assert_eq!(binary::decode(&binary::encode(&loads)).as_ref(), Ok(&loads));
    }
});

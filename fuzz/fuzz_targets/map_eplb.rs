//! Any text as the result of DeepSeek's EPLB: placements or an error, never a panic. Placements that are
//! read, written in every dialect and read again stay the same.
#![no_main]
use libfuzzer_sys::fuzz_target;

const FRAME: (&str, &str) = (r#"{"phy2log": ["#, "]}");

fuzz_target!(|bytes: &[u8]| evenkeel_fuzz::map(FRAME, bytes));

//! Any text as SGLang's `--init-expert-location`: placements or an error, never a panic. Placements that are
//! read, written in every dialect and read again stay the same.
#![no_main]
use libfuzzer_sys::fuzz_target;

const FRAME: (&str, &str) = (r#"{"physical_to_logical_map": ["#, "]}");

fuzz_target!(|bytes: &[u8]| evenkeel_fuzz::map(FRAME, bytes));

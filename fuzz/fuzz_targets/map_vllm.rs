//! Any text as vLLM's `eplb_initial_mapping`: placements or an error, never a panic. Placements that are
//! read, written in every dialect and read again stay the same.
#![no_main]
use libfuzzer_sys::fuzz_target;

const FRAME: (&str, &str) =
    (r#"{"record_type": "eplb_initial_mapping", "version": 1, "initial_global_assignments": {"#, "}}");

fuzz_target!(|bytes: &[u8]| evenkeel_fuzz::map(FRAME, bytes));

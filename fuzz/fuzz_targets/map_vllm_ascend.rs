//! Any text as vllm-ascend's expert map: placements or an error, never a panic. Placements that are read,
//! written in every dialect and read again stay the same.
#![no_main]
use libfuzzer_sys::fuzz_target;

const FRAME: (&str, &str) = (r#"{"moe_layer_count": 1, "layer_list": ["#, "]}");

fuzz_target!(|bytes: &[u8]| evenkeel_fuzz::map(FRAME, bytes));

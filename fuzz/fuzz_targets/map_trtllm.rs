//! Any text as TensorRT-LLM's `moe_load_balancer` YAML: placements or an error, never a panic. Placements
//! that are read, written in every dialect and read again stay the same.
#![no_main]
use libfuzzer_sys::fuzz_target;

const FRAME: (&str, &str) =
    ("num_slots: 8\nlayer_updates_per_iter: 0\ninitial_global_assignments:\n  ", "\n");

fuzz_target!(|bytes: &[u8]| evenkeel_fuzz::map(FRAME, bytes));

//! Any bytes as `npy`: a trace or an error, never a panic.
#![no_main]
use evenkeel::trace::TraceFormat;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| evenkeel_fuzz::read(&[TraceFormat::Npy, TraceFormat::NpyCounts], bytes));

//! Any bytes as `parquet`: an answer or an error, never a panic.
#![no_main]
use evenkeel::trace::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| evenkeel_fuzz::read(&[Format::Parquet], bytes));

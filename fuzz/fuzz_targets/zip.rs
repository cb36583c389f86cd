//! Any bytes as the zip itself, of a dump or of arrays.
#![no_main]
use evenkeel::trace::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| evenkeel_fuzz::read(&[Format::SglangPt, Format::Npz], bytes));

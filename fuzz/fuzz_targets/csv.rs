//! Any bytes as `csv`: a trace or an error, never a panic.
#![no_main]
use evenkeel::trace::TraceFormat;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| evenkeel_fuzz::read(&[TraceFormat::Csv, TraceFormat::SglangCsv], bytes));

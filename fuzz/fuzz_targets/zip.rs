//! Any bytes as the zip archive of a dump or of arrays.
#![no_main]
use evenkeel::trace::TraceFormat;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| evenkeel_fuzz::read(&[TraceFormat::SglangPt, TraceFormat::Npz, TraceFormat::NpyCounts], bytes));

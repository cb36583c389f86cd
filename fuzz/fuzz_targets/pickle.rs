//! Any bytes as the pickle of a dump. The target builds the zip around them, since changed bytes inside a
//! finished zip would fail its checksums.
#![no_main]
use evenkeel::trace::TraceFormat;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let storage: Vec<u8> = (0..64u8).flat_map(|byte| [byte, 0, 0, 0, 0, 0, 0, 0]).collect();
    let zip = evenkeel_fuzz::zip(&[("dump/data.pkl", bytes), ("dump/data/0", &storage), ("dump/data/1", &storage)]);
    evenkeel_fuzz::read(&[TraceFormat::SglangPt], &zip);
});

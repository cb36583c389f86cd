//! Any bytes as the pickle of a dump. They are put into a zip here: its checksums would let no
//! change through otherwise.
#![no_main]
use evenkeel::trace::Format;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let storage: Vec<u8> = (0..64u8).flat_map(|byte| [byte, 0, 0, 0, 0, 0, 0, 0]).collect();
    let zip = evenkeel_fuzz::zip(&[("dump/data.pkl", bytes), ("dump/data/0", &storage), ("dump/data/1", &storage)]);
    evenkeel_fuzz::read(&[Format::SglangPt], &zip);
});

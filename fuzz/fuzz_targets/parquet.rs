//! Any bytes as `parquet`: a trace or an error, never a panic of our code. The reader catches panics inside
//! the parquet crate and reports a malformed file. This target accepts them.
#![no_main]
use evenkeel::trace::TraceFormat;
use libfuzzer_sys::fuzz_target;
use std::sync::Once;

static HOOK: Once = Once::new();

fuzz_target!(|bytes: &[u8]| {
    HOOK.call_once(|| {
        let abort = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let foreign = info.location().is_some_and(|place| {
                ["/parquet-", "/bytes-", "/library/"].iter().any(|part| place.file().contains(part))
            });
            if !foreign {
                abort(info);
            }
        }));
    });
    evenkeel_fuzz::read(&[TraceFormat::Parquet], bytes);
});

//! Any bytes as `parquet`: an answer or an error, never a panic of ours. A panic inside the
//! parquet crate is caught by the reader and reported as a malformed file; it is let pass here.
#![no_main]
use evenkeel::trace::Format;
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
    evenkeel_fuzz::read(&[Format::Parquet], bytes);
});

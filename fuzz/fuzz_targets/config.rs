//! Any text as `evenkeel.toml`: a configuration with values in range or an error, never a panic.
#![no_main]
use evenkeel_serve::ServiceConfig;
use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::time::{Duration, Instant};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(mut config) = ServiceConfig::from_toml(text, Path::new("evenkeel.toml")) else { return };
    // The sum of the current time and each period must not overflow.
    let seconds = [
        config.limits.header_seconds,
        config.limits.body_seconds,
        config.limits.shutdown_seconds,
        config.history.days.saturating_mul(86_400),
    ];
    for seconds in seconds {
        assert!(Instant::now().checked_add(Duration::from_secs(seconds)).is_some(), "{seconds} s");
    }
    assert!(Instant::now().checked_add(config.header_timeout()).is_some());
    assert!(config.limits.body_mib.checked_mul(1 << 20).is_some());
    for source in &config.source {
        assert!(Duration::try_from_secs_f64(source.poll_seconds).is_ok());
    }
    config.controller_config(None).expect("options that were checked");
    for (name, model) in &config.models {
        model.to_spec().check().expect("a shape that was checked");
        config.controller_config(Some(name)).expect("options that were checked");
    }
    config.set_dry_run();
    assert!(config.controller_config(None).expect("options").dry_run);
});

//! The range of every numeric key of the configuration, and of a model's shape.
//!
//! The same table checks the file, `[decide]` and posted shapes. docs/serve.md lists the same ranges, and a
//! test compares them.

use serde_json::Value;

/// A key, its least and its greatest value.
type KeyRange = (&'static str, f64, f64);

/// The keys of `[limits]`.
pub(super) const LIMITS: &[KeyRange] = &[
    ("body_mib", 1.0, 1024.0),
    ("memory_mib", 16.0, 1_048_576.0),
    ("connections", 1.0, 65_536.0),
    ("connections_per_address", 1.0, 65_536.0),
    ("streams", 0.0, 65_536.0),
    ("waits", 0.0, 65_536.0),
    ("streams_per_address", 1.0, 65_536.0),
    ("requests_per_second", 0.0, 1_000_000.0),
    ("header_seconds", 1.0, 3600.0),
    ("body_seconds", 1.0, 3600.0),
    ("write_seconds", 1.0, 3600.0),
    ("lag_steps", 1.0, 1_000_000.0),
    ("lag_mib", 1.0, 1_048_576.0),
    ("window_mib", 1.0, 1_048_576.0),
    ("models", 1.0, 4096.0),
    ("shutdown_seconds", 0.0, 3600.0),
];

/// The keys of `[history]`.
pub(super) const HISTORY: &[KeyRange] = &[
    ("ids", 1.0, 16_777_216.0),
    ("decisions", 1.0, 1_000_000.0),
    ("plans", 1.0, 1_000_000.0),
    ("days", 1.0, 36_500.0),
];

/// The keys of `[decide]`.
pub(super) const DECIDE: &[KeyRange] = &[
    ("first_after", 1.0, 1e9),
    ("every", 1.0, 1e9),
    ("min_every", 1.0, 1e9),
    ("drift", 0.0, 1e6),
    ("window", 1.0, 65_536.0),
    ("judged", 1.0, 65_536.0),
    ("max_moves", 0.0, 65_536.0),
    ("move_budget", 0.0, 1e9),
    ("horizon", 1.0, 1e9),
    ("move_cost", 0.0, 1e6),
    ("move_gain", 0.0, 1e6),
    ("copy_share", 0.0, 1.0),
    ("step_ms", 0.001, 3_600_000.0),
    ("min_gain", 0.0, 1e6),
    ("max_lag", 0.0, 1e9),
];

/// The keys of a shape, and of `[models.NAME]`.
pub(super) const SHAPE: &[KeyRange] = &[
    ("ranks", 1.0, 1024.0),
    ("redundant", 0.0, 65_536.0),
    ("nodes", 1.0, 1024.0),
    ("groups", 1.0, 65_536.0),
    ("link_gbps", 1.0, 1_000_000.0),
];

/// The keys of `[[source]]`.
pub(super) const SOURCE: &[KeyRange] = &[("dump_seconds", 1.0, 86_400.0), ("poll_seconds", 0.01, 3600.0)];

/// Checks the present keys of a table. Returns the first key out of its range, and the reason.
///
/// JSON has no NaN and no infinity, so they arrive as null.
pub(super) fn check_ranges(ranges: &[KeyRange], table: &Value) -> Result<(), (&'static str, String)> {
    for &(key, least, most) in ranges {
        let Some(value) = table.get(key) else { continue };
        let number = match value {
            Value::Number(number) => number.as_f64(),
            Value::Null => None,
            // A value of another type is an error of the later parser.
            _ => continue,
        };
        if !number.is_some_and(|number| (least..=most).contains(&number)) {
            let found = number.map_or("not a finite number".to_owned(), |_| value.to_string());
            return Err((key, format!("{found}, expected {least} to {most}")));
        }
    }
    Ok(())
}

/// Checks a whole file before its types are checked. Returns the first invalid key with its table, and the
/// reason.
pub(super) fn check_file(file: &Value) -> Result<(), (String, String)> {
    let named = |table: String| move |(key, reason)| (format!("{table}.{key}"), reason);
    for (table, ranges) in [("limits", LIMITS), ("history", HISTORY), ("decide", DECIDE)] {
        check_ranges(ranges, &file[table]).map_err(named(table.into()))?;
    }
    for (name, model) in file["models"].as_object().into_iter().flatten() {
        check_ranges(SHAPE, model).map_err(named(format!("models.{name}")))?;
        check_ranges(DECIDE, &model["decide"]).map_err(named(format!("models.{name}.decide")))?;
    }
    for (at, source) in file["source"].as_array().into_iter().flatten().enumerate() {
        check_ranges(SOURCE, source).map_err(named(format!("source[{at}]")))?;
    }
    Ok(())
}

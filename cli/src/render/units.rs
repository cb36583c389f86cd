//! Numbers, sizes and notices in words.

use std::fmt::Write as _;

/// Returns 1234567 as 1 234 567.
pub(crate) fn group_digits(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// Returns bytes in the suitable unit of a power of ten.
pub(crate) fn format_decimal_bytes(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// Appends the notices as a list under a heading.
pub(crate) fn append_notices(text: &mut String, notices: &[String]) -> std::fmt::Result {
    if !notices.is_empty() {
        writeln!(text, "\nnotices")?;
        for notice in notices {
            writeln!(text, "  - {notice}")?;
        }
    }
    Ok(())
}

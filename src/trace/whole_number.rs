//! Parser of whole numbers in tables.
//!
//! In: the bytes of a cell. Out: the number, if it is whole, not negative and within 64 bits. Programs write
//! counts that passed through floating point as `374.0` or `3.74e2`, so these forms are accepted as well as
//! `374`.

/// Parses a decimal number without sign. Spaces around it are allowed.
#[inline(always)]
#[expect(clippy::inline_always, reason = "three calls in the loop that reads large files")]
pub fn parse_integer(cell: &[u8]) -> Option<u64> {
    // Numbers of up to 19 digits cannot overflow. Everything else takes the slow path.
    if cell.is_empty() || cell.len() > 19 {
        return parse_exactly(cell);
    }
    let mut value = 0u64;
    for &byte in cell {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return parse_exactly(cell);
        }
        value = value * 10 + u64::from(digit);
    }
    Some(value)
}

/// Longest accepted number with a point or exponent. 17 digits identify any double, and `Decimal` writes up
/// to 38.
const MAX_NUMBER_BYTES: usize = 64;

#[cold]
fn parse_exactly(cell: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(cell.trim_ascii()).ok()?;
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok();
    }
    if text.len() > MAX_NUMBER_BYTES {
        return None;
    }
    // Exact arithmetic digit by digit, because a double would round.
    let (number, exponent) = match text.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (before, after) = number.split_once('.').unwrap_or((number, ""));
    let digits: Vec<u8> = before.bytes().chain(after.bytes()).collect();
    if before.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let point = i64::from(exponent) + before.len() as i64;
    let place = |at: usize| (at as i64) < point;
    if digits.iter().enumerate().any(|(at, &digit)| !place(at) && digit != b'0') {
        return None;
    }
    let mut value = 0u64;
    for at in 0..point.max(0) {
        let digit = digits.get(at as usize).map_or(0, |digit| digit - b'0');
        value = value.checked_mul(10)?.checked_add(u64::from(digit))?;
        if value == 0 && at as usize > digits.len() {
            break;
        }
    }
    Some(value)
}

/// Converts a floating-point number to a whole one from 0 to 2^53, the limit of exact doubles.
pub fn float_to_integer(number: f64) -> Option<u64> {
    (number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(&number)).then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use super::{float_to_integer, parse_integer};

    #[test]
    fn whole_numbers_in_any_notation() {
        for (text, number) in [
            ("0", 0),
            (" 42\t", 42),
            ("18446744073709551615", u64::MAX),
            ("00000000000000000000007", 7),
            ("374.0", 374),
            ("374.", 374),
            ("0.000", 0),
            ("3.74e2", 374),
            ("3740E-1", 374),
            ("2.500000000000000000e+01", 25),
            ("9007199254740993.0", 9_007_199_254_740_993),
            ("0e999999", 0),
            ("1e19", 10_000_000_000_000_000_000),
        ] {
            assert_eq!(parse_integer(text.as_bytes()), Some(number), "{text}");
        }
        for wrong in [
            "",
            " ",
            "-1",
            "+1",
            "-0.0",
            "1.5",
            "1e-1",
            "374.0000001",
            "18446744073709551616",
            "1e20",
            "x",
            "1 2",
            ".",
            ".5",
            "e3",
            "1e",
            "1.0.0",
            "nan",
            "inf",
            "0x10",
            "1,5",
            "1e99999999999",
        ] {
            assert_eq!(parse_integer(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(
            (float_to_integer(374.0), float_to_integer(0.5), float_to_integer(-1.0)),
            (Some(374), None, None)
        );
        assert_eq!(
            (float_to_integer(f64::NAN), float_to_integer(f64::INFINITY), float_to_integer(1e17)),
            (None, None, None)
        );
    }
}

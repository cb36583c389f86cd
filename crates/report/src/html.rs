//! Text and numbers for HTML: escaping, and formats of numbers.

use std::fmt;

/// Text from outside, escaped for elements and quoted attributes.
///
/// Control characters, and characters that reverse the direction of the text after them, become U+FFFD.
pub(super) struct EscapedText<'a>(&'a str);

pub(super) fn escape_text(text: &str) -> EscapedText<'_> {
    EscapedText(text)
}

impl fmt::Display for EscapedText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' | '\t' => f.write_char(c)?,
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}' => {
                    f.write_char('\u{fffd}')?;
                }
                _ if c.is_control() => f.write_char('\u{fffd}')?,
                _ => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Formats a number with fixed digits. A value that is not finite becomes a dash.
pub(super) fn format_fixed(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { "–".to_owned() }
}

/// Formats a ratio to one with its significant digits: 12.3, 1.55, 1.018.
pub(super) fn format_ratio(value: f64) -> String {
    let digits = match value {
        v if v >= 10.0 => 1,
        v if v >= 1.095 => 2,
        _ => 3,
    };
    format_fixed(value, digits)
}

/// Formats a share as a percentage: 0 %, 0.4 %, 83 %, 99.7 %, 100 %. Only none is 0 and only all is 100.
pub(super) fn format_percent(share: f64) -> String {
    let p = share * 100.0;
    let text = match p {
        p if p <= 0.0 => "0".to_owned(),
        p if p < 0.1 => "<0.1".to_owned(),
        p if p < 10.0 || (99.0..100.0).contains(&p) => format_fixed(p.min(99.9), 1),
        p => format_fixed(p, 0),
    };
    format!("{text}\u{a0}%")
}

/// Formats an integer with separators: 12,345.
pub(super) fn format_count(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a number of things: "1 layer", "3 layers".
pub(super) fn format_quantity(n: usize, one: &str, many: &str) -> String {
    format!("{} {}", format_count(n), if n == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_harmless() {
        let hostile = "a<b>&\"'\u{0}\u{1b}[31m\u{202e}é";
        assert_eq!(
            escape_text(hostile).to_string(),
            "a&lt;b&gt;&amp;&quot;&#39;\u{fffd}\u{fffd}[31m\u{fffd}é"
        );
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [format_ratio(1.0184), format_ratio(1.5512), format_ratio(23.44)],
            ["1.018", "1.55", "23.4"]
        );
        let shares = [0.0, 0.0001, 0.004, 0.5, 0.9999, 1.0].map(format_percent);
        assert_eq!(shares.map(|s| s.replace('\u{a0}', "")), ["0%", "<0.1%", "0.4%", "50%", "99.9%", "100%"]);
        assert_eq!(
            [format_count(0), format_count(999), format_count(1000), format_count(1_234_567)],
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(format_fixed(f64::NAN, 2), "–");
    }
}

//! The file of bearer tokens: one per line, comments on lines of their own.

use crate::config::ConfigError;
use crate::files;
use std::path::Path;

/// The fewest characters of a token that is safe.
const MIN_LENGTH: usize = 16;
/// The most characters of a token.
const MAX_LENGTH: usize = 512;
/// The most tokens in a file.
const MAX_TOKENS: usize = 1024;

/// Reads the tokens of a file.
///
/// A whole line is a token, or it is refused. Nothing is cut off. Messages name lines, never tokens.
pub(super) fn read_tokens(path: &Path) -> Result<Vec<String>, ConfigError> {
    let text = files::read_text(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
    let wrong = |reason: String| {
        let reason = format!("{}: {reason}", path.display());
        Err(ConfigError::Value { key: "token_file".into(), reason })
    };
    let mut tokens = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let (number, token) = (at + 1, line.trim());
        if token.is_empty() || token.starts_with('#') {
            continue;
        }
        if let Some(found) = token.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
            return wrong(format!(
                "line {number} has {found:?}, expected a token of visible ASCII characters without `#`; a comment goes on a line of \
                 its own"
            ));
        }
        if !(MIN_LENGTH..=MAX_LENGTH).contains(&token.len()) {
            let found = if token.len() < MIN_LENGTH { "fewer than 16" } else { "more than 512" };
            return wrong(format!(
                "line {number} has {found} characters, expected {MIN_LENGTH} to {MAX_LENGTH}"
            ));
        }
        tokens.push(token.to_owned());
    }
    match tokens.len() {
        0 => wrong("no token, expected one per line".into()),
        1..=MAX_TOKENS => Ok(tokens),
        found => wrong(format!("{found} tokens, expected at most {MAX_TOKENS}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_token_or_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            read_tokens(file.path()).map_err(|error| error.to_string())
        };
        let tokens = read("# who\n  0123456789abcdef  \n\nabcdefghijklmnop\n").unwrap();
        assert_eq!(tokens, ["0123456789abcdef", "abcdefghijklmnop"]);
        for (text, part) in [
            ("0123456789abcdef#rest\n", "line 1 has '#'"),
            ("0123456789abcdef  # the poster\n", "line 1 has ' '"),
            ("\n0123456789abcde\u{e9}\n", "line 2 has 'é'"),
            ("short\n", "line 1 has fewer than 16 characters"),
            ("# 0123456789abcdef\n", "no token"),
            ("", "no token"),
        ] {
            let message = read(text).unwrap_err();
            assert!(message.contains(part) && !message.contains("0123456789"), "{text}: {message}");
        }
    }
}

//! Errors as one message for people.

use std::error::Error;

/// An error and what led to it, as one line. Causes that the message quotes already are not said again.
pub fn in_words(error: &(dyn Error + 'static)) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = inner.source();
    }
    message
}

//! Documents in readable form: short values are on one line, and long ones are digests.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Largest number of columns of a line.
const WIDTH: usize = 120;
/// Largest number of lines of a document that is printed whole.
const MOST_LINES: usize = 300;
/// Largest number of items of an array in longer documents. Above it, the first item and a digest remain.
const MOST_ITEMS: usize = 3;
/// Largest number of items of an array of numbers or words in longer documents.
const MOST_SCALARS: usize = 64;

/// Prints a document, whole or with long arrays replaced by their length, digest and first item.
pub(super) fn readable(document: &Value) -> String {
    let whole = printed(document);
    if whole.lines().count() <= MOST_LINES { whole } else { printed(&folded(document)) }
}

fn printed(document: &Value) -> String {
    let mut text = String::new();
    print(document, 0, 0, &mut text);
    text.push('\n');
    text
}

/// Prints a value that begins in column `at` of a line, indented by `indent`.
fn print(value: &Value, indent: usize, at: usize, text: &mut String) {
    let line = on_one_line(value);
    if at + line.len() < WIDTH {
        return text.push_str(&line);
    }
    let inner = indent + 2;
    match value {
        Value::Object(fields) => {
            text.push('{');
            for (index, (key, field)) in fields.iter().enumerate() {
                let begin = format!("{:inner$}\"{key}\": ", "");
                text.push_str(if index == 0 { "\n" } else { ",\n" });
                text.push_str(&begin);
                print(field, inner, begin.len(), text);
            }
            text.push_str(&format!("\n{:indent$}}}", ""));
        }
        Value::Array(items) if items.iter().all(is_scalar) => {
            text.push_str(&format!("[\n{:inner$}", ""));
            let mut column = inner;
            for (index, item) in items.iter().enumerate() {
                let item = item.to_string() + if index + 1 < items.len() { ", " } else { "" };
                if column + item.len() > WIDTH && column > inner {
                    text.truncate(text.trim_end().len());
                    text.push_str(&format!("\n{:inner$}", ""));
                    column = inner;
                }
                column += item.len();
                text.push_str(&item);
            }
            text.push_str(&format!("\n{:indent$}]", ""));
        }
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                text.push_str(&format!("{}\n{:inner$}", if index == 0 { "" } else { "," }, ""));
                print(item, inner, inner, text);
            }
            text.push_str(&format!("\n{:indent$}]", ""));
        }
        _ => text.push_str(&line),
    }
}

fn is_scalar(value: &Value) -> bool {
    !value.is_object() && !value.is_array()
}

fn on_one_line(value: &Value) -> String {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let fields = fields.iter().map(|(key, field)| format!("\"{key}\": {}", on_one_line(field)));
            format!("{{ {} }}", fields.collect::<Vec<_>>().join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(on_one_line).collect::<Vec<_>>().join(", ")),
        _ => value.to_string(),
    }
}

fn folded(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(key, field)| (key.clone(), folded(field)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(items) => {
            let most = if items.iter().all(is_scalar) { MOST_SCALARS } else { MOST_ITEMS };
            if items.len() <= most {
                return items.iter().map(folded).collect();
            }
            json!({ "count": items.len(), "first": folded(&items[0]), "values_sha256": hex(&values_digest(value)) })
        }
        _ => value.clone(),
    }
}

/// Returns a digest of all values without the keys, so that a renamed key does not change it.
fn values_digest(value: &Value) -> [u8; 32] {
    let mut hash = Sha256::new();
    let (kind, mut parts): (&str, Vec<[u8; 32]>) = match value {
        Value::Object(fields) => ("object", fields.values().map(values_digest).collect()),
        Value::Array(items) => ("array", items.iter().map(values_digest).collect()),
        _ => return Sha256::digest(value.to_string()).into(),
    };
    // Fields are sorted by values, since keys may be renamed.
    if value.is_object() {
        parts.sort_unstable();
    }
    hash.update(kind);
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

/// Returns the SHA-256 of bytes, in hexadecimal digits.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Returns bytes in hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

//! The table that says which tokens of an array belong to one request or sequence.
//!
//! In: CSV with columns `start` and `tokens`; where there are several arrays its first column
//! names the one that `start` counts within; other columns are labels and ignored. Out: spans
//! in the order of the table, checked against the arrays.

use super::error::{invalid, quote};
use super::input::Input;
use super::npy::TokenArray;
use super::table::{self, Table};
use super::{Place, TraceError};
use csv::ByteRecord;

/// Consecutive tokens of one array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) array: usize,
    pub(crate) start: usize,
    pub(crate) tokens: usize,
}

/// Is this the header of such a table?
pub(crate) fn is_header(columns: &[&str]) -> bool {
    columns.contains(&"start") && columns.contains(&"tokens")
}

/// Reads the table; spans of arrays that were not asked for are left out, empty ones too.
pub(crate) fn read(input: &Input<'_>, arrays: &[TokenArray]) -> Result<Vec<Span>, TraceError> {
    let path = input.path.as_path();
    let mut table = Table::open(input)?;
    let start_at = table.need("start")?;
    let tokens_at = table.need("tokens")?;
    let several = arrays.len() > 1;
    if several && (start_at == 0 || tokens_at == 0) {
        let names: Vec<&str> = arrays.iter().map(|array| array.name.as_str()).collect();
        return Err(invalid(
            path,
            Place::Line(1),
            format!("first column {}", table.columns[0]),
            format!("a first column that names the array, as there are several: {}", names.join(", ")),
        ));
    }
    let mut spans = Vec::new();
    let mut record = ByteRecord::new();
    let mut last = 0;
    while table.next(&mut record)? {
        if several {
            let name = record.get(0).unwrap_or_default();
            if arrays[last].name.as_bytes() != name {
                last = arrays.iter().position(|array| array.name.as_bytes() == name).ok_or_else(|| {
                    let names: Vec<&str> = arrays.iter().map(|array| array.name.as_str()).collect();
                    table.wrong(&record, 0, &format!("the name of an array: {}", names.join(", ")))
                })?;
            }
        }
        let start = table.integer(&record, start_at, "the first token, a whole number from 0")?;
        let tokens = table.integer(&record, tokens_at, "a number of tokens, a whole number from 0")?;
        let array = &arrays[last];
        if array.layers == 0 || tokens == 0 {
            continue;
        }
        if start.checked_add(tokens).is_none_or(|end| end > array.tokens as u64) {
            return Err(invalid(
                path,
                Place::Line(table::line(&record)),
                format!("start {start} and tokens {tokens}"),
                format!(
                    "a span within the {} tokens of array {}",
                    array.tokens,
                    quote(array.name.as_bytes())
                ),
            ));
        }
        spans.push(Span { array: last, start: start as usize, tokens: tokens as usize });
    }
    Ok(spans)
}

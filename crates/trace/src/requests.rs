//! The table of the tokens that belong to one request or sequence.
//!
//! Input is CSV with columns `start` and `tokens`. For several arrays, the first column names the array to
//! which `start` refers. Other columns are labels and are ignored. Output is spans in the order of the table,
//! checked against the arrays.

use super::arrays::TokenArray;
use super::csv_reader::CsvReader;
use super::input::InputFile;
use super::{Location, TraceError};
use csv::ByteRecord;
use evenkeel::trace::build::{invalid_content, quote_bytes};

/// Consecutive tokens of one array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestSpan {
    pub(crate) array: usize,
    pub(crate) start: usize,
    pub(crate) tokens: usize,
}

/// Reads the table. Skips spans of arrays that were not requested, and empty spans.
pub(crate) fn read(input: &InputFile<'_>, arrays: &[TokenArray]) -> Result<Vec<RequestSpan>, TraceError> {
    let path = input.path.as_path();
    let mut table = CsvReader::open(input)?;
    let start_at = table.require_column(&["start"])?;
    let tokens_at = table.require_column(&["tokens"])?;
    let several = arrays.len() > 1;
    if several && (start_at == 0 || tokens_at == 0) {
        let names: Vec<&str> = arrays.iter().map(|array| array.name.as_str()).collect();
        return Err(invalid_content(
            path,
            Location::Line(1),
            format!("first column {}", table.columns[0]),
            format!("a first column that names the array, as there are several: {}", names.join(", ")),
        ));
    }
    let mut spans = Vec::new();
    let mut record = ByteRecord::new();
    let mut last = 0;
    while table.read_record(&mut record)? {
        if several {
            let name = record.get(0).unwrap_or_default();
            if arrays[last].name.as_bytes() != name {
                last = arrays.iter().position(|array| array.name.as_bytes() == name).ok_or_else(|| {
                    let names: Vec<&str> = arrays.iter().map(|array| array.name.as_str()).collect();
                    table.cell_error(&record, 0, &format!("the name of an array: {}", names.join(", ")))
                })?;
            }
        }
        let start = table.cell_integer(&record, start_at, "the first token, a whole number from 0")?;
        let tokens = table.cell_integer(&record, tokens_at, "a number of tokens, a whole number from 0")?;
        let array = &arrays[last];
        if array.layers == 0 || tokens == 0 {
            continue;
        }
        if start.checked_add(tokens).is_none_or(|end| end > array.tokens as u64) {
            return Err(invalid_content(
                path,
                Location::Line(table.record_line(&record)),
                format!("start {start} and tokens {tokens}"),
                format!(
                    "a span within the {} tokens of array {}",
                    array.tokens,
                    quote_bytes(array.name.as_bytes())
                ),
            ));
        }
        spans.push(RequestSpan { array: last, start: start as usize, tokens: tokens as usize });
    }
    Ok(spans)
}

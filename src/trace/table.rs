//! CSV files with a header, read record by record.
//!
//! In: an [`Input`]. Out: a [`Table`]: columns by name, cells as bytes, integers parsed
//! without a detour over UTF-8, errors with line and column. Shared by the long CSV, the
//! older SGLang CSV and the tables of requests.

use super::error::{invalid, io_at, quote};
use super::input::Input;
use super::{Place, TraceError};
use csv::ByteRecord;
use std::cell::Cell;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

/// Longest record; a missing quote must not swallow the rest of the file into memory.
const MAX_RECORD: u64 = 16 << 20;
/// Most columns of a header.
const MAX_COLUMNS: usize = 4096;

/// An open CSV file.
pub(crate) struct Table<'a> {
    path: &'a Path,
    pub(crate) columns: Vec<String>,
    reader: csv::Reader<Guard<'a>>,
    /// Bytes handed to the parser since the last complete record.
    pending: Rc<Cell<u64>>,
}

impl<'a> Table<'a> {
    /// Opens and reads the header.
    pub(crate) fn open(input: &'a Input<'a>) -> Result<Self, TraceError> {
        let path = input.path.as_path();
        let pending = Rc::new(Cell::new(0));
        let guard = Guard { inner: input.stream()?, pending: Rc::clone(&pending) };
        let mut reader =
            csv::ReaderBuilder::new().has_headers(false).buffer_capacity(256 << 10).from_reader(guard);
        let mut header = ByteRecord::new();
        if !reader.read_byte_record(&mut header).map_err(|error| csv_error(path, &error))? {
            return Err(invalid(path, Place::File, "an empty file", "a header line"));
        }
        if header.len() > MAX_COLUMNS {
            return Err(invalid(
                path,
                Place::Line(1),
                format!("{} columns", header.len()),
                format!("a header of at most {MAX_COLUMNS} columns"),
            ));
        }
        let columns = header
            .iter()
            .enumerate()
            .map(|(i, name)| {
                let name = if i == 0 { name.strip_prefix(b"\xef\xbb\xbf").unwrap_or(name) } else { name };
                String::from_utf8_lossy(name.trim_ascii()).into_owned()
            })
            .collect();
        pending.set(0);
        Ok(Self { path, columns, reader, pending })
    }

    /// Position of a column that may be missing.
    pub(crate) fn find(&self, name: &str) -> Result<Option<usize>, TraceError> {
        let mut found = self.columns.iter().enumerate().filter(|(_, column)| *column == name);
        let first = found.next().map(|(at, _)| at);
        if found.next().is_some() {
            return Err(invalid(
                self.path,
                Place::Line(1),
                format!("column {name} twice"),
                "each column once",
            ));
        }
        Ok(first)
    }

    /// Position of a column that must be there.
    pub(crate) fn need(&self, name: &str) -> Result<usize, TraceError> {
        self.find(name)?.ok_or_else(|| {
            invalid(
                self.path,
                Place::Line(1),
                format!("columns {}", quote(self.columns.join(",").as_bytes())),
                format!("a header with column {name}"),
            )
        })
    }

    /// The next record; false at the end.
    pub(crate) fn next(&mut self, record: &mut ByteRecord) -> Result<bool, TraceError> {
        let more = self.reader.read_byte_record(record).map_err(|error| csv_error(self.path, &error))?;
        self.pending.set(0);
        Ok(more)
    }

    /// An unsigned integer cell.
    pub(crate) fn integer(&self, record: &ByteRecord, at: usize, what: &str) -> Result<u64, TraceError> {
        let cell = record.get(at).unwrap_or_default();
        integer(cell).ok_or_else(|| self.wrong(record, at, what))
    }

    /// The error for a cell that is not what it should be.
    #[cold]
    pub(crate) fn wrong(&self, record: &ByteRecord, at: usize, what: &str) -> TraceError {
        invalid(self.path, self.cell(record, at), quote(record.get(at).unwrap_or_default()), what)
    }

    /// Where a cell is.
    pub(crate) fn cell(&self, record: &ByteRecord, at: usize) -> Place {
        Place::Cell { line: line(record), column: self.columns.get(at).cloned().unwrap_or_default() }
    }
}

/// Line a record starts on, from 1.
pub(crate) fn line(record: &ByteRecord) -> u64 {
    record.position().map_or(0, csv::Position::line)
}

/// A decimal number without sign, spaces around it allowed.
#[inline(always)]
#[expect(clippy::inline_always, reason = "three calls in the loop that reads large files")]
pub(crate) fn integer(cell: &[u8]) -> Option<u64> {
    // Up to 19 digits cannot overflow; anything else takes the careful way.
    if cell.is_empty() || cell.len() > 19 {
        return careful(cell);
    }
    let mut value = 0u64;
    for &byte in cell {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return careful(cell);
        }
        value = value * 10 + u64::from(digit);
    }
    Some(value)
}

#[cold]
fn careful(cell: &[u8]) -> Option<u64> {
    let cell = cell.trim_ascii();
    if cell.is_empty() || !cell.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(cell).ok()?.parse().ok()
}

fn csv_error(path: &Path, error: &csv::Error) -> TraceError {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => invalid(
            path,
            pos.as_ref().map_or(Place::File, |pos| Place::Line(pos.line())),
            format!("{len} columns"),
            format!("{expected_len} columns, as in the header"),
        ),
        csv::ErrorKind::Io(source) => io_at(path)(io::Error::new(source.kind(), source.to_string())),
        _ => invalid(path, Place::File, error.to_string(), "a CSV table"),
    }
}

/// Stops a record that never ends.
struct Guard<'a> {
    inner: Box<dyn Read + 'a>,
    pending: Rc<Cell<u64>>,
}

impl Read for Guard<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.pending.get() > MAX_RECORD {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a row longer than {} MiB; is a quote or a line end missing?", MAX_RECORD >> 20),
            ));
        }
        let count = self.inner.read(buffer)?;
        self.pending.set(self.pending.get() + count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::integer;

    #[test]
    fn integers_are_digits_only() {
        assert_eq!(integer(b"0"), Some(0));
        assert_eq!(integer(b" 42\t"), Some(42));
        assert_eq!(integer(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(integer(b"00000000000000000000007"), Some(7));
        for wrong in ["", " ", "-1", "+1", "1.0", "1e3", "18446744073709551616", "x", "1 2"] {
            assert_eq!(integer(wrong.as_bytes()), None, "{wrong}");
        }
    }
}

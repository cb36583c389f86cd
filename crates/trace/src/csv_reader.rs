//! Text tables with a header, read record by record.
//!
//! Input is an [`InputFile`]. Output is a [`CsvReader`] with columns by name and cells as bytes. Integers are
//! parsed from bytes without a check for UTF-8. Errors name line and column. The long CSV, the older SGLang
//! CSV and the tables of requests share this reader. Lines that begin with `#` are skipped.

use super::header::{MAX_HEAD_BYTES, TableHeader};
use super::input::InputFile;
use super::{Location, TraceError};
use csv::ByteRecord;
use evenkeel::trace::build::parse_integer;
use evenkeel::trace::build::{invalid_content, io_error_at, quote_bytes};
use std::cell::Cell;
use std::io::{self, BufRead as _, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

/// The most bytes of a record. A missing quote must not read the rest of the file into memory.
const MAX_RECORD_BYTES: u64 = 16 << 20;
/// The most columns of a header.
const MAX_COLUMNS: usize = 4096;

/// An open table.
pub(crate) struct CsvReader<'a> {
    path: &'a Path,
    pub(crate) columns: Vec<String>,
    reader: csv::Reader<BufReader<RecordLimiter<'a>>>,
    /// The number of lines before those that the parser counts.
    skipped_lines: u64,
    /// The number of lines skipped as comments.
    comment_lines: u64,
    /// The bytes given to the parser since the last complete record.
    pending: Rc<Cell<u64>>,
    /// The last byte read.
    last: Rc<Cell<u8>>,
}

impl<'a> CsvReader<'a> {
    /// Opens a table and reads its header.
    pub(crate) fn open(input: &'a InputFile<'a>) -> Result<Self, TraceError> {
        let path = input.path.as_path();
        let head = input.read_text_head(MAX_HEAD_BYTES)?;
        let empty = || {
            let found = if head.is_empty() { "an empty file" } else { "no header in the first 64 KiB" };
            invalid_content(path, Location::File, found, "a header line")
        };
        let header = TableHeader::from_head(&head).ok_or_else(empty)?;
        if header.columns.len() > MAX_COLUMNS {
            return Err(invalid_content(
                path,
                Location::Line(header.lines as u64),
                format!("{} columns", header.columns.len()),
                format!("a header of at most {MAX_COLUMNS} columns"),
            ));
        }
        let (pending, last) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(b'\n')));
        let guard =
            RecordLimiter { inner: input.open_text()?, pending: Rc::clone(&pending), last: Rc::clone(&last) };
        let mut text = BufReader::with_capacity(256 << 10, guard);
        // Skip the lines before the header. A header in a comment has no line of its own.
        let own = !header.in_comment;
        let skipped = header.lines - usize::from(own);
        for _ in 0..skipped {
            let mut line = Vec::new();
            (&mut text).take(MAX_RECORD_BYTES).read_until(b'\n', &mut line).map_err(io_error_at(path))?;
        }
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(header.separator)
            .from_reader(text);
        let mut columns = header.columns;
        if own {
            let mut record = ByteRecord::new();
            if !reader.read_byte_record(&mut record).map_err(|error| csv_error(path, &error))? {
                return Err(empty());
            }
            columns =
                record.iter().map(|name| String::from_utf8_lossy(name.trim_ascii()).into_owned()).collect();
        }
        pending.set(0);
        Ok(Self {
            path,
            columns,
            reader,
            skipped_lines: skipped as u64,
            comment_lines: header.comments as u64,
            pending,
            last,
        })
    }

    /// Returns the position of an optional column, by the first of its names that exists. An exact match
    /// precedes one in another case.
    pub(crate) fn find_column(&self, names: &[&str]) -> Result<Option<usize>, TraceError> {
        let at = |fits: &dyn Fn(&str) -> bool| -> Vec<usize> {
            (0..self.columns.len()).filter(|&at| fits(&self.columns[at])).collect()
        };
        for name in names {
            let mut found = at(&|column| column == *name);
            if found.is_empty() {
                found = at(&|column| column.eq_ignore_ascii_case(name));
            }
            match found.as_slice() {
                [] => {}
                [only] => return Ok(Some(*only)),
                _ => {
                    return Err(invalid_content(
                        self.path,
                        Location::Line(self.skipped_lines + 1),
                        format!("column {name} twice"),
                        "each column once",
                    ));
                }
            }
        }
        Ok(None)
    }

    /// Returns the position of a required column.
    pub(crate) fn require_column(&self, names: &[&str]) -> Result<usize, TraceError> {
        self.find_column(names)?.ok_or_else(|| {
            invalid_content(
                self.path,
                Location::Line(self.skipped_lines + 1),
                format!("columns {}", quote_bytes(self.columns.join(",").as_bytes())),
                format!("a header with column {}", names.join(" or ")),
            )
        })
    }

    /// Reads the next record. Returns false at the end.
    pub(crate) fn read_record(&mut self, record: &mut ByteRecord) -> Result<bool, TraceError> {
        loop {
            let more = self.reader.read_byte_record(record).map_err(|error| csv_error(self.path, &error))?;
            self.pending.set(0);
            if !more || record.len() == self.columns.len() {
                return Ok(more);
            }
            // A comment is a single line. A record of several lines was joined by a quote.
            let one_line = record.iter().all(|cell| !cell.contains(&b'\n'));
            match record.get(0).map(<[u8]>::trim_ascii_start) {
                Some([b'#', ..]) if one_line => self.comment_lines += 1,
                Some([]) if record.len() == 1 => {}
                _ => {
                    return Err(invalid_content(
                        self.path,
                        Location::Line(self.record_line(record)),
                        format!("{} columns", record.len()),
                        format!("{} columns, as in the header", self.columns.len()),
                    ));
                }
            }
        }
    }

    /// Returns notices about the whole file, after it was read.
    pub(crate) fn final_notices(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        if self.comment_lines > 0 {
            remarks.push(format!(
                "{}: {} lines that begin with # left out as comments",
                self.path.display(),
                self.comment_lines
            ));
        }
        if !matches!(self.last.get(), b'\n' | b'\r') {
            remarks.push(format!(
                "{}: the last line has no line end; the file may be cut off",
                self.path.display()
            ));
        }
        remarks
    }

    /// Returns the line on which a record starts, from 1.
    pub(crate) fn record_line(&self, record: &ByteRecord) -> u64 {
        self.skipped_lines + record.position().map_or(0, csv::Position::line)
    }

    /// Returns the unsigned integer of a cell.
    pub(crate) fn cell_integer(&self, record: &ByteRecord, at: usize, what: &str) -> Result<u64, TraceError> {
        let cell = record.get(at).unwrap_or_default();
        parse_integer(cell).ok_or_else(|| self.cell_error(record, at, what))
    }

    /// Returns the error for a cell with unexpected content.
    #[cold]
    pub(crate) fn cell_error(&self, record: &ByteRecord, at: usize, what: &str) -> TraceError {
        invalid_content(
            self.path,
            self.cell_location(record, at),
            quote_bytes(record.get(at).unwrap_or_default()),
            what,
        )
    }

    /// Returns the place of a cell.
    pub(crate) fn cell_location(&self, record: &ByteRecord, at: usize) -> Location {
        Location::Cell {
            line: self.record_line(record),
            column: self.columns.get(at).cloned().unwrap_or_default(),
        }
    }
}

fn csv_error(path: &Path, error: &csv::Error) -> TraceError {
    match error.kind() {
        csv::ErrorKind::Io(source) => io_error_at(path)(io::Error::new(source.kind(), source.to_string())),
        _ => invalid_content(path, Location::File, error.to_string(), "a CSV table"),
    }
}

/// A reader that stops a record of excessive length.
struct RecordLimiter<'a> {
    inner: Box<dyn Read + 'a>,
    pending: Rc<Cell<u64>>,
    last: Rc<Cell<u8>>,
}

impl Read for RecordLimiter<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.pending.get() > MAX_RECORD_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "a row longer than {} MiB; is a quote or a line end missing?",
                    MAX_RECORD_BYTES >> 20
                ),
            ));
        }
        let count = self.inner.read(buffer)?;
        self.pending.set(self.pending.get() + count as u64);
        if let Some(&last) = buffer[..count].last() {
            self.last.set(last);
        }
        Ok(count)
    }
}

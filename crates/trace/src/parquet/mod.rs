//! The long table as Parquet.
//!
//! Input is a file with columns `layer`, `expert`, `tokens` and optionally `step` and `source`. Their values
//! are integers, or whole numbers as DOUBLE or DECIMAL; step and source may also be strings. Output is rows
//! in a [`Sink`]. The low-level interface reads column by column, a few thousand rows at a time. Before that,
//! [`validate`] checks that the file stays within its own bounds.

mod cells;
mod columns;
mod schema;
mod thrift;
mod validate;
mod validate_lengths;

use super::TraceError;
use super::input::{InputFile, RawInput};
use super::long_csv::single_step_label;
use super::partition::FolderColumns;
use crate::Location;
use crate::ReadOptions;
use cells::ColumnCells;
use columns::TableColumns;
use evenkeel::trace::build::{MAX_LABEL_BYTES, Sink, StepLabel};
use evenkeel::trace::build::{SinkError, invalid_content, quote_bytes};
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Reads one file into the current source. Returns whether every row has a step.
pub(crate) fn read(
    input: &InputFile<'_>,
    options: &ReadOptions,
    given: &FolderColumns,
    sink: &mut dyn Sink,
) -> Result<bool, TraceError> {
    // The Parquet crate checks most claims of a file, but not all. A false claim may end in a panic, which we
    // report as a malformed file.
    catch_unwind(AssertUnwindSafe(|| read_inner(input, options, given, sink))).unwrap_or_else(|_| {
        Err(invalid_content(&input.path, Location::File, "contradictory metadata", "a Parquet file"))
    })
}

fn read_inner(
    input: &InputFile<'_>,
    options: &ReadOptions,
    given: &FolderColumns,
    sink: &mut dyn Sink,
) -> Result<bool, TraceError> {
    let path = input.path.as_path();
    let mut source = validate::SizedFile { bytes: input.open_seekable()?, size: input.size_bytes()?, path };
    validate::check_footer(&mut source)?;
    let file: Box<dyn FileReader> = match input.open_raw()? {
        RawInput::File(file) => {
            Box::new(SerializedFileReader::new(file).map_err(|error| parquet_error(path, &error))?)
        }
        RawInput::Bytes(bytes) => {
            let bytes = bytes::Bytes::copy_from_slice(bytes);
            Box::new(SerializedFileReader::new(bytes).map_err(|error| parquet_error(path, &error))?)
        }
    };
    let columns = TableColumns::find_columns(&*file, path, options, given)?;
    validate::check_columns(&mut source, file.metadata(), &columns.used_columns())?;
    if !columns.extra.is_empty() {
        sink.add_notice(format!("{}: columns ignored: {}", path.display(), columns.extra.join(", ")));
    }
    if columns.source.is_some() || given.source.is_some() {
        sink.announce_sources();
    }
    let as_text = options.step_column.as_deref().is_some_and(|name| name != "step");
    if columns.step.is_none() {
        let note = given.enter_step(&single_step_label(input), as_text, sink);
        if let Some(note) = note.map_err(|fault| fault.into_trace_error(path, Location::File))? {
            sink.add_notice(format!("{}: {note}", path.display()));
        }
    }
    let mut row = 0;
    for group in 0..file.metadata().num_row_groups() {
        let group = file.get_row_group(group).map_err(|error| parquet_error(path, &error))?;
        read_rows(&*group, (&columns, given), path, as_text, &mut row, sink)?;
    }
    Ok(columns.step.is_some() || given.step.is_some())
}

fn parquet_error(path: &Path, error: &ParquetError) -> TraceError {
    invalid_content(
        path,
        Location::File,
        quote_bytes(error.to_string().as_bytes()),
        "a readable Parquet file",
    )
}

/// The step or source of the previous row. Most rows have the same.
#[derive(Default)]
struct PreviousLabel {
    number: Option<u64>,
    text: Option<ByteArray>,
}

impl PreviousLabel {
    /// Takes the label of a row. Returns whether it differs from the previous one, or `None` if it is too
    /// long.
    fn replace_label(&mut self, cells: &ColumnCells, at: usize) -> Option<bool> {
        if let Some(bytes) = cells.label_bytes(at) {
            if bytes.len() > MAX_LABEL_BYTES {
                return None;
            }
            // Rows with the same dictionary entry share its bytes.
            let same = |last: &ByteArray| std::ptr::eq(last.data(), bytes.data()) || last == bytes;
            let new = !self.text.as_ref().is_some_and(same);
            if new {
                self.text = Some(bytes.clone());
            }
            return Some(new);
        }
        let number = cells.integer_at(at);
        let new = self.text.is_none() || number.is_none() || self.number != number;
        if new {
            self.number = number;
            let text = number.map_or_else(|| cells.describe_cell(at), |number| number.to_string());
            self.text = Some(text.into_bytes().into());
        }
        Some(new)
    }

    fn label_bytes(&self) -> &[u8] {
        self.text.as_ref().map(ByteArray::data).unwrap_or_default()
    }
}

fn read_rows(
    group: &dyn RowGroupReader,
    (columns, given): (&TableColumns, &FolderColumns),
    path: &Path,
    as_text: bool,
    row: &mut u64,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    let open = |at: Option<usize>| {
        at.map(|at| {
            let descr = group.metadata().schema_descr().column(at);
            let meaning = columns.column_meaning(&descr, at).map_err(|found| {
                invalid_content(
                    path,
                    Location::Key(format!("column {}", descr.path().string())),
                    found,
                    "one type",
                )
            })?;
            ColumnCells::open_column(group, at, meaning, path)
        })
        .transpose()
    };
    let (mut layer, mut expert) = (open(columns.layer)?, open(columns.expert)?);
    let (mut step, mut source) = (open(columns.step)?, open(columns.source)?);
    let Some(mut tokens) = open(Some(columns.tokens))? else { return Ok(()) };
    let fixed = given.source.as_deref().unwrap_or_default().as_bytes();
    let (mut label, mut from) = (PreviousLabel::default(), PreviousLabel::default());
    loop {
        let count = tokens.fill_rows(path, *row)?;
        for cells in [&mut layer, &mut expert, &mut step, &mut source].into_iter().flatten() {
            let other = cells.fill_rows(path, *row)?;
            if other != count {
                return Err(invalid_content(
                    path,
                    Location::Key(format!("column {}", cells.name)),
                    format!("{} rows", *row + other as u64),
                    format!("{} rows, as in column {}", *row + count as u64, tokens.name),
                ));
            }
        }
        if count == 0 {
            return Ok(());
        }
        for at in 0..count {
            let cell = |name: &str| Location::Cell { line: *row + at as u64 + 1, column: name.to_owned() };
            let long = |cells: &ColumnCells| {
                let length = cells.label_bytes(at).map_or(0, ByteArray::len);
                let expected = format!("at most {MAX_LABEL_BYTES} bytes");
                invalid_content(path, cell(&cells.name), format!("a label of {length} bytes"), expected)
            };
            if let Some(step) = &step
                && label.replace_label(step, at).ok_or_else(|| long(step))?
            {
                let Some(text) =
                    std::str::from_utf8(label.label_bytes()).ok().filter(|text| !text.is_empty())
                else {
                    return Err(invalid_content(
                        path,
                        cell(&step.name),
                        quote_bytes(label.label_bytes()),
                        "a label in UTF-8",
                    ));
                };
                sink.select_step(if as_text { StepLabel::Text(text) } else { StepLabel::parse_cell(text) })
                    .map_err(|fault| fault.into_trace_error(path, cell(&step.name)))?;
            }
            let number = |cells: &Option<ColumnCells>, given: Option<u64>| match cells {
                Some(cells) => cells.integer_at(at).ok_or_else(|| {
                    invalid_content(path, cell(&cells.name), cells.describe_cell(at), "a whole number from 0")
                }),
                None => Ok(given.unwrap_or_default()),
            };
            let (l, e) = (number(&layer, given.layer)?, number(&expert, given.expert)?);
            let t = tokens.integer_at(at).ok_or_else(|| {
                let expected = "a whole number of tokens from 0, not a fraction of tokens";
                invalid_content(path, cell(&tokens.name), tokens.describe_cell(at), expected)
            })?;
            if let Some(source) = &source {
                from.replace_label(source, at).ok_or_else(|| long(source))?;
            }
            let result = match (u32::try_from(l), u32::try_from(e)) {
                (Err(_), _) => Err(SinkError::LayerLimit(l)),
                (_, Err(_)) => Err(SinkError::ExpertLimit(e)),
                (Ok(l), Ok(e)) => {
                    sink.add_row(l, e, t, if source.is_some() { from.label_bytes() } else { fixed })
                }
            };
            result.map_err(|fault| {
                let name = match fault {
                    SinkError::LayerLimit(_) => "layer",
                    SinkError::Overflow => "tokens",
                    _ => "expert",
                };
                fault.into_trace_error(path, cell(name))
            })?;
        }
        *row += count as u64;
    }
}

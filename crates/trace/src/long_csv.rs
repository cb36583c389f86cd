//! The long table: one row per step, layer and expert.
//!
//! Input is CSV with columns `layer`, `expert`, `tokens` and optionally `step` and `source`. Columns may come
//! in any order; others are ignored. The separator is comma, semicolon, tab or bar. Output is rows in a
//! [`Sink`], one record at a time, so memory does not depend on the size of the file. The layout is this
//! project's own.

use super::csv_reader::CsvReader;
use super::header::{EXPERT_COLUMNS, LAYER_COLUMNS, TOKEN_COLUMNS};
use super::input::InputFile;
use super::partition::FolderColumns;
use super::{Location, TraceError};
use crate::ReadOptions;
use csv::ByteRecord;
use evenkeel::trace::build::parse_integer;
use evenkeel::trace::build::{MAX_LABEL_BYTES, Sink, StepLabel};
use evenkeel::trace::build::{SinkError, invalid_content, quote_bytes};

/// The source of a column's numbers.
#[derive(Clone, Copy)]
enum ColumnSource {
    Index(usize),
    /// The same number in every row.
    Fixed(u64),
}

impl ColumnSource {
    fn find_column(table: &CsvReader<'_>, names: &[&str], given: Option<u64>) -> Result<Self, TraceError> {
        match given {
            Some(number) => Ok(table.find_column(names)?.map_or(Self::Fixed(number), Self::Index)),
            None => table.require_column(names).map(Self::Index),
        }
    }

    fn column_index(self) -> Option<usize> {
        match self {
            Self::Index(at) => Some(at),
            Self::Fixed(_) => None,
        }
    }

    #[inline]
    fn cell_number(self, record: &ByteRecord) -> Option<u64> {
        match self {
            Self::Index(at) => record.get(at).and_then(parse_integer),
            Self::Fixed(number) => Some(number),
        }
    }
}

/// Reads one file into the current source. Returns whether every row has a step.
pub(crate) fn read(
    input: &InputFile<'_>,
    options: &ReadOptions,
    given: &FolderColumns,
    sink: &mut dyn Sink,
) -> Result<bool, TraceError> {
    let path = &input.path;
    let mut table = CsvReader::open(input)?;
    let layer_at = ColumnSource::find_column(&table, LAYER_COLUMNS, given.layer)?;
    let expert_at = ColumnSource::find_column(&table, EXPERT_COLUMNS, given.expert)?;
    let tokens_at = table.require_column(TOKEN_COLUMNS)?;
    let source_at = table.find_column(&["source"])?;
    let as_text = options.step_column.as_deref().is_some_and(|name| name != "step");
    let step_at = match &options.step_column {
        Some(name) if given.step.is_none() => Some(table.require_column(&[name])?),
        Some(name) => table.find_column(&[name])?,
        None => table.find_column(&["step"])?,
    };
    let used = [step_at, layer_at.column_index(), expert_at.column_index(), Some(tokens_at), source_at];
    let extra: Vec<&str> = (0..table.columns.len())
        .filter(|at| !used.contains(&Some(*at)))
        .map(|at| table.columns[at].as_str())
        .collect();
    if !extra.is_empty() {
        sink.add_notice(format!("{}: columns ignored: {}", path.display(), extra.join(", ")));
    }

    if source_at.is_some() || given.source.is_some() {
        sink.announce_sources();
    }
    if step_at.is_none() {
        let note = given.enter_step(&single_step_label(input), as_text, sink);
        if let Some(note) = note.map_err(|fault| fault.into_trace_error(path, Location::File))? {
            sink.add_notice(format!("{}: {note}", path.display()));
        }
    }
    let fixed = given.source.as_deref().unwrap_or_default().as_bytes();
    let mut record = ByteRecord::new();
    let mut step = Vec::new();
    let mut fresh = true;
    while table.read_record(&mut record)? {
        if let Some(at) = step_at {
            let cell = record.get(at).unwrap_or_default();
            if fresh || cell != step {
                enter_step(sink, cell, as_text)
                    .map_err(|fault| locate_fault(fault, input, &table, &record, ColumnSource::Index(at)))?
                    .then_some(())
                    .ok_or_else(|| {
                        table.cell_error(
                            &record,
                            at,
                            &format!("a step of at most {MAX_LABEL_BYTES} bytes in UTF-8"),
                        )
                    })?;
                step.clear();
                step.extend_from_slice(cell);
                fresh = false;
            }
        }
        // Large files spend their time in this loop. It only parses the numbers; errors are explained
        // separately.
        let (Some(layer), Some(expert), Some(tokens)) = (
            layer_at.cell_number(&record),
            expert_at.cell_number(&record),
            record.get(tokens_at).and_then(parse_integer),
        ) else {
            for (column, what) in [
                (layer_at, "a layer id, a whole number from 0"),
                (expert_at, "an expert id, a whole number from 0"),
                (ColumnSource::Index(tokens_at), "a number of tokens, a whole number from 0"),
            ] {
                if let ColumnSource::Index(at) = column {
                    table.cell_integer(&record, at, what)?;
                }
            }
            continue;
        };
        let (Ok(layer), Ok(expert)) = (u32::try_from(layer), u32::try_from(expert)) else {
            let (fault, at) = match u32::try_from(layer) {
                Err(_) => (SinkError::LayerLimit(layer), layer_at),
                Ok(_) => (SinkError::ExpertLimit(expert), expert_at),
            };
            return Err(locate_fault(fault, input, &table, &record, at));
        };
        let source = source_at.and_then(|at| record.get(at)).unwrap_or(fixed);
        if let Err(fault) = sink.add_row(layer, expert, tokens, source) {
            let at = match fault {
                SinkError::LayerLimit(_) => layer_at,
                SinkError::Overflow => ColumnSource::Index(tokens_at),
                _ => expert_at,
            };
            return Err(locate_fault(fault, input, &table, &record, at));
        }
    }
    table.final_notices().into_iter().for_each(|remark| sink.add_notice(remark));
    Ok(step_at.is_some() || given.step.is_some())
}

/// Enters the step of a row. Returns false if the label is no text or too long.
fn enter_step(sink: &mut dyn Sink, cell: &[u8], as_text: bool) -> Result<bool, SinkError> {
    let Ok(text) = std::str::from_utf8(cell) else { return Ok(false) };
    if text.len() > MAX_LABEL_BYTES || text.trim_ascii().is_empty() {
        return Ok(false);
    }
    sink.select_step(if as_text { StepLabel::Text(text) } else { StepLabel::parse_cell(text.trim()) })?;
    Ok(true)
}

#[cold]
fn locate_fault(
    fault: SinkError,
    input: &InputFile<'_>,
    table: &CsvReader<'_>,
    record: &ByteRecord,
    at: ColumnSource,
) -> TraceError {
    let place = match (&fault, at) {
        (SinkError::StepLimit | SinkError::StepTooLarge { .. }, _) | (_, ColumnSource::Fixed(_)) => {
            Location::Line(table.record_line(record))
        }
        (_, ColumnSource::Index(at)) => table.cell_location(record, at),
    };
    fault.into_trace_error(&input.path, place)
}

/// Returns the error for parts of one table of which only some have steps.
pub(crate) fn uneven_steps_error(path: &std::path::Path, first: &std::path::Path, has: bool) -> TraceError {
    let name = |path: &std::path::Path| quote_bytes(path.to_string_lossy().as_bytes());
    let (found, expected) = if has { ("a step column", "none") } else { ("no step column", "one") };
    invalid_content(
        path,
        Location::File,
        found,
        format!("{expected}, as in {}, another part of the table", name(first)),
    )
}

/// Returns the label of the single step of a file without steps: its name.
pub(crate) fn single_step_label(input: &InputFile<'_>) -> String {
    let name = input.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.split('.').next().filter(|stem| !stem.is_empty()).unwrap_or("all").to_owned()
}

//! The long table: one row per step, layer and expert.
//!
//! In: CSV with columns `layer`, `expert`, `tokens` and, where there, `step` and `source`;
//! in any order, others ignored. Out: rows into a [`Sink`], a record at a time, so memory
//! does not depend on the file. The layout is this project's own.

use super::error::Fault;
use super::input::Input;
use super::options::ReadOptions;
use super::sink::{Label, Sink};
use super::table::{self, Table};
use super::{Place, TraceError};
use csv::ByteRecord;

/// Reads one file as one source.
pub(crate) fn read(input: &Input<'_>, options: &ReadOptions, sink: &mut dyn Sink) -> Result<(), TraceError> {
    let mut table = Table::open(input)?;
    let layer_at = table.need("layer")?;
    let expert_at = table.need("expert")?;
    let tokens_at = table.need("tokens")?;
    let source_at = table.find("source")?;
    let named = options.step_column.as_deref().filter(|name| *name != "step");
    let step_at = match &options.step_column {
        Some(name) => Some(table.need(name)?),
        None => table.find("step")?,
    };
    let used = [step_at, Some(layer_at), Some(expert_at), Some(tokens_at), source_at];
    let extra: Vec<&str> = (0..table.columns.len())
        .filter(|at| !used.contains(&Some(*at)))
        .map(|at| table.columns[at].as_str())
        .collect();
    if !extra.is_empty() {
        sink.notice(format!("{}: columns ignored: {}", input.path.display(), extra.join(", ")));
    }

    if source_at.is_some() {
        sink.has_source();
    }
    sink.begin();
    if step_at.is_none() {
        sink.step(Label::Text(&single_step(input))).map_err(|fault| fault.at(&input.path, Place::File))?;
        sink.notice(format!("{}: no step column, the file is one step", input.path.display()));
    }
    let mut record = ByteRecord::new();
    let mut step = Vec::new();
    let mut fresh = true;
    while table.next(&mut record)? {
        if let Some(at) = step_at {
            let cell = record.get(at).unwrap_or_default();
            if fresh || cell != step {
                enter(sink, cell, named.is_some())
                    .map_err(|fault| place(fault, input, &table, &record, at))?
                    .then_some(())
                    .ok_or_else(|| table.wrong(&record, at, "a step number or label in UTF-8"))?;
                step.clear();
                step.extend_from_slice(cell);
                fresh = false;
            }
        }
        // The numbers first, the reasons why not apart: this loop is the whole of reading a large file.
        let number = |at: usize| record.get(at).and_then(table::integer);
        let (Some(layer), Some(expert), Some(tokens)) =
            (number(layer_at), number(expert_at), number(tokens_at))
        else {
            table.integer(&record, layer_at, "a layer id, a whole number from 0")?;
            table.integer(&record, expert_at, "an expert id, a whole number from 0")?;
            table.integer(&record, tokens_at, "a number of tokens, a whole number from 0")?;
            continue;
        };
        let (Ok(layer), Ok(expert)) = (u32::try_from(layer), u32::try_from(expert)) else {
            let (fault, at) = match u32::try_from(layer) {
                Err(_) => (Fault::LayerLimit(layer), layer_at),
                Ok(_) => (Fault::ExpertLimit(expert), expert_at),
            };
            return Err(place(fault, input, &table, &record, at));
        };
        let source = source_at.and_then(|at| record.get(at)).unwrap_or_default();
        if let Err(fault) = sink.row(layer, expert, tokens, source) {
            let at = match fault {
                Fault::LayerLimit(_) => layer_at,
                Fault::Overflow => tokens_at,
                _ => expert_at,
            };
            return Err(place(fault, input, &table, &record, at));
        }
    }
    Ok(())
}

/// Names the step of a row; false where the label is not text.
fn enter(sink: &mut dyn Sink, cell: &[u8], as_text: bool) -> Result<bool, Fault> {
    let Ok(text) = std::str::from_utf8(cell) else { return Ok(false) };
    sink.step(if as_text { Label::Text(text) } else { Label::parse(text.trim()) })?;
    Ok(true)
}

#[cold]
fn place(fault: Fault, input: &Input<'_>, table: &Table<'_>, record: &ByteRecord, at: usize) -> TraceError {
    let place = match fault {
        Fault::StepLimit | Fault::StepTooLarge { .. } => Place::Line(table::line(record)),
        _ => table.cell(record, at),
    };
    fault.at(&input.path, place)
}

/// The label of the one step of a file without steps: its name.
pub(crate) fn single_step(input: &Input<'_>) -> String {
    let name = input.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.split('.').next().filter(|stem| !stem.is_empty()).unwrap_or("all").to_owned()
}

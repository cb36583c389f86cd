//! Older SGLang dumps: one CSV per rank, `layer_id,expert_id,count`.
//!
//! Input is such a table. Output is rows in a [`Sink`], one step per run. Ranks add up if the caller begins
//! no new source between them.

use super::csv_reader::CsvReader;
use super::input::InputFile;
use super::{TraceError, long_csv};
use csv::ByteRecord;
use evenkeel::trace::build::SinkError;
use evenkeel::trace::build::{Sink, StepLabel};

/// Reads the file of one rank into the current source as step `label`.
pub(crate) fn read(
    input: &InputFile<'_>,
    label: Option<&str>,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    let mut table = CsvReader::open(input)?;
    let layer_at = table.require_column(&["layer_id"])?;
    let expert_at = table.require_column(&["expert_id"])?;
    let count_at = table.require_column(&["count"])?;
    let stem = long_csv::single_step_label(input);
    sink.select_step(StepLabel::Text(label.unwrap_or(&stem)))
        .map_err(|fault| fault.into_trace_error(&input.path, super::Location::File))?;
    let mut record = ByteRecord::new();
    while table.read_record(&mut record)? {
        let layer = table.cell_integer(&record, layer_at, "a layer id, a whole number from 0")?;
        let expert = table.cell_integer(&record, expert_at, "an expert id, a whole number from 0")?;
        let tokens = table.cell_integer(&record, count_at, "a count, a whole number from 0")?;
        let result = match (u32::try_from(layer), u32::try_from(expert)) {
            (Err(_), _) => Err(SinkError::LayerLimit(layer)),
            (_, Err(_)) => Err(SinkError::ExpertLimit(expert)),
            (Ok(layer), Ok(expert)) => sink.add_row(layer, expert, tokens, b""),
        };
        result.map_err(|fault| {
            let at = match fault {
                SinkError::LayerLimit(_) => layer_at,
                SinkError::Overflow => count_at,
                _ => expert_at,
            };
            fault.into_trace_error(&input.path, table.cell_location(&record, at))
        })?;
    }
    Ok(())
}

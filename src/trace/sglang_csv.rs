//! Older SGLang dumps: one CSV per rank, `layer_id,expert_id,count`.
//!
//! In: such a table. Out: rows into a [`Sink`], one step per run; ranks add up, which is for
//! the caller to arrange by not beginning a new source between them.

use super::error::Fault;
use super::input::Input;
use super::sink::{Label, Sink};
use super::table::Table;
use super::{TraceError, long_csv};
use csv::ByteRecord;

/// Is this the header of such a table?
pub(crate) fn is_header(columns: &[&str]) -> bool {
    ["layer_id", "expert_id", "count"].iter().all(|name| columns.contains(name))
}

/// Reads the file of one rank into the current source as step `label`.
pub(crate) fn read(input: &Input<'_>, label: Option<&str>, sink: &mut dyn Sink) -> Result<(), TraceError> {
    let mut table = Table::open(input)?;
    let layer_at = table.need("layer_id")?;
    let expert_at = table.need("expert_id")?;
    let count_at = table.need("count")?;
    let stem = long_csv::single_step(input);
    sink.step(Label::Text(label.unwrap_or(&stem)))
        .map_err(|fault| fault.at(&input.path, super::Place::File))?;
    let mut record = ByteRecord::new();
    while table.next(&mut record)? {
        let layer = table.integer(&record, layer_at, "a layer id, a whole number from 0")?;
        let expert = table.integer(&record, expert_at, "an expert id, a whole number from 0")?;
        let tokens = table.integer(&record, count_at, "a count, a whole number from 0")?;
        let result = match (u32::try_from(layer), u32::try_from(expert)) {
            (Err(_), _) => Err(Fault::LayerLimit(layer)),
            (_, Err(_)) => Err(Fault::ExpertLimit(expert)),
            (Ok(layer), Ok(expert)) => sink.row(layer, expert, tokens, b""),
        };
        result.map_err(|fault| {
            let at = match fault {
                Fault::LayerLimit(_) => layer_at,
                Fault::Overflow => count_at,
                _ => expert_at,
            };
            fault.at(&input.path, table.cell(&record, at))
        })?;
    }
    Ok(())
}

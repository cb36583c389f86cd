//! vLLM's load statistics, one JSON record per line.
//!
//! In: lines `{"record_type":"eplb_load_stats","version":1,"step","expert_load":[L][physical],
//! "p2l_map":[L][physical]}`. Out: logical counts into a [`Sink`], layers by position. Other
//! record types are skipped. Source: vLLM's offline EPLB pull request.

use super::error::{invalid, io_at, quote};
use super::input::Input;
use super::sink::{Label, Sink};
use super::{MAX_EXPERTS, Place, TraceError, sglang};
use serde::Deserialize;
use std::io::{BufRead, BufReader, Read};

/// Longest line taken.
const MAX_LINE: u64 = 64 << 20;

#[derive(Deserialize)]
struct Kind {
    record_type: String,
    version: Option<u64>,
}

#[derive(Deserialize)]
struct Record {
    step: u64,
    expert_load: Vec<Vec<u64>>,
    p2l_map: Vec<Vec<i64>>,
}

/// Reads one file into the current source.
pub(crate) fn read(input: &Input<'_>, sink: &mut dyn Sink) -> Result<(), TraceError> {
    let path = &input.path;
    let mut reader = BufReader::with_capacity(1 << 18, input.stream()?);
    let mut bytes = Vec::new();
    let mut line = 0;
    let mut skipped = 0u64;
    let mut logical = Vec::new();
    loop {
        bytes.clear();
        line += 1;
        let count = (&mut reader).take(MAX_LINE + 1).read_until(b'\n', &mut bytes).map_err(io_at(path))?;
        if count == 0 {
            break;
        }
        if count as u64 > MAX_LINE {
            return Err(TraceError::Limit {
                path: path.clone(),
                place: Place::Line(line),
                what: format!("longer than {} MiB", MAX_LINE >> 20),
            });
        }
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let wrong = |error: serde_json::Error| {
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default().to_owned();
            invalid(
                path,
                Place::Line(line),
                format!("{message} (column {})", error.column()),
                "one JSON record with step, expert_load and p2l_map",
            )
        };
        let kind: Kind = serde_json::from_slice(&bytes).map_err(wrong)?;
        if kind.record_type != "eplb_load_stats" {
            skipped += 1;
            continue;
        }
        if kind.version != Some(1) {
            let found = kind.version.map_or("no version".into(), |version| format!("version {version}"));
            return Err(invalid(path, Place::Line(line), found, "version 1 of eplb_load_stats"));
        }
        let record: Record = serde_json::from_slice(&bytes).map_err(wrong)?;
        pour(&record, &mut logical, sink).map_err(|fault| match fault {
            Trouble::Sink(fault) => fault.at(path, Place::Line(line)),
            Trouble::Shape(found, expected) => invalid(path, Place::Line(line), found, expected),
        })?;
    }
    if skipped > 0 {
        sink.notice(format!(
            "{}: {skipped} records of other types than {} skipped",
            path.display(),
            quote(b"eplb_load_stats")
        ));
    }
    Ok(())
}

enum Trouble {
    Sink(super::error::Fault),
    Shape(String, &'static str),
}

impl From<super::error::Fault> for Trouble {
    fn from(fault: super::error::Fault) -> Self {
        Self::Sink(fault)
    }
}

fn pour(record: &Record, logical: &mut Vec<u64>, sink: &mut dyn Sink) -> Result<(), Trouble> {
    if record.expert_load.len() != record.p2l_map.len() {
        let found = format!(
            "{} layers in expert_load and {} in p2l_map",
            record.expert_load.len(),
            record.p2l_map.len()
        );
        return Err(Trouble::Shape(found, "as many in both"));
    }
    let top = record.p2l_map.iter().flatten().copied().max().unwrap_or(-1);
    if !usize::try_from(top).is_ok_and(|top| top < MAX_EXPERTS) {
        return Err(Trouble::Shape(format!("logical experts up to {top} in p2l_map"), "ids from 0 to 65535"));
    }
    sink.experts(top as usize + 1)?;
    sink.step(Label::Number(record.step))?;
    logical.clear();
    logical.resize(top as usize + 1, 0);
    for (layer, (load, map)) in record.expert_load.iter().zip(&record.p2l_map).enumerate() {
        if load.len() != map.len() {
            let found = format!("{} loads and {} map entries in layer {layer}", load.len(), map.len());
            return Err(Trouble::Shape(found, "a map entry for each load"));
        }
        sglang::to_logical(load, map, logical).map_err(|slot| {
            Trouble::Shape(
                format!("{} tokens on slot {slot} of layer {layer}, mapped to {}", load[slot], map[slot]),
                "tokens only on slots with a logical expert, and sums within 64 bits",
            )
        })?;
        let layer = u32::try_from(layer).map_err(|_| super::error::Fault::LayerLimit(layer as u64))?;
        sink.counts(layer, logical)?;
    }
    Ok(())
}

//! vLLM's load statistics, one JSON record per line.
//!
//! Input is lines `{"record_type":"eplb_load_stats","version":1,"step","expert_load":[L][physical],
//! "p2l_map":[L][physical]}`. Output is logical counts in a [`Sink`], layers by position. Records of other
//! types are skipped; they may name the model and mark the start of a server. A restarted server counts its
//! steps from the first one again. [`RunDetector`] recognises this, and its steps become a run of their own.
//! Source: vLLM's offline EPLB pull request.

use super::input::InputFile;
use super::{Location, MAX_EXPERTS, TraceError, sglang};
use evenkeel::trace::build::{Sink, StepLabel};
use evenkeel::trace::build::{invalid_content, io_error_at, quote_bytes};
use serde::Deserialize;
use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read};

/// The most bytes of a line.
const MAX_LINE_BYTES: u64 = 64 << 20;

#[derive(Deserialize)]
struct RecordHeader {
    record_type: String,
    version: Option<u64>,
    #[serde(alias = "model_name", alias = "model_id")]
    model: Option<serde_json::Value>,
}

/// The state that distinguishes the runs of one file.
#[derive(Default)]
struct RunDetector {
    model: Option<serde_json::Value>,
    layers: Option<usize>,
    /// Flag that is set if a record since the last step marks a start.
    started: bool,
    /// All steps of the current run; `first` and `last` are its ends.
    steps: HashSet<u64>,
    first: u64,
    last: u64,
    count: u64,
}

/// The relation of a step to its file.
enum RunTransition {
    Next,
    /// The first step of another run.
    Restart,
}

impl RunDetector {
    /// Processes a record of any type. The error names both models if the record names another one than
    /// before.
    fn observe_record(&mut self, kind: &RecordHeader) -> Result<(), RecordError> {
        self.started |= kind.record_type.contains("start") || kind.record_type.contains("session");
        if let Some(model) = kind.model.clone().filter(|model| !model.is_null()) {
            let before = self.model.get_or_insert_with(|| model.clone());
            if *before != model {
                let found = format!("model {}", quote_bytes(model.to_string().as_bytes()));
                let expected = format!(
                    "one model in a file, {} as in earlier records",
                    quote_bytes(before.to_string().as_bytes())
                );
                return Err(RecordError::Shape(found, expected));
            }
        }
        Ok(())
    }

    /// Processes the step of a load record.
    fn observe_step(&mut self, step: u64, layers: usize) -> Result<RunTransition, RecordError> {
        let before = *self.layers.get_or_insert(layers);
        if before != layers {
            let expected = format!("{before} layers, as in earlier records: one model in a file");
            return Err(RecordError::Shape(format!("{layers} layers"), expected));
        }
        let started = std::mem::take(&mut self.started);
        let (seen, back) = (self.steps.contains(&step), step < self.last);
        let restart = self.count > 0 && (started && (seen || back) || seen && back && step == self.first);
        if seen && !restart {
            return Err(RecordError::Shape(
                format!("step {step} again"),
                "each step once; a new run begins with a record that marks its start, or at the first step \
                 again"
                    .into(),
            ));
        }
        if restart {
            self.steps.clear();
        }
        if self.steps.is_empty() {
            self.first = step;
        }
        self.first = self.first.min(step);
        self.steps.insert(step);
        self.last = step;
        self.count += 1;
        Ok(if restart { RunTransition::Restart } else { RunTransition::Next })
    }
}

#[derive(Deserialize)]
struct LoadRecord {
    step: u64,
    #[serde(deserialize_with = "super::json::counts")]
    expert_load: Vec<Vec<u64>>,
    p2l_map: Vec<Vec<i64>>,
}

/// Reads one file into the current source.
pub(crate) fn read(input: &InputFile<'_>, sink: &mut dyn Sink) -> Result<(), TraceError> {
    let path = &input.path;
    let mut reader = BufReader::with_capacity(1 << 18, input.open_text()?);
    let mut bytes = Vec::new();
    let mut line = 0;
    let (mut skipped, mut restarts) = (0u64, 0u64);
    let mut runs = RunDetector::default();
    let mut logical = Vec::new();
    loop {
        bytes.clear();
        line += 1;
        let count = (&mut reader)
            .take(MAX_LINE_BYTES + 1)
            .read_until(b'\n', &mut bytes)
            .map_err(io_error_at(path))?;
        if count == 0 {
            break;
        }
        if count as u64 > MAX_LINE_BYTES {
            return Err(TraceError::Limit {
                path: path.clone(),
                place: Location::Line(line),
                what: format!("longer than {} MiB", MAX_LINE_BYTES >> 20),
            });
        }
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let wrong = |error: serde_json::Error| {
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            invalid_content(
                path,
                Location::Line(line),
                format!("{message} (column {}{})", error.column(), word_at_column(&bytes, error.column())),
                "one JSON record with step, expert_load and p2l_map",
            )
        };
        let kind: RecordHeader = serde_json::from_slice(&bytes).map_err(wrong)?;
        let place = |trouble| match trouble {
            RecordError::Sink(fault) => {
                evenkeel::trace::build::SinkError::into_trace_error(fault, path, Location::Line(line))
            }
            RecordError::Shape(found, expected) => {
                invalid_content(path, Location::Line(line), found, expected)
            }
        };
        runs.observe_record(&kind).map_err(place)?;
        if kind.record_type != "eplb_load_stats" {
            skipped += 1;
            continue;
        }
        if kind.version != Some(1) {
            let found = kind.version.map_or("no version".into(), |version| format!("version {version}"));
            return Err(invalid_content(path, Location::Line(line), found, "version 1 of eplb_load_stats"));
        }
        let record: LoadRecord = serde_json::from_slice(&bytes).map_err(wrong)?;
        if let RunTransition::Restart =
            runs.observe_step(record.step, record.expert_load.len()).map_err(place)?
        {
            sink.begin_source();
            restarts += 1;
        }
        push_record(&record, &mut logical, sink).map_err(place)?;
    }
    if restarts > 0 {
        sink.add_notice(format!(
            "{}: {} runs, because the steps begin again; the steps of each follow those of the previous one",
            path.display(),
            restarts + 1
        ));
    }
    if skipped > 0 {
        sink.add_notice(format!(
            "{}: skipped {skipped} records of types other than {}",
            path.display(),
            quote_bytes(b"eplb_load_stats")
        ));
    }
    Ok(())
}

/// Returns the word at a column at which JSON parsing failed, for example `NaN`.
fn word_at_column(line: &[u8], column: usize) -> String {
    let from = column.saturating_sub(1).min(line.len());
    let letter = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    let start = line[..from].iter().rposition(|byte| !letter(byte)).map_or(0, |at| at + 1);
    let word = &line[start..];
    let word = &word[..word.iter().position(|byte| !letter(byte)).unwrap_or(word.len())];
    if word.is_empty() { String::new() } else { format!(", at {}", quote_bytes(word)) }
}

enum RecordError {
    Sink(evenkeel::trace::build::SinkError),
    Shape(String, String),
}

impl From<evenkeel::trace::build::SinkError> for RecordError {
    fn from(fault: evenkeel::trace::build::SinkError) -> Self {
        Self::Sink(fault)
    }
}

fn push_record(record: &LoadRecord, logical: &mut Vec<u64>, sink: &mut dyn Sink) -> Result<(), RecordError> {
    if record.expert_load.len() != record.p2l_map.len() {
        let found = format!(
            "{} layers in expert_load and {} in p2l_map",
            record.expert_load.len(),
            record.p2l_map.len()
        );
        return Err(RecordError::Shape(found, "the same number in both".into()));
    }
    let top = record.p2l_map.iter().flatten().copied().max().unwrap_or(-1);
    if !usize::try_from(top).is_ok_and(|top| top < MAX_EXPERTS) {
        let found = format!("logical experts up to {top} in p2l_map");
        return Err(RecordError::Shape(found, "ids from 0 to 65535".into()));
    }
    sink.declare_experts(top as usize + 1)?;
    sink.select_step(StepLabel::Number(record.step))?;
    logical.clear();
    logical.resize(top as usize + 1, 0);
    for (layer, (load, map)) in record.expert_load.iter().zip(&record.p2l_map).enumerate() {
        if load.len() != map.len() {
            let found = format!("{} loads and {} map entries in layer {layer}", load.len(), map.len());
            return Err(RecordError::Shape(found, "a map entry for each load".into()));
        }
        if let Some(experts) = sglang::count_logical_experts(map).filter(|&experts| experts != logical.len())
        {
            return Err(RecordError::Shape(
                format!("{experts} logical experts in layer {layer} of p2l_map, {} in others", logical.len()),
                "the same number in every layer".into(),
            ));
        }
        sglang::sum_to_logical(load, map, logical).map_err(|slot| {
            RecordError::Shape(
                format!("{} tokens on slot {slot} of layer {layer}, mapped to {}", load[slot], map[slot]),
                "tokens only on slots with a logical expert, and sums within 64 bits".into(),
            )
        })?;
        let layer =
            u32::try_from(layer).map_err(|_| evenkeel::trace::build::SinkError::LayerLimit(layer as u64))?;
        sink.add_counts(layer, logical)?;
    }
    Ok(())
}

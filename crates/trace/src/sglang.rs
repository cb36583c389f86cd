//! Dumps of SGLang's expert distribution recorder, `.pt`.
//!
//! Input is a [`TorchFile`]. Output is rows in a [`Sink`].
//!
//! - The modes `stat` and `stat_approx` save `logical_count` `[steps, layers, logical]`, or its sum `[layers,
//!   logical]`. It is a ring buffer whose unused rows are zero.
//! - The modes `per_pass` and `per_token` save one file per rank with counts per physical expert. These are
//!   mapped to logical experts and summed over ranks.
//!
//! Source: SGLang's `srt/eplb/expert_distribution.py`.

use super::input::InputFile;
use super::pickle::PickleValue;
use super::torch::TorchFile;
use super::{Location, MAX_EXPERTS, MAX_LAYERS, TraceError, long_csv};
use crate::ReadOptions;
use evenkeel::trace::build::invalid_content;
use evenkeel::trace::build::{Sink, StepLabel};
use std::path::Path;

/// The kind of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DumpKind {
    /// Counts of all ranks.
    Stat,
    /// Records of one rank.
    Records { rank: Option<usize> },
}

/// Determines the kind of a dump from its keys alone.
pub(crate) fn detect_kind(input: &InputFile<'_>, options: &ReadOptions) -> Result<DumpKind, TraceError> {
    let file = TorchFile::open(input, options.memory)?;
    let pickle = &file.pickle;
    if pickle.get(pickle.root, "logical_count").is_some() || pickle.as_tensor(pickle.root).is_some() {
        return Ok(DumpKind::Stat);
    }
    let Some(records) = pickle.get(pickle.root, "records") else {
        return Err(no_counts_error(input, &pickle.describe_value(pickle.root)));
    };
    let first = pickle.as_list(records).and_then(|records| records.first().copied());
    let rank = match first.and_then(|record| pickle.get(record, "rank")) {
        Some(PickleValue::Int(rank)) => usize::try_from(rank).ok(),
        _ => None,
    };
    Ok(DumpKind::Records { rank })
}

fn no_counts_error(input: &InputFile<'_>, found: &str) -> TraceError {
    invalid_content(
        &input.path,
        Location::File,
        found,
        "a dictionary with key logical_count (modes stat, stat_approx) or records (per_pass, per_token), or a \
         tensor of counts",
    )
}

/// Reads one file into the current source. The caller calls [`Sink::begin_source`], because the files of all
/// ranks of a run are one source.
pub(crate) fn read(
    input: &InputFile<'_>,
    options: &ReadOptions,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    let mut file = TorchFile::open(input, options.memory)?;
    let root = file.pickle.root;
    if let Some(counts) = file.pickle.get(root, "logical_count") {
        read_stat(input, &mut file, counts, sink)
    } else if let Some(records) = file.pickle.get(root, "records") {
        self::read_records(input, &mut file, records, sink)
    } else if file.pickle.as_tensor(root).is_some() {
        read_bare_tensor(input, &mut file, root, sink)
    } else {
        Err(no_counts_error(input, &file.pickle.describe_value(root)))
    }
}

/// Passes counts `[steps, layers, experts]` or `[layers, experts]` of any reader to a sink, without unused
/// steps.
pub(crate) fn push_logical_counts(
    input: &InputFile<'_>,
    shape: &[usize],
    counts: &[u64],
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    let path = &input.path;
    let key = |step: usize| Location::Key(format!("logical_count[{step}]"));
    let &[.., layers, experts] = shape else {
        return Err(wrong_shape_error(path, shape));
    };
    if shape.len() > 3 || layers == 0 || layers > MAX_LAYERS || experts == 0 || experts > MAX_EXPERTS {
        return Err(wrong_shape_error(path, shape));
    }
    sink.declare_experts(experts)
        .map_err(|fault| fault.into_trace_error(path, Location::Key("logical_count".into())))?;
    let mut unused = 0;
    let all = counts.len() / (layers * experts);
    if all == 0 {
        return Err(wrong_shape_error(path, shape));
    }
    let empty = counts.iter().all(|&count| count == 0);
    for (at, step) in counts.chunks_exact(layers * experts).enumerate() {
        // If all steps are zero the first one stays: a trace without tokens is still a trace.
        if shape.len() == 3 && !(empty && at == 0) && step.iter().all(|&count| count == 0) {
            unused += 1;
            continue;
        }
        let label = long_csv::single_step_label(input);
        let label = if shape.len() == 3 { StepLabel::Number(at as u64) } else { StepLabel::Text(&label) };
        sink.select_step(label).map_err(|fault| fault.into_trace_error(path, key(at)))?;
        for (layer, counts) in step.chunks_exact(experts).enumerate() {
            sink.add_counts(layer as u32, counts).map_err(|fault| fault.into_trace_error(path, key(at)))?;
        }
    }
    if unused > 0 {
        sink.add_notice(format!(
            "{}: {unused} of {all} recorded steps are all zero (unused rows of the ring buffer) and left out",
            path.display()
        ));
    }
    Ok(())
}

fn wrong_shape_error(path: &Path, shape: &[usize]) -> TraceError {
    invalid_content(
        path,
        Location::Key("logical_count".into()),
        format!("shape {shape:?}"),
        format!(
            "[layers, experts] or [steps, layers, experts], none zero, at most {MAX_LAYERS} layers and \
             {MAX_EXPERTS} experts"
        ),
    )
}

fn read_stat(
    input: &InputFile<'_>,
    file: &mut TorchFile<'_>,
    counts: PickleValue,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    let (shape, counts) = read_tensor(input, file, counts, "logical_count")?;
    let counts = to_unsigned(&input.path, &counts, "logical_count")?;
    push_logical_counts(input, &shape, &counts, sink)
}

/// Reads a tensor that was saved directly by `torch.save`.
fn read_bare_tensor(
    input: &InputFile<'_>,
    file: &mut TorchFile<'_>,
    root: PickleValue,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    let (shape, counts) = read_tensor(input, file, root, "tensor")?;
    let counts = to_unsigned(&input.path, &counts, "tensor")?;
    if looks_like_ids(&shape, &counts) {
        return Err(invalid_content(
            &input.path,
            Location::Key("tensor".into()),
            format!("shape {shape:?} with rows of different small numbers, like ids of experts"),
            "counts [layers, experts] or [steps, layers, experts]; ids are read from .npy and .npz",
        ));
    }
    push_logical_counts(input, &shape, &counts, sink)?;
    sink.add_notice(format!("{}: a single tensor of shape {shape:?}, read as counts", input.path.display()));
    Ok(())
}

/// Returns whether a tensor holds ids of tokens instead of counts. Counts repeat numbers within a row or have
/// the same sum in all layers of a step. Ids do neither.
fn looks_like_ids(shape: &[usize], counts: &[u64]) -> bool {
    const MIN_ROWS: usize = 32;
    let &[_, layers, last] = shape else { return false };
    let rows: Vec<&[u64]> = counts.chunks_exact(last.max(1)).collect();
    if !(2..=64).contains(&last) || rows.len() < MIN_ROWS || counts.iter().any(|&id| id >= MAX_EXPERTS as u64)
    {
        return false;
    }
    let distinct = |row: &&[u64]| (1..row.len()).all(|at| !row[..at].contains(&row[at]));
    let sum = |row: &[u64]| row.iter().sum::<u64>();
    let even = |step: &[&[u64]]| step.iter().all(|row| sum(row) == sum(step[0]));
    rows.iter().all(distinct) && !(layers > 1 && rows.chunks_exact(layers).all(even))
}

/// Key of the map from physical to logical experts.
const MAP_KEY: &str = "last_physical_to_logical_map";

/// Returns the shape of the map from physical to logical experts (layers, physical experts), its entries, and
/// the number of logical experts, which is the same in all layers.
fn read_physical_map(
    input: &InputFile<'_>,
    file: &mut TorchFile<'_>,
) -> Result<(Vec<usize>, Vec<i64>, usize), TraceError> {
    let (path, pickle) = (&input.path, &file.pickle);
    let Some(map) = pickle.get(pickle.root, MAP_KEY) else {
        return Err(invalid_content(
            path,
            Location::Key(MAP_KEY.into()),
            "no such key",
            "the map from physical to logical experts",
        ));
    };
    let (map_shape, map) = read_matrix(input, file, map, MAP_KEY)?;
    let &[layers, physical] = map_shape.as_slice() else {
        return Err(invalid_content(
            path,
            Location::Key(MAP_KEY.into()),
            format!("shape {map_shape:?}"),
            "2 dimensions: layers, physical experts",
        ));
    };
    let experts = map.iter().copied().max().unwrap_or(-1) + 1;
    let fits = usize::try_from(experts).is_ok_and(|experts| (1..=MAX_EXPERTS).contains(&experts));
    if layers == 0 || layers > MAX_LAYERS || !fits {
        return Err(invalid_content(
            path,
            Location::Key(MAP_KEY.into()),
            format!("{layers} layers and logical experts up to {}", experts - 1),
            format!("at most {MAX_LAYERS} layers and logical ids from 0 to {}", MAX_EXPERTS - 1),
        ));
    }
    let experts = experts as usize;
    for (layer, map) in map.chunks_exact(physical.max(1)).enumerate() {
        if let Some(own) = count_logical_experts(map).filter(|&own| own != experts) {
            return Err(invalid_content(
                path,
                Location::Key(format!("{MAP_KEY}[{layer}]")),
                format!("{own} logical experts"),
                format!("{experts} logical experts, as in other layers"),
            ));
        }
    }
    Ok((map_shape, map, experts))
}

fn read_records(
    input: &InputFile<'_>,
    file: &mut TorchFile<'_>,
    records: PickleValue,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    let path = &input.path;
    let pickle = &file.pickle;
    let Some(list) = pickle.as_list(records).map(<[PickleValue]>::to_vec) else {
        return Err(invalid_content(
            path,
            Location::Key("records".into()),
            pickle.describe_value(records),
            "a list of recorded passes",
        ));
    };
    let (map_shape, map, experts) = read_physical_map(input, file)?;
    let physical = map_shape[1].max(1);
    sink.declare_experts(experts)
        .map_err(|fault| fault.into_trace_error(path, Location::Key(MAP_KEY.into())))?;
    let mut logical = vec![0u64; experts];
    for (at, record) in list.into_iter().enumerate() {
        let key = |field: &str| format!("records[{at}].{field}");
        let pickle = &file.pickle;
        let pass = match pickle.get(record, "forward_pass_id") {
            Some(PickleValue::Int(pass)) if pass >= 0 => pass as u64,
            other => {
                let found = other.map_or("no such key".into(), |value| pickle.describe_value(value));
                return Err(invalid_content(
                    path,
                    Location::Key(key("forward_pass_id")),
                    found,
                    "the number of the forward pass",
                ));
            }
        };
        let name = key("global_physical_count");
        let Some(counts) = pickle.get(record, "global_physical_count") else {
            return Err(invalid_content(
                path,
                Location::Key(name),
                "no such key",
                "counts per physical expert",
            ));
        };
        let (shape, counts) = read_matrix(input, file, counts, &name)?;
        if shape != map_shape {
            return Err(invalid_content(
                path,
                Location::Key(name),
                format!("shape {shape:?}"),
                format!("shape {map_shape:?} as {MAP_KEY}"),
            ));
        }
        let counts = to_unsigned(path, &counts, &name)?;
        sink.select_step(StepLabel::Number(pass))
            .map_err(|fault| fault.into_trace_error(path, Location::Key(name.clone())))?;
        let rows = counts.chunks_exact(physical).zip(map.chunks_exact(physical));
        for (layer, (counts, map)) in rows.enumerate() {
            sum_to_logical(counts, map, &mut logical).map_err(|slot| {
                invalid_content(
                    path,
                    Location::Key(format!("{name}[{layer}][{slot}]")),
                    "tokens on a slot without a logical expert, or more than 2^64",
                    format!("zero where {MAP_KEY} is below zero"),
                )
            })?;
            sink.add_counts(layer as u32, &logical)
                .map_err(|fault| fault.into_trace_error(path, Location::Key(name.clone())))?;
        }
    }
    Ok(())
}

/// Returns the number of logical experts in a map of slots: the highest id + 1.
pub(crate) fn count_logical_experts(map: &[i64]) -> Option<usize> {
    map.iter().max().and_then(|&top| usize::try_from(top).ok()).map(|top| top + 1)
}

/// Sums physical counts into logical ones. The error is the slot that failed.
pub(crate) fn sum_to_logical(counts: &[u64], map: &[i64], logical: &mut [u64]) -> Result<(), usize> {
    logical.fill(0);
    for (slot, (&tokens, &expert)) in counts.iter().zip(map).enumerate() {
        if tokens > 0 {
            let expert =
                usize::try_from(expert).ok().and_then(|expert| logical.get_mut(expert)).ok_or(slot)?;
            *expert = expert.checked_add(tokens).ok_or(slot)?;
        }
    }
    Ok(())
}

fn to_unsigned(path: &Path, numbers: &[i64], name: &str) -> Result<Vec<u64>, TraceError> {
    numbers
        .iter()
        .map(|&number| {
            u64::try_from(number).map_err(|_| {
                invalid_content(path, Location::Key(name.to_owned()), format!("{number}"), "counts from 0")
            })
        })
        .collect()
}

/// Returns the shape and the numbers of a tensor.
fn read_tensor(
    input: &InputFile<'_>,
    file: &mut TorchFile<'_>,
    value: PickleValue,
    name: &str,
) -> Result<(Vec<usize>, Vec<i64>), TraceError> {
    let Some(tensor) = file.pickle.as_tensor(value).cloned() else {
        return Err(invalid_content(
            &input.path,
            Location::Key(name.to_owned()),
            file.pickle.describe_value(value),
            "a tensor of whole numbers",
        ));
    };
    let numbers = file.read_integers(&tensor, name)?;
    Ok((tensor.shape.iter().map(|&size| size as usize).collect(), numbers))
}

/// Returns the shape and the numbers of a tensor, or of a list of equally long lists.
fn read_matrix(
    input: &InputFile<'_>,
    file: &mut TorchFile<'_>,
    value: PickleValue,
    name: &str,
) -> Result<(Vec<usize>, Vec<i64>), TraceError> {
    let pickle = &file.pickle;
    let Some(rows) = pickle.as_list(value) else { return read_tensor(input, file, value, name) };
    let mut out = Vec::new();
    let mut width = None;
    for (at, &row) in rows.iter().enumerate() {
        let wrong = || {
            invalid_content(
                &input.path,
                Location::Key(format!("{name}[{at}]")),
                pickle.describe_value(row),
                "a list of whole numbers, as long as the first",
            )
        };
        let items = pickle.as_list(row).ok_or_else(wrong)?;
        if *width.get_or_insert(items.len()) != items.len() {
            return Err(wrong());
        }
        for &item in items {
            let PickleValue::Int(number) = item else { return Err(wrong()) };
            out.push(number);
        }
    }
    Ok((vec![rows.len(), width.unwrap_or(0)], out))
}

//! Dumps of SGLang's expert distribution recorder, `.pt`.
//!
//! In: a [`TorchFile`]. Out: rows into a [`Sink`]. Modes `stat` and `stat_approx` save
//! `logical_count` `[steps, layers, logical]` (or already summed, `[layers, logical]`), a ring
//! buffer whose unused rows are zero; modes `per_pass` and `per_token` save one file per rank
//! with counts per physical expert, which are mapped to logical ones and summed over ranks.
//! Source: SGLang's `srt/eplb/expert_distribution.py`.

use super::error::invalid;
use super::input::Input;
use super::options::ReadOptions;
use super::pickle::Value;
use super::sink::{Label, Sink};
use super::torch::TorchFile;
use super::{MAX_EXPERTS, MAX_LAYERS, Place, TraceError, long_csv};
use std::path::Path;

/// Which kind of dump a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Counts of all ranks.
    Stat,
    /// Records of one rank.
    Records { rank: Option<usize> },
}

/// Looks at the keys only.
pub(crate) fn kind(input: &Input<'_>, options: &ReadOptions) -> Result<Kind, TraceError> {
    let file = TorchFile::open(input, options.memory)?;
    let pickle = &file.pickle;
    if pickle.get(pickle.root, "logical_count").is_some() {
        return Ok(Kind::Stat);
    }
    let Some(records) = pickle.get(pickle.root, "records") else {
        return Err(no_counts(input, &pickle.describe(pickle.root)));
    };
    let first = pickle.list(records).and_then(|records| records.first().copied());
    let rank = match first.and_then(|record| pickle.get(record, "rank")) {
        Some(Value::Int(rank)) => usize::try_from(rank).ok(),
        _ => None,
    };
    Ok(Kind::Records { rank })
}

fn no_counts(input: &Input<'_>, found: &str) -> TraceError {
    invalid(
        &input.path,
        Place::File,
        found,
        "a dictionary with key logical_count (modes stat, stat_approx) or records (per_pass, per_token)",
    )
}

/// Reads one file into the current source. [`Sink::begin`] is for the caller: the files of all
/// ranks of a run are one source.
pub(crate) fn read(input: &Input<'_>, options: &ReadOptions, sink: &mut dyn Sink) -> Result<(), TraceError> {
    let mut file = TorchFile::open(input, options.memory)?;
    let root = file.pickle.root;
    if let Some(counts) = file.pickle.get(root, "logical_count") {
        stat(input, &mut file, counts, sink)
    } else if let Some(records) = file.pickle.get(root, "records") {
        self::records(input, &mut file, records, sink)
    } else {
        Err(no_counts(input, &file.pickle.describe(root)))
    }
}

/// Counts `[steps, layers, experts]` or `[layers, experts]` from any reader, unused steps left out.
pub(crate) fn logical_counts(
    input: &Input<'_>,
    shape: &[usize],
    counts: &[u64],
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    let path = &input.path;
    let key = |step: usize| Place::Key(format!("logical_count[{step}]"));
    let &[.., layers, experts] = shape else {
        return Err(wrong_shape(path, shape));
    };
    if shape.len() > 3 || layers == 0 || layers > MAX_LAYERS || experts == 0 || experts > MAX_EXPERTS {
        return Err(wrong_shape(path, shape));
    }
    sink.experts(experts).map_err(|fault| fault.at(path, Place::Key("logical_count".into())))?;
    let mut unused = 0;
    let all = counts.len() / (layers * experts);
    if all == 0 {
        return Err(wrong_shape(path, shape));
    }
    let empty = counts.iter().all(|&count| count == 0);
    for (at, step) in counts.chunks_exact(layers * experts).enumerate() {
        // The first stays where all are zero: a trace of nothing is still a trace.
        if shape.len() == 3 && !(empty && at == 0) && step.iter().all(|&count| count == 0) {
            unused += 1;
            continue;
        }
        let label = long_csv::single_step(input);
        let label = if shape.len() == 3 { Label::Number(at as u64) } else { Label::Text(&label) };
        sink.step(label).map_err(|fault| fault.at(path, key(at)))?;
        for (layer, counts) in step.chunks_exact(experts).enumerate() {
            sink.counts(layer as u32, counts).map_err(|fault| fault.at(path, key(at)))?;
        }
    }
    if unused > 0 {
        sink.notice(format!(
            "{}: {unused} of {all} recorded steps are all zero (unused rows of the ring buffer) and left out",
            path.display()
        ));
    }
    Ok(())
}

fn wrong_shape(path: &Path, shape: &[usize]) -> TraceError {
    invalid(
        path,
        Place::Key("logical_count".into()),
        format!("shape {shape:?}"),
        format!(
            "[layers, experts] or [steps, layers, experts], none zero, at most {MAX_LAYERS} layers and \
             {MAX_EXPERTS} experts"
        ),
    )
}

fn stat(
    input: &Input<'_>,
    file: &mut TorchFile<'_>,
    counts: Value,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    let (shape, counts) = tensor(input, file, counts, "logical_count")?;
    let counts = unsigned(&input.path, &counts, "logical_count")?;
    logical_counts(input, &shape, &counts, sink)
}

fn records(
    input: &Input<'_>,
    file: &mut TorchFile<'_>,
    records: Value,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    let path = &input.path;
    let pickle = &file.pickle;
    let Some(list) = pickle.list(records).map(<[Value]>::to_vec) else {
        return Err(invalid(
            path,
            Place::Key("records".into()),
            pickle.describe(records),
            "a list of recorded passes",
        ));
    };
    let map_key = "last_physical_to_logical_map";
    let Some(map) = pickle.get(pickle.root, map_key) else {
        return Err(invalid(
            path,
            Place::Key(map_key.into()),
            "no such key",
            "the map from physical to logical experts",
        ));
    };
    let (map_shape, map) = numbers(input, file, map, map_key)?;
    let &[layers, physical] = map_shape.as_slice() else {
        return Err(invalid(
            path,
            Place::Key(map_key.into()),
            format!("shape {map_shape:?}"),
            "2 dimensions: layers, physical experts",
        ));
    };
    let experts = map.iter().copied().max().unwrap_or(-1) + 1;
    let fits = usize::try_from(experts).is_ok_and(|experts| (1..=MAX_EXPERTS).contains(&experts));
    if layers == 0 || layers > MAX_LAYERS || !fits {
        return Err(invalid(
            path,
            Place::Key(map_key.into()),
            format!("{layers} layers and logical experts up to {}", experts - 1),
            format!("at most {MAX_LAYERS} layers and logical ids from 0 to {}", MAX_EXPERTS - 1),
        ));
    }
    let experts = experts as usize;
    sink.experts(experts).map_err(|fault| fault.at(path, Place::Key(map_key.into())))?;
    let mut logical = vec![0u64; experts];
    for (at, record) in list.into_iter().enumerate() {
        let key = |field: &str| format!("records[{at}].{field}");
        let pickle = &file.pickle;
        let pass = match pickle.get(record, "forward_pass_id") {
            Some(Value::Int(pass)) if pass >= 0 => pass as u64,
            other => {
                let found = other.map_or("no such key".into(), |value| pickle.describe(value));
                return Err(invalid(
                    path,
                    Place::Key(key("forward_pass_id")),
                    found,
                    "the number of the forward pass",
                ));
            }
        };
        let name = key("global_physical_count");
        let Some(counts) = pickle.get(record, "global_physical_count") else {
            return Err(invalid(path, Place::Key(name), "no such key", "counts per physical expert"));
        };
        let (shape, counts) = numbers(input, file, counts, &name)?;
        if shape != map_shape {
            return Err(invalid(
                path,
                Place::Key(name),
                format!("shape {shape:?}"),
                format!("shape {map_shape:?} as {map_key}"),
            ));
        }
        let counts = unsigned(path, &counts, &name)?;
        sink.step(Label::Number(pass)).map_err(|fault| fault.at(path, Place::Key(name.clone())))?;
        let rows = counts.chunks_exact(physical.max(1)).zip(map.chunks_exact(physical.max(1)));
        for (layer, (counts, map)) in rows.enumerate() {
            to_logical(counts, map, &mut logical).map_err(|slot| {
                invalid(
                    path,
                    Place::Key(format!("{name}[{layer}][{slot}]")),
                    "tokens on a slot without a logical expert, or more than 2^64",
                    format!("zero where {map_key} is below zero"),
                )
            })?;
            sink.counts(layer as u32, &logical).map_err(|fault| fault.at(path, Place::Key(name.clone())))?;
        }
    }
    Ok(())
}

/// Sums physical counts into logical ones; the slot where that fails.
pub(crate) fn to_logical(counts: &[u64], map: &[i64], logical: &mut [u64]) -> Result<(), usize> {
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

fn unsigned(path: &Path, numbers: &[i64], name: &str) -> Result<Vec<u64>, TraceError> {
    numbers
        .iter()
        .map(|&number| {
            u64::try_from(number)
                .map_err(|_| invalid(path, Place::Key(name.to_owned()), format!("{number}"), "counts from 0"))
        })
        .collect()
}

/// A tensor with its shape.
fn tensor(
    input: &Input<'_>,
    file: &mut TorchFile<'_>,
    value: Value,
    name: &str,
) -> Result<(Vec<usize>, Vec<i64>), TraceError> {
    let Some(tensor) = file.pickle.tensor(value).cloned() else {
        return Err(invalid(
            &input.path,
            Place::Key(name.to_owned()),
            file.pickle.describe(value),
            "a tensor of whole numbers",
        ));
    };
    let numbers = file.numbers(&tensor, name)?;
    Ok((tensor.shape.iter().map(|&size| size as usize).collect(), numbers))
}

/// A tensor, or a list of equally long lists.
fn numbers(
    input: &Input<'_>,
    file: &mut TorchFile<'_>,
    value: Value,
    name: &str,
) -> Result<(Vec<usize>, Vec<i64>), TraceError> {
    let pickle = &file.pickle;
    let Some(rows) = pickle.list(value) else { return tensor(input, file, value, name) };
    let mut out = Vec::new();
    let mut width = None;
    for (at, &row) in rows.iter().enumerate() {
        let wrong = || {
            invalid(
                &input.path,
                Place::Key(format!("{name}[{at}]")),
                pickle.describe(row),
                "a list of whole numbers, as long as the first",
            )
        };
        let items = pickle.list(row).ok_or_else(wrong)?;
        if *width.get_or_insert(items.len()) != items.len() {
            return Err(wrong());
        }
        for &item in items {
            let Value::Int(number) = item else { return Err(wrong()) };
            out.push(number);
        }
    }
    Ok((vec![rows.len(), width.unwrap_or(0)], out))
}

//! Conversion of per-token arrays to batches.
//!
//! Input is arrays of expert ids, an optional table with the spans of requests, [`Batching`],
//! [`RequestOrder`] and a seed. Output is one step of counts per batch in a [`Sink`].
//!
//! Prefill takes consecutive tokens. Decode keeps B requests in flight and takes one token of each per step.
//! Cursors start at random offsets in the first B requests. Replies share their first tokens, so a common
//! start would be unrealistically easy to balance. A finished request is replaced by the first token of the
//! next one. The run ends when no request is left for a free cursor. If B is more than half of the requests,
//! the run continues with the remaining ones instead.

use super::arrays::TokenArray;
use super::requests::RequestSpan;
use super::{Location, TraceError};
use crate::{Batching, ReadOptions, RequestOrder};
use evenkeel::rng::SeededRng;
use evenkeel::trace::build::invalid_content;
use evenkeel::trace::build::{Sink, StepLabel};
use std::path::Path;

/// The random streams of the seed.
const ORDER_STREAM: u64 = 0;
const OFFSET_STREAM: u64 = 1;

/// Cuts arrays into batches. Errors about the whole input name `path`.
pub(crate) fn cut_batches(
    path: &Path,
    arrays: &[TokenArray],
    table: Option<&[RequestSpan]>,
    options: &ReadOptions,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    let wanted = select_arrays(path, arrays, options)?;
    let first = &arrays[wanted[0]];
    for &at in &wanted {
        let array = &arrays[at];
        if (array.layers, array.top_k) != (first.layers, first.top_k) {
            return Err(invalid_content(
                path,
                Location::Key(format!("array {}", array.name)),
                format!("{} layers and top-{}", array.layers, array.top_k),
                format!(
                    "{} layers and top-{} as in array {}; --arrays chooses arrays",
                    first.layers, first.top_k, first.name
                ),
            ));
        }
    }
    let has_table = table.is_some();
    let mut spans = Vec::new();
    for &at in &wanted {
        match table {
            Some(table) => spans.extend(table.iter().filter(|span| span.array == at)),
            None if arrays[at].tokens > 0 => {
                spans.push(RequestSpan { array: at, start: 0, tokens: arrays[at].tokens });
            }
            None => {}
        }
    }
    let needs = |what: &str| {
        TraceError::Options(format!(
            "{}: {what} needs a requests CSV (columns start, tokens) with the array",
            path.display()
        ))
    };
    if options.order == RequestOrder::Shuffled {
        if !has_table {
            return Err(needs("--order shuffled"));
        }
        SeededRng::new(options.seed, ORDER_STREAM).shuffle(&mut spans);
    }
    let experts = wanted.iter().map(|&at| arrays[at].experts).max().unwrap_or(0);
    let mut batch = BatchCutter {
        path,
        arrays,
        layers: first.layers,
        experts: options.experts.unwrap_or(experts).max(1),
        counts: Vec::new(),
        ids: sink.wants_token_ids().then(Vec::new),
        top_k: first.top_k,
        steps: 0,
        sink,
    };
    // The counts of one step must fit into the memory: 8 bytes per layer and expert.
    if (batch.layers * batch.experts * 8) as u64 > options.memory {
        return Err(evenkeel::trace::build::SinkError::StepTooLarge {
            layers: batch.layers,
            experts: batch.experts,
            memory: options.memory,
        }
        .into_trace_error(path, Location::File));
    }
    batch.counts = vec![0; batch.layers * batch.experts];
    batch.sink.begin_source();
    match options.batching {
        Batching::Prefill { tokens } => cut_prefill(&mut batch, &spans, tokens, first.top_k),
        Batching::Decode { .. } if !has_table => Err(needs("--decode-batch")),
        Batching::Decode { in_flight } => {
            cut_decode(&mut batch, &spans, in_flight, options.seed, first.top_k)
        }
    }
}

/// Returns the arrays to use, in order.
fn select_arrays(
    path: &Path,
    arrays: &[TokenArray],
    options: &ReadOptions,
) -> Result<Vec<usize>, TraceError> {
    let names = || arrays.iter().map(|array| array.name.as_str()).collect::<Vec<_>>().join(", ");
    if options.arrays.is_empty() {
        if arrays.iter().all(|array| array.layers == 0) {
            return Err(invalid_content(
                path,
                Location::File,
                "no arrays",
                "at least one array of expert ids",
            ));
        }
        // Arrays that were not read have no layers and are left out.
        return Ok((0..arrays.len()).filter(|&at| arrays[at].layers > 0).collect());
    }
    options
        .arrays
        .iter()
        .map(|name| {
            arrays.iter().position(|array| array.name == *name).ok_or_else(|| {
                TraceError::Options(format!("{}: no array {name}; the file has {}", path.display(), names()))
            })
        })
        .collect()
}

struct BatchCutter<'a> {
    path: &'a Path,
    arrays: &'a [TokenArray],
    layers: usize,
    experts: usize,
    /// Counts of the batch being filled, `[layer][expert]`.
    counts: Vec<u64>,
    /// Ids of the batch being filled, `[token][layer][top_k]`, if the sink needs them.
    ids: Option<Vec<u16>>,
    top_k: usize,
    steps: u64,
    sink: &'a mut dyn Sink,
}

impl BatchCutter<'_> {
    fn add_token(&mut self, array: usize, token: usize) {
        self.arrays[array].count_token(token, self.experts, &mut self.counts);
        if let Some(ids) = &mut self.ids {
            self.arrays[array].append_token(token, ids);
        }
    }

    fn finish_batch(&mut self) -> Result<(), TraceError> {
        let place = |step| Location::Key(format!("step {step}"));
        self.sink
            .select_step(StepLabel::Number(self.steps))
            .map_err(|fault| fault.into_trace_error(self.path, place(self.steps)))?;
        for (layer, counts) in self.counts.chunks_exact(self.experts).enumerate() {
            self.sink
                .add_counts(layer as u32, counts)
                .map_err(|fault| fault.into_trace_error(self.path, place(self.steps)))?;
        }
        if let Some(ids) = &mut self.ids {
            let ids = std::mem::take(ids);
            self.sink
                .add_token_ids(self.layers, self.top_k, ids)
                .map_err(|fault| fault.into_trace_error(self.path, place(self.steps)))?;
        }
        self.counts.fill(0);
        self.steps += 1;
        Ok(())
    }
}

fn cut_prefill(
    batch: &mut BatchCutter<'_>,
    spans: &[RequestSpan],
    tokens: usize,
    top_k: usize,
) -> Result<(), TraceError> {
    let all: usize = spans.iter().map(|span| span.tokens).sum();
    let names: Vec<&str> =
        batch.arrays.iter().filter(|array| array.tokens > 0).map(|array| array.name.as_str()).collect();
    let names = names.join(", ");
    // Nobody chose the default size, so a shorter array becomes one batch.
    let short = tokens > all && all > 0 && Batching::Prefill { tokens } == Batching::default();
    if !short && (tokens == 0 || tokens > all) {
        return Err(TraceError::Options(format!(
            "{}: --batch-tokens {tokens}, expected 1 to {all}, the tokens of array {names} (--arrays chooses arrays)",
            batch.path.display()
        )));
    }
    let tokens = if short { all } else { tokens };
    if short {
        batch.sink.add_notice(format!(
            "{}: one batch of all {all} tokens of array {names}; --batch-tokens cuts smaller ones",
            batch.path.display()
        ));
    }
    let mut filled = 0;
    for span in spans {
        for token in span.start..span.start + span.tokens {
            batch.add_token(span.array, token);
            filled += 1;
            if filled == tokens {
                batch.finish_batch()?;
                filled = 0;
            }
        }
    }
    let dropped = if filled == 0 {
        String::new()
    } else {
        format!("; the last {filled} tokens, an incomplete batch, are dropped")
    };
    batch.sink.add_notice(format!(
        "per-token array, top-{top_k}: {} prefill batches of {tokens} tokens{dropped}",
        batch.steps
    ));
    Ok(())
}

fn cut_decode(
    batch: &mut BatchCutter<'_>,
    spans: &[RequestSpan],
    in_flight: usize,
    seed: u64,
    top_k: usize,
) -> Result<(), TraceError> {
    if in_flight == 0 || in_flight > spans.len() {
        return Err(TraceError::Options(format!(
            "{}: --decode-batch {in_flight}, expected 1 to {}, the number of requests",
            batch.path.display(),
            spans.len()
        )));
    }
    // With at most half of the requests in flight, the run ends at the first free cursor without a request.
    let to_the_end = in_flight > spans.len() / 2;
    let mut dice = SeededRng::new(seed, OFFSET_STREAM);
    // Each cursor has its request and the next token within it.
    let mut cursors: Vec<(usize, usize)> =
        (0..in_flight).map(|at| (at, dice.draw_below(spans[at].tokens as u64) as usize)).collect();
    let mut next = in_flight;
    let mut short = 0u64;
    'run: loop {
        let mut left = Vec::with_capacity(cursors.len());
        for cursor in cursors {
            if cursor.1 < spans[cursor.0].tokens {
                left.push(cursor);
            } else if next < spans.len() {
                left.push((next, 0));
                next += 1;
            } else if !to_the_end {
                break 'run;
            }
        }
        cursors = left;
        if cursors.is_empty() {
            break;
        }
        for cursor in &mut cursors {
            let span = &spans[cursor.0];
            batch.add_token(span.array, span.start + cursor.1);
            cursor.1 += 1;
        }
        batch.finish_batch()?;
        short += u64::from(cursors.len() < in_flight);
    }
    if short > 0 {
        batch.sink.add_notice(format!(
            "{}: --decode-batch {in_flight} of {} requests: the last {short} steps run short, with fewer requests in \
             flight",
            batch.path.display(),
            spans.len()
        ));
    }
    batch.sink.add_notice(format!(
        "per-token array, top-{top_k}: {} decode batches of {in_flight} requests in flight, {} requests used",
        batch.steps, next
    ));
    Ok(())
}

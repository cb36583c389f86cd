//! From per-token arrays to batches.
//!
//! In: arrays of expert ids, spans of requests where a table gives them, [`Batching`],
//! [`Order`] and a seed. Out: one step of counts per batch into a [`Sink`]. Prefill takes
//! consecutive tokens. Decode keeps B requests in flight, one token each per step: cursors
//! start at random offsets in the first B requests (replies share their first tokens, so a
//! common start would be far too easy), a finished request is replaced by the next from its
//! first token, and the run ends when one cannot be.

use super::dice::Dice;
use super::error::invalid;
use super::npy::TokenArray;
use super::options::{Batching, Order, ReadOptions};
use super::requests::Span;
use super::sink::{Label, Sink};
use super::{Place, TraceError};
use std::path::Path;

/// Streams of the seed.
const ORDER_STREAM: u64 = 0;
const OFFSET_STREAM: u64 = 1;

/// Cuts arrays into batches. `path` is where errors about the whole point to.
pub(crate) fn cut(
    path: &Path,
    arrays: &[TokenArray],
    table: Option<&[Span]>,
    options: &ReadOptions,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    let wanted = wanted(path, arrays, options)?;
    let first = &arrays[wanted[0]];
    for &at in &wanted {
        let array = &arrays[at];
        if (array.layers, array.top_k) != (first.layers, first.top_k) {
            return Err(invalid(
                path,
                Place::Key(format!("array {}", array.name)),
                format!("{} layers and top-{}", array.layers, array.top_k),
                format!("{} layers and top-{} as in array {}", first.layers, first.top_k, first.name),
            ));
        }
    }
    let has_table = table.is_some();
    let mut spans = Vec::new();
    for &at in &wanted {
        match table {
            Some(table) => spans.extend(table.iter().filter(|span| span.array == at)),
            None if arrays[at].tokens > 0 => {
                spans.push(Span { array: at, start: 0, tokens: arrays[at].tokens });
            }
            None => {}
        }
    }
    let needs = |what: &str| {
        TraceError::Options(format!(
            "{}: {what} needs a requests CSV (columns start, tokens) beside the array",
            path.display()
        ))
    };
    if options.order == Order::Shuffled {
        if !has_table {
            return Err(needs("--order shuffled"));
        }
        Dice::new(options.seed, ORDER_STREAM).shuffle(&mut spans);
    }
    let experts = wanted.iter().map(|&at| arrays[at].experts).max().unwrap_or(0);
    let mut batch = Batch {
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
    // A batch of one step, at the scale of a count per expert of every layer.
    if (batch.layers * batch.experts * 8) as u64 > options.memory {
        return Err(super::error::Fault::StepTooLarge {
            layers: batch.layers,
            experts: batch.experts,
            memory: options.memory,
        }
        .at(path, Place::File));
    }
    batch.counts = vec![0; batch.layers * batch.experts];
    batch.sink.begin();
    match options.batching {
        Batching::Prefill { tokens } => prefill(&mut batch, &spans, tokens, first.top_k),
        Batching::Decode { .. } if !has_table => Err(needs("--decode-batch")),
        Batching::Decode { in_flight } => decode(&mut batch, &spans, in_flight, options.seed, first.top_k),
    }
}

/// Arrays to take, in order.
fn wanted(path: &Path, arrays: &[TokenArray], options: &ReadOptions) -> Result<Vec<usize>, TraceError> {
    let names = || arrays.iter().map(|array| array.name.as_str()).collect::<Vec<_>>().join(", ");
    if options.arrays.is_empty() {
        if arrays.is_empty() {
            return Err(invalid(path, Place::File, "no arrays", "at least one array of expert ids"));
        }
        return Ok((0..arrays.len()).collect());
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

struct Batch<'a> {
    path: &'a Path,
    arrays: &'a [TokenArray],
    layers: usize,
    experts: usize,
    /// `[layer][expert]` of the batch being filled.
    counts: Vec<u64>,
    /// `[token][layer][top_k]` of the batch being filled, where the sink wants it.
    ids: Option<Vec<u16>>,
    top_k: usize,
    steps: u64,
    sink: &'a mut dyn Sink,
}

impl Batch<'_> {
    fn take(&mut self, array: usize, token: usize) {
        self.arrays[array].count(token, self.experts, &mut self.counts);
        if let Some(ids) = &mut self.ids {
            self.arrays[array].append(token, ids);
        }
    }

    fn finish(&mut self) -> Result<(), TraceError> {
        let place = |step| Place::Key(format!("step {step}"));
        self.sink.step(Label::Number(self.steps)).map_err(|fault| fault.at(self.path, place(self.steps)))?;
        for (layer, counts) in self.counts.chunks_exact(self.experts).enumerate() {
            self.sink.counts(layer as u32, counts).map_err(|fault| fault.at(self.path, place(self.steps)))?;
        }
        if let Some(ids) = &mut self.ids {
            let ids = std::mem::take(ids);
            self.sink
                .token_ids(self.layers, self.top_k, ids)
                .map_err(|fault| fault.at(self.path, place(self.steps)))?;
        }
        self.counts.fill(0);
        self.steps += 1;
        Ok(())
    }
}

fn prefill(batch: &mut Batch<'_>, spans: &[Span], tokens: usize, top_k: usize) -> Result<(), TraceError> {
    let all: usize = spans.iter().map(|span| span.tokens).sum();
    if tokens == 0 || tokens > all {
        return Err(TraceError::Options(format!(
            "{}: batches of {tokens} tokens, expected 1 to {all}, the number of tokens",
            batch.path.display()
        )));
    }
    let mut filled = 0;
    for span in spans {
        for token in span.start..span.start + span.tokens {
            batch.take(span.array, token);
            filled += 1;
            if filled == tokens {
                batch.finish()?;
                filled = 0;
            }
        }
    }
    let dropped = if filled == 0 {
        String::new()
    } else {
        format!("; the last {filled} tokens, an incomplete batch, are dropped")
    };
    batch.sink.notice(format!(
        "per-token array, top-{top_k}: {} prefill batches of {tokens} tokens{dropped}",
        batch.steps
    ));
    Ok(())
}

fn decode(
    batch: &mut Batch<'_>,
    spans: &[Span],
    in_flight: usize,
    seed: u64,
    top_k: usize,
) -> Result<(), TraceError> {
    let largest = spans.len() / 2;
    if in_flight == 0 || in_flight > largest {
        return Err(TraceError::Options(format!(
            "{}: decode batch of {in_flight} requests, expected 1 to {largest}: at most half of the {} requests, so \
             that finished ones are replaced",
            batch.path.display(),
            spans.len()
        )));
    }
    let mut dice = Dice::new(seed, OFFSET_STREAM);
    // Each cursor: its request and the next token within.
    let mut cursors: Vec<(usize, usize)> =
        (0..in_flight).map(|at| (at, dice.below(spans[at].tokens as u64) as usize)).collect();
    let mut next = in_flight;
    'run: loop {
        for cursor in &mut cursors {
            if cursor.1 == spans[cursor.0].tokens {
                if next == spans.len() {
                    break 'run;
                }
                *cursor = (next, 0);
                next += 1;
            }
        }
        for cursor in &mut cursors {
            let span = &spans[cursor.0];
            batch.take(span.array, span.start + cursor.1);
            cursor.1 += 1;
        }
        batch.finish()?;
    }
    batch.sink.notice(format!(
        "per-token array, top-{top_k}: {} decode batches of {in_flight} requests in flight, {} requests used",
        batch.steps, next
    ));
    Ok(())
}

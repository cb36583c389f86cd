//! What one rank sends another: each token once, however many of its experts are there, and one result back.
//!
//! A parcel may travel in chunks of slots, so that experts work on one chunk while the next one travels. Every visit is announced
//! with the first chunk, a row comes with the first chunk that wants it, and its result goes back with the last. So nothing
//! travels twice, each expert still works on all its rows at once, and sums keep their order, however many chunks there are.

use crate::exec::weights::{Dtype, Matrix};
use std::ops::Range;

/// A token's visit to a slot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Visit {
    /// Row of the parcel.
    pub(super) row: u32,
    /// Slot on the destination, `0..S`; on a node, `0..` all slots of it.
    pub(super) slot: u32,
    /// What its result counts.
    pub(super) weight: f32,
}

/// How the slots of every rank fall into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunks {
    slots: usize,
    count: usize,
}

impl Chunks {
    /// So many chunks of `slots` slots, or one per slot where there are fewer.
    pub(super) fn new(slots: usize, count: usize) -> Self {
        Self { slots: slots.max(1), count: count.clamp(1, slots.max(1)) }
    }

    pub(super) fn count(self) -> usize {
        self.count
    }

    /// Slots of a rank.
    pub(super) fn slots(self) -> usize {
        self.slots
    }

    /// The slots of a chunk.
    pub(super) fn slots_of(self, chunk: usize) -> Range<usize> {
        let start = |chunk: usize| (chunk * self.slots).div_ceil(self.count);
        start(chunk)..start(chunk + 1)
    }

    /// The chunk of a slot of a rank or a node.
    pub(super) fn of(self, slot: u32) -> u32 {
        ((slot as usize % self.slots) * self.count / self.slots) as u32
    }
}

/// Tokens from one source to one destination.
#[derive(Debug, Clone)]
pub(super) struct Parcel {
    /// `[row][H]`, as they travel: by the first chunk that wants them.
    pub(super) rows: Matrix,
    /// Token by token, in the order of its choices.
    pub(super) visits: Vec<Visit>,
    /// Per row: the first and the last chunk that wants it.
    pub(super) spans: Vec<[u32; 2]>,
}

impl Parcel {
    pub(super) fn empty(dtype: Dtype) -> Self {
        Parcel { rows: Matrix::with_capacity(dtype, 0), visits: Vec::new(), spans: Vec::new() }
    }
}

/// The rows that come with a chunk.
pub(super) fn first_in(spans: &[[u32; 2]], chunk: usize) -> Range<usize> {
    let before = |chunk: u32| spans.partition_point(|&[first, _]| first < chunk);
    before(chunk as u32)..before(chunk as u32 + 1)
}

/// The rows whose results go back with a chunk.
pub(super) fn last_in(spans: &[[u32; 2]], chunk: usize) -> impl Iterator<Item = usize> + '_ {
    (0..spans.len()).filter(move |&row| spans[row][1] == chunk as u32)
}

/// All rows in the order in which their results go back.
pub(super) fn answered(spans: &[[u32; 2]], chunks: Chunks) -> impl Iterator<Item = usize> + '_ {
    (0..chunks.count).flat_map(move |chunk| last_in(spans, chunk))
}

/// The first and the last chunk of every row.
pub(super) fn spans(rows: usize, visits: &[Visit], chunks: Chunks) -> Vec<[u32; 2]> {
    if chunks.count == 1 {
        return vec![[0, 0]; rows];
    }
    let mut spans = vec![[u32::MAX, 0]; rows];
    for visit in visits {
        let ([first, last], chunk) = (&mut spans[visit.row as usize], chunks.of(visit.slot));
        (*first, *last) = ((*first).min(chunk), (*last).max(chunk));
    }
    spans
}

/// Renumbers the rows of `visits` by the first chunk that wants them; `ids`, one per row, and the spans come in that order.
pub(super) fn arrange(ids: &mut Vec<u32>, visits: &mut [Visit], chunks: Chunks) -> Vec<[u32; 2]> {
    let found = spans(ids.len(), visits, chunks);
    if chunks.count == 1 {
        return found;
    }
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|&row| found[row as usize][0]);
    let mut place = vec![0; order.len()];
    order.iter().enumerate().for_each(|(at, &row)| place[row as usize] = at as u32);
    visits.iter_mut().for_each(|visit| visit.row = place[visit.row as usize]);
    *ids = order.iter().map(|&row| ids[row as usize]).collect();
    order.iter().map(|&row| found[row as usize]).collect()
}

/// The tokens of one source, and where they go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pack<'a> {
    /// `[token][H]`
    pub(super) rows: &'a [f32],
    pub(super) hidden: usize,
    /// Global slots of its choices, `[token][k]`, -1 for none.
    pub(super) slots: &'a [i64],
    pub(super) weights: &'a [f32],
    pub(super) top_k: usize,
    pub(super) dtype: Dtype,
    pub(super) chunks: Chunks,
}

impl Pack<'_> {
    /// A parcel for each of so many destinations; `to` says which one has a slot, and as which of its slots. Also: which token
    /// each row of each parcel is.
    pub(super) fn parcels(
        self,
        destinations: usize,
        to: impl Fn(usize) -> (usize, u32),
    ) -> (Vec<Parcel>, Vec<Vec<u32>>) {
        let (mut visits, mut sent) = (vec![Vec::new(); destinations], vec![Vec::<u32>::new(); destinations]);
        let top_k = self.top_k.max(1);
        let choices = self.slots.chunks_exact(top_k).zip(self.weights.chunks_exact(top_k));
        for (token, (slots, weights)) in choices.enumerate() {
            for (&slot, &weight) in slots.iter().zip(weights) {
                let Ok(slot) = usize::try_from(slot) else { continue };
                let (destination, slot) = to(slot);
                let sent = &mut sent[destination];
                if sent.last() != Some(&(token as u32)) {
                    sent.push(token as u32);
                }
                visits[destination].push(Visit { row: sent.len() as u32 - 1, slot, weight });
            }
        }
        let parcel = |(mut visits, sent): (Vec<Visit>, &mut Vec<u32>)| {
            let spans = arrange(sent, &mut visits, self.chunks);
            let mut rows = Matrix::with_capacity(self.dtype, sent.len() * self.hidden);
            sent.iter()
                .for_each(|&token| rows.push(&self.rows[token as usize * self.hidden..][..self.hidden]));
            Parcel { rows, visits, spans }
        };
        (visits.into_iter().zip(&mut sent).map(parcel).collect(), sent)
    }
}

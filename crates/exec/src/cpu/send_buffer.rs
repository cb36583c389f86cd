//! Send buffers between two ranks: each token travels once, even with several experts at the destination, and
//! one result comes back.
//!
//! A send buffer may travel in chunks of slots, so that experts work on one chunk while the next one travels.
//! The first chunk announces every assignment. A row travels with the first chunk that needs it, and its
//! result returns with the last. So nothing travels twice, each expert still works on all its rows at once,
//! and sums keep their order with any number of chunks.

use crate::weights::{Dtype, Matrix};
use std::ops::Range;

/// An assignment of a token to a slot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Assignment {
    /// Row of the send buffer.
    pub(super) row: u32,
    /// Slot on the destination: `0..S` of a rank, or the index among all slots of a node.
    pub(super) slot: u32,
    /// Weight of its result.
    pub(super) weight: f32,
}

/// The partition of the slots of every rank into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotChunks {
    slots: usize,
    count: usize,
}

impl SlotChunks {
    /// Divides `slots` slots into `count` chunks, or one per slot if there are fewer.
    pub(super) fn new(slots: usize, count: usize) -> Self {
        Self { slots: slots.max(1), count: count.clamp(1, slots.max(1)) }
    }

    pub(super) fn count(self) -> usize {
        self.count
    }

    /// Returns the slots of a rank.
    pub(super) fn slots(self) -> usize {
        self.slots
    }

    /// Returns the slots of a chunk.
    pub(super) fn slots_of(self, chunk: usize) -> Range<usize> {
        let start = |chunk: usize| (chunk * self.slots).div_ceil(self.count);
        start(chunk)..start(chunk + 1)
    }

    /// Returns the chunk of a slot of a rank or a node.
    pub(super) fn chunk_of(self, slot: u32) -> u32 {
        ((slot as usize % self.slots) * self.count / self.slots) as u32
    }
}

/// The tokens from one source to one destination.
#[derive(Debug, Clone)]
pub(super) struct SendBuffer {
    /// Rows `[row][H]` in the order of travel: by the first chunk that needs them.
    pub(super) rows: Matrix,
    /// Assignments token by token, in the order of its choices.
    pub(super) visits: Vec<Assignment>,
    /// The first and the last chunk that needs each row.
    pub(super) spans: Vec<[u32; 2]>,
}

impl SendBuffer {
    pub(super) fn empty(dtype: Dtype) -> Self {
        SendBuffer { rows: Matrix::with_capacity(dtype, 0), visits: Vec::new(), spans: Vec::new() }
    }
}

/// Returns the rows that travel with a chunk.
pub(super) fn rows_sent_in(spans: &[[u32; 2]], chunk: usize) -> Range<usize> {
    let before = |chunk: u32| spans.partition_point(|&[first, _]| first < chunk);
    before(chunk as u32)..before(chunk as u32 + 1)
}

/// Returns the rows whose results return with a chunk.
pub(super) fn rows_answered_in(spans: &[[u32; 2]], chunk: usize) -> impl Iterator<Item = usize> + '_ {
    (0..spans.len()).filter(move |&row| spans[row][1] == chunk as u32)
}

/// Returns all rows in the order in which their results return.
pub(super) fn answer_order(spans: &[[u32; 2]], chunks: SlotChunks) -> impl Iterator<Item = usize> + '_ {
    (0..chunks.count).flat_map(move |chunk| rows_answered_in(spans, chunk))
}

/// Returns the first and the last chunk of every row.
pub(super) fn row_spans(rows: usize, visits: &[Assignment], chunks: SlotChunks) -> Vec<[u32; 2]> {
    if chunks.count == 1 {
        return vec![[0, 0]; rows];
    }
    let mut spans = vec![[u32::MAX, 0]; rows];
    for visit in visits {
        let ([first, last], chunk) = (&mut spans[visit.row as usize], chunks.chunk_of(visit.slot));
        (*first, *last) = ((*first).min(chunk), (*last).max(chunk));
    }
    spans
}

/// Renumbers the rows of `visits` by the first chunk that needs them. Reorders `ids`, one per row, alike, and
/// returns the spans in the same order.
pub(super) fn sort_by_chunk(
    ids: &mut Vec<u32>,
    visits: &mut [Assignment],
    chunks: SlotChunks,
) -> Vec<[u32; 2]> {
    let found = row_spans(ids.len(), visits, chunks);
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

/// The tokens of one source, and their destinations.
#[derive(Debug, Clone, Copy)]
pub(super) struct TokenPacker<'a> {
    /// `[token][H]`
    pub(super) rows: &'a [f32],
    pub(super) hidden: usize,
    /// Global slots of its choices, `[token][k]`, -1 for none.
    pub(super) slots: &'a [i64],
    pub(super) weights: &'a [f32],
    pub(super) top_k: usize,
    pub(super) dtype: Dtype,
    pub(super) chunks: SlotChunks,
}

impl TokenPacker<'_> {
    /// Packs a send buffer for each destination. `to` maps a global slot to its destination and its index
    /// there. Also returns the token of each row of each send buffer.
    pub(super) fn pack_parcels(
        self,
        destinations: usize,
        to: impl Fn(usize) -> (usize, u32),
    ) -> (Vec<SendBuffer>, Vec<Vec<u32>>) {
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
                visits[destination].push(Assignment { row: sent.len() as u32 - 1, slot, weight });
            }
        }
        let parcel = |(mut visits, sent): (Vec<Assignment>, &mut Vec<u32>)| {
            let spans = sort_by_chunk(sent, &mut visits, self.chunks);
            let mut rows = Matrix::with_capacity(self.dtype, sent.len() * self.hidden);
            sent.iter()
                .for_each(|&token| rows.push(&self.rows[token as usize * self.hidden..][..self.hidden]));
            SendBuffer { rows, visits, spans }
        };
        (visits.into_iter().zip(&mut sent).map(parcel).collect(), sent)
    }
}

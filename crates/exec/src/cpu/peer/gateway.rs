//! What a gateway has of a source in another group: its tokens, handed on inside the group, and the sums of what comes back.

use super::bytes::{self, Broken, Reader};
use crate::exec::cpu::nodes::{Groups, Sum};
use crate::exec::cpu::parcel::{Chunks, Visit, answered, arrange, first_in, last_in};
use crate::exec::weights::{Dtype, Matrix};
use std::ops::Range;

/// No row.
const NONE: u32 = u32::MAX;

/// The tokens of one source.
#[derive(Debug)]
pub(super) struct Relay {
    hidden: usize,
    dtype: Dtype,
    /// Spans of its rows, as they came.
    spans: Vec<[u32; 2]>,
    /// By chunk: what came, and where its rows begin.
    came: Vec<(Vec<u8>, usize)>,
    /// By rank of this group.
    bound: Vec<Bound>,
}

/// What one rank of this group gets of it.
#[derive(Debug)]
struct Bound {
    visits: Vec<Visit>,
    /// Which of the source's rows each of its rows is.
    ids: Vec<u32>,
    spans: Vec<[u32; 2]>,
    answers: Matrix,
    /// Per row of the source: its place among the answers.
    places: Vec<u32>,
}

impl Relay {
    /// Reads what came with the first chunk.
    pub(super) fn open(
        message: Vec<u8>,
        groups: Groups,
        chunks: Chunks,
        [hidden, row_bytes]: [usize; 2],
        dtype: Dtype,
    ) -> Result<Self, Broken> {
        let (mut visits, mut spans, mut at) = (Vec::new(), Vec::new(), 0);
        if !message.is_empty() {
            let mut reader = Reader(&message);
            (visits, spans) = bytes::announced(&mut reader, groups.size * chunks.slots(), chunks)?;
            at = message.len() - reader.left();
        }
        let mut bound: Vec<(Vec<Visit>, Vec<u32>)> = vec![(Vec::new(), Vec::new()); groups.size];
        for visit in visits {
            let (visits, ids) = &mut bound[visit.slot as usize / chunks.slots()];
            // The visits of a row follow each other.
            if ids.last() != Some(&visit.row) {
                ids.push(visit.row);
            }
            let slot = visit.slot % chunks.slots() as u32;
            visits.push(Visit { row: ids.len() as u32 - 1, slot, ..visit });
        }
        let of_rank = |(mut visits, mut ids): (Vec<Visit>, Vec<u32>)| {
            let of_rank = arrange(&mut ids, &mut visits, chunks);
            let mut places = vec![NONE; spans.len()];
            for (place, row) in answered(&of_rank, chunks).enumerate() {
                places[ids[row] as usize] = place as u32;
            }
            Bound { visits, ids, spans: of_rank, answers: Matrix::with_capacity(dtype, 0), places }
        };
        let bound = bound.into_iter().map(of_rank).collect();
        let mut relay = Self { hidden, dtype, spans, came: Vec::new(), bound };
        relay.keep(message, at, row_bytes)?;
        Ok(relay)
    }

    /// Keeps what came with a further chunk.
    pub(super) fn take(&mut self, message: Vec<u8>, row_bytes: usize) -> Result<(), Broken> {
        self.keep(message, 0, row_bytes)
    }

    fn keep(&mut self, message: Vec<u8>, at: usize, row_bytes: usize) -> Result<(), Broken> {
        if message.len() != at + first_in(&self.spans, self.came.len()).len() * row_bytes {
            return Err("another number of rows than was announced");
        }
        self.came.push((message, at));
        Ok(())
    }

    /// Whether a rank of this group gets anything.
    pub(super) fn is_for(&self, rank: usize) -> bool {
        !self.bound[rank].visits.is_empty()
    }

    /// Appends the part for a rank of this group that travels with a chunk.
    pub(super) fn put_chunk(&self, rank: usize, chunk: usize, out: &mut Vec<u8>) {
        let bound = &self.bound[rank];
        if chunk == 0 {
            bytes::announce(bound.ids.len(), &bound.visits, out);
        }
        let row_bytes = self.hidden * self.dtype.bytes() as usize;
        let rows = first_in(&bound.spans, chunk);
        out.reserve(rows.len() * row_bytes);
        for &id in &bound.ids[rows] {
            let of = self.spans[id as usize][0] as usize;
            let (message, at) = &self.came[of];
            let Range { start, .. } = first_in(&self.spans, of);
            out.extend_from_slice(&message[at + (id as usize - start) * row_bytes..][..row_bytes]);
        }
    }

    /// Reads the answers of a rank of this group that came with a chunk.
    pub(super) fn answered(
        &mut self,
        rank: usize,
        chunk: usize,
        reader: &mut Reader<'_>,
    ) -> Result<(), Broken> {
        let bound = &mut self.bound[rank];
        let rows = last_in(&bound.spans, chunk).count();
        bytes::take_into(reader, rows * self.hidden, &mut bound.answers)
    }

    /// Keeps the answer of this rank itself, at its index in the group.
    pub(super) fn keep_answer(&mut self, rank: usize, answer: &Matrix) {
        self.bound[rank].answers.append(answer);
    }

    /// The answers of this group that are whole with a chunk, summed in the order of ranks.
    pub(super) fn sums(&self, chunk: usize) -> Matrix {
        let rows = || last_in(&self.spans, chunk);
        let mut out = Matrix::with_capacity(self.dtype, rows().count() * self.hidden);
        let mut sum = Sum::new(self.hidden);
        for row in rows() {
            for bound in &self.bound {
                let place = bound.places[row];
                if place != NONE {
                    sum.add(&bound.answers, place as usize);
                }
            }
            sum.end(&mut out);
        }
        out
    }
}

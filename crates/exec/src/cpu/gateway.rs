//! The tokens of one source in another group, on its gateway: forwarded within the group, with the sums of
//! their answers.

use super::all_to_all::append_answers;
use super::codec::{self, ByteReader, DecodeError};
use super::node_groups::{AnswerSum, NodeGroups};
use super::send_buffer::{
    Assignment, SlotChunks, answer_order, rows_answered_in, rows_sent_in, sort_by_chunk,
};
use crate::weights::{Dtype, Matrix};
use std::ops::Range;

/// Marks a row without an answer.
const NO_ANSWER: u32 = u32::MAX;

/// The tokens of one source.
#[derive(Debug)]
pub(super) struct Gateway {
    hidden: usize,
    dtype: Dtype,
    /// Spans of its rows, in the order of arrival.
    spans: Vec<[u32; 2]>,
    /// Per chunk: the received message, and the offset of its rows.
    came: Vec<(Vec<u8>, usize)>,
    /// The part of each rank of this group.
    bound: Vec<GatewayRoute>,
}

/// The part of the tokens for one rank of this group.
#[derive(Debug)]
struct GatewayRoute {
    visits: Vec<Assignment>,
    /// The source's row of each row of this part.
    ids: Vec<u32>,
    spans: Vec<[u32; 2]>,
    answers: Matrix,
    /// Position among the answers, per row of the source.
    places: Vec<u32>,
}

impl Gateway {
    /// Reads the message of the first chunk.
    pub(super) fn from_first_chunk(
        message: Vec<u8>,
        groups: NodeGroups,
        chunks: SlotChunks,
        [hidden, row_bytes]: [usize; 2],
        dtype: Dtype,
    ) -> Result<Self, DecodeError> {
        let (mut visits, mut spans, mut at) = (Vec::new(), Vec::new(), 0);
        if !message.is_empty() {
            let mut reader = ByteReader(&message);
            (visits, spans) = codec::decode_header(&mut reader, groups.size * chunks.slots(), chunks)?;
            at = message.len() - reader.remaining_bytes();
        }
        let mut bound: Vec<(Vec<Assignment>, Vec<u32>)> = vec![(Vec::new(), Vec::new()); groups.size];
        for visit in visits {
            let (visits, ids) = &mut bound[visit.slot as usize / chunks.slots()];
            // The assignments of a row are consecutive.
            if ids.last() != Some(&visit.row) {
                ids.push(visit.row);
            }
            let slot = visit.slot % chunks.slots() as u32;
            visits.push(Assignment { row: ids.len() as u32 - 1, slot, ..visit });
        }
        let of_rank = |(mut visits, mut ids): (Vec<Assignment>, Vec<u32>)| {
            let of_rank = sort_by_chunk(&mut ids, &mut visits, chunks);
            let mut places = vec![NO_ANSWER; spans.len()];
            for (place, row) in answer_order(&of_rank, chunks).enumerate() {
                places[ids[row] as usize] = place as u32;
            }
            GatewayRoute { visits, ids, spans: of_rank, answers: Matrix::with_capacity(dtype, 0), places }
        };
        let bound = bound.into_iter().map(of_rank).collect();
        let mut relay = Self { hidden, dtype, spans, came: Vec::new(), bound };
        relay.store_chunk(message, at, row_bytes)?;
        Ok(relay)
    }

    /// Keeps the message of a further chunk.
    pub(super) fn add_chunk(&mut self, message: Vec<u8>, row_bytes: usize) -> Result<(), DecodeError> {
        self.store_chunk(message, 0, row_bytes)
    }

    fn store_chunk(&mut self, message: Vec<u8>, at: usize, row_bytes: usize) -> Result<(), DecodeError> {
        if message.len() != at + rows_sent_in(&self.spans, self.came.len()).len() * row_bytes {
            return Err("the number of rows differs from the announced one");
        }
        self.came.push((message, at));
        Ok(())
    }

    /// Returns whether a rank of this group receives any token.
    pub(super) fn has_tokens_for(&self, rank: usize) -> bool {
        !self.bound[rank].visits.is_empty()
    }

    /// Appends the part for a rank of this group that travels with a chunk.
    pub(super) fn encode_chunk(&self, rank: usize, chunk: usize, out: &mut Vec<u8>) {
        let bound = &self.bound[rank];
        if chunk == 0 {
            codec::encode_header(bound.ids.len(), &bound.visits, out);
        }
        let row_bytes = self.hidden * self.dtype.bytes() as usize;
        let rows = rows_sent_in(&bound.spans, chunk);
        out.reserve(rows.len() * row_bytes);
        for &id in &bound.ids[rows] {
            let of = self.spans[id as usize][0] as usize;
            let (message, at) = &self.came[of];
            let Range { start, .. } = rows_sent_in(&self.spans, of);
            out.extend_from_slice(&message[at + (id as usize - start) * row_bytes..][..row_bytes]);
        }
    }

    /// Reads the answers that a rank of this group sent with a chunk.
    pub(super) fn read_answers(
        &mut self,
        rank: usize,
        chunk: usize,
        reader: &mut ByteReader<'_>,
    ) -> Result<(), DecodeError> {
        let bound = &mut self.bound[rank];
        let rows = rows_answered_in(&bound.spans, chunk).count();
        codec::decode_into(reader, rows * self.hidden, &mut bound.answers)
    }

    /// Keeps answers of a rank of this group to the next chunk.
    pub(super) fn add_answers(&mut self, rank: usize, answers: Matrix) {
        append_answers(&mut self.bound[rank].answers, answers);
    }

    /// Sums the answers of this group that are complete with a chunk, in the order of ranks.
    pub(super) fn sum_answers(&self, chunk: usize) -> Matrix {
        let rows = || rows_answered_in(&self.spans, chunk);
        let mut out = Matrix::with_capacity(self.dtype, rows().count() * self.hidden);
        let mut sum = AnswerSum::new(self.hidden);
        for row in rows() {
            for bound in &self.bound {
                let place = bound.places[row];
                if place != NO_ANSWER {
                    sum.add_answer(&bound.answers, place as usize);
                }
            }
            sum.flush_into(&mut out);
        }
        out
    }
}

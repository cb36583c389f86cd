//! Encoding of send buffers, rows and experts: little-endian, lengths first.

use super::send_buffer::{Assignment, SendBuffer, SlotChunks, row_spans, rows_sent_in};
use crate::weights::{Biases, Dtype, ExpertWeights, Matrix, Numbers};
use half::bf16;
use std::ops::Range;

/// The reason why bytes are invalid.
pub(super) type DecodeError = &'static str;

/// A reader of bytes from the front.
pub(super) struct ByteReader<'a>(pub(super) &'a [u8]);

impl<'a> ByteReader<'a> {
    /// Returns the number of remaining bytes.
    pub(super) fn remaining_bytes(&self) -> usize {
        self.0.len()
    }

    pub(super) fn take_bytes(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("it ends early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn read_u32(&mut self) -> Result<u32, DecodeError> {
        let (&bytes, rest) = self.0.split_first_chunk().ok_or("it ends early")?;
        self.0 = rest;
        Ok(u32::from_le_bytes(bytes))
    }

    fn read_matrix(&mut self, dtype: Dtype, numbers: usize) -> Result<Matrix, DecodeError> {
        let room = numbers.min(self.remaining_bytes());
        let mut matrix = Matrix::with_capacity(dtype, room);
        decode_into(self, numbers, &mut matrix)?;
        Ok(matrix)
    }

    pub(super) fn expect_end(self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err("it has bytes after its end") }
    }
}

/// Appends all numbers of a matrix.
pub(super) fn encode_matrix(matrix: &Matrix, out: &mut Vec<u8>) {
    encode_part(matrix, 0..matrix.len(), out);
}

fn encode_part(matrix: &Matrix, numbers: Range<usize>, out: &mut Vec<u8>) {
    let at = out.len();
    match &matrix.0 {
        Numbers::F32(all) => {
            out.resize(at + 4 * numbers.len(), 0);
            let numbers = &all[numbers];
            out[at..].as_chunks_mut().0.iter_mut().zip(numbers).for_each(|(out, x)| *out = x.to_le_bytes());
        }
        Numbers::Bf16(all) => {
            out.resize(at + 2 * numbers.len(), 0);
            let numbers = &all[numbers];
            out[at..].as_chunks_mut().0.iter_mut().zip(numbers).for_each(|(out, x)| *out = x.to_le_bytes());
        }
    }
}

/// Returns the encoded size of a send buffer: two lengths, rows, assignments of three numbers.
pub(super) fn encoded_len(parcel: &SendBuffer) -> u64 {
    8 + parcel.rows.bytes() + 12 * parcel.visits.len() as u64
}

/// Announces a send buffer: the number of rows and assignments, and the assignments.
pub(super) fn encode_header(rows: usize, visits: &[Assignment], out: &mut Vec<u8>) {
    out.reserve(8 + 12 * visits.len());
    out.extend((rows as u32).to_le_bytes());
    out.extend((visits.len() as u32).to_le_bytes());
    for visit in visits {
        out.extend(visit.row.to_le_bytes());
        out.extend(visit.slot.to_le_bytes());
        out.extend(visit.weight.to_le_bytes());
    }
}

/// Appends the part of a send buffer that travels with a chunk.
pub(super) fn encode_chunk(parcel: &SendBuffer, chunk: usize, hidden: usize, out: &mut Vec<u8>) {
    if chunk == 0 {
        encode_header(parcel.spans.len(), &parcel.visits, out);
    }
    let rows = rows_sent_in(&parcel.spans, chunk);
    encode_part(&parcel.rows, rows.start * hidden..rows.end * hidden, out);
}

/// Reads an announcement for a destination with `slots` slots. Returns the assignments and the spans of the
/// rows.
pub(super) fn decode_header(
    reader: &mut ByteReader<'_>,
    slots: usize,
    chunks: SlotChunks,
) -> Result<(Vec<Assignment>, Vec<[u32; 2]>), DecodeError> {
    let (rows, count) = (reader.read_u32()?, reader.read_u32()?);
    if rows > count {
        return Err("more rows than visits");
    }
    let mut visits = Vec::with_capacity((count as usize).min(reader.remaining_bytes() / 12));
    for _ in 0..count {
        let visit = Assignment {
            row: reader.read_u32()?,
            slot: reader.read_u32()?,
            weight: f32::from_bits(reader.read_u32()?),
        };
        if visit.row >= rows || visit.slot as usize >= slots {
            return Err("a visit to a row or slot that does not exist");
        }
        visits.push(visit);
    }
    let spans = row_spans(rows as usize, &visits, chunks);
    let sorted = spans.is_sorted_by_key(|&[first, _]| first);
    if !sorted || spans.iter().any(|&[first, last]| first > last) {
        return Err("rows out of order, or rows without visits");
    }
    Ok((visits, spans))
}

/// Reads `numbers` numbers and appends them to `out`.
pub(super) fn decode_into(
    reader: &mut ByteReader<'_>,
    numbers: usize,
    out: &mut Matrix,
) -> Result<(), DecodeError> {
    match &mut out.0 {
        Numbers::F32(out) => {
            let bytes = reader.take_bytes(numbers.checked_mul(4).ok_or("it is too long")?)?;
            out.extend(bytes.as_chunks().0.iter().map(|&number| f32::from_le_bytes(number)));
        }
        Numbers::Bf16(out) => {
            let bytes = reader.take_bytes(numbers.checked_mul(2).ok_or("it is too long")?)?;
            out.extend(bytes.as_chunks().0.iter().map(|&number| bf16::from_le_bytes(number)));
        }
    }
    Ok(())
}

/// Encodes an expert: its inner width, flags for gate and biases, then all numbers.
pub(super) fn encode_expert(expert: &ExpertWeights, hidden: usize) -> Vec<u8> {
    let biases = expert.biases.as_ref();
    let mut out = Vec::with_capacity(12 + expert.bytes() as usize);
    out.extend(((expert.up.len() / hidden) as u32).to_le_bytes());
    out.extend(u32::from(expert.gate.is_some()).to_le_bytes());
    out.extend(u32::from(biases.is_some()).to_le_bytes());
    expert.gate.iter().chain([&expert.up, &expert.down]).for_each(|matrix| encode_matrix(matrix, &mut out));
    for biases in biases.into_iter().flat_map(|biases| [&biases.gate, &biases.up, &biases.down]) {
        out.extend(biases.iter().flat_map(|x| x.to_le_bytes()));
    }
    out
}

/// Decodes the bytes of [`encode_expert`].
pub(super) fn decode_expert(bytes: &[u8], hidden: usize, dtype: Dtype) -> Result<ExpertWeights, DecodeError> {
    let mut reader = ByteReader(bytes);
    let (inner, gated, biased) =
        (reader.read_u32()? as usize, reader.read_u32()? == 1, reader.read_u32()? == 1);
    let gate = gated.then(|| reader.read_matrix(dtype, inner * hidden)).transpose()?;
    let (up, down) = (reader.read_matrix(dtype, inner * hidden)?, reader.read_matrix(dtype, inner * hidden)?);
    let mut bias = |numbers| reader.read_matrix(Dtype::F32, numbers).map(|matrix| matrix.to_f32());
    let mut biases = None;
    if biased {
        biases = Some(Biases { gate: bias(inner)?, up: bias(inner)?, down: bias(hidden)? });
    }
    reader.expect_end()?;
    Ok(ExpertWeights { gate, up, down, biases })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::cpu::send_buffer::sort_by_chunk;

    #[test]
    fn what_is_read_is_what_was_written_and_cut_bytes_are_an_error() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let matrix = |from: usize, numbers: usize| {
                Matrix::new(dtype, (from..from + numbers).map(|x| x as f32 / 4.0).collect())
            };
            let visits = vec![
                Assignment { row: 0, slot: 1, weight: 0.25 },
                Assignment { row: 1, slot: 0, weight: -1.5 },
                Assignment { row: 1, slot: 1, weight: 2.0 },
            ];
            for (count, swap) in [(1, false), (2, true)] {
                let (chunks, mut ids, mut visits) = (SlotChunks::new(2, count), vec![7, 9], visits.clone());
                let spans = sort_by_chunk(&mut ids, &mut visits, chunks);
                assert_eq!(ids, if swap { [9, 7] } else { [7, 9] });
                let sent = SendBuffer { rows: matrix(0, 6), visits, spans };
                let mut all = Vec::new();
                (0..count).for_each(|chunk| encode_chunk(&sent, chunk, 3, &mut all));
                assert_eq!(all.len() as u64, encoded_len(&sent));
                let read = |bytes: &[u8], slots| {
                    let mut reader = ByteReader(bytes);
                    let (visits, spans) = decode_header(&mut reader, slots, chunks)?;
                    let mut rows = Matrix::with_capacity(dtype, 0);
                    decode_into(&mut reader, spans.len() * 3, &mut rows)?;
                    reader.expect_end().map(|()| SendBuffer { rows, visits, spans })
                };
                let came = read(&all, 2).unwrap();
                assert_eq!((came.rows, came.visits, came.spans), (sent.rows, sent.visits, sent.spans));
                assert!(read(&all, 1).is_err());
                assert!((0..all.len()).all(|length| read(&all[..length], 2).is_err()));
            }

            let biases = Biases { gate: vec![0.5; 2], up: vec![1.5; 2], down: vec![2.5; 3] };
            for (gate, biases) in [(None, None), (Some(matrix(7, 6)), Some(biases))] {
                let sent = ExpertWeights { gate, up: matrix(1, 6), down: matrix(2, 6), biases };
                let bytes = encode_expert(&sent, 3);
                assert_eq!(decode_expert(&bytes, 3, dtype).unwrap(), sent);
                assert!((0..bytes.len()).all(|length| decode_expert(&bytes[..length], 3, dtype).is_err()));
            }
        }
    }
}

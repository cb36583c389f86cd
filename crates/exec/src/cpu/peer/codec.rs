//! Parcels, rows and experts as bytes: little-endian, lengths first.

use crate::exec::cpu::parcel::{Chunks, Parcel, Visit, first_in, spans};
use crate::exec::weights::{Biases, Dtype, ExpertWeights, Matrix};
use half::bf16;
use std::ops::Range;

/// Why bytes are not what they should be.
pub(super) type Broken = &'static str;

/// Bytes, from the front on.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    /// Bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.0.len()
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Broken> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("it ends early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, Broken> {
        let (&bytes, rest) = self.0.split_first_chunk().ok_or("it ends early")?;
        self.0 = rest;
        Ok(u32::from_le_bytes(bytes))
    }

    fn matrix(&mut self, dtype: Dtype, numbers: usize) -> Result<Matrix, Broken> {
        let room = numbers.min(self.left());
        let mut matrix = Matrix::with_capacity(dtype, room);
        take_into(self, numbers, &mut matrix)?;
        Ok(matrix)
    }

    pub(super) fn end(self) -> Result<(), Broken> {
        if self.0.is_empty() { Ok(()) } else { Err("it goes on behind its end") }
    }
}

/// Appends all numbers.
pub(super) fn put(matrix: &Matrix, out: &mut Vec<u8>) {
    put_part(matrix, 0..matrix.len(), out);
}

fn put_part(matrix: &Matrix, numbers: Range<usize>, out: &mut Vec<u8>) {
    let at = out.len();
    match matrix {
        Matrix::F32(all) => {
            out.resize(at + 4 * numbers.len(), 0);
            let numbers = &all[numbers];
            out[at..].as_chunks_mut().0.iter_mut().zip(numbers).for_each(|(out, x)| *out = x.to_le_bytes());
        }
        Matrix::Bf16(all) => {
            out.resize(at + 2 * numbers.len(), 0);
            let numbers = &all[numbers];
            out[at..].as_chunks_mut().0.iter_mut().zip(numbers).for_each(|(out, x)| *out = x.to_le_bytes());
        }
    }
}

/// Bytes of a parcel that is not empty: two lengths, rows, visits of three numbers.
pub(super) fn length(parcel: &Parcel) -> u64 {
    if parcel.visits.is_empty() { 0 } else { 8 + parcel.rows.bytes() + 12 * parcel.visits.len() as u64 }
}

/// Announces a parcel: how many rows and visits there will be, and the visits.
pub(super) fn announce(rows: usize, visits: &[Visit], out: &mut Vec<u8>) {
    out.reserve(8 + 12 * visits.len());
    out.extend((rows as u32).to_le_bytes());
    out.extend((visits.len() as u32).to_le_bytes());
    for visit in visits {
        out.extend(visit.row.to_le_bytes());
        out.extend(visit.slot.to_le_bytes());
        out.extend(visit.weight.to_le_bytes());
    }
}

/// The part of a parcel that travels with a chunk.
pub(super) fn put_chunk(parcel: &Parcel, chunk: usize, hidden: usize, out: &mut Vec<u8>) {
    if chunk == 0 {
        announce(parcel.spans.len(), &parcel.visits, out);
    }
    let rows = first_in(&parcel.spans, chunk);
    put_part(&parcel.rows, rows.start * hidden..rows.end * hidden, out);
}

/// What was announced, for a destination of so many slots: its visits and the spans of its rows.
pub(super) fn announced(
    reader: &mut Reader<'_>,
    slots: usize,
    chunks: Chunks,
) -> Result<(Vec<Visit>, Vec<[u32; 2]>), Broken> {
    let (rows, count) = (reader.number()?, reader.number()?);
    if rows > count {
        return Err("rows that nobody visits");
    }
    let mut visits = Vec::with_capacity((count as usize).min(reader.left() / 12));
    for _ in 0..count {
        let visit =
            Visit { row: reader.number()?, slot: reader.number()?, weight: f32::from_bits(reader.number()?) };
        if visit.row >= rows || visit.slot as usize >= slots {
            return Err("a visit to a row or slot that is not there");
        }
        visits.push(visit);
    }
    let spans = spans(rows as usize, &visits, chunks);
    let sorted = spans.is_sorted_by_key(|&[first, _]| first);
    if !sorted || spans.iter().any(|&[first, last]| first > last) {
        return Err("rows out of order, or that nobody visits");
    }
    Ok((visits, spans))
}

/// Reads on: so many numbers to the end of `out`.
pub(super) fn take_into(reader: &mut Reader<'_>, numbers: usize, out: &mut Matrix) -> Result<(), Broken> {
    match out {
        Matrix::F32(out) => {
            let bytes = reader.take(numbers.checked_mul(4).ok_or("it is too long")?)?;
            out.extend(bytes.as_chunks().0.iter().map(|&number| f32::from_le_bytes(number)));
        }
        Matrix::Bf16(out) => {
            let bytes = reader.take(numbers.checked_mul(2).ok_or("it is too long")?)?;
            out.extend(bytes.as_chunks().0.iter().map(|&number| bf16::from_le_bytes(number)));
        }
    }
    Ok(())
}

/// An expert: its width inside, whether it has a gate and biases, then all numbers.
pub(super) fn of_expert(expert: &ExpertWeights, hidden: usize) -> Vec<u8> {
    let biases = expert.biases.as_ref();
    let mut out = Vec::with_capacity(12 + expert.bytes() as usize);
    out.extend(((expert.up.len() / hidden) as u32).to_le_bytes());
    out.extend(u32::from(expert.gate.is_some()).to_le_bytes());
    out.extend(u32::from(biases.is_some()).to_le_bytes());
    expert.gate.iter().chain([&expert.up, &expert.down]).for_each(|matrix| put(matrix, &mut out));
    for biases in biases.into_iter().flat_map(|biases| [&biases.gate, &biases.up, &biases.down]) {
        out.extend(biases.iter().flat_map(|x| x.to_le_bytes()));
    }
    out
}

/// What [`of_expert`] made.
pub(super) fn expert(bytes: &[u8], hidden: usize, dtype: Dtype) -> Result<ExpertWeights, Broken> {
    let mut reader = Reader(bytes);
    let (inner, gated, biased) = (reader.number()? as usize, reader.number()? == 1, reader.number()? == 1);
    let gate = gated.then(|| reader.matrix(dtype, inner * hidden)).transpose()?;
    let (up, down) = (reader.matrix(dtype, inner * hidden)?, reader.matrix(dtype, inner * hidden)?);
    let mut bias = |numbers| reader.matrix(Dtype::F32, numbers).map(|matrix| matrix.wide());
    let mut biases = None;
    if biased {
        biases = Some(Biases { gate: bias(inner)?, up: bias(inner)?, down: bias(hidden)? });
    }
    reader.end()?;
    Ok(ExpertWeights { gate, up, down, biases })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::exec::cpu::parcel::arrange;

    #[test]
    fn what_is_read_is_what_was_written_and_cut_bytes_are_an_error() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let matrix = |from: usize, numbers: usize| {
                Matrix::new(dtype, (from..from + numbers).map(|x| x as f32 / 4.0).collect())
            };
            let visits = vec![
                Visit { row: 0, slot: 1, weight: 0.25 },
                Visit { row: 1, slot: 0, weight: -1.5 },
                Visit { row: 1, slot: 1, weight: 2.0 },
            ];
            for (count, swap) in [(1, false), (2, true)] {
                let (chunks, mut ids, mut visits) = (Chunks::new(2, count), vec![7, 9], visits.clone());
                let spans = arrange(&mut ids, &mut visits, chunks);
                assert_eq!(ids, if swap { [9, 7] } else { [7, 9] });
                let sent = Parcel { rows: matrix(0, 6), visits, spans };
                let mut all = Vec::new();
                (0..count).for_each(|chunk| put_chunk(&sent, chunk, 3, &mut all));
                assert_eq!(all.len() as u64, length(&sent));
                let read = |bytes: &[u8], slots| {
                    let mut reader = Reader(bytes);
                    let (visits, spans) = announced(&mut reader, slots, chunks)?;
                    let mut rows = Matrix::with_capacity(dtype, 0);
                    take_into(&mut reader, spans.len() * 3, &mut rows)?;
                    reader.end().map(|()| Parcel { rows, visits, spans })
                };
                let came = read(&all, 2).unwrap();
                assert_eq!((came.rows, came.visits, came.spans), (sent.rows, sent.visits, sent.spans));
                assert!(read(&all, 1).is_err());
                assert!((0..all.len()).all(|length| read(&all[..length], 2).is_err()));
            }

            let biases = Biases { gate: vec![0.5; 2], up: vec![1.5; 2], down: vec![2.5; 3] };
            for (gate, biases) in [(None, None), (Some(matrix(7, 6)), Some(biases))] {
                let sent = ExpertWeights { gate, up: matrix(1, 6), down: matrix(2, 6), biases };
                let bytes = of_expert(&sent, 3);
                assert_eq!(expert(&bytes, 3, dtype).unwrap(), sent);
                assert!((0..bytes.len()).all(|length| expert(&bytes[..length], 3, dtype).is_err()));
            }
        }
    }
}

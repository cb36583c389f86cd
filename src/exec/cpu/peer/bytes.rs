//! Parcels, answers and experts as bytes: little-endian, lengths first.

use crate::exec::cpu::parcel::{Parcel, Visit};
use crate::exec::weights::{Biases, Dtype, ExpertWeights, Matrix};
use half::bf16;

/// Why bytes are not what they should be.
pub(super) type Broken = &'static str;

/// Bytes, from the front on.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Broken> {
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
        let length = numbers.checked_mul(dtype.bytes() as usize).ok_or("it is too long")?;
        let bytes = self.take(length)?;
        Ok(match dtype {
            Dtype::F32 => {
                Matrix::F32(bytes.as_chunks().0.iter().map(|&number| f32::from_le_bytes(number)).collect())
            }
            Dtype::Bf16 => {
                Matrix::Bf16(bytes.as_chunks().0.iter().map(|&number| bf16::from_le_bytes(number)).collect())
            }
        })
    }

    fn end(self) -> Result<(), Broken> {
        if self.0.is_empty() { Ok(()) } else { Err("it goes on behind its end") }
    }
}

fn put(matrix: &Matrix, out: &mut Vec<u8>) {
    let at = out.len();
    out.resize(at + matrix.bytes() as usize, 0);
    match matrix {
        Matrix::F32(numbers) => {
            out[at..].as_chunks_mut().0.iter_mut().zip(numbers).for_each(|(out, x)| *out = x.to_le_bytes());
        }
        Matrix::Bf16(numbers) => {
            out[at..].as_chunks_mut().0.iter_mut().zip(numbers).for_each(|(out, x)| *out = x.to_le_bytes());
        }
    }
}

/// Bytes of a parcel that is not empty: two lengths, rows, visits of three numbers.
pub(super) fn length(parcel: &Parcel) -> u64 {
    if parcel.visits.is_empty() { 0 } else { 8 + parcel.rows.bytes() + 12 * parcel.visits.len() as u64 }
}

/// Tokens for one rank: how many, how many visits, the rows, the visits. Nothing where there are none.
pub(super) fn of_parcel(parcel: &Parcel, hidden: usize) -> Vec<u8> {
    if parcel.visits.is_empty() {
        return Vec::new();
    }
    let mut out = Vec::with_capacity(length(parcel) as usize);
    out.extend(((parcel.rows.len() / hidden) as u32).to_le_bytes());
    out.extend((parcel.visits.len() as u32).to_le_bytes());
    put(&parcel.rows, &mut out);
    for visit in &parcel.visits {
        out.extend(visit.row.to_le_bytes());
        out.extend(visit.slot.to_le_bytes());
        out.extend(visit.weight.to_le_bytes());
    }
    out
}

/// What [`of_parcel`] made, for a rank of `slots` slots.
pub(super) fn parcel(bytes: &[u8], hidden: usize, slots: usize, dtype: Dtype) -> Result<Parcel, Broken> {
    if bytes.is_empty() {
        return Ok(Parcel { rows: Matrix::with_capacity(dtype, 0), visits: Vec::new() });
    }
    let mut reader = Reader(bytes);
    let (rows, count) = (reader.number()?, reader.number()?);
    let matrix = reader.matrix(dtype, rows as usize * hidden)?;
    let mut visits = Vec::with_capacity((count as usize).min(bytes.len() / 12));
    for _ in 0..count {
        let visit =
            Visit { row: reader.number()?, slot: reader.number()?, weight: f32::from_bits(reader.number()?) };
        if visit.row >= rows || visit.slot as usize >= slots {
            return Err("a visit to a row or slot that is not there");
        }
        visits.push(visit);
    }
    reader.end()?;
    Ok(Parcel { rows: matrix, visits })
}

/// Results, row by row.
pub(super) fn of_answer(answer: &Matrix) -> Vec<u8> {
    let mut out = Vec::with_capacity(answer.bytes() as usize);
    put(answer, &mut out);
    out
}

/// Results for so many numbers.
pub(super) fn answer(bytes: &[u8], numbers: usize, dtype: Dtype) -> Result<Matrix, Broken> {
    let mut reader = Reader(bytes);
    let answer = reader.matrix(dtype, numbers)?;
    reader.end()?;
    Ok(answer)
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

    #[test]
    fn what_is_read_is_what_was_written_and_cut_bytes_are_an_error() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let matrix = |from: usize, numbers: usize| {
                Matrix::new(dtype, (from..from + numbers).map(|x| x as f32 / 4.0).collect())
            };
            let sent = Parcel {
                rows: matrix(0, 6),
                visits: vec![
                    Visit { row: 0, slot: 1, weight: 0.25 },
                    Visit { row: 1, slot: 0, weight: -1.5 },
                ],
            };
            let bytes = of_parcel(&sent, 3);
            assert_eq!(bytes.len() as u64, length(&sent));
            let came = parcel(&bytes, 3, 2, dtype).unwrap();
            assert_eq!((came.rows, came.visits), (sent.rows, sent.visits));
            assert!(parcel(&bytes, 3, 1, dtype).is_err());
            assert!((1..bytes.len()).all(|length| parcel(&bytes[..length], 3, 2, dtype).is_err()));
            assert!(parcel(&[], 3, 2, dtype).unwrap().visits.is_empty());

            let biases = Biases { gate: vec![0.5; 2], up: vec![1.5; 2], down: vec![2.5; 3] };
            for (gate, biases) in [(None, None), (Some(matrix(7, 6)), Some(biases))] {
                let sent = ExpertWeights { gate, up: matrix(1, 6), down: matrix(2, 6), biases };
                let bytes = of_expert(&sent, 3);
                assert_eq!(expert(&bytes, 3, dtype).unwrap(), sent);
                assert!((0..bytes.len()).all(|length| expert(&bytes[..length], 3, dtype).is_err()));
            }
            assert_eq!(answer(&of_answer(&matrix(3, 5)), 5, dtype).unwrap(), matrix(3, 5));
            assert!(answer(&of_answer(&matrix(3, 5)), 4, dtype).is_err());
        }
    }
}

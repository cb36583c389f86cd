//! Decodes the little-endian numbers of a file to `f32`.

use half::{bf16, f16};

/// Rows and columns that share one scale in DeepSeek's FP8.
pub(super) const SCALE_BLOCK: usize = 128;

pub(super) fn decode_f32(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

pub(super) fn decode_f16(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}

pub(super) fn decode_bf16(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}

/// Decodes numbers of 8 bits: sign, 4 of exponent with bias 7, 3 of mantissa. There are no infinities, and
/// all ones is NaN (OCP FP8, E4M3).
pub(super) fn decode_fp8(bytes: &[u8]) -> Vec<f32> {
    let one = |byte: u8| {
        let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
        let size = match (exponent, byte & 7) {
            (15, 7) => f32::NAN,
            (0, _) => mantissa / 8.0 * 2f32.powi(-6),
            _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
        };
        if byte & 0x80 == 0 { size } else { -size }
    };
    let table: Vec<f32> = (0..=u8::MAX).map(one).collect();
    bytes.iter().map(|&byte| table[usize::from(byte)]).collect()
}

/// Multiplies rows of `columns` numbers by one scale per 128 x 128 block (DeepSeek-V3, `weight_scale_inv`).
pub(super) fn scale_blocks(numbers: &mut [f32], columns: usize, scales: &[f32]) {
    let across = columns.div_ceil(SCALE_BLOCK);
    for (row, numbers) in numbers.chunks_exact_mut(columns.max(1)).enumerate() {
        let scales = &scales[row / SCALE_BLOCK * across..][..across];
        for (numbers, scale) in numbers.chunks_mut(SCALE_BLOCK).zip(scales) {
            numbers.iter_mut().for_each(|x| *x *= scale);
        }
    }
}

/// Decodes blocks of 32 numbers of 4 bits, the lower half of a byte first. Each block has a power of two as
/// its scale (OCP MXFP4, as in gpt-oss).
pub(super) fn decode_mxfp4(blocks: &[u8], scales: &[u8]) -> Vec<f32> {
    const SIZES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let number =
        |bits: u8| if bits & 8 == 0 { SIZES[usize::from(bits & 7)] } else { -SIZES[usize::from(bits & 7)] };
    let mut numbers = Vec::with_capacity(blocks.len() * 2);
    for (block, &scale) in blocks.chunks_exact(16).zip(scales) {
        let scale = 2f32.powi(i32::from(scale) - 127);
        numbers.extend(block.iter().flat_map(|byte| [number(byte & 15) * scale, number(byte >> 4) * scale]));
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::float_cmp, reason = "these are exact")]
    fn small_numbers_are_as_specified() {
        // OCP FP8 table: largest 448, smallest normal 2^-6, smallest 2^-9.
        assert_eq!(
            decode_fp8(&[0x7e, 0x08, 0x01, 0x00, 0xb8, 0x80]),
            [448.0, 0.015_625, 0.001_953_125, 0.0, -1.0, 0.0]
        );
        assert!(decode_fp8(&[0x7f])[0].is_nan() && decode_fp8(&[0xff])[0].is_nan());
        let mut block = [0u8; 32];
        (block[0], block[15], block[16]) = (0x2a, 0xf1, 0x07);
        let numbers = decode_mxfp4(&block, &[128, 126]);
        assert_eq!(
            [numbers[0], numbers[1], numbers[30], numbers[31], numbers[32]],
            [-2.0, 2.0, 1.0, -12.0, 3.0]
        );
    }

    #[test]
    #[allow(clippy::float_cmp, reason = "these are exact")]
    fn every_block_has_its_scale() {
        let mut numbers = vec![1.0; 130 * 200];
        scale_blocks(&mut numbers, 200, &[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(
            [numbers[127], numbers[128], numbers[129 * 200], numbers[129 * 200 + 199]],
            [1.0, 2.0, 3.0, 4.0]
        );
    }
}

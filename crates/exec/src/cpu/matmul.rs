//! Dense products: those of few rows by `few`, all others by the `gemm` crate. Only this module passes
//! pointers to that crate.

use super::skinny_gemm::{MAX_SKINNY_ROWS, skinny_gemm};
use crate::simd::widen_bf16;
use crate::weights::{Matrix, Numbers};

/// Rows of a bf16 matrix that are converted at a time. They are few enough to be still in the cache when they
/// are multiplied.
const PANEL_ROWS: usize = 128;

/// Computes `out = x w^T` with `x` `[rows][inner]`, `w` `[columns][inner]` and `out` `[rows][columns]`, on
/// one thread with `f32` sums. `scratch` holds bf16 weights during their product.
///
/// # Panics
/// Panics if a slice is shorter than its shape. Callers size the slices.
pub fn times_transposed(
    x: &[f32],
    w: &Matrix,
    out: &mut [f32],
    [rows, columns, inner]: [usize; 3],
    scratch: &mut Vec<f32>,
) {
    match &w.0 {
        Numbers::F32(w) if rows <= MAX_SKINNY_ROWS => skinny_gemm(x, w, out, [rows, columns, inner], scratch),
        Numbers::Bf16(w) if rows <= MAX_SKINNY_ROWS => {
            skinny_gemm(x, w, out, [rows, columns, inner], scratch);
        }
        Numbers::F32(w) => multiply_panel(x, w, out, [rows, columns, inner], columns),
        Numbers::Bf16(w) => {
            for from in (0..columns).step_by(PANEL_ROWS) {
                let here = PANEL_ROWS.min(columns - from);
                widen_bf16(&w[from * inner..(from + here) * inner], scratch);
                let out = if rows == 0 { &mut [] } else { &mut out[from..] };
                multiply_panel(x, scratch, out, [rows, here, inner], columns);
            }
        }
    }
}

/// Computes some columns of a product. A row of `out` begins `stride` numbers after the previous one.
#[allow(unsafe_code, reason = "the crate takes raw pointers")]
fn multiply_panel(x: &[f32], w: &[f32], out: &mut [f32], [rows, columns, inner]: [usize; 3], stride: usize) {
    if rows == 0 || columns == 0 {
        return;
    }
    assert!(x.len() >= rows * inner && w.len() >= columns * inner);
    assert!(columns <= stride && out.len() >= (rows - 1) * stride + columns);
    // SAFETY: with these strides the call reads `rows * inner` numbers of `x` and `columns * inner` of `w`.
    // It writes `columns` numbers of each of `rows` rows of `out`, which overlaps neither. The assertions
    // keep all of them within the slices. `read_dst` is false: `out` is written, not read.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            stride as isize,
            false,
            x.as_ptr(),
            1,
            inner as isize,
            w.as_ptr(),
            inner as isize,
            1,
            0.0f32,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Dtype;

    #[test]
    fn a_product_is_the_sum_of_products() {
        let shapes = [
            [1, 1, 1],
            [3, 5, 7],
            [17, 33, 64],
            [0, 4, 4],
            [2, 3, 0],
            [1, 40, 9],
            [5, 300, 11],
            [4, 7, 67],
            [16, 9, 130],
        ];
        for shape @ [rows, columns, inner] in shapes {
            // bf16 represents these numbers exactly.
            let number = |i: usize| ((i * 37 % 19) as f32 - 9.0) / 4.0;
            let x: Vec<f32> = (0..rows * inner).map(number).collect();
            let w: Vec<f32> = (0..columns * inner).map(|i| number(i + 5)).collect();
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let mut out = vec![f32::NAN; rows * columns];
                times_transposed(&x, &Matrix::new(dtype, w.clone()), &mut out, shape, &mut vec![]);
                for (i, &y) in out.iter().enumerate() {
                    let (r, c) = (i / columns, i % columns);
                    let expected: f32 = (0..inner).map(|k| x[r * inner + k] * w[c * inner + k]).sum();
                    assert!((y - expected).abs() < 1e-3, "{shape:?} {r} {c}: {y} for {expected}");
                }
            }
        }
    }
}

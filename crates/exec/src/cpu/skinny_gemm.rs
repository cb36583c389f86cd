//! Matrix products of few rows, as in small decode batches. Reading the weights dominates their cost, so each
//! weight is read once and used for all current rows. The packing of a large product, which copies both
//! factors into tiles, would cost more.

#![allow(clippy::inline_always, reason = "code that is not inlined is not compiled for wider vectors")]

use crate::simd::IntoF32;
use pulp::{Arch, Simd, WithSimd};

/// The largest number of rows for which this product is used.
pub(super) const MAX_SKINNY_ROWS: usize = 12;

/// Computes `out = x w^T` with `x` `[rows][inner]`, `w` `[columns][inner]` and `out` `[rows][columns]`.
/// `scratch` holds a row of weights.
///
/// # Panics
/// Panics if a slice is shorter than its shape. Callers size the slices.
pub(super) fn skinny_gemm<W: IntoF32>(
    x: &[f32],
    w: &[W],
    out: &mut [f32],
    [rows, columns, inner]: [usize; 3],
    scratch: &mut Vec<f32>,
) {
    assert!(x.len() >= rows * inner && w.len() >= columns * inner && out.len() >= rows * columns);
    scratch.resize(inner, 0.0);
    Arch::new().dispatch(SkinnyGemm { x, w, out, shape: [rows, columns, inner], row: scratch });
}

/// The product, generic over the vector width.
struct SkinnyGemm<'a, W> {
    x: &'a [f32],
    w: &'a [W],
    out: &'a mut [f32],
    shape: [usize; 3],
    /// The weights of one column, in `f32`.
    row: &'a mut [f32],
}

impl<W: IntoF32> WithSimd for SkinnyGemm<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, w, out, shape: [rows, columns, inner], row } = self;
        for column in 0..columns {
            for (wide, w) in row.iter_mut().zip(&w[column * inner..][..inner]) {
                *wide = w.into_f32();
            }
            let mut at = 0;
            while at + 4 <= rows {
                let sums = dot_rows::<S, 4, 2>(simd, &x[at * inner..], row);
                sums.iter().enumerate().for_each(|(r, &sum)| out[(at + r) * columns + column] = sum);
                at += 4;
            }
            while at < rows {
                out[at * columns + column] = dot_rows::<S, 1, 4>(simd, &x[at * inner..], row)[0];
                at += 1;
            }
        }
    }
}

/// Multiplies `R` rows by one row of weights, with `U` vectors of partial sums each.
#[inline(always)]
fn dot_rows<S: Simd, const R: usize, const U: usize>(simd: S, x: &[f32], weights: &[f32]) -> [f32; R] {
    let inner = weights.len();
    let (ws, rest) = S::as_simd_f32s(weights);
    let xs: [&[S::f32s]; R] =
        std::array::from_fn(|r| &S::as_simd_f32s(&x[r * inner..][..inner]).0[..ws.len()]);
    let mut sums = [[simd.splat_f32s(0.0); U]; R];
    let whole = ws.len() / U * U;
    for at in (0..whole).step_by(U) {
        for u in 0..U {
            for r in 0..R {
                sums[r][u] = simd.mul_add_f32s(xs[r][at + u], ws[at + u], sums[r][u]);
            }
        }
    }
    for at in whole..ws.len() {
        for r in 0..R {
            sums[r][0] = simd.mul_add_f32s(xs[r][at], ws[at], sums[r][0]);
        }
    }
    let tail = inner - rest.len();
    std::array::from_fn(|r| {
        let all = sums[r].iter().fold(simd.splat_f32s(0.0), |all, &sum| simd.add_f32s(all, sum));
        let rest = rest.iter().zip(&x[r * inner + tail..]).map(|(w, x)| w * x).sum::<f32>();
        simd.reduce_sum_f32s(all) + rest
    })
}

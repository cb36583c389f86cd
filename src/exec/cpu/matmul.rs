//! Dense products by the `gemm` crate: the one place that hands it pointers.

/// `out = x w^T` with `x` `[rows][inner]`, `w` `[columns][inner]` and `out` `[rows][columns]`; one thread.
///
/// # Panics
/// When a slice is shorter than its shape; callers size them.
#[allow(unsafe_code)]
pub fn times_transposed(x: &[f32], w: &[f32], out: &mut [f32], [rows, columns, inner]: [usize; 3]) {
    assert!(x.len() >= rows * inner && w.len() >= columns * inner && out.len() >= rows * columns);
    if rows == 0 || columns == 0 {
        return;
    }
    // SAFETY: the crate takes raw pointers and strides. With these strides it reads `rows * inner` numbers of `x` and
    // `columns * inner` of `w`, and writes `rows * columns` of `out`, which does not overlap them; all are within the
    // slices by the assertion. `read_dst` is false: `out` is written, not read.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            columns as isize,
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

    #[test]
    fn a_product_is_the_sum_of_products() {
        for shape @ [rows, columns, inner] in [[1, 1, 1], [3, 5, 7], [17, 33, 64], [0, 4, 4], [2, 3, 0], [1, 40, 9]] {
            let number = |i: usize| ((i * 37 % 19) as f32 - 9.0) / 4.0;
            let x: Vec<f32> = (0..rows * inner).map(number).collect();
            let w: Vec<f32> = (0..columns * inner).map(|i| number(i + 5)).collect();
            let mut out = vec![f32::NAN; rows * columns];
            times_transposed(&x, &w, &mut out, shape);
            for (i, &y) in out.iter().enumerate() {
                let (r, c) = (i / columns, i % columns);
                let expected: f32 = (0..inner).map(|k| x[r * inner + k] * w[c * inner + k]).sum();
                assert!((y - expected).abs() < 1e-3, "{shape:?} {r} {c}: {y} for {expected}");
            }
        }
    }
}

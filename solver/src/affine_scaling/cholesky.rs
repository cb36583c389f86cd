//! Solution of a symmetric positive definite system in single precision.

/// Replaces the lower triangle of a row-major `n` × `n` matrix by its Cholesky factor, and `rhs` by the
/// solution. The upper triangle is not read. Returns false if the matrix is not numerically positive
/// definite. Matrix and `rhs` are then undefined.
pub(super) fn solve(matrix: &mut [f32], rhs: &mut [f32]) -> bool {
    let n = rhs.len();
    for row in 0..n {
        let (above, below) = matrix.split_at_mut(row * n);
        let current = &mut below[..=row];
        for column in 0..row {
            let pivot_row = &above[column * n..=column * n + column];
            let sum = dot(&current[..column], &pivot_row[..column]);
            current[column] = (current[column] - sum) / pivot_row[column];
        }
        let pivot = current[row] - dot(&current[..row], &current[..row]);
        // The test also fails for NaN.
        if !(pivot > 0.0 && pivot.is_finite()) {
            return false;
        }
        current[row] = pivot.sqrt();
    }
    for row in 0..n {
        let factor = &matrix[row * n..=row * n + row];
        rhs[row] = (rhs[row] - dot(&factor[..row], &rhs[..row])) / factor[row];
    }
    for row in (0..n).rev() {
        let factor = &matrix[row * n..=row * n + row];
        rhs[row] /= factor[row];
        let solved = rhs[row];
        for (value, coefficient) in rhs[..row].iter_mut().zip(factor) {
            *value -= coefficient * solved;
        }
    }
    true
}

/// Returns the inner product, in eight partial sums so that it vectorises. The order of additions is fixed.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (a_eights, a_rest) = a.as_chunks::<8>();
    let (b_eights, b_rest) = b.as_chunks::<8>();
    for (x, y) in a_eights.iter().zip(b_eights) {
        for lane in 0..8 {
            sums[lane] += x[lane] * y[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::solve;

    #[test]
    fn solves_a_known_system() {
        // [4 2; 2 3] x = [10, 8] has the solution [1.75, 1.5].
        let mut matrix = [4.0, f32::NAN, 2.0, 3.0];
        let mut rhs = [10.0, 8.0];
        assert!(solve(&mut matrix, &mut rhs));
        assert!((rhs[0] - 1.75).abs() < 1e-6 && (rhs[1] - 1.5).abs() < 1e-6);
    }

    #[test]
    fn refuses_what_is_not_positive_definite() {
        assert!(!solve(&mut [1.0, 0.0, 2.0, 1.0], &mut [1.0, 1.0]));
        assert!(!solve(&mut [f32::NAN], &mut [1.0]));
        assert!(!solve(&mut [0.0], &mut [1.0]));
    }
}

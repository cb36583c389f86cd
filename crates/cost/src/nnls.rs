//! Non-negative least squares.
//!
//! In: the Gram matrix `A^T A` and the vector `A^T b`. Out: `x >= 0` with the least `|A x - b|`. The method
//! is the active set method of Lawson and Hanson (*Solving Least Squares Problems*, 1974, chapter 23).

/// Returns the non-negative `x` that minimises `x^T G x / 2 - r^T x`.
///
/// `gram` is symmetric and positive semidefinite, row by row. A column that depends on the columns in use
/// stays at zero. Missing entries of `gram` count as zero.
pub fn solve_nonnegative(gram: &[f64], rhs: &[f64]) -> Vec<f64> {
    let n = rhs.len();
    let at = |i: usize, j: usize| gram.get(i * n + j).copied().unwrap_or(0.0);
    let mut x = vec![0.0; n];
    let mut passive: Vec<usize> = Vec::new();
    // Columns whose entry made the system singular or would be undone at once, until the solution changes.
    let mut blocked = vec![false; n];
    let scale = rhs.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    // Each round raises the objective, so a set of columns never returns; the limit guards against
    // rounding.
    for _ in 0..30 * n.max(1) {
        let gradient: Vec<f64> =
            (0..n).map(|i| rhs[i] - (0..n).map(|j| at(i, j) * x[j]).sum::<f64>()).collect();
        let enter = (0..n)
            .filter(|i| !blocked[*i] && !passive.contains(i) && gradient[*i] > 1e-12 * scale)
            .max_by(|&a, &b| gradient[a].total_cmp(&gradient[b]).then(b.cmp(&a)));
        let Some(enter) = enter else { break };
        passive.push(enter);
        match descend(&at, rhs, &mut x, &mut passive) {
            Some(()) if x[enter] > 0.0 => blocked.fill(false),
            _ => {
                passive.retain(|&column| column != enter);
                x[enter] = 0.0;
                blocked[enter] = true;
            }
        }
    }
    x
}

/// Moves to the least-squares solution of the passive columns. Columns that reach zero on the way leave.
/// Returns `None` if the columns are dependent.
fn descend(
    at: &impl Fn(usize, usize) -> f64,
    rhs: &[f64],
    x: &mut [f64],
    passive: &mut Vec<usize>,
) -> Option<()> {
    while !passive.is_empty() {
        let target = solve_cholesky(at, rhs, passive)?;
        let mut step = 1.0;
        let mut first = None;
        for (&column, &goal) in passive.iter().zip(&target) {
            if goal <= 0.0 {
                let share = x[column] / (x[column] - goal);
                let share = if share.is_finite() { share } else { 0.0 };
                if first.is_none() || share < step {
                    (step, first) = (share, Some(column));
                }
            }
        }
        for (&column, &goal) in passive.iter().zip(&target) {
            x[column] += step * (goal - x[column]);
        }
        let Some(first) = first else { return Some(()) };
        // Rounding may leave the column that stops the step above zero.
        x[first] = 0.0;
        passive.retain(|&column| {
            let stays = x[column] > 0.0;
            if !stays {
                x[column] = 0.0;
            }
            stays
        });
    }
    Some(())
}

/// Solves the normal equations of some columns. Returns `None` if they are dependent.
fn solve_cholesky(at: &impl Fn(usize, usize) -> f64, rhs: &[f64], columns: &[usize]) -> Option<Vec<f64>> {
    let n = columns.len();
    let mut lower = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| lower[i * n + k] * lower[j * n + k]).sum();
            let rest = at(columns[i], columns[j]) - dot;
            if i == j {
                if rest <= 1e-13 * at(columns[i], columns[i]) || rest <= 0.0 {
                    return None;
                }
                lower[i * n + i] = rest.sqrt();
            } else {
                lower[i * n + j] = rest / lower[j * n + j];
            }
        }
    }
    let mut y: Vec<f64> = columns.iter().map(|&column| rhs[column]).collect();
    for i in 0..n {
        let dot: f64 = (0..i).map(|k| lower[i * n + k] * y[k]).sum();
        y[i] = (y[i] - dot) / lower[i * n + i];
    }
    for i in (0..n).rev() {
        let dot: f64 = (i + 1..n).map(|k| lower[k * n + i] * y[k]).sum();
        y[i] = (y[i] - dot) / lower[i * n + i];
    }
    Some(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn normal_equations(a: &[Vec<f64>], b: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let n = a[0].len();
        let column_product = |f: &dyn Fn(usize) -> f64| (0..a.len()).map(f).sum::<f64>();
        let gram = (0..n * n).map(|at| column_product(&|r| a[r][at / n] * a[r][at % n])).collect();
        (gram, (0..n).map(|i| column_product(&|r| a[r][i] * b[r])).collect())
    }

    #[test]
    fn a_bound_holds_by_hand() {
        // Columns (1, 0) and (1, 1), b = (2, -1): the second coefficient would be -1.
        let (gram, rhs) = normal_equations(&[vec![1.0, 1.0], vec![0.0, 1.0]], &[2.0, -1.0]);
        let x = solve_nonnegative(&gram, &rhs);
        assert!((x[0] - 2.0).abs() < 1e-12 && x[1] == 0.0, "{x:?}");
        // Equal columns: one of them suffices.
        let (gram, rhs) = normal_equations(&[vec![1.0, 1.0]], &[3.0]);
        assert!((solve_nonnegative(&gram, &rhs).iter().sum::<f64>() - 3.0).abs() < 1e-9);
        assert_eq!(solve_nonnegative(&[], &[]), Vec::<f64>::new());
    }

    proptest! {
        /// Karush, Kuhn and Tucker: no coefficient is negative, no gradient positive, and one of both is
        /// zero.
        #[test]
        fn solutions_are_optimal(
            a in prop::collection::vec(prop::collection::vec(-3.0f64..3.0, 6), 6..20),
            b in prop::collection::vec(-5.0f64..5.0, 20),
        ) {
            let (gram, rhs) = normal_equations(&a, &b);
            let x = solve_nonnegative(&gram, &rhs);
            for i in 0..6 {
                let gradient = rhs[i] - (0..6).map(|j| gram[i * 6 + j] * x[j]).sum::<f64>();
                prop_assert!(x[i] >= 0.0);
                prop_assert!(gradient <= 1e-6, "{i}: {gradient}");
                prop_assert!(x[i] == 0.0 || gradient.abs() <= 1e-6, "{i}: {gradient}");
            }
        }

        #[test]
        fn exact_systems_are_recovered(
            a in prop::collection::vec(prop::collection::vec(0.0f64..3.0, 4), 12),
            truth in prop::collection::vec(0.0f64..2.0, 4),
        ) {
            let b: Vec<f64> = a.iter().map(|row| row.iter().zip(&truth).map(|(a, t)| a * t).sum()).collect();
            let (gram, rhs) = normal_equations(&a, &b);
            let x = solve_nonnegative(&gram, &rhs);
            for (row, b) in a.iter().zip(&b) {
                let fitted: f64 = row.iter().zip(&x).map(|(a, x)| a * x).sum();
                prop_assert!((fitted - b).abs() < 1e-5, "{x:?} {truth:?}");
            }
        }
    }
}

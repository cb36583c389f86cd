//! Levenberg-Marquardt fit of positive parameters by a robust loss.
//!
//! In: a function that returns residuals, starting values, and bounds. Out: parameters and loss. Parameters
//! move in log space. The Jacobian is numeric. The loss is the soft L1 of residuals, `2 (sqrt(1 + z) - 1)`
//! with `z = (residual / scale)^2`. It weighs rows by `1 / sqrt(1 + z)` in every round.

/// Residual at which the loss turns from squares to absolute values.
const SCALE: f64 = 0.1;
const MAX_ROUNDS: usize = 60;
/// Least improvement of the loss per round, as a share.
const TOLERANCE: f64 = 1e-5;
/// Step of a parameter's logarithm for the Jacobian.
const STEP: f64 = 1e-4;
const FIRST_DAMPING: f64 = 1e-2;
const MAX_DAMPING: f64 = 1e8;

/// Range of a parameter. Both ends are above zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bounds {
    pub(super) low: f64,
    pub(super) high: f64,
}

/// Result of a fit.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Solution {
    pub(super) parameters: Vec<f64>,
    /// Mean loss per row.
    pub(super) loss: f64,
}

/// Minimises the loss. `residuals` writes one value per row.
pub(super) fn minimise(
    residuals: impl Fn(&[f64], &mut Vec<f64>),
    start: &[f64],
    bounds: &[Bounds],
) -> Solution {
    let clamp = |logs: &[f64]| -> Vec<f64> {
        let pairs = logs.iter().zip(bounds);
        pairs.map(|(log, bound)| log.clamp(bound.low.ln(), bound.high.ln())).collect()
    };
    let evaluate = |logs: &[f64], out: &mut Vec<f64>| {
        let parameters: Vec<f64> = logs.iter().map(|log| log.exp()).collect();
        out.clear();
        residuals(&parameters, out);
    };
    let mut logs = clamp(&start.iter().map(|value| value.ln()).collect::<Vec<_>>());
    let (mut current, mut trial) = (Vec::new(), Vec::new());
    evaluate(&logs, &mut current);
    let mut loss = mean_loss(&current);
    let mut damping = FIRST_DAMPING;
    for _ in 0..MAX_ROUNDS {
        let columns: Vec<Vec<f64>> = (0..logs.len())
            .map(|at| {
                let mut moved = logs.clone();
                // The step stays inside the bounds.
                let step = if moved[at] + STEP > bounds[at].high.ln() { -STEP } else { STEP };
                moved[at] += step;
                let mut column = Vec::with_capacity(current.len());
                evaluate(&moved, &mut column);
                column.iter_mut().zip(&current).for_each(|(to, from)| *to = (*to - from) / step);
                column
            })
            .collect();
        let system = NormalEquations::new(&columns, &current);
        let free = system.free_parameters(&logs, bounds);
        let before = loss;
        while damping < MAX_DAMPING {
            let step = system.step(&free, damping);
            let moved = clamp(&logs.iter().zip(&step).map(|(log, step)| log + step).collect::<Vec<_>>());
            evaluate(&moved, &mut trial);
            let found = mean_loss(&trial);
            if found < loss {
                logs = moved;
                loss = found;
                std::mem::swap(&mut current, &mut trial);
                damping = (damping / 5.0).max(1e-9);
                break;
            }
            damping *= 4.0;
        }
        if before - loss <= TOLERANCE * before {
            break;
        }
    }
    Solution { parameters: logs.iter().map(|log| log.exp()).collect(), loss }
}

/// Returns the mean loss of residuals.
pub(super) fn mean_loss(residuals: &[f64]) -> f64 {
    let loss = |residual: &f64| 2.0 * ((1.0 + (residual / SCALE).powi(2)).sqrt() - 1.0);
    let sum: f64 = residuals.iter().map(loss).sum();
    // An undefined time must never look good.
    if sum.is_finite() { sum / residuals.len().max(1) as f64 } else { f64::INFINITY }
}

/// Weighted normal equations of a round.
struct NormalEquations {
    gram: Vec<Vec<f64>>,
    gradient: Vec<f64>,
}

impl NormalEquations {
    fn new(columns: &[Vec<f64>], residuals: &[f64]) -> Self {
        let weight = |residual: &f64| 1.0 / (1.0 + (residual / SCALE).powi(2)).sqrt();
        let weights: Vec<f64> = residuals.iter().map(weight).collect();
        let product = |a: &[f64], b: &[f64]| -> f64 {
            a.iter().zip(b).zip(&weights).map(|((a, b), weight)| a * b * weight).sum()
        };
        let gram = columns.iter().map(|a| columns.iter().map(|b| product(a, b)).collect()).collect();
        let gradient = columns.iter().map(|column| product(column, residuals)).collect();
        Self { gram, gradient }
    }

    /// Returns the parameters that are not at a bound beyond which the loss falls.
    fn free_parameters(&self, logs: &[f64], bounds: &[Bounds]) -> Vec<usize> {
        let is_free = |at: &usize| {
            let (low, high) = (bounds[*at].low.ln(), bounds[*at].high.ln());
            let gradient = self.gradient[*at];
            !(logs[*at] <= low && gradient >= 0.0 || logs[*at] >= high && gradient <= 0.0)
        };
        (0..logs.len()).filter(is_free).collect()
    }

    /// Returns the damped step. Parameters that are not free stay.
    fn step(&self, free: &[usize], damping: f64) -> Vec<f64> {
        let mut matrix: Vec<Vec<f64>> = free
            .iter()
            .map(|&row| {
                let mut line: Vec<f64> = free.iter().map(|&column| self.gram[row][column]).collect();
                line.push(-self.gradient[row]);
                line
            })
            .collect();
        let largest = free.iter().map(|&at| self.gram[at][at]).fold(0.0, f64::max);
        for (at, line) in matrix.iter_mut().enumerate() {
            // A parameter without effect must not move far.
            line[at] += damping * line[at].max(1e-6 * largest).max(1e-12);
        }
        let solved = solve(matrix);
        let mut step = vec![0.0; self.gradient.len()];
        // A step changes a parameter by a factor of e at most.
        free.iter().zip(solved).for_each(|(&at, value)| step[at] = value.clamp(-1.0, 1.0));
        step
    }
}

/// Solves a positive definite system whose last column is the right side.
fn solve(mut matrix: Vec<Vec<f64>>) -> Vec<f64> {
    let size = matrix.len();
    for pivot in 0..size {
        let (above, below) = matrix.split_at_mut(pivot + 1);
        let line = &above[pivot];
        for other in below {
            let factor = other[pivot] / line[pivot];
            other.iter_mut().zip(line).skip(pivot).for_each(|(to, from)| *to -= factor * from);
        }
    }
    let mut solution = vec![0.0; size];
    for row in (0..size).rev() {
        let known: f64 = (row + 1..size).map(|at| matrix[row][at] * solution[at]).sum();
        let value = (matrix[row][size] - known) / matrix[row][row];
        solution[row] = if value.is_finite() { value } else { 0.0 };
    }
    solution
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: Bounds = Bounds { low: 1e-6, high: 1e6 };

    /// Fits `alpha + x / rate` to times.
    fn fit_line(times: &[(f64, f64)], start: &[f64], bounds: &[Bounds]) -> Solution {
        let residuals = |parameters: &[f64], out: &mut Vec<f64>| {
            out.extend(times.iter().map(|(x, time)| ((parameters[0] + x / parameters[1]) / time).ln()));
        };
        minimise(residuals, start, bounds)
    }

    fn line(x: f64) -> (f64, f64) {
        (x, 7.0 + x / 40.0)
    }

    #[test]
    fn exact_lines_are_recovered() {
        let times: Vec<_> = (0..12).map(|power| line(f64::from(1 << power))).collect();
        let solution = fit_line(&times, &[100.0, 1.0], &[WIDE; 2]);
        assert!((solution.parameters[0] - 7.0).abs() < 1e-4, "{solution:?}");
        assert!((solution.parameters[1] - 40.0).abs() < 1e-3, "{solution:?}");
        assert!(solution.loss < 1e-9);
    }

    #[test]
    fn outliers_move_little() {
        let mut times: Vec<_> = (0..40).map(|step| line(100.0 * f64::from(step))).collect();
        times.iter_mut().step_by(8).for_each(|(_, time)| *time *= 5.0);
        let solution = fit_line(&times, &[1.0, 1.0], &[WIDE; 2]);
        assert!((solution.parameters[1] / 40.0 - 1.0).abs() < 0.1, "{solution:?}");
    }

    #[test]
    fn bounds_hold() {
        let times: Vec<_> = (0..12).map(|power| line(f64::from(1 << power))).collect();
        let bounds = [WIDE, Bounds { low: 1.0, high: 30.0 }];
        let solution = fit_line(&times, &[1.0, 2.0], &bounds);
        assert!((solution.parameters[1] - 30.0).abs() < 1e-9, "{solution:?}");
        // A parameter without effect stays where it began.
        let residuals = |parameters: &[f64], out: &mut Vec<f64>| out.push((parameters[0] / 3.0).ln());
        let solution = minimise(residuals, &[1.0, 5.0], &[WIDE; 2]);
        assert!((solution.parameters[0] - 3.0).abs() < 1e-4 && (solution.parameters[1] - 5.0).abs() < 1e-6);
    }

    #[test]
    fn systems_are_solved_by_hand() {
        let solution = solve(vec![vec![2.0, 1.0, 5.0], vec![1.0, 3.0, 10.0]]);
        assert!((solution[0] - 1.0).abs() < 1e-12 && (solution[1] - 3.0).abs() < 1e-12);
    }
}

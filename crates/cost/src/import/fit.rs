//! Fit of a kernel's coefficients.
//!
//! In: features and times of the training rows. Out: non-negative coefficients, the number of features that
//! cross-validation chose, and the effective size of the L2 cache.
//!
//! The fit minimises squared relative errors and is repeated with the weight `1 / sqrt(|relative error|)`,
//! which moves it towards absolute relative errors. A skewed row is a mean over draws. The model is linear
//! in its coefficients, so the mean of the features predicts the mean time.

use super::hold_out::FOLDS;
use crate::features::FEATURE_COUNT;
use crate::nnls::solve_nonnegative;
use rayon::prelude::*;

/// Values of all features for one row.
pub(super) type FeatureRow = [f64; FEATURE_COUNT];

/// Rows with features, for one effective size of the L2 cache.
#[derive(Debug)]
pub(super) struct TrainingRows<'a> {
    pub(super) features: &'a [FeatureRow],
    pub(super) times: &'a [f64],
    pub(super) balanced: &'a [bool],
    pub(super) folds: &'a [u64],
}

/// Sizes of the feature set between which cross-validation chooses.
const SIZES: [usize; 4] = [12, 18, 24, FEATURE_COUNT];
/// Size at which the effective size of the L2 cache is chosen.
const L2_CHOICE_SIZE: usize = 24;
/// Rounds of weighting in a fit and in cross-validation.
const ROUNDS: usize = 6;
const VALIDATION_ROUNDS: usize = 4;
/// Relative error below which rows weigh the same. It is the noise of the measurements.
const LEAST_ERROR: f64 = 0.03;
/// A larger set of features must improve the score by this factor, or the smaller one stays.
const WORTHWHILE: f64 = 0.985;
/// Training rows per feature that a fit needs.
const ROWS_PER_FEATURE: usize = 3;

/// Fits the first `size` features to the rows for which `include` is true.
pub(super) fn fit_coefficients(
    features: &[FeatureRow],
    times: &[f64],
    include: &[bool],
    size: usize,
    rounds: usize,
) -> Vec<f64> {
    let count = include.iter().filter(|&&include| include).count().max(1) as f64;
    let used =
        || features.iter().zip(times).zip(include).filter(|(_, include)| **include).map(|(row, _)| row);
    let mut scale = vec![0.0f64; size];
    for (row, time) in used() {
        scale.iter_mut().zip(row).for_each(|(scale, value)| *scale += value / time / count);
    }
    scale.iter_mut().for_each(|scale| *scale = scale.max(1e-12));
    let scaled: Vec<FeatureRow> = used()
        .map(|(row, time)| {
            let mut scaled = [0.0; FEATURE_COUNT];
            scaled
                .iter_mut()
                .zip(row)
                .zip(&scale)
                .for_each(|((to, value), scale)| *to = value / scale / time);
            scaled
        })
        .collect();
    let mut weights = vec![1.0f64; scaled.len()];
    let mut solution = vec![0.0; size];
    for _ in 0..rounds {
        let (mut gram, rhs) = normal_equations(&scaled, &weights, size);
        let trace: f64 = (0..size).map(|at| gram[at * size + at]).sum();
        // A trace of regularisation keeps dependent features apart.
        (0..size).for_each(|at| gram[at * size + at] += 1e-9 * trace / size as f64);
        solution = solve_nonnegative(&gram, &rhs);
        for (weight, row) in weights.iter_mut().zip(&scaled) {
            let error = (dot(row, &solution) - 1.0).abs();
            *weight = 1.0 / error.max(LEAST_ERROR).sqrt();
        }
    }
    solution.iter().zip(&scale).map(|(value, scale)| value / scale).collect()
}

fn dot(row: &FeatureRow, coefficients: &[f64]) -> f64 {
    row.iter().zip(coefficients).map(|(value, weight)| value * weight).sum()
}

/// Returns the Gram matrix and right side of rows whose target is 1. Chunks have a fixed size and are
/// summed in order, so the result does not depend on the threads.
fn normal_equations(rows: &[FeatureRow], weights: &[f64], size: usize) -> (Vec<f64>, Vec<f64>) {
    const CHUNK_ROWS: usize = 8192;
    let chunks: Vec<(Vec<f64>, Vec<f64>)> = rows
        .par_chunks(CHUNK_ROWS)
        .zip(weights.par_chunks(CHUNK_ROWS))
        .map(|(rows, weights)| {
            let mut gram = vec![0.0; size * size];
            let mut rhs = vec![0.0; size];
            for (row, weight) in rows.iter().zip(weights) {
                let square = weight * weight;
                for i in 0..size {
                    let left = row[i] * square;
                    rhs[i] += left;
                    for (sum, value) in gram[i * size..=i * size + i].iter_mut().zip(row) {
                        *sum += left * value;
                    }
                }
            }
            (gram, rhs)
        })
        .collect();
    let mut gram = vec![0.0; size * size];
    let mut rhs = vec![0.0; size];
    for (part, part_rhs) in chunks {
        gram.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
        rhs.iter_mut().zip(part_rhs).for_each(|(sum, value)| *sum += value);
    }
    for i in 0..size {
        for j in 0..i {
            gram[j * size + i] = gram[i * size + j];
        }
    }
    (gram, rhs)
}

/// Result of a fit: coefficients of the first features, and the index of the chosen set of rows.
#[derive(Debug)]
pub(super) struct Fit {
    pub(super) coefficients: Vec<f64>,
    pub(super) chosen: usize,
}

/// Fits with cross-validation. `candidates` are the same rows for several effective sizes of the L2 cache,
/// the preferred one first.
pub(super) fn fit_with_validation(candidates: &[TrainingRows<'_>]) -> Option<Fit> {
    let scores = candidates.iter().map(|rows| validate(rows, L2_CHOICE_SIZE).unwrap_or(f64::MAX));
    // Another size than the first must be better by half a percent.
    let weighted = scores.enumerate().map(|(at, score)| (at, if at == 0 { score * 0.995 } else { score }));
    let (chosen, _) = weighted.min_by(|a, b| a.1.total_cmp(&b.1))?;
    let rows = candidates.get(chosen)?;
    let mut best: Option<(f64, usize)> = None;
    for size in SIZES {
        let Some(score) = validate(rows, size) else { continue };
        if best.is_none_or(|(least, _)| score < least * WORTHWHILE) {
            best = Some((score, size));
        }
    }
    let size = best.map_or(SIZES[0], |(_, size)| size);
    let all = vec![true; rows.times.len()];
    Some(Fit { coefficients: fit_coefficients(rows.features, rows.times, &all, size, ROUNDS), chosen })
}

/// Fits the first `size` features to all rows.
pub(super) fn fit_directly(rows: &TrainingRows<'_>, size: usize) -> Fit {
    let all = vec![true; rows.times.len()];
    Fit { coefficients: fit_coefficients(rows.features, rows.times, &all, size, ROUNDS), chosen: 0 }
}

/// Returns the score of a number of features by cross-validation over shapes. `None` if a part has no rows,
/// or the others have too few.
fn validate(rows: &TrainingRows<'_>, size: usize) -> Option<f64> {
    let mut errors = [Vec::new(), Vec::new()];
    for fold in 0..FOLDS {
        let train: Vec<bool> = rows.folds.iter().map(|&of| of != fold).collect();
        let trained = train.iter().filter(|&&train| train).count();
        if trained == train.len() || trained < size * ROWS_PER_FEATURE {
            return None;
        }
        let solution = fit_coefficients(rows.features, rows.times, &train, size, VALIDATION_ROUNDS);
        for (at, _) in train.iter().enumerate().filter(|(_, train)| !**train) {
            let error = (dot(&rows.features[at], &solution) / rows.times[at] - 1.0).abs() * 100.0;
            errors[usize::from(!rows.balanced[at])].push(error);
        }
    }
    // Median and 90th percentile count by their acceptable values, in percent.
    let limits = [(8.0, 25.0), (12.0, 35.0)];
    let mut parts = Vec::new();
    for (errors, (median, p90)) in errors.iter_mut().zip(limits) {
        if let Some(found) = crate::check::quantiles(errors) {
            parts.extend([found.median / median, found.p90 / p90]);
        }
    }
    (!parts.is_empty()).then(|| parts.iter().sum::<f64>() / parts.len() as f64)
}

//! Rows of one kernel with flags and features: its fit, and its errors.

use super::broken_rows::find_broken_rows;
use super::fit::{FeatureRow, Fit, TrainingRows, fit_directly, fit_with_validation};
use super::hold_out::fold_of;
use super::interpolation::interpolate;
use super::is_held_out;
use super::measurements::{MeasuredKernel, Measurement};
use super::routed_loads::RoutedLoads;
use crate::check::ErrorSamples;
use crate::features::{FEATURE_COUNT, Feature, FeatureScale};
use crate::hardware::Hardware;
use crate::kernel_entry::{KernelEntry, KernelTable, has_tuned_tiles};
use crate::moe_shape::ModelShape;
use std::collections::{BTreeMap, BTreeSet};

/// Effective sizes of the L2 cache over its size by the data sheet. Some GPUs keep more than half of it.
const L2_SCALES: [f64; 2] = [1.0, 1.3];

/// Training rows without which a kernel is not fitted: five per coefficient of a typical fit.
const MIN_TRAINING_ROWS: usize = 60;

/// Features of the fit to SGLang's DeepEP tables. Each has 400 rows of one model.
const DEEP_EP_FEATURES: usize = 24;

/// Part of the peak rate that the roofline assumes.
const ROOFLINE_SHARE: f64 = 0.6;

/// Rows of a kernel with flags.
pub(crate) struct KernelRows<'a> {
    kernel: &'a MeasuredKernel,
    held_out: Vec<bool>,
    /// True for rows of shapes with tuned tiles.
    tuned: Vec<bool>,
    /// Inner widths with tuned tiles by the experts of a rank, as in [`KernelEntry`].
    tuned_widths: &'a BTreeMap<u64, Vec<u64>>,
    broken: Vec<bool>,
}

/// Rows to which errors refer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowScope {
    /// Rows of held-out shapes.
    HeldOut,
    /// All rows, of a version that was not fitted.
    All,
}

impl<'a> KernelRows<'a> {
    /// Flags the rows of a kernel. `tuned_widths` are those of its [`KernelEntry`].
    pub(crate) fn new(kernel: &'a MeasuredKernel, tuned_widths: &'a BTreeMap<u64, Vec<u64>>) -> Self {
        let table = kernel.id.table;
        let held_out: Vec<bool> = kernel.rows.iter().map(|row| is_held_out(table, row)).collect();
        let is_tuned = |row: &Measurement| has_tuned_tiles(tuned_widths, &row.rank_shape());
        let tuned: Vec<bool> = kernel.rows.iter().map(is_tuned).collect();
        // Only the framework's own table has the grid of ranks by which rows can contradict each other.
        let broken = match table {
            KernelTable::Moe => find_broken_rows(&kernel.rows, &tuned),
            _ => vec![false; kernel.rows.len()],
        };
        Self { kernel, held_out, tuned, tuned_widths, broken }
    }

    /// Fits the kernel. `None` if it has too few rows.
    pub(crate) fn fit(&self, loads: &RoutedLoads, hardware: &Hardware) -> Option<KernelEntry> {
        let rows = &self.kernel.rows;
        let train = (0..rows.len()).filter(|&at| !self.held_out[at] && !self.broken[at]);
        let (tuned, plain): (Vec<usize>, Vec<usize>) = train.partition(|&at| self.tuned[at]);
        if plain.len() < MIN_TRAINING_ROWS {
            return None;
        }
        let id = &self.kernel.id;
        let scales = if id.table == KernelTable::Moe { &L2_SCALES[..] } else { &L2_SCALES[..1] };
        let Fit { coefficients, chosen } = self.fit_rows(&plain, scales, loads, hardware)?;
        let models: BTreeSet<ModelShape> = rows.iter().map(|row| row.model).collect();
        let coefficients = name_coefficients(coefficients);
        let mut entry = KernelEntry::new(&id.framework, &id.version, &id.kernel, id.dtype, coefficients);
        if tuned.len() >= MIN_TRAINING_ROWS {
            // The size of the cache is that of the GPU, so the fit to most of the rows decides it.
            let fit = self.fit_rows(&tuned, &scales[chosen..=chosen], loads, hardware)?;
            entry.tuned_widths = self.tuned_widths.clone();
            entry.tuned_coefficients = name_coefficients(fit.coefficients);
        }
        entry.table = id.table;
        entry.l2_scale = scales[chosen];
        entry.models = models.into_iter().collect();
        entry.rows = rows.len() as u64;
        entry.broken_rows = self.broken_rows();
        entry.errors = self.errors(&entry, loads, hardware, RowScope::HeldOut).summarize();
        Some(entry)
    }

    /// Fits one set of coefficients to training rows, for the best of the sizes of the L2 cache.
    fn fit_rows(
        &self,
        train: &[usize],
        scales: &[f64],
        loads: &RoutedLoads,
        hardware: &Hardware,
    ) -> Option<Fit> {
        let rows = &self.kernel.rows;
        let features: Vec<Vec<FeatureRow>> = scales
            .iter()
            .map(|scale| {
                train.iter().map(|&at| self.mean_features(&rows[at], loads, hardware, *scale)).collect()
            })
            .collect();
        let times: Vec<f64> = train.iter().map(|&at| rows[at].time_us).collect();
        let balanced: Vec<bool> = train.iter().map(|&at| rows[at].is_balanced()).collect();
        let folds: Vec<u64> = train.iter().map(|&at| fold_of(&rows[at].shape_key())).collect();
        let candidates: Vec<TrainingRows<'_>> = features
            .iter()
            .map(|features| TrainingRows { features, times: &times, balanced: &balanced, folds: &folds })
            .collect();
        match self.kernel.id.table {
            KernelTable::Moe => fit_with_validation(&candidates),
            KernelTable::WideEp => Some(fit_directly(candidates.first()?, FEATURE_COUNT)),
            _ => Some(fit_directly(candidates.first()?, DEEP_EP_FEATURES)),
        }
    }

    /// Returns the number of broken rows.
    pub(crate) fn broken_rows(&self) -> u64 {
        self.broken.iter().filter(|&&broken| broken).count() as u64
    }

    /// Compares a fitted kernel with rows that its fit did not use.
    pub(crate) fn errors(
        &self,
        entry: &KernelEntry,
        loads: &RoutedLoads,
        hardware: &Hardware,
        scope: RowScope,
    ) -> ErrorSamples {
        let rows = &self.kernel.rows;
        let interpolated = match scope {
            RowScope::HeldOut => interpolate(rows, &self.held_out),
            RowScope::All => vec![None; rows.len()],
        };
        let mut samples = ErrorSamples::default();
        for (at, row) in rows.iter().enumerate() {
            let in_scope = scope == RowScope::All || self.held_out[at];
            if !in_scope || self.broken[at] {
                continue;
            }
            let features = self.mean_features(row, loads, hardware, entry.l2_scale);
            let coefficients = entry.coefficients_of(&row.rank_shape());
            let time = features.iter().zip(&coefficients).map(|(value, weight)| value * weight).sum();
            let scale = self.scale(row, hardware, entry.l2_scale);
            let drawn = loads.loads_of(&row.routing);
            let roofline: f64 = drawn.iter().map(|load| scale.roofline(load, ROOFLINE_SHARE)).sum();
            let roofline = roofline / drawn.len().max(1) as f64;
            samples.add(row.is_balanced(), row.time_us, time, roofline, interpolated[at]);
        }
        samples
    }

    fn scale(&self, row: &Measurement, hardware: &Hardware, l2_scale: f64) -> FeatureScale {
        FeatureScale::new(row.rank_shape(), self.kernel.id.dtype, hardware, 0.5 * l2_scale)
    }

    /// Returns the features of a row, averaged over the draws of its routing.
    fn mean_features(
        &self,
        row: &Measurement,
        loads: &RoutedLoads,
        hardware: &Hardware,
        l2_scale: f64,
    ) -> FeatureRow {
        let scale = self.scale(row, hardware, l2_scale);
        let drawn = loads.loads_of(&row.routing);
        let mut sum = [0.0; FEATURE_COUNT];
        for load in drawn.iter() {
            sum.iter_mut().zip(scale.features(load)).for_each(|(sum, value)| *sum += value);
        }
        sum.map(|value| value / drawn.len().max(1) as f64)
    }
}

/// Returns the coefficients that count, by feature.
fn name_coefficients(coefficients: Vec<f64>) -> BTreeMap<Feature, f64> {
    let named = Feature::ALL.into_iter().zip(coefficients).filter(|(_, value)| *value > 0.0);
    named.map(|(feature, value)| (feature, round_digits(value, 6))).collect()
}

/// Rounds to a number of decimal digits that count.
pub(crate) fn round_digits(value: f64, digits: usize) -> f64 {
    format!("{value:.*e}", digits.saturating_sub(1)).parse().unwrap_or(value)
}

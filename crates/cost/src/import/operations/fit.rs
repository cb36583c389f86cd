//! Fit of one operation, and its errors.
//!
//! In: the rows of a [`MeasuredOperation`]. Out: an [`OperationEntry`]. A fit uses a few thousand rows of
//! the shapes that are not held out, chosen by a fixed scatter. It begins at several points and keeps the
//! best result. It tries both forms of a formula that has two.

use super::levenberg::{Bounds, Solution, mean_loss, minimise};
use super::parameter_ranges::{NEARLY_ZERO, ParameterRange, PeakRates, parameter_range};
use super::rows::{MeasuredOperation, OperationRow, RowScope};
use crate::check::quantiles;
use crate::hardware::Hardware;
use crate::import::hold_out::is_held_out;
use crate::import::kernel_rows::round_digits;
use crate::operations::{CollectiveLines, Operation, OperationEntry, OperationWork};
use crate::rank_kernel::CacheState;
use std::collections::BTreeSet;

/// Training rows without which an operation is not fitted, per parameter.
const ROWS_PER_PARAMETER: usize = 3;
/// Most rows of a fit.
const MAX_FIT_ROWS: usize = 2500;
/// Digits of a stored parameter.
const DIGITS: usize = 4;
/// Growth of the loss up to which a parameter counts as useless.
const USELESS: f64 = 1.0001;
/// Median error above which the formula does not describe a kernel, percent.
const MAX_MEDIAN: f64 = 25.0;
/// Factors by which starting points differ. Neighbouring parameters move in opposite directions.
const START_FACTORS: [f64; 3] = [1.0, 2.0, 0.5];

/// Fits an operation. `None` if it has too few rows, if the formula does not describe it, or if its rows are
/// those of another GPU.
pub(crate) fn fit_operation(measured: &MeasuredOperation, hardware: &Hardware) -> Option<OperationEntry> {
    if is_impossible(measured, hardware) {
        return None;
    }
    let id = &measured.id;
    let train: Vec<OperationRow> =
        measured.rows.iter().copied().filter(|row| !is_held_out(&row.shape_key())).collect();
    let peak = PeakRates::new(hardware, &id.dtype);
    let rows = scatter(&train);
    let mut best: Option<(f64, Operation)> = None;
    for form in forms(measured) {
        let mut counted = form.clone();
        if rows.len() < ROWS_PER_PARAMETER * counted.parameters_mut().len() {
            return None;
        }
        for factor in START_FACTORS {
            let (loss, operation) = fit_from(&form, factor, &rows, hardware, &peak);
            if loss.is_finite() && best.as_ref().is_none_or(|(least, _)| loss < *least) {
                best = Some((loss, operation));
            }
        }
    }
    let (_, operation) = best?;
    let mut entry = OperationEntry::new(&id.framework, &id.version, &id.kernel, &id.dtype, operation);
    entry.rows = measured.rows.len() as u64;
    entry.errors = quantiles(&mut measure_errors(&entry.operation, measured, hardware, RowScope::HeldOut))?;
    (entry.errors.median <= MAX_MEDIAN).then_some(entry)
}

/// Returns true if the GPU cannot be the measured one. Then more than a twentieth of the caches that are far
/// larger than the L2 cache were read faster than from memory.
fn is_impossible(measured: &MeasuredOperation, hardware: &Hardware) -> bool {
    const SIZE_OVER_L2: f64 = 8.0;
    const TOLERANCE: f64 = 1.05;
    const MAX_SHARE: f64 = 0.05;
    let Operation::DecodeAttention(kernel) = &measured.template else { return false };
    let (mut large, mut impossible) = (0usize, 0usize);
    for row in &measured.rows {
        let OperationWork::Attention(work) = row.work else { continue };
        let bytes = kernel.cache_bytes(&work);
        if bytes > SIZE_OVER_L2 * hardware.l2_bytes as f64 {
            large += 1;
            let rate = bytes / (row.time_us / 1e6);
            impossible += usize::from(rate > TOLERANCE * hardware.bandwidth as f64);
        }
    }
    impossible as f64 > MAX_SHARE * large as f64
}

/// Returns the absolute relative errors of an operation in percent, with a warm cache as in the
/// measurements.
pub(crate) fn measure_errors(
    operation: &Operation,
    measured: &MeasuredOperation,
    hardware: &Hardware,
    scope: RowScope,
) -> Vec<f64> {
    let rows = measured.rows.iter();
    let used = rows.filter(|row| scope == RowScope::All || is_held_out(&row.shape_key()));
    used.filter_map(|row| {
        let time = operation.time_us(&row.work, hardware, CacheState::Warm)?;
        Some((time / row.time_us - 1.0).abs() * 100.0)
    })
    .collect()
}

/// Returns the formulas that a fit tries.
fn forms(measured: &MeasuredOperation) -> Vec<Operation> {
    let template = &measured.template;
    match template {
        Operation::MlaPrefill(kernel) => [false, true]
            .map(|absorbed| {
                let mut kernel = *kernel;
                kernel.absorbed = absorbed;
                Operation::MlaPrefill(kernel)
            })
            .to_vec(),
        Operation::MlaBlockPrefill(kernel) => [false, true]
            .map(|absorbed| {
                let mut kernel = *kernel;
                kernel.attention.absorbed = absorbed;
                Operation::MlaBlockPrefill(kernel)
            })
            .to_vec(),
        Operation::Collective(kernel) => {
            let ranks = measured.rows.iter().filter_map(|row| match row.work {
                OperationWork::Collective(work) => Some(work.ranks),
                _ => None,
            });
            let mut kernel = kernel.clone();
            let lines = |ranks| CollectiveLines {
                ranks,
                small_alpha_us: 1.0,
                small_gb_s: 1.0,
                alpha_us: 1.0,
                gb_s: 1.0,
            };
            kernel.sizes = ranks.collect::<BTreeSet<u64>>().into_iter().map(lines).collect();
            vec![Operation::Collective(kernel)]
        }
        _ => vec![template.clone()],
    }
}

/// Returns at most [`MAX_FIT_ROWS`] rows. The choice depends on the order of the table alone.
fn scatter(rows: &[OperationRow]) -> Vec<OperationRow> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    // Steps of the golden ratio spread over all rows of a grid.
    order.sort_by_key(|&at| (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    order.truncate(MAX_FIT_ROWS);
    order.sort_unstable();
    order.into_iter().map(|at| rows[at]).collect()
}

fn fit_from(
    form: &Operation,
    factor: f64,
    rows: &[OperationRow],
    hardware: &Hardware,
    peak: &PeakRates,
) -> (f64, Operation) {
    let mut operation = form.clone();
    let names: Vec<&'static str> = operation.parameters_mut().into_iter().map(|(name, _)| name).collect();
    let ranges: Vec<ParameterRange> =
        names.iter().map(|name| parameter_range(name, &operation, peak)).collect();
    let start: Vec<f64> = ranges
        .iter()
        .enumerate()
        .map(|(at, range)| range.start * if at % 2 == 0 { factor } else { 1.0 / factor })
        .collect();
    let bounds: Vec<Bounds> = ranges.iter().map(|range| range.bounds).collect();
    let residuals = |parameters: &[f64], out: &mut Vec<f64>| {
        let mut trial = form.clone();
        trial.parameters_mut().into_iter().zip(parameters).for_each(|((_, to), from)| *to = *from);
        out.extend(rows.iter().map(|row| {
            let time = trial.time_us(&row.work, hardware, CacheState::Warm);
            time.map_or(0.0, |time| (time / row.time_us).ln())
        }));
    };
    let solution = minimise(residuals, &start, &bounds);
    let loss = solution.loss;
    let parameters = drop_useless(solution, residuals, &ranges);
    for (((_, to), value), range) in operation.parameters_mut().into_iter().zip(parameters).zip(&ranges) {
        let vanished = range.can_vanish && value <= 2.0 * NEARLY_ZERO;
        *to = if vanished { 0.0 } else { round_digits(value, DIGITS) };
    }
    (loss, operation)
}

/// Sets parameters to zero whose effect the rows do not show.
fn drop_useless(
    solution: Solution,
    residuals: impl Fn(&[f64], &mut Vec<f64>),
    ranges: &[ParameterRange],
) -> Vec<f64> {
    let Solution { mut parameters, loss } = solution;
    for (at, _) in ranges.iter().enumerate().filter(|(_, range)| range.can_vanish) {
        let kept = std::mem::replace(&mut parameters[at], NEARLY_ZERO);
        let mut without = Vec::new();
        residuals(&parameters, &mut without);
        if mean_loss(&without) > loss * USELESS {
            parameters[at] = kept;
        }
    }
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::operations::rows::OperationId;
    use crate::operations::{
        Collective, CollectiveKind, CollectiveWork, ExchangePhase, ExchangeWork, NormalExchange,
        OperationKind, RowBytes,
    };

    fn measured(truth: &Operation, template: Operation, works: Vec<OperationWork>) -> MeasuredOperation {
        let hardware = crate::operations::tests::hardware();
        let row = |work: OperationWork| OperationRow {
            work,
            time_us: truth.time_us(&work, &hardware, CacheState::Warm).unwrap(),
        };
        let [framework, version, kernel, dtype] = ["own", "1", "known", "fp8"].map(str::to_owned);
        MeasuredOperation {
            id: OperationId { family: template.kind(), framework, version, kernel, dtype },
            template,
            rows: works.into_iter().map(row).collect(),
            files: BTreeSet::new(),
        }
    }

    #[test]
    fn a_known_exchange_is_recovered() {
        let truth = NormalExchange {
            phase: ExchangePhase::Dispatch,
            row: RowBytes { per_hidden: 1.0, header: 0.0 },
            alpha_us: 27.0,
            node_gb_s: 400.0,
            node_gb_s_per_sm: Some(20.0),
            row_bytes: 0.0,
            token_bytes: 6000.0,
        };
        let mut works = Vec::new();
        for hidden in [2048, 4096, 7168] {
            for multiprocessors in [4, 12, 24] {
                works.extend((0..14).map(|power| {
                    OperationWork::Exchange(ExchangeWork {
                        tokens: 1 << power,
                        hidden,
                        top_k: 8,
                        experts: 256,
                        ranks: 8,
                        nodes: 1,
                        node_limit: None,
                        multiprocessors,
                    })
                }));
            }
        }
        let truth = Operation::NormalExchange(truth);
        let measured = measured(&truth, truth.clone(), works);
        let entry = fit_operation(&measured, &crate::operations::tests::hardware()).unwrap();
        assert_eq!(entry.operation.kind(), OperationKind::NormalExchange(ExchangePhase::Dispatch));
        assert_eq!(entry.rows, 126);
        assert!(entry.errors.p90 < 0.1, "{entry:?}");
        let Operation::NormalExchange(found) = entry.operation else { panic!() };
        assert!((found.alpha_us / 27.0 - 1.0).abs() < 1e-2, "{found:?}");
        assert!((found.node_gb_s / 400.0 - 1.0).abs() < 1e-2, "{found:?}");
    }

    #[test]
    fn lines_per_number_of_ranks_are_recovered() {
        let line = |ranks, gb_s| CollectiveLines {
            ranks,
            small_alpha_us: 5.0,
            small_gb_s: 60.0,
            alpha_us: 20.0,
            gb_s,
        };
        let collective = CollectiveKind::AllGather;
        let truth =
            Operation::Collective(Collective { collective, sizes: vec![line(2, 250.0), line(8, 350.0)] });
        let template = Operation::Collective(Collective { collective, sizes: Vec::new() });
        let works = [2, 8].into_iter().flat_map(|ranks| {
            (8..30).map(move |power| OperationWork::Collective(CollectiveWork { bytes: 1 << power, ranks }))
        });
        let measured = measured(&truth, template.clone(), works.collect());
        let entry = fit_operation(&measured, &crate::operations::tests::hardware()).unwrap();
        assert!(entry.errors.p90 < 1.0, "{entry:?}");
        // A few rows are too few.
        let few = MeasuredOperation { rows: measured.rows[..10].to_vec(), ..measured };
        assert!(fit_operation(&few, &crate::operations::tests::hardware()).is_none());
    }

    #[test]
    fn a_scatter_covers_a_grid() {
        let row = |tokens| OperationRow {
            work: OperationWork::MlaBmm(crate::operations::MlaBmmWork { tokens, heads: 1 }),
            time_us: 1.0,
        };
        let rows: Vec<OperationRow> = (0..10_000).map(row).collect();
        let chosen = scatter(&rows);
        assert_eq!(chosen.len(), MAX_FIT_ROWS);
        // Every tenth of the table is used.
        for tenth in 0..10 {
            let used = chosen
                .iter()
                .filter(|row| matches!(row.work, OperationWork::MlaBmm(work) if work.tokens / 1000 == tenth));
            assert!((200..300).contains(&used.count()), "{tenth}");
        }
    }
}

//! Dispersion of batches around their average, if too few are known to show it.
//!
//! In: a few batches, or totals. Out: the dispersion of the shares of the experts, fitted by moments, and
//! batches drawn with it. The model is the Dirichlet-multinomial. Shares are Dirichlet with mean `p` and
//! concentration `1 / rho - 1`. So for a batch of `n` tokens
//!
//! ```text
//! E sum over e of (N_e - n p_e)^2 = n (1 - sum over e of p_e^2) (1 + (n - 1) rho)
//! ```
//!
//! `rho = 0` means independent draws from the average. Real batches are far from that.

use crate::rng::SeededRng;

/// Assumed squared coefficient of variation of the share of an average expert, if there is a single batch.
const DEFAULT_SHARE_CV2: f64 = 0.25;

/// Upper limit of the same quantity for few batches: a standard deviation of three times the share of an
/// average expert.
const MAX_SHARE_CV2: f64 = 9.0;

/// Distance of compared batches in steps. Neighbours may share requests.
const COMPARISON_LAG_STEPS: usize = 4;

/// Estimates the dispersion `rho` of these batches. Returns the usual one for a single batch.
pub(super) fn fit_rho(batches: &[&[u64]]) -> f64 {
    let experts = batches.first().map_or(1, |batch| batch.len()).max(1) as f64;
    let sum = |batch: &[u64]| batch.iter().map(|&load| load as f64).sum::<f64>();
    let all: f64 = batches.iter().map(|batch| sum(batch)).sum();
    if batches.len() < 2 || all <= 0.0 {
        return DEFAULT_SHARE_CV2 / experts;
    }
    let mean = mean_shares(batches, batches[0].len());
    let apart = 1.0 - mean.iter().map(|share| share * share).sum::<f64>();
    let (mut strayed, mut expected) = (0.0, 0.0);
    for batch in batches {
        let n = sum(batch);
        let square = |(&load, share): (&u64, &f64)| (load as f64 - n * share) * (load as f64 - n * share);
        strayed += batch.iter().zip(&mean).map(square).sum::<f64>() - n * apart;
        expected += n * (n - 1.0) * apart;
    }
    // The mean was fitted to the same batches, which costs one degree of freedom.
    let freedom = 1.0 - 1.0 / batches.len() as f64;
    if expected <= 0.0 {
        DEFAULT_SHARE_CV2 / experts
    } else {
        (strayed / expected / freedom).clamp(0.0, MAX_SHARE_CV2 / experts)
    }
}

/// Returns each expert's share of the tokens of these batches, `[E]`.
pub(super) fn mean_shares(batches: &[&[u64]], experts: usize) -> Vec<f64> {
    let total: f64 = batches.iter().flat_map(|batch| batch.iter()).map(|&load| load as f64).sum();
    let mut mean = vec![0.0; experts];
    for batch in batches {
        mean.iter_mut().zip(*batch).for_each(|(mean, &load)| *mean += load as f64 / total);
    }
    mean
}

/// Estimates the dispersion robustly under shifts of the mean: half the median squared difference of batches
/// [`COMPARISON_LAG_STEPS`] steps apart. The median ignores a few shifts. Returns `None` if there are too few
/// batches.
pub(super) fn fit_rho_robustly(batches: &[&[u64]]) -> Option<f64> {
    let one = |(a, b): (&&[u64], &&[u64])| {
        let sum = |batch: &[u64]| batch.iter().map(|&load| load as f64).sum::<f64>();
        let (n, m) = (sum(a), sum(b));
        let (mut differ, mut apart) = (0.0, 1.0);
        for (&a, &b) in a.iter().zip(*b) {
            let (a, b) = (a as f64 / n, b as f64 / m);
            differ += (a - b) * (a - b);
            apart -= (a + b) * (a + b) / 4.0;
        }
        let freedom = (n - 1.0) / n + (m - 1.0) / m;
        if apart * freedom > 0.0 { (differ / apart - 1.0 / n - 1.0 / m) / freedom } else { 0.0 }
    };
    let mut each: Vec<f64> = batches.iter().zip(batches.iter().skip(COMPARISON_LAG_STEPS)).map(one).collect();
    each.sort_by(f64::total_cmp);
    let experts = batches.first().map_or(1, |batch| batch.len()).max(1) as f64;
    Some(each.get(each.len() / 2)?.clamp(0.0, MAX_SHARE_CV2 / experts))
}

/// Draws a batch with the same number of tokens, whose shares vary around this one's with dispersion `rho`.
/// Values are not whole and keep only their proportions.
pub(super) fn draw_batch(batch: &[u64], rho: f64, dice: &mut SeededRng) -> Vec<f64> {
    let total: f64 = batch.iter().map(|&load| load as f64).sum();
    if rho <= 0.0 || total <= 0.0 {
        return batch.iter().map(|&load| load as f64).collect();
    }
    let concentration = 1.0 / rho - 1.0;
    batch.iter().map(|&load| draw_gamma(concentration.max(0.0) * load as f64 / total, dice)).collect()
}

/// Draws a gamma variate of this shape and scale 1 (Marsaglia and Tsang, ACM TOMS 26, 2000).
fn draw_gamma(shape: f64, dice: &mut SeededRng) -> f64 {
    if shape <= 0.0 {
        return 0.0;
    }
    if shape < 1.0 {
        return draw_gamma(shape + 1.0, dice) * dice.draw_uniform().powf(1.0 / shape);
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = dice.draw_normal();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && dice.draw_uniform().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gamma_variates_have_their_moments() {
        let mut dice = SeededRng::new(3, 0);
        for shape in [0.3, 1.0, 4.5] {
            let draws: Vec<f64> = (0..40_000).map(|_| draw_gamma(shape, &mut dice)).collect();
            let mean = draws.iter().sum::<f64>() / draws.len() as f64;
            let variance = draws.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / draws.len() as f64;
            assert!(
                (mean / shape - 1.0).abs() < 0.03 && (variance / shape - 1.0).abs() < 0.08,
                "{shape}: {mean} {variance}"
            );
        }
    }

    #[test]
    fn the_dispersion_that_was_drawn_is_found_again() {
        let average: Vec<u64> = (0..64).map(|e| 1000 + 40 * e).collect();
        let mut dice = SeededRng::new(1, 0);
        for rho in [0.001, 0.01, 0.05] {
            let draws: Vec<Vec<u64>> = (0..200)
                .map(|_| {
                    let shares = draw_batch(&average, rho, &mut dice);
                    let sum: f64 = shares.iter().sum();
                    shares.iter().map(|share| (share / sum * 150_000.0) as u64).collect()
                })
                .collect();
            let found = fit_rho(&draws.iter().map(Vec::as_slice).collect::<Vec<_>>());
            assert!((found / rho - 1.0).abs() < 0.15, "{rho}: {found}");
            // One change of the order of the experts in between leaves the estimate as it is.
            let turned: Vec<Vec<u64>> = (draws.iter().enumerate())
                .map(|(at, draw)| if at < 90 { draw.clone() } else { draw.iter().rev().copied().collect() })
                .collect();
            let found = fit_rho_robustly(&turned.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
            assert!((found / rho - 1.0).abs() < 0.15, "{rho}: {found}");
        }
        let same: &[u64] = &[5, 5];
        assert!(fit_rho_robustly(&[same; COMPARISON_LAG_STEPS]).is_none());
        assert!(fit_rho(&[&[5, 5], &[5, 5]]) <= 0.0);
        assert!(fit_rho(&[&average]) > 0.0);
        assert_eq!(draw_batch(&[1, 2], 0.0, &mut dice), [1.0, 2.0]);
    }
}

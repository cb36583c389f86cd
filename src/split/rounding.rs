//! Conversion of fractions to whole tokens by largest remainder.

/// Rounds one expert's fractional quotas to whole tokens that add up to `load`.
///
/// Each quota starts at its floor. The remaining tokens go to the largest remainders, the lowest index first
/// on ties. Negative or undefined fractions count as zero. Floors that exceed the load within an engine's
/// tolerance are cut off at the load.
pub(super) fn largest_remainder(fractions: &[f64], load: u64, quotas: &mut [u64]) {
    let mut left = load;
    for (quota, &fraction) in quotas.iter_mut().zip(fractions) {
        // `as` saturates and converts NaN to 0.
        *quota = (fraction.max(0.0).floor() as u64).min(left);
        left -= *quota;
    }
    let mut order: Vec<usize> = (0..fractions.len()).collect();
    let remainder =
        |k: usize| if fractions[k].is_finite() { fractions[k] - fractions[k].floor() } else { 0.0 };
    order.sort_by(|&a, &b| remainder(b).total_cmp(&remainder(a)));
    let (each, over) = (left / order.len() as u64, left % order.len() as u64);
    for (k, &index) in order.iter().enumerate() {
        quotas[index] += each + u64::from((k as u64) < over);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rounded(fractions: &[f64], load: u64) -> Vec<u64> {
        let mut quotas = vec![0; fractions.len()];
        largest_remainder(fractions, load, &mut quotas);
        quotas
    }

    #[test]
    fn largest_remainders_win_and_ties_go_to_the_lowest() {
        assert_eq!(rounded(&[1.2, 2.7, 0.1], 4), [1, 3, 0]);
        assert_eq!(rounded(&[0.5, 0.5], 1), [1, 0]);
        assert_eq!(rounded(&[3.0, 0.0], 3), [3, 0]);
    }

    proptest! {
        #[test]
        fn always_adds_up(fractions in prop::collection::vec(any::<f64>(), 1..9), load in 0u64..1 << 40) {
            prop_assert_eq!(rounded(&fractions, load).iter().sum::<u64>(), load);
        }

        #[test]
        fn never_off_by_a_token(shares in prop::collection::vec(0.0f64..1.0, 1..9), load in 0u64..1 << 30) {
            let sum: f64 = shares.iter().sum::<f64>().max(1e-9);
            let fractions: Vec<f64> = shares.iter().map(|s| (s + 1e-9 / shares.len() as f64) / (sum + 1e-9) * load as f64).collect();
            for (quota, fraction) in rounded(&fractions, load).iter().zip(&fractions) {
                prop_assert!((*quota as f64 - fraction).abs() <= 1.0 + 1e-3, "{} for {}", quota, fraction);
            }
        }
    }
}

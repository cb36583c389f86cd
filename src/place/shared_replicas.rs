//! Lower bound of the mean peak from numbers of replicas that all batches share.
//!
//! In: batches, a lower bound of each batch's peak, slots and ranks. Out: a lower bound of the weighted sum
//! of peaks over all placements. An expert with `N` tokens in a batch and `x` replicas has a peak of at least
//! `ceil(N / x)`. One batch alone may give all slots to its heavy experts. All batches together cannot.
//!
//! **Proof.** Let `c[b][e]` be whole numbers whose sum over the heavy experts of a batch `b` is `T`. The
//! largest term is at least the average:
//!
//! ```text
//!   T · peak[b] ≥ Σ_e c[b][e] · max(own[b], ceil(N[b][e] / x[e]))
//! ```
//!
//! The sum over the batches separates by experts. A dynamic programme gives its exact minimum over all `x`
//! with `1 ≤ x[e] ≤ ranks` and `Σ x[e] ≤ slots`. Any `c` gives a bound (Lagrangian duality). They are chosen
//! by fictitious play: in turn, the numbers of replicas answer the average of all choices so far, and every
//! batch adds its worst expert to its choices.

/// Rounds of play. Each one takes a pass over all loads.
const ROUNDS: u64 = 96;

/// Highest product of experts and squared redundant slots of the dynamic programme.
const MAX_PROGRAMME: u64 = 1 << 28;

/// Slots for replicas.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReplicaLimits {
    /// Slots of all ranks.
    pub(super) slots: usize,
    /// Ranks: the highest number of replicas of an expert.
    pub(super) ranks: usize,
}

/// Load of an expert in a batch that has chosen it.
#[derive(Debug, Clone, Copy)]
struct ChosenLoad {
    load: u64,
    /// Lower bound of the batch's peak.
    own: u64,
    /// Weight of the batch times the number of its choices.
    weight: u128,
}

/// Returns a lower bound of `Σ weight[b] · peak[b]` over all placements, or `None` if the slots are too many
/// or too few. `own` holds a lower bound of every batch's peak. All weights together are below 2^64.
pub(super) fn bound_weighted_peaks(
    batches: &[&[u64]],
    (weights, own): (&[u64], &[u64]),
    limits: ReplicaLimits,
) -> Option<u128> {
    let experts = batches.first()?.len();
    let redundant = limits.slots.checked_sub(experts)?.min(experts.saturating_mul(limits.ranks - 1));
    if (experts as u64).saturating_mul((redundant as u64).saturating_mul(redundant as u64)) > MAX_PROGRAMME {
        return None;
    }
    // Lighter experts than the bound of their batch prove nothing.
    let heavy: Vec<Vec<(u32, u64)>> = batches
        .iter()
        .zip(own)
        .map(|(batch, &own)| {
            let above = batch.iter().enumerate().filter(|&(_, &load)| load > own);
            above.map(|(expert, &load)| (expert as u32, load)).collect()
        })
        .collect();
    if heavy.iter().all(Vec::is_empty) {
        return None;
    }
    let mut choices: Vec<Vec<u64>> = heavy.iter().map(|heavy| vec![0; heavy.len()]).collect();
    let mut replicas = vec![1u64; experts];
    for _ in 0..ROUNDS {
        for (heavy, choices) in heavy.iter().zip(&mut choices) {
            let peak = |at: usize| heavy[at].1.div_ceil(replicas[heavy[at].0 as usize]);
            if let Some(at) = (0..heavy.len()).max_by_key(|&at| (peak(at), std::cmp::Reverse(at))) {
                choices[at] += 1;
            }
        }
        replicas = answer(&heavy, weights, &choices, (experts, redundant, limits.ranks));
    }
    let mut costs = vec![vec![]; experts];
    let mut bound = 0u128;
    for (((heavy, choices), &weight), &own) in heavy.iter().zip(&choices).zip(weights).zip(own) {
        if heavy.is_empty() {
            bound += u128::from(weight) * u128::from(ROUNDS) * u128::from(own);
        }
        for (&(expert, load), &count) in heavy.iter().zip(choices).filter(|&(_, &count)| count > 0) {
            costs[expert as usize].push(ChosenLoad {
                load,
                own,
                weight: u128::from(weight) * u128::from(count),
            });
        }
    }
    bound += least_cost(&costs, redundant, limits.ranks);
    Some(bound / u128::from(ROUNDS))
}

/// Returns numbers of replicas for which the choices so far cost little: every redundant slot goes to the
/// expert that gains most.
fn answer(
    heavy: &[Vec<(u32, u64)>],
    weights: &[u64],
    choices: &[Vec<u64>],
    (experts, redundant, ranks): (usize, usize, usize),
) -> Vec<u64> {
    // Loads are divided without rounding here, so that a choice costs `sums / replicas`.
    let mut sums = vec![0.0f64; experts];
    for ((heavy, choices), &weight) in heavy.iter().zip(choices).zip(weights) {
        for (&(expert, load), &count) in heavy.iter().zip(choices) {
            sums[expert as usize] += weight as f64 * count as f64 * load as f64;
        }
    }
    let mut replicas = vec![1u64; experts];
    for _ in 0..redundant {
        let gain = |expert: usize| sums[expert] / (replicas[expert] * (replicas[expert] + 1)) as f64;
        let open = (0..experts).filter(|&expert| replicas[expert] < ranks as u64);
        let Some(best) = open.reduce(|best, expert| if gain(expert) > gain(best) { expert } else { best })
        else {
            break;
        };
        replicas[best] += 1;
    }
    replicas
}

/// Returns the least sum of `weight · max(own, ceil(load / x))` over all experts and numbers of replicas `x`.
fn least_cost(costs: &[Vec<ChosenLoad>], redundant: usize, ranks: usize) -> u128 {
    // Least cost with at most this many redundant slots.
    let mut least = vec![0u128; redundant + 1];
    for rows in costs.iter().filter(|rows| !rows.is_empty()) {
        let cost = |replicas: u64| -> u128 {
            let row = |row: &ChosenLoad| row.weight * u128::from(row.load.div_ceil(replicas).max(row.own));
            rows.iter().map(row).sum()
        };
        let by_extra: Vec<u128> =
            (0..=redundant.min(ranks - 1)).map(|extra| cost(extra as u64 + 1)).collect();
        for left in (0..=redundant).rev() {
            let most = left.min(by_extra.len() - 1);
            least[left] =
                (0..=most).map(|extra| by_extra[extra] + least[left - extra]).min().unwrap_or(u128::MAX);
        }
    }
    least[redundant]
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn limits(slots: usize, ranks: usize) -> ReplicaLimits {
        ReplicaLimits { slots, ranks }
    }

    #[test]
    fn batches_share_the_slots() {
        // Each batch has another heavy expert, and one redundant slot halves one of them.
        let batches: [&[u64]; 2] = [&[80, 4, 4, 4], &[4, 80, 4, 4]];
        let own = [40, 40];
        let bound = bound_weighted_peaks(&batches, (&[1, 1], &own), limits(5, 4)).unwrap();
        assert_eq!(bound, 120);
        // Two slots serve both.
        assert!(bound_weighted_peaks(&batches, (&[1, 1], &own), limits(6, 4)).unwrap() <= 80);
    }

    #[test]
    fn light_experts_prove_nothing() {
        let batch: [&[u64]; 1] = [&[10, 10, 10, 10]];
        assert_eq!(bound_weighted_peaks(&batch, (&[1], &[10]), limits(8, 4)), None);
        assert_eq!(bound_weighted_peaks(&[], (&[], &[]), limits(8, 4)), None);
        // Fewer slots than experts.
        assert_eq!(bound_weighted_peaks(&batch, (&[1], &[1]), limits(3, 4)), None);
    }
}

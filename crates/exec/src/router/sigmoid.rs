//! Sigmoid scores with a selection bias, limited to the best groups.

use super::top_k::{ExpertScores, top_indices};

/// Selects by score + bias within the `top_groups` best of `groups`. Gates are the scores alone.
pub(super) fn push_group_limited(
    row: &[f32],
    bias: &[f64],
    groups: usize,
    top_groups: usize,
    chosen: &mut ExpertScores,
) {
    let scores: Vec<f64> = row.iter().map(|&x| 1.0 / (1.0 + (-f64::from(x)).exp())).collect();
    let biased: Vec<f64> =
        scores.iter().enumerate().map(|(e, s)| s + bias.get(e).copied().unwrap_or(0.0)).collect();
    let per_group = row.len() / groups;
    let of_groups: Vec<f64> = biased.chunks_exact(per_group).map(two_best).collect();
    let mut allowed = vec![false; groups];
    top_indices(&of_groups, top_groups).into_iter().for_each(|group| allowed[group] = true);
    chosen.push(biased.iter().zip(&scores).enumerate().map(|(e, (&select, &gate))| {
        (if allowed[e / per_group] { select } else { f64::NEG_INFINITY }, gate)
    }));
}

/// Returns the score of a group: the sum of its two best experts, or its only one.
fn two_best(scores: &[f64]) -> f64 {
    top_indices(scores, 2).into_iter().map(|e| scores[e]).sum()
}

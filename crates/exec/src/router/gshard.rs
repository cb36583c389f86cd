//! The random second expert of GShard.

use crate::random::RandomStream;

/// Returns whether a token visits its second expert, given its two weights (which add up to 1): with
/// probability `min(1, 2 g2)`.
pub(super) fn visits_second(weights: &[f64], random: &mut RandomStream) -> bool {
    let draw = random.uniform();
    weights.get(1).is_some_and(|&second| 2.0 * second > draw)
}

//! GShard's random second expert.

use crate::exec::random::Stream;

/// Whether a token visits its second expert, given its two weights (which add up to 1): with probability `min(1, 2 g2)`.
pub(super) fn visits(weights: &[f64], random: &mut Stream) -> bool {
    let draw = random.uniform();
    weights.get(1).is_some_and(|&second| 2.0 * second > draw)
}

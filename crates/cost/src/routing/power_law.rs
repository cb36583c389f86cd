//! Rows per expert by a power law, as the collectors of NVIDIA's tables draw them.
//!
//! In: tokens, experts, experts per token, ranks, exponent and a random generator. Out: rows of every
//! expert, at most one per token, `tokens * top_k` in all, with the fullest rank first.
//!
//! Uniform numbers become loads by the inverse distribution of a bounded power law. They are scaled to the
//! number of rows and rounded. Rows beyond one per token are handed out to other experts, and then the
//! rounding difference. Current collectors go round the ranks, older ones round the experts.

use super::RoutingShape;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

/// Loads rounded to whole rows and cut at one per token, with the number of rows cut.
fn draw_loads(rng: &mut ChaCha8Rng, shape: &RoutingShape, exponent: f64) -> (Vec<u64>, u64) {
    let rows = shape.rows() as f64;
    // Few rows need loads below one, or every expert would get a row.
    let (low, high) =
        if shape.rows() > shape.experts { (1.0, 0.8 * shape.tokens as f64) } else { (0.01, 2.0) };
    let power = 1.0 - exponent;
    let (from, to) = (f64::powf(low, power), f64::powf(high, power));
    let loads: Vec<f64> = (0..shape.experts)
        .map(|_| {
            let uniform = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            ((to - from) * uniform + from).powf(1.0 / power)
        })
        .collect();
    let sum: f64 = loads.iter().sum();
    let rounded = loads.iter().map(|load| (load / sum * rows).round_ties_even() as u64);
    let mut cut = 0;
    let counts = rounded
        .map(|count| {
            cut += count.saturating_sub(shape.tokens);
            count.min(shape.tokens)
        })
        .collect();
    (counts, cut)
}

/// Returns rows per expert. Differences go round the ranks.
pub(super) fn current_counts(rng: &mut ChaCha8Rng, shape: &RoutingShape, exponent: f64) -> Vec<u64> {
    let (mut counts, cut) = draw_loads(rng, shape, exponent);
    let per_rank = (shape.experts / shape.ranks.max(1)).max(1) as usize;
    let limit = shape.tokens;
    let room = |rank: &[u64]| rank.iter().any(|&count| count < limit);
    let fill = |rank: &mut [u64], rows: u64| fill_lowest(rank, rows, limit);
    hand_out(&mut counts, per_rank, cut, room, fill);
    let (sum, rows) = (counts.iter().sum::<u64>(), shape.rows());
    if sum < rows {
        hand_out(&mut counts, per_rank, rows - sum, room, fill);
    } else {
        let busy = |rank: &[u64]| rank.iter().any(|&count| count > 0);
        hand_out(&mut counts, per_rank, sum - rows, busy, drain_highest);
    }
    put_fullest_first(&mut counts, per_rank);
    counts
}

/// Hands rows out to the ranks that can take some, evenly, until none is left or no rank can.
fn hand_out(
    counts: &mut [u64],
    per_rank: usize,
    mut rows: u64,
    can_take: impl Fn(&[u64]) -> bool,
    take: impl Fn(&mut [u64], u64) -> u64,
) {
    while rows > 0 {
        let open: Vec<usize> = counts
            .chunks(per_rank)
            .enumerate()
            .filter(|(_, rank)| can_take(rank))
            .map(|(at, _)| at)
            .collect();
        let Some(share) = rows.checked_div(open.len() as u64) else { return };
        let more = rows % open.len() as u64;
        for (turn, rank) in open.into_iter().enumerate() {
            let wanted = share + u64::from((turn as u64) < more);
            let end = counts.len().min((rank + 1) * per_rank);
            rows -= take(&mut counts[rank * per_rank..end], wanted);
        }
    }
}

/// Adds rows one by one to the lowest count below `limit`. Returns the number of added rows.
fn fill_lowest(counts: &mut [u64], rows: u64, limit: u64) -> u64 {
    let rows = rows.min(counts.iter().map(|&count| limit - count.min(limit)).sum());
    // The level to which the rows fill all lower counts.
    let (mut low, mut high) = (counts.iter().copied().min().unwrap_or(0), limit);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        let needed: u64 = counts.iter().map(|&count| middle.saturating_sub(count)).sum();
        if needed <= rows { low = middle } else { high = middle - 1 }
    }
    let mut left = rows;
    for count in counts.iter_mut() {
        let added = low.saturating_sub(*count);
        *count += added;
        left -= added;
    }
    for count in counts.iter_mut().filter(|count| **count == low && **count < limit) {
        if left == 0 {
            break;
        }
        *count += 1;
        left -= 1;
    }
    rows - left
}

/// Removes rows one by one from the highest count. Returns the number of removed rows.
fn drain_highest(counts: &mut [u64], rows: u64) -> u64 {
    let rows = rows.min(counts.iter().sum());
    let (mut low, mut high) = (0, counts.iter().copied().max().unwrap_or(0));
    while low < high {
        let middle = low + (high - low) / 2;
        let freed: u64 = counts.iter().map(|&count| count.saturating_sub(middle)).sum();
        if freed <= rows { high = middle } else { low = middle + 1 }
    }
    let mut left = rows;
    for count in counts.iter_mut() {
        let removed = count.saturating_sub(low);
        *count -= removed;
        left -= removed;
    }
    for count in counts.iter_mut().filter(|count| **count == low && **count > 0) {
        if left == 0 {
            break;
        }
        *count -= 1;
        left -= 1;
    }
    rows - left
}

/// Swaps the rank with the most rows, the first of equals, with rank 0.
fn put_fullest_first(counts: &mut [u64], per_rank: usize) {
    let sums = counts.chunks(per_rank).map(|rank| rank.iter().sum::<u64>());
    let fullest = sums.enumerate().max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(&a.0))).map_or(0, |(at, _)| at);
    if fullest > 0 && (fullest + 1) * per_rank <= counts.len() {
        for at in 0..per_rank {
            counts.swap(at, fullest * per_rank + at);
        }
    }
}

/// Returns rows per expert by the older rule, with the fullest rank first.
pub(super) fn legacy_counts(rng: &mut ChaCha8Rng, shape: &RoutingShape, exponent: f64) -> Vec<u64> {
    let mut counts = legacy_expert_counts(rng, shape, exponent);
    put_fullest_first(&mut counts, (shape.experts / shape.ranks.max(1)).max(1) as usize);
    counts
}

/// Returns rows per expert by the older rule, in the order of the experts. Rows beyond one per token fill
/// the smallest expert, and differences go round the experts from the smallest. Ties go by index, so a few
/// rows end up on neighbouring experts of one rank.
pub(super) fn legacy_expert_counts(rng: &mut ChaCha8Rng, shape: &RoutingShape, exponent: f64) -> Vec<u64> {
    let (mut counts, mut cut) = draw_loads(rng, shape, exponent);
    for expert in ascending(&counts) {
        let added = cut.min(shape.tokens - counts[expert]);
        counts[expert] += added;
        cut -= added;
    }
    let (mut sum, rows) = (counts.iter().sum::<u64>(), shape.rows());
    for expert in ascending(&counts).into_iter().cycle() {
        if sum < rows && counts[expert] < shape.tokens {
            counts[expert] += 1;
            sum += 1;
        } else if sum > rows {
            let from = if counts[expert] > 0 { expert } else { fullest_expert(&counts) };
            counts[from] -= 1;
            sum -= 1;
        }
        if sum == rows {
            break;
        }
    }
    counts
}

/// Returns the experts from the fewest rows to the most, the higher index first among equals.
fn ascending(counts: &[u64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by(|&a, &b| counts[a].cmp(&counts[b]).then(b.cmp(&a)));
    order
}

fn fullest_expert(counts: &[u64]) -> usize {
    let most = counts.iter().enumerate().max_by(|a, b| a.1.cmp(b.1).then(b.0.cmp(&a.0)));
    most.map_or(0, |(expert, _)| expert)
}

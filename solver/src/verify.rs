//! Check of a split, independent of the method that found it.
//!
//! In: a problem, loads and a split. Out: nothing, or the first violation. The check shares no code with the
//! solver. It computes the sums again from the quotas, in 128 bits.
//!
//! **Proof of optimality.** Let `T` be the peak and `S` the certificate. Base loads on `S` and items whose
//! hosts all lie in `S` must be carried by `S`. At any peak below `T`, rank `r` carries at most `⌈T·s_r⌉ − 1`
//! whole tokens, the largest integer `a` with `a / s_r < T`. If these add up to less than the load that `S`
//! must carry, no split has a peak below `T`. This is the easy half of max-flow min-cut.

use std::cmp::Ordering;

use crate::{Peak, Problem, RankSplit};

/// Violation of a split's contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A vector has the wrong length, so the split belongs to another problem.
    #[error("{got} {what}, but the problem has {expected}")]
    Length {
        /// Content of the vector: "loads", "quotas" or "rank loads".
        what: &'static str,
        /// Length expected.
        expected: usize,
        /// Length found.
        got: usize,
    },
    /// An item's quotas do not add up to its load.
    #[error("the quotas of item {item} add up to {quotas}, but its load is {load}")]
    Conservation {
        /// Item in question.
        item: usize,
        /// Load of the item.
        load: u64,
        /// Sum of the item's quotas.
        quotas: u128,
    },
    /// A rank's recorded load is not its base load plus its quotas.
    #[error("rank {rank} has the recorded load {recorded}, but its quotas and base load add up to {actual}")]
    RankLoad {
        /// Rank in question.
        rank: usize,
        /// Recorded load.
        recorded: u64,
        /// Sum of the rank's quotas and base load.
        actual: u128,
    },
    /// The recorded peak is not the highest ratio of load to speed.
    #[error(
        "the recorded peak is {}/{}, but the busiest rank has {load}/{speed}", recorded.load, recorded.speed
    )]
    Peak {
        /// Recorded peak.
        recorded: Peak,
        /// Load of the busiest rank.
        load: u64,
        /// Speed of the busiest rank.
        speed: u32,
    },
    /// The certificate is not a non-empty ascending list of ranks.
    #[error("entry {index} of the certificate is invalid: expected a non-empty ascending list of ranks")]
    CertificateForm {
        /// First entry that is missing, out of order or out of range.
        index: usize,
    },
    /// The ranks of the certificate could carry their load at a lower peak, so nothing is proved.
    #[error(
        "the certificate proves nothing: its ranks can carry {room} below the peak and must carry {must}"
    )]
    Certificate {
        /// Load that the ranks can carry at any peak below the recorded one (−1 per rank at peak zero).
        room: i128,
        /// Load that the ranks must carry: base loads and the items that have no host elsewhere.
        must: u128,
    },
    /// The load vector is not decreasingly minimal: a token could move with gain, perhaps via other ranks.
    #[error("a token of rank {from} should move to rank {to}: the load vector would be lower")]
    Unbalanced {
        /// Rank that could be relieved.
        from: usize,
        /// Rank that has a place for its token at a lower level.
        to: usize,
    },
    /// An item's quotas in tokens differ from its quotas in tiles, or leave more than one tile half-empty.
    #[error("the quotas of item {item} in tokens and in tiles do not agree")]
    Tile {
        /// Item in question.
        item: usize,
    },
    /// The recorded traffic differs from that of the quotas.
    #[error(
        "the recorded traffic is wrong: the quotas serve {off_node} tokens off node, {off_rank} off rank"
    )]
    Traffic {
        /// Tokens off their source's node.
        off_node: u128,
        /// Tokens off their source's rank.
        off_rank: u128,
    },
    /// A rank's load is not at its level, or an item is served above its lowest level.
    #[error("the load of rank {rank} does not match its level")]
    Level {
        /// Rank in question.
        rank: usize,
    },
    /// A rank has a positive price although its room is not scarce, or a negative one although its load is
    /// not.
    #[error("rank {rank} has the price {price}, which its load does not allow")]
    Price {
        /// Rank in question.
        rank: usize,
        /// Price of the rank.
        price: i64,
    },
    /// A token of an item would be cheaper on another rank.
    #[error("a token of item {item} would be cheaper on rank {to} than on rank {from}")]
    Exchange {
        /// Item in question.
        item: usize,
        /// Rank that serves the token.
        from: usize,
        /// Cheaper rank.
        to: usize,
    },
}

/// Checks that a split is feasible and that its certificate proves it optimal.
///
/// # Errors
/// Returns the first [`Violation`], in the order of the enum.
pub fn verify(problem: &Problem, loads: &[u64], split: &RankSplit) -> Result<(), Violation> {
    check_lengths(problem, loads, split)?;
    check_quotas(problem, loads, split)?;
    check_peak(problem, split)?;
    check_certificate(problem, loads, split)
}

fn check_lengths(problem: &Problem, loads: &[u64], split: &RankSplit) -> Result<(), Violation> {
    let hosts = problem.hosts();
    for (what, expected, got) in [
        ("loads", hosts.items(), loads.len()),
        ("quotas", hosts.len(), split.quotas.len()),
        ("rank loads", hosts.ranks(), split.rank_loads.len()),
    ] {
        if expected != got {
            return Err(Violation::Length { what, expected, got });
        }
    }
    Ok(())
}

fn check_quotas(problem: &Problem, loads: &[u64], split: &RankSplit) -> Result<(), Violation> {
    let hosts = problem.hosts();
    let mut actual: Vec<u128> = problem.base_loads().iter().map(|&base| u128::from(base)).collect();
    for (item, &load) in loads.iter().enumerate() {
        let mut sum = 0u128;
        for (&rank, &quota) in hosts.ranks_of(item).iter().zip(&split.quotas[hosts.offset(item)..]) {
            sum += u128::from(quota);
            actual[rank as usize] += u128::from(quota);
        }
        if sum != u128::from(load) {
            return Err(Violation::Conservation { item, load, quotas: sum });
        }
    }
    for (rank, (&recorded, actual)) in split.rank_loads.iter().zip(actual).enumerate() {
        if u128::from(recorded) != actual {
            return Err(Violation::RankLoad { rank, recorded, actual });
        }
    }
    Ok(())
}

fn check_peak(problem: &Problem, split: &RankSplit) -> Result<(), Violation> {
    let mut busiest = Peak { load: 0, speed: 1 };
    for (&load, &speed) in split.rank_loads.iter().zip(problem.speeds()) {
        let here = Peak { load, speed };
        if compare_ratios(here, busiest) == Ordering::Greater {
            busiest = here;
        }
    }
    let recorded = split.peak;
    if recorded.speed == 0 || compare_ratios(recorded, busiest) != Ordering::Equal {
        return Err(Violation::Peak { recorded, load: busiest.load, speed: busiest.speed });
    }
    Ok(())
}

fn check_certificate(problem: &Problem, loads: &[u64], split: &RankSplit) -> Result<(), Violation> {
    let hosts = problem.hosts();
    let mut inside = vec![false; hosts.ranks()];
    let mut above = 0;
    for (index, &rank) in split.certificate.iter().enumerate() {
        if rank < above || rank as usize >= hosts.ranks() {
            return Err(Violation::CertificateForm { index });
        }
        inside[rank as usize] = true;
        above = rank + 1;
    }
    if split.certificate.is_empty() {
        return Err(Violation::CertificateForm { index: 0 });
    }
    let mut room = 0i128;
    let mut must = 0u128;
    for &rank in &split.certificate {
        let speed = problem.speeds()[rank as usize];
        let work = u128::from(split.peak.load) * u128::from(speed);
        room += work.div_ceil(u128::from(split.peak.speed)).cast_signed() - 1;
        must += u128::from(problem.base_loads()[rank as usize]);
    }
    for (item, &load) in loads.iter().enumerate() {
        if hosts.ranks_of(item).iter().all(|&rank| inside[rank as usize]) {
            must += u128::from(load);
        }
    }
    // Both sides are far below 2^127: at most 2^10 ranks of 2^96, and 2^32 items of 2^64.
    if room < must.cast_signed() { Ok(()) } else { Err(Violation::Certificate { room, must }) }
}

/// Compares two ratios of load to positive speed.
fn compare_ratios(left: Peak, right: Peak) -> Ordering {
    (u128::from(left.load) * u128::from(right.speed)).cmp(&(u128::from(right.load) * u128::from(left.speed)))
}

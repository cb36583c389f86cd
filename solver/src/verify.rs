//! The check of an answer, independent of how it was found.
//!
//! In: a problem, loads and a split. Out: nothing, or the first thing that is wrong. It shares no code
//! with the solver: the sums are taken again from the quotas, in 128 bits.
//!
//! **Why the certificate proves optimality.** Let `T` be the peak and `S` the certificate. Base loads on
//! `S` and items whose hosts all lie in `S` must be carried by `S`. At any peak below `T`, rank `r` carries
//! at most `⌈T·s_r⌉ − 1` whole tokens, the largest integer `a` with `a / s_r < T`. If these add up to less
//! than what `S` must carry, no split has a peak below `T` (the easy half of max-flow min-cut).

use std::cmp::Ordering;

use crate::{Peak, Problem, Split};

/// What is wrong with a split.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A vector of the wrong length: the split belongs to another problem.
    #[error("{got} {what} where the problem has {expected}")]
    Length {
        /// What the vector holds: "loads", "quotas" or "rank loads".
        what: &'static str,
        /// The length it must have.
        expected: usize,
        /// The length it has.
        got: usize,
    },
    /// An item's quotas do not add up to its load.
    #[error("the quotas of item {item} add up to {quotas}, its load is {load}")]
    Conservation {
        /// The item.
        item: usize,
        /// Its load.
        load: u64,
        /// The sum of its quotas.
        quotas: u128,
    },
    /// A rank's recorded load is not its base load plus its quotas.
    #[error("rank {rank} is said to carry {recorded}, its quotas and base load make {actual}")]
    RankLoad {
        /// The rank.
        rank: usize,
        /// The load the split records.
        recorded: u64,
        /// The load its quotas make.
        actual: u128,
    },
    /// The recorded peak is not the largest ratio of load to speed.
    #[error("the peak is said to be {}/{}, the busiest rank has {load}/{speed}", recorded.load, recorded.speed)]
    Peak {
        /// The peak the split records.
        recorded: Peak,
        /// The load of the busiest rank.
        load: u64,
        /// The speed of the busiest rank.
        speed: u32,
    },
    /// The certificate is not a non-empty ascending list of ranks.
    #[error("the certificate is not a non-empty ascending list of ranks: entry {index}")]
    CertificateForm {
        /// The first entry that is missing, out of order or out of range.
        index: usize,
    },
    /// The certificate's ranks could carry what they must at a lower peak: nothing is proved.
    #[error("the certificate proves nothing: below the peak its ranks carry {room}, they must carry {must}")]
    Certificate {
        /// What the ranks can carry at any peak below the recorded one (−1 per rank at peak zero).
        room: i128,
        /// What the ranks must carry: base loads and the items that have no host elsewhere.
        must: u128,
    },
    /// The load vector is not decreasingly minimal: a token could move, perhaps along other ranks, with gain.
    #[error("a token of rank {from} would be better off on rank {to}")]
    Unbalanced {
        /// The rank that could be relieved.
        from: usize,
        /// The rank that has a place for its token at a lower level.
        to: usize,
    },
    /// An item's quotas in tokens are not what its quotas in tiles say, or leave more than one tile half-empty.
    #[error("the quotas of item {item} in tokens and in tiles do not agree")]
    Tile {
        /// The item.
        item: usize,
    },
    /// The recorded traffic is not what the quotas make.
    #[error("the quotas serve {off_node} tokens off their node and {off_rank} off their rank")]
    Traffic {
        /// Tokens off their source's node.
        off_node: u128,
        /// Tokens off their source's rank.
        off_rank: u128,
    },
    /// A rank's load is not at its level, or an item is served above its lowest level.
    #[error("rank {rank} does not keep to its level")]
    Level {
        /// The rank.
        rank: usize,
    },
    /// Room is paid for that is not scarce (or, below zero, load that is not).
    #[error("rank {rank} has the price {price}, which its load does not allow")]
    Price {
        /// The rank.
        rank: usize,
        /// Its price.
        price: i64,
    },
    /// A token of an item would be cheaper elsewhere.
    #[error("a token of item {item} would be cheaper on rank {to} than on rank {from}")]
    Exchange {
        /// The item.
        item: usize,
        /// The rank that serves the token.
        from: usize,
        /// The cheaper one.
        to: usize,
    },
}

/// Checks that a split is feasible and that its certificate proves it optimal.
///
/// # Errors
/// The first [`Violation`] met, in the order of the enum.
pub fn verify(problem: &Problem, loads: &[u64], split: &Split) -> Result<(), Violation> {
    check_lengths(problem, loads, split)?;
    check_quotas(problem, loads, split)?;
    check_peak(problem, split)?;
    check_certificate(problem, loads, split)
}

fn check_lengths(problem: &Problem, loads: &[u64], split: &Split) -> Result<(), Violation> {
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

fn check_quotas(problem: &Problem, loads: &[u64], split: &Split) -> Result<(), Violation> {
    let hosts = problem.hosts();
    let mut actual: Vec<u128> = problem.base().iter().map(|&base| u128::from(base)).collect();
    for (item, &load) in loads.iter().enumerate() {
        let mut sum = 0u128;
        for (&rank, &quota) in hosts.of(item).iter().zip(&split.quotas[hosts.offset(item)..]) {
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

fn check_peak(problem: &Problem, split: &Split) -> Result<(), Violation> {
    let mut busiest = Peak { load: 0, speed: 1 };
    for (&load, &speed) in split.rank_loads.iter().zip(problem.speeds()) {
        let here = Peak { load, speed };
        if compare(here, busiest) == Ordering::Greater {
            busiest = here;
        }
    }
    let recorded = split.peak;
    if recorded.speed == 0 || compare(recorded, busiest) != Ordering::Equal {
        return Err(Violation::Peak { recorded, load: busiest.load, speed: busiest.speed });
    }
    Ok(())
}

fn check_certificate(problem: &Problem, loads: &[u64], split: &Split) -> Result<(), Violation> {
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
        must += u128::from(problem.base()[rank as usize]);
    }
    for (item, &load) in loads.iter().enumerate() {
        if hosts.of(item).iter().all(|&rank| inside[rank as usize]) {
            must += u128::from(load);
        }
    }
    // Both sides are far below 2^127: at most 2^10 ranks of 2^96, and 2^32 items of 2^64.
    if room < must.cast_signed() { Ok(()) } else { Err(Violation::Certificate { room, must }) }
}

/// Compares two ratios of load to positive speed.
fn compare(left: Peak, right: Peak) -> Ordering {
    (u128::from(left.load) * u128::from(right.speed)).cmp(&(u128::from(right.load) * u128::from(left.speed)))
}

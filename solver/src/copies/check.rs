//! Check of a plan, independent of the method that found it.
//!
//! In: a problem, loads, the contents before the batch, a goal and a plan. Out: nothing, or the first
//! violation. The check shares no code with the solver.

use super::{CopyGoal, CopyPlan, CopyProblem};

/// Violation of a plan's contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CopyViolation {
    /// A vector has the wrong length, so the plan belongs to another problem.
    #[error("{got} {what}, but the problem has {expected}")]
    Length {
        /// Content of the vector.
        what: &'static str,
        /// Length expected.
        expected: usize,
        /// Length found.
        got: usize,
    },
    /// A copy does not agree with the contents of the slots.
    #[error("copy {copy}: {reason}")]
    Copy {
        /// Number of the copy.
        copy: usize,
        /// Disagreement.
        reason: &'static str,
    },
    /// A slot holds another item than before without a copy, or an item that its rank already hosts.
    #[error("dynamic slot {slot} of rank {rank}: {reason}")]
    Content {
        /// Dynamic slot.
        slot: usize,
        /// Rank of the slot.
        rank: usize,
        /// Disagreement.
        reason: &'static str,
    },
    /// An item's tokens do not add up to its load.
    #[error("the quotas of item {item} add up to {quotas}, but its load is {load}")]
    Conservation {
        /// Item in question.
        item: usize,
        /// Load of the item.
        load: u32,
        /// Sum of the item's quotas.
        quotas: u64,
    },
    /// A rank's recorded load is not the sum of its quotas.
    #[error("rank {rank} has the recorded load {recorded}, but its quotas add up to {actual}")]
    RankLoad {
        /// Rank in question.
        rank: usize,
        /// Recorded load.
        recorded: u32,
        /// Sum of the rank's quotas.
        actual: u64,
    },
    /// The recorded peak is not the highest load.
    #[error("the recorded peak is {recorded}, but the busiest rank has {actual}")]
    Peak {
        /// Recorded peak.
        recorded: u32,
        /// Highest load.
        actual: u32,
    },
    /// There are more copies than the goal allows.
    #[error("{copies} copies, but the goal allows {allowed}")]
    TooMany {
        /// Number of copies.
        copies: usize,
        /// Number allowed.
        allowed: u32,
    },
    /// A bound is above the plan's own value, so it is no bound.
    #[error("the bound on the {what} is {bound}, but the plan has {actual}")]
    Bound {
        /// Bounded quantity.
        what: &'static str,
        /// Recorded bound.
        bound: u64,
        /// The plan's value.
        actual: u64,
    },
}

/// Checks that a plan is feasible, conserves every token and records its values correctly.
///
/// # Errors
/// Returns the first [`CopyViolation`].
pub fn check_copies(
    problem: &CopyProblem,
    loads: &[u32],
    present: &[u32],
    goal: CopyGoal,
    plan: &CopyPlan,
) -> Result<(), CopyViolation> {
    let (hosts, ranks) = (problem.hosts(), problem.hosts().ranks());
    let slots: usize = problem.slots().iter().map(|&slots| slots as usize).sum();
    for (what, expected, got) in [
        ("loads", hosts.items(), loads.len()),
        ("contents before the batch", slots, present.len()),
        ("contents", slots, plan.contents.len()),
        ("slot quotas", slots, plan.slot_quotas.len()),
        ("quotas", hosts.len(), plan.quotas.len()),
        ("rank loads", ranks, plan.rank_loads.len()),
    ] {
        if expected != got {
            return Err(CopyViolation::Length { what, expected, got });
        }
    }
    let owner: Vec<usize> = problem
        .slots()
        .iter()
        .enumerate()
        .flat_map(|(rank, &slots)| std::iter::repeat_n(rank, slots as usize))
        .collect();
    check_contents(problem, present, &owner, plan)?;
    check_quotas(problem, loads, &owner, plan)?;
    if let CopyGoal::LowestPeak { copies: allowed } = goal
        && plan.copies.len() > allowed as usize
    {
        return Err(CopyViolation::TooMany { copies: plan.copies.len(), allowed });
    }
    let copies = plan.copies.len() as u64;
    let mut bounds = vec![
        ("peak", u64::from(plan.least_peak), u64::from(plan.peak)),
        ("copies", u64::from(plan.least_copies), copies),
    ];
    if let CopyGoal::LeastTime(times) = goal {
        bounds.push(("time", plan.least_time, times.measure(plan.peak, &plan.copies, ranks)));
    }
    for (what, bound, actual) in bounds {
        if bound > actual {
            return Err(CopyViolation::Bound { what, bound, actual });
        }
    }
    Ok(())
}

fn check_contents(
    problem: &CopyProblem,
    present: &[u32],
    owner: &[usize],
    plan: &CopyPlan,
) -> Result<(), CopyViolation> {
    let (hosts, items) = (problem.hosts(), problem.hosts().items());
    let mut copied = vec![false; owner.len()];
    for (copy, made) in plan.copies.iter().enumerate() {
        let fail = |reason| Err(CopyViolation::Copy { copy, reason });
        let slot = made.slot as usize;
        if slot >= owner.len() || owner[slot] != made.to as usize {
            return fail("its slot is not one of the receiving rank");
        }
        if std::mem::replace(&mut copied[slot], true) {
            return fail("another copy has the same slot");
        }
        if made.item as usize >= items || plan.contents[slot] != made.item {
            return fail("its slot holds another item");
        }
        let sends = hosts.ranks_of(made.item as usize).contains(&made.from)
            || (0..owner.len()).any(|at| owner[at] == made.from as usize && present[at] == made.item);
        if !sends {
            return fail("the sending rank did not hold the item before the batch");
        }
    }
    for (slot, &item) in plan.contents.iter().enumerate() {
        let rank = owner[slot];
        if !copied[slot] && item != present[slot] {
            return Err(CopyViolation::Content { slot, rank, reason: "the item changed without a copy" });
        }
        let twice = (item as usize) < items
            && (hosts.ranks_of(item as usize).contains(&(rank as u32))
                || (0..slot).any(|at| owner[at] == rank && plan.contents[at] == item));
        if twice {
            return Err(CopyViolation::Content { slot, rank, reason: "the rank holds the item twice" });
        }
    }
    Ok(())
}

fn check_quotas(
    problem: &CopyProblem,
    loads: &[u32],
    owner: &[usize],
    plan: &CopyPlan,
) -> Result<(), CopyViolation> {
    let hosts = problem.hosts();
    let (mut sums, mut ranks) = (vec![0u64; hosts.items()], vec![0u64; hosts.ranks()]);
    for (item, sum) in sums.iter_mut().enumerate() {
        for (at, &rank) in hosts.ranks_of(item).iter().enumerate() {
            let quota = u64::from(plan.quotas[hosts.offset(item) + at]);
            *sum += quota;
            ranks[rank as usize] += quota;
        }
    }
    for (slot, (&item, &quota)) in plan.contents.iter().zip(&plan.slot_quotas).enumerate() {
        if let Some(sum) = sums.get_mut(item as usize) {
            *sum += u64::from(quota);
        } else if quota > 0 {
            let rank = owner[slot];
            return Err(CopyViolation::Content { slot, rank, reason: "an empty slot has tokens" });
        }
        ranks[owner[slot]] += u64::from(quota);
    }
    for (item, (&quotas, &load)) in sums.iter().zip(loads).enumerate() {
        if quotas != u64::from(load) {
            return Err(CopyViolation::Conservation { item, load, quotas });
        }
    }
    for (rank, (&actual, &recorded)) in ranks.iter().zip(&plan.rank_loads).enumerate() {
        if actual != u64::from(recorded) {
            return Err(CopyViolation::RankLoad { rank, recorded, actual });
        }
    }
    let actual = plan.rank_loads.iter().copied().max().unwrap_or(0);
    if actual != plan.peak {
        return Err(CopyViolation::Peak { recorded: plan.peak, actual });
    }
    Ok(())
}

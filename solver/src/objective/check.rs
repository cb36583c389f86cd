//! The check that a split is decreasingly minimal, independent of how it was found.
//!
//! In: a problem, loads and a split. Out: nothing, or what is wrong. The levels are compared here by themselves,
//! without the solver's.

use std::cmp::Ordering;

use crate::{Problem, Split, Violation, verify};

/// Checks that a split is feasible, certified to have the least peak, and decreasingly minimal: no residual path leads
/// from a rank to another that would be better off with a token of the first.
///
/// Ranks are taken as goals in ascending order of their next token; whoever reaches one first, against the direction
/// of moves, has found its best goal. Linear in the (item, host) pairs, after sorting the ranks.
///
/// # Errors
/// The first [`Violation`] met: those of [`verify`], then [`Violation::Unbalanced`].
pub fn verify_balanced(problem: &Problem, loads: &[u64], split: &Split) -> Result<(), Violation> {
    verify(problem, loads, split)?;
    let (hosts, speeds) = (problem.hosts(), problem.speeds());
    // Of every rank, the items it may serve.
    let mut offers: Vec<Vec<usize>> = vec![Vec::new(); hosts.ranks()];
    for item in 0..hosts.items() {
        for &rank in hosts.of(item) {
            offers[rank as usize].push(item);
        }
    }
    let next = |rank: usize| (u128::from(split.rank_loads[rank]) + 1, speeds[rank]);
    let last = |rank: usize| (u128::from(split.rank_loads[rank]), speeds[rank]);
    let mut goals: Vec<usize> = (0..hosts.ranks()).collect();
    goals.sort_by(|&a, &b| order(next(a), next(b)));
    let mut seen = vec![false; hosts.ranks()];
    let mut taken = vec![false; hosts.items()];
    for goal in goals {
        let mut queue = vec![goal];
        seen[goal] = true;
        while let Some(here) = queue.pop() {
            if order(next(goal), last(here)) == Ordering::Less {
                return Err(Violation::Unbalanced { from: here, to: goal });
            }
            for &item in &offers[here] {
                if std::mem::replace(&mut taken[item], true) {
                    continue;
                }
                for (&from, &quota) in hosts.of(item).iter().zip(split.quotas_of(item)) {
                    if quota > 0 && !std::mem::replace(&mut seen[from as usize], true) {
                        queue.push(from as usize);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Orders two tokens, each given by the load it completes and its rank's speed: by ratio, then the faster rank first.
pub(super) fn order(a: (u128, u32), b: (u128, u32)) -> Ordering {
    (a.0 * u128::from(b.1)).cmp(&(b.0 * u128::from(a.1))).then(b.1.cmp(&a.1))
}

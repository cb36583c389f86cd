//! Check that a split is decreasingly minimal, independent of the method that found it.
//!
//! In: a problem, loads and a split. Out: nothing, or the violation. The check compares levels with its own
//! code, not the solver's.

use std::cmp::Ordering;

use crate::{Problem, RankSplit, Violation, verify};

/// Checks that a split is feasible, certified to have the lowest peak, and decreasingly minimal. No residual
/// path may lead from a rank to another that would be better off with a token of the first.
///
/// Ranks are visited as goals in ascending order of their next token. The search goes against the direction
/// of moves. The first goal that reaches a rank is its best goal. The check is linear in the (item, host)
/// pairs, after sorting the ranks.
///
/// # Errors
/// Returns the first [`Violation`]: those of [`verify`], then [`Violation::Unbalanced`].
pub fn verify_balanced(problem: &Problem, loads: &[u64], split: &RankSplit) -> Result<(), Violation> {
    verify(problem, loads, split)?;
    let (hosts, speeds) = (problem.hosts(), problem.speeds());
    // Items that every rank may serve.
    let mut offers: Vec<Vec<usize>> = vec![Vec::new(); hosts.ranks()];
    for item in 0..hosts.items() {
        for &rank in hosts.ranks_of(item) {
            offers[rank as usize].push(item);
        }
    }
    let next = |rank: usize| (u128::from(split.rank_loads[rank]) + 1, speeds[rank]);
    let last = |rank: usize| (u128::from(split.rank_loads[rank]), speeds[rank]);
    let mut goals: Vec<usize> = (0..hosts.ranks()).collect();
    goals.sort_by(|&a, &b| compare_levels(next(a), next(b)));
    let mut seen = vec![false; hosts.ranks()];
    let mut taken = vec![false; hosts.items()];
    for goal in goals {
        let mut queue = vec![goal];
        seen[goal] = true;
        while let Some(here) = queue.pop() {
            if compare_levels(next(goal), last(here)) == Ordering::Less {
                return Err(Violation::Unbalanced { from: here, to: goal });
            }
            for &item in &offers[here] {
                if std::mem::replace(&mut taken[item], true) {
                    continue;
                }
                for (&from, &quota) in hosts.ranks_of(item).iter().zip(split.quotas_of(item)) {
                    if quota > 0 && !std::mem::replace(&mut seen[from as usize], true) {
                        queue.push(from as usize);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Orders two tokens, each given by the load that it completes and its rank's speed: by ratio, then the
/// faster rank first.
pub(super) fn compare_levels(a: (u128, u32), b: (u128, u32)) -> Ordering {
    (a.0 * u128::from(b.1)).cmp(&(b.0 * u128::from(a.1))).then(b.1.cmp(&a.1))
}

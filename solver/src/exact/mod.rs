//! The exact split: a max-flow in whole tokens whose minimum cut is the certificate.
//!
//! In: a [`Problem`], the loads of one batch, a [`Workspace`]. Out: a [`Split`] of least peak.
//!
//! **Method.** Ford and Fulkerson's theorem turned into a search for the peak. Give every rank the room
//! `⌊T·s_r⌋` at the peak `T` in hand. Start at the least `T` that no single rank and not the total rules
//! out ([`level`]), place the items greedily ([`fill`]), then move load along residual paths from
//! overloaded ranks to ranks with slack, a blocking flow at a time (Dinic 1970; [`search`]). Where no
//! slack can be reached, the ranks that were reached form a cut `S`: all their load is base load or
//! belongs to items that have no host outside. So `S` must carry what it carries now, and `T` rises to the
//! least value at which it can. Raising `T` widens every rank and undoes no work, the flow is kept, and
//! each cut lies inside the one before (nothing leaves a cut), so there are at most as many raises as
//! ranks. The set behind the last raise is the certificate.
//!
//! **Determinism.** Integers only; ties go to the lowest index; the search goes level by level. The quotas
//! depend on the problem and the loads alone, never on what the workspace held before.

mod fill;
mod level;
mod search;

use crate::{Error, Peak, Problem, Split};
use search::Found;

/// Scratch memory of the exact split. Reusable for any problem; allocates only when one is larger than
/// all before it.
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    /// What each rank can carry at the peak in hand.
    room: Vec<u64>,
    fill: fill::Scratch,
    level: level::Scratch,
    search: search::Scratch,
}

impl Workspace {
    /// Scratch memory with all the room that this problem needs.
    pub fn new(problem: &Problem) -> Workspace {
        let mut workspace = Workspace::default();
        workspace.fit(problem);
        workspace
    }

    fn fit(&mut self, problem: &Problem) {
        self.room.resize(problem.hosts().ranks(), 0);
        self.fill.fit(problem.hosts());
        self.level.fit(problem.hosts());
        self.search.fit(problem.hosts());
    }
}

/// Splits one batch of loads, one per item, so that the peak is least.
///
/// # Errors
/// [`Error::Length`] unless there is one load per item; [`Error::Overflow`] if all loads and base loads
/// together exceed `u64::MAX`.
pub fn solve(problem: &Problem, loads: &[u64], workspace: &mut Workspace) -> Result<Split, Error> {
    let mut split = Split::default();
    solve_into(problem, loads, workspace, &mut split)?;
    Ok(split)
}

/// As [`solve`], into memory that is kept from call to call: no allocation after the first call for a
/// problem. The answer does not depend on what `split` or `workspace` held before.
///
/// # Errors
/// As [`solve`]; `split` is then left as it was.
pub fn solve_into(
    problem: &Problem,
    loads: &[u64],
    workspace: &mut Workspace,
    split: &mut Split,
) -> Result<(), Error> {
    let total = problem.total(loads)?;
    workspace.fit(problem);
    split.fit(problem.hosts());

    fill::place_single_hosted(problem, loads, split);
    let mut peak = level::first(problem, total, &mut workspace.level, split);
    for (room, &speed) in workspace.room.iter_mut().zip(problem.speeds()) {
        *room = peak.room(speed);
    }
    fill::place_shared(problem.hosts(), loads, &workspace.room, &mut workspace.fill, split);

    loop {
        match search::levels(problem.hosts(), &workspace.room, split, &mut workspace.search) {
            Found::NothingOverloaded => break,
            Found::Slack => {
                search::block(problem.hosts(), &workspace.room, split, &mut workspace.search);
            }
            Found::Cut => {
                let cut = workspace.search.reached();
                let must = cut.iter().map(|&rank| split.rank_loads[rank as usize]).sum();
                peak = level::least(problem, cut, must, &mut workspace.level.heap);
                // Outside the cut nothing is overloaded and nothing will arrive: its room may stay.
                for &rank in cut {
                    workspace.room[rank as usize] = peak.room(problem.speeds()[rank as usize]);
                }
                split.certificate.clear();
                split.certificate.extend_from_slice(cut);
            }
        }
    }

    split.certificate.sort_unstable();
    split.peak = busiest(problem, &split.rank_loads);
    debug_assert_eq!(split.peak, peak, "the peak is attained, for no lower one is possible");
    Ok(())
}

/// The largest ratio of load to speed: that of the lowest rank which attains it.
fn busiest(problem: &Problem, rank_loads: &[u64]) -> Peak {
    let mut busiest = Peak { load: 0, speed: problem.speeds()[0] };
    for (&load, &speed) in rank_loads.iter().zip(problem.speeds()) {
        let here = Peak { load, speed };
        // At equal speeds, the common case, one integer comparison decides.
        let higher = if speed == busiest.speed { load > busiest.load } else { here > busiest };
        if higher {
            busiest = here;
        }
    }
    busiest
}

#[cfg(test)]
mod tests {
    use super::{Workspace, solve_into};
    use crate::{Hosts, Problem, Split};

    /// What [`Workspace`] promises: every vector has its final capacity from the start.
    #[test]
    fn memory_does_not_grow_after_set_up() {
        let ranks = 40u32;
        let lists = (0..200).map(|item| match item % 5 {
            0 => vec![item % ranks],
            1 => (0..ranks).collect(),
            step => vec![item % ranks, (item + step) % ranks],
        });
        let hosts = Hosts::new(ranks as usize, lists).expect("valid hosts");
        let even = Problem::new(hosts);
        let uneven = even.clone().with_speeds((1..=ranks).collect()).expect("positive speeds");
        for problem in [even, uneven] {
            let mut workspace = Workspace::new(&problem);
            let mut split = Split::default();
            solve_into(&problem, &[0; 200], &mut workspace, &mut split).expect("valid");
            let before = (workspace.capacities(), split.quotas.capacity(), split.certificate.capacity());
            for seed in 0..300u64 {
                let loads: Vec<u64> = (0..200).map(|item| (item * 7919 + seed * 104_729) % 1013).collect();
                solve_into(&problem, &loads, &mut workspace, &mut split).expect("valid");
            }
            let after = (workspace.capacities(), split.quotas.capacity(), split.certificate.capacity());
            assert_eq!(before, after);
        }
    }

    impl Workspace {
        fn capacities(&self) -> (usize, usize, usize, [usize; 6]) {
            let heap = self.level.heap.capacity();
            (self.room.capacity(), self.fill.capacity(), heap, self.search.capacities())
        }
    }
}

//! Plans of copies: feasible, conserving, deterministic, within their goals and above their bounds.

use evenkeel_solver::Hosts;
use evenkeel_solver::copies::{CopyGoal, CopyPlan, CopyProblem, CopySolver, CopyTimes, check_copies};
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct Case {
    problem: CopyProblem,
    batches: Vec<Vec<u32>>,
    present: Vec<u32>,
}

fn cases() -> impl Strategy<Value = Case> {
    (2..9usize, 0..4u32, any::<bool>(), any::<bool>(), any::<u64>())
        .prop_flat_map(|(ranks, slots, shared, kept, seed)| {
            let items = ranks..ranks * 5;
            (items, Just((ranks, slots, shared, kept, seed)))
        })
        .prop_flat_map(|(items, (ranks, slots, shared, kept, seed))| {
            let skewed = prop_oneof![3 => 0..50u32, 1 => 0..2000u32, 1 => Just(0u32)];
            let batches = prop::collection::vec(prop::collection::vec(skewed, items), 1..4);
            batches.prop_map(move |batches| {
                let mut draw = seed;
                let mut next = |bound: usize| {
                    draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (draw >> 33) as usize % bound
                };
                let lists: Vec<Vec<u32>> = (0..items)
                    .map(|item| {
                        let mut hosts = vec![(item % ranks) as u32];
                        if shared && next(3) == 0 {
                            let other = next(ranks) as u32;
                            if !hosts.contains(&other) {
                                hosts.push(other);
                            }
                        }
                        hosts
                    })
                    .collect();
                let hosts = Hosts::new(ranks, &lists).unwrap();
                let problem = CopyProblem::new(hosts, vec![slots; ranks]).unwrap();
                let mut present = problem.empty_slots();
                if kept {
                    for slot in 0..present.len() {
                        let (rank, item) = (slot / slots as usize, next(items) as u32);
                        let first = rank * slots as usize;
                        let own = present[first..first + slots as usize].contains(&item);
                        if !own && !lists[item as usize].contains(&(rank as u32)) {
                            present[slot] = item;
                        }
                    }
                }
                Case { problem, batches, present }
            })
        })
}

fn goals(loads: &[u32], ranks: usize) -> Vec<CopyGoal> {
    let mean = loads.iter().sum::<u32>().div_ceil(ranks as u32);
    let time = CopyTimes { token: 1, receive: 10, send: 7, hidden: 3, read: 0 };
    vec![
        CopyGoal::FewestCopies { peak: mean },
        CopyGoal::FewestCopies { peak: mean + mean / 8 },
        CopyGoal::LowestPeak { copies: 0 },
        CopyGoal::LowestPeak { copies: 2 },
        CopyGoal::LowestPeak { copies: u32::MAX },
        CopyGoal::LeastTime(time),
        CopyGoal::LeastTime(CopyTimes { receive: 0, send: 0, ..time }),
        CopyGoal::LeastTime(CopyTimes { hidden: 100, read: 2, ..time }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn plans_are_valid_and_do_not_depend_on_the_batches_before(case in cases()) {
        let mut used = CopySolver::new(&case.problem);
        for loads in &case.batches {
            for goal in goals(loads, case.problem.hosts().ranks()) {
                let plan = used.solve(loads, &case.present, goal).unwrap();
                check_copies(&case.problem, loads, &case.present, goal, &plan).unwrap();
                let fresh = CopySolver::new(&case.problem).solve(loads, &case.present, goal).unwrap();
                prop_assert_eq!(&plan, &fresh);
            }
        }
    }

    #[test]
    fn copies_never_raise_the_peak(case in cases()) {
        let mut solver = CopySolver::new(&case.problem);
        for loads in &case.batches {
            let none = solver.solve(loads, &case.present, CopyGoal::LowestPeak { copies: 0 }).unwrap();
            prop_assert!(none.copies.is_empty());
            let mean = CopyGoal::FewestCopies { peak: loads.iter().sum::<u32>().div_ceil(none.rank_loads.len() as u32) };
            let balanced = solver.solve(loads, &case.present, mean).unwrap();
            prop_assert!(balanced.peak == none.peak || balanced.least_copies > 0, "a lower peak without a copy");
            let mut before = none;
            for copies in [1, 2, 4, 100] {
                let plan = solver.solve(loads, &case.present, CopyGoal::LowestPeak { copies }).unwrap();
                prop_assert!(plan.peak <= before.peak || plan.peak.abs_diff(before.peak) * 20 <= before.peak);
                before = plan;
            }
            let balanced = CopyGoal::FewestCopies { peak: before.peak.max(1) };
            let plan: CopyPlan = solver.solve(loads, &case.present, balanced).unwrap();
            prop_assert!(plan.peak <= before.peak.max(1), "{} above {}", plan.peak, before.peak);
        }
    }
}

#[test]
fn balanced_routing_needs_no_copies() {
    let problem =
        CopyProblem::new(Hosts::new(4, (0..16).map(|item| [item % 4])).unwrap(), vec![2; 4]).unwrap();
    let (loads, present) = ([7; 16], problem.empty_slots());
    let times = CopyTimes { token: 1, receive: 1, send: 1, hidden: 0, read: 0 };
    for goal in
        [CopyGoal::FewestCopies { peak: 28 }, CopyGoal::LowestPeak { copies: 9 }, CopyGoal::LeastTime(times)]
    {
        let plan = CopySolver::new(&problem).solve(&loads, &present, goal).unwrap();
        assert!(plan.copies.is_empty(), "{goal:?}");
        assert_eq!((plan.peak, plan.least_peak), (28, 28));
    }
}

#[test]
fn an_overloaded_rank_passes_on_the_excess_of_another_one() {
    // Rank 0 fills three rooms. One room is left for 25 and 9 tokens, which leave rank 1 together.
    let loads = [166, 125, 109, 65, 70, 78, 86, 97];
    let problem = CopyProblem::new(Hosts::new(8, (0..8).map(|item| [item])).unwrap(), vec![1; 8]).unwrap();
    let (present, goal) = (problem.empty_slots(), CopyGoal::FewestCopies { peak: 100 });
    let plan = CopySolver::new(&problem).solve(&loads, &present, goal).unwrap();
    check_copies(&problem, &loads, &present, goal, &plan).unwrap();
    assert_eq!((plan.copies.len(), plan.least_copies, plan.peak), (5, 5, 100));
    assert!(plan.copies.iter().any(|copy| (copy.from, copy.to) == (2, 1)));
}

#[test]
fn the_bound_counts_the_items_that_must_leave_a_rank() {
    let hosts = Hosts::new(3, [[0], [0], [0], [0]]).unwrap();
    let problem = CopyProblem::new(hosts, vec![2; 3]).unwrap();
    let (present, goal) = (problem.empty_slots(), CopyGoal::FewestCopies { peak: 90 });
    let plan = CopySolver::new(&problem).solve(&[60; 4], &present, goal).unwrap();
    // Two rooms suffice for 150 tokens, but two items do not have as many.
    assert_eq!((plan.copies.len(), plan.least_copies), (3, 3));
}

#[test]
fn empty_batches_and_ranks_without_slots_have_plans() {
    let problem = CopyProblem::new(Hosts::new(2, [[0], [0], [1]]).unwrap(), vec![0, 0]).unwrap();
    let present = problem.empty_slots();
    assert!(present.is_empty());
    let plan =
        CopySolver::new(&problem).solve(&[5, 4, 1], &present, CopyGoal::FewestCopies { peak: 5 }).unwrap();
    assert_eq!((plan.peak, plan.least_peak, plan.copies.len()), (9, 9, 0));
    let plan =
        CopySolver::new(&problem).solve(&[0, 0, 0], &present, CopyGoal::LowestPeak { copies: 3 }).unwrap();
    assert_eq!(plan.peak, 0);
}

#[test]
fn the_largest_batches_and_times_have_plans() {
    for ranks in 1..6usize {
        let hosts = Hosts::new(ranks, (0..2 * ranks).map(|item| [(item % ranks) as u32])).unwrap();
        let problem = CopyProblem::new(hosts, vec![1; ranks]).unwrap();
        let mut present = problem.empty_slots();
        if let Some(slot) = present.get_mut(1) {
            *slot = 0;
        }
        let mut solver = CopySolver::new(&problem);
        let mut loads = vec![0; 2 * ranks];
        for (hot, load) in [(0, u32::MAX), (1, u32::MAX - 1), (1, u32::MAX / 2)] {
            loads.fill(0);
            loads[hot] = load;
            let times = |token, copy, hidden| {
                CopyGoal::LeastTime(CopyTimes { token, receive: copy, send: copy, hidden, read: 0 })
            };
            for goal in [
                CopyGoal::FewestCopies { peak: load / 2 + 1 },
                CopyGoal::FewestCopies { peak: load - load / 8 },
                CopyGoal::LowestPeak { copies: 1 },
                CopyGoal::LowestPeak { copies: u32::MAX },
                times(u64::MAX, u64::MAX, 0),
                times(1, u64::MAX, u64::MAX),
                times(u64::MAX / 2, 1, 0),
            ] {
                let plan = solver.solve(&loads, &present, goal).unwrap();
                check_copies(&problem, &loads, &present, goal, &plan).unwrap();
            }
        }
    }
}

#[test]
fn wrong_input_has_an_error_that_names_it() {
    let hosts = || Hosts::new(2, [[0], [1]]).unwrap();
    let message = CopyProblem::new(hosts(), vec![1]).unwrap_err().to_string();
    assert_eq!(message, "1 slot counts, but the problem has 2");
    let problem = CopyProblem::new(hosts(), vec![1, 1]).unwrap();
    let mut solver = CopySolver::new(&problem);
    let goal = CopyGoal::LowestPeak { copies: 1 };
    let mut fail =
        |loads: &[u32], present: &[u32]| solver.solve(loads, present, goal).unwrap_err().to_string();
    assert_eq!(fail(&[1], &[2, 2]), "1 loads, but the problem has 2");
    assert_eq!(fail(&[1, 1], &[2]), "1 dynamic slots, but the problem has 2");
    assert_eq!(fail(&[1, 1], &[3, 2]), "a dynamic slot of rank 0 holds item 3, but there are only 2 items");
    assert_eq!(fail(&[1, 1], &[0, 2]), "item 0 names host 0 twice");
    assert!(fail(&[u32::MAX, 1], &[2, 2]).contains("2^32 - 1"));
}

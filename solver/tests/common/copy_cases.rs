//! Small cases of copies for one batch, and their comparison with HiGHS.

use evenkeel_solver::Hosts;
use evenkeel_solver::copies::milp::solve_milp;
use evenkeel_solver::copies::{CopyEffort, CopyGoal, CopyProblem, CopySolver, CopyTimes, check_copies};
use rand::RngExt;
use rand_distr::{Distribution, Exp1, LogNormal};

/// Case with 4 to 8 ranks.
#[derive(Debug)]
pub(crate) struct CopyCase {
    pub(crate) problem: CopyProblem,
    pub(crate) loads: Vec<u32>,
    pub(crate) present: Vec<u32>,
    pub(crate) goal: CopyGoal,
}

/// Values of the solver and of the referee.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Comparison {
    /// "copies", "peak" or "time".
    pub(crate) objective: &'static str,
    pub(crate) value: u64,
    pub(crate) bound: u64,
    pub(crate) optimum: u64,
    /// Distance from the optimum: a share of the copies, or of the mean load (in time for times).
    pub(crate) gap: f64,
}

/// Returns a case. A third of the cases share items between ranks, and a third keep items from before.
pub(crate) fn draw_case(seed: u64) -> CopyCase {
    let mut rng = super::rng(seed);
    let ranks = rng.random_range(4..=8usize);
    let slots = rng.random_range(1..=2u32);
    let own = rng.random_range(2..=4usize);
    let items = ranks * own;
    let shared = rng.random_range(0..3) == 0;
    let mut lists: Vec<Vec<u32>> = (0..items).map(|item| vec![(item / own) as u32]).collect();
    for list in lists.iter_mut().filter(|_| shared) {
        let other = rng.random_range(0..ranks as u32);
        if rng.random_range(0..3) == 0 && other != list[0] {
            list.push(other);
        }
    }
    let law = rng.random_range(0..3);
    let spread = LogNormal::new(5.3, 1.2).expect("a positive deviation");
    let loads: Vec<u32> = (0..items)
        .map(|item| match law {
            0 => {
                let place = (item % own + 1) as f64;
                let hot = if item % own == 0 { 3.0 * rng.random::<f64>() } else { 0.0 };
                (1000.0 * (0.2 + hot) / (place * place)) as u32
            }
            1 => {
                let draw: f64 = Exp1.sample(&mut rng);
                (300.0 * draw) as u32
            }
            _ => f64::min(spread.sample(&mut rng), 1e6) as u32,
        })
        .collect();
    let hosts = Hosts::new(ranks, &lists).expect("valid hosts");
    let problem = CopyProblem::new(hosts, vec![slots; ranks]).expect("slots for every rank");
    let mut present = problem.empty_slots();
    if rng.random_range(0..3) == 0 {
        for slot in 0..present.len() {
            let (rank, item) = (slot / slots as usize, rng.random_range(0..items));
            let first = rank * slots as usize;
            let known = lists[item].contains(&(rank as u32)) || present[first..slot].contains(&(item as u32));
            if rng.random_range(0..2) == 0 && !known {
                present[slot] = item as u32;
            }
        }
    }
    let mean = loads.iter().sum::<u32>().div_ceil(ranks as u32);
    let goal = match seed % 3 {
        0 => CopyGoal::FewestCopies { peak: mean + mean * rng.random_range(0..2) / 20 + mean / 100 },
        1 => CopyGoal::LowestPeak { copies: [2, 4, u32::MAX][rng.random_range(0..3)] },
        _ => CopyGoal::LeastTime(CopyTimes {
            token: 64,
            receive: 64 * rng.random_range(20..170),
            send: 64 * rng.random_range(20..120),
            hidden: 64 * rng.random_range(0..2) * 100,
            read: 64 * rng.random_range(0..3) * 20,
        }),
    };
    CopyCase { problem, loads, present, goal }
}

/// Compares the solver with HiGHS. Returns `None` if HiGHS proves no optimum in time.
pub(crate) fn compare(case: &CopyCase, effort: CopyEffort, seconds: f64) -> Option<Comparison> {
    let CopyCase { problem, loads, present, goal } = case;
    let referee = solve_milp(problem, loads, present, *goal, seconds).filter(|value| value.proved)?;
    let mut solver = CopySolver::new(problem).with_effort(effort);
    let plan = solver.solve(loads, present, *goal).expect("valid input");
    check_copies(problem, loads, present, *goal, &plan).expect("a valid plan");
    let ranks = problem.hosts().ranks();
    let mean = f64::from(loads.iter().sum::<u32>()) / ranks as f64;
    let (objective, value, bound, unit) = match *goal {
        CopyGoal::FewestCopies { peak } => {
            // A missed target counts as all slots.
            let missed = if plan.peak > peak { present.len() } else { 0 };
            let copies = plan.copies.len().max(missed) as u64;
            ("copies", copies, u64::from(plan.least_copies), (referee.value as f64).max(1.0))
        }
        CopyGoal::LowestPeak { .. } => ("peak", u64::from(plan.peak), u64::from(plan.least_peak), mean),
        CopyGoal::LeastTime(times) => {
            let time = times.measure(plan.peak, &plan.copies, ranks);
            ("time", time, plan.least_time, mean * times.token as f64)
        }
    };
    let gap = (value as f64 - referee.value as f64) / unit;
    Some(Comparison { objective, value, bound, optimum: referee.value, gap })
}

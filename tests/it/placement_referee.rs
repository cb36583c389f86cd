//! The referee of placements: small cases with proved optima, and the distance of `recourse` from them.
//!
//! **Cases.** A case has 6, 7 or 8 experts on as many ranks, one redundant slot on each (two slots per rank),
//! and 12 batches of 1200 tokens per rank. Every expert has a popularity, log-normal with σ = 1. In every
//! batch another log-normal number with σ = 0.7 multiplies it, since independent draws of tokens would hardly
//! differ between batches of that size. The tokens are distributed in proportion. Seeds count up from 0. A
//! case is used if all placements were evaluated within the limit (proved) and the best is at least 1 % above
//! the mean. Others are counted.

#![allow(clippy::unwrap_used)]

use evenkeel::cluster::Cluster;
use evenkeel::evaluate::evaluate_layer;
use evenkeel::forecast::History;
use evenkeel::place::{self, Contiguous, Milp, MilpSolution, PlaceRequest, Placement, Policy, Recourse};
use evenkeel::split::SplitMethod;
use evenkeel::trace::Trace;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, LogNormal};
use rayon::prelude::*;

const BATCHES: usize = 12;
const PER_RANK: f64 = 1200.0;
/// Mean load of a rank, all batches together.
const MEAN: u64 = BATCHES as u64 * PER_RANK as u64;
/// Largest number of partial placements that a proof may take.
const LIMIT: u64 = 3_000_000;

struct Case {
    trace: Trace,
    cluster: Cluster,
}

fn case(size: usize, seed: u64) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(size as u64);
    let (popular, changing) = (LogNormal::new(0.0, 1.0).unwrap(), LogNormal::new(0.0, 0.7).unwrap());
    let popularity: Vec<f64> = (0..size).map(|_| popular.sample(&mut rng)).collect();
    let mut loads = Vec::new();
    for _ in 0..BATCHES {
        let shares: Vec<f64> = popularity.iter().map(|share| share * changing.sample(&mut rng)).collect();
        let (sum, tokens) = (shares.iter().sum::<f64>(), PER_RANK * size as f64);
        let (mut upto, mut given) = (0.0, 0);
        for share in shares {
            upto += share / sum * tokens;
            let now = (upto.round() as u64).min(tokens as u64);
            loads.push(now - given);
            given = now;
        }
        // Tokens that rounding has left over.
        *loads.last_mut().unwrap() += tokens as u64 - given;
    }
    let steps = (0..BATCHES).map(|step| step.to_string()).collect();
    let trace = Trace::from_loads(size, vec![0], steps, loads).unwrap();
    Case { trace, cluster: Cluster::new(size, 1, size, size).unwrap() }
}

impl Case {
    fn history(&self) -> History<'_> {
        History::from_trace(&self.trace, 0)
    }

    /// Returns the sum of the peaks of all batches.
    fn peaks(&self, placement: &Placement) -> u64 {
        evaluate_layer(&self.trace, 0, 0..BATCHES, placement, SplitMethod::Exact).unwrap().peaks.iter().sum()
    }

    /// Returns the least sum of peaks of any placement, if it is proved within the limit.
    fn optimum(&self, start: &Placement) -> Option<u64> {
        let batches: Vec<&[u64]> = self.history().batches().collect();
        let found = place::find_optimum(&batches, &[1; BATCHES], start, &self.cluster, LIMIT).unwrap()?;
        assert_eq!(found.score, self.peaks(&found.placement));
        Some(found.score)
    }
}

/// Result of one case.
struct Judged {
    size: usize,
    seed: u64,
    mean: u64,
    found: u64,
    optimum: Option<u64>,
}

#[test]
fn recourse_is_within_one_percent_of_the_optimum() {
    let drawn: Vec<(usize, u64)> = [(6, 80), (7, 80), (8, 50)]
        .into_iter()
        .flat_map(|(size, cases)| (0..cases).map(move |seed| (size, seed)))
        .collect();
    // The test judges the search, not the forecast, so the search sees the judged batches.
    let recourse =
        Recourse::default().for_split(SplitMethod::Exact).without_perturbation().with_scenarios(BATCHES);
    let judged: Vec<Judged> = drawn
        .par_iter()
        .map(|&(size, seed)| {
            let case = case(size, seed);
            let history = case.history();
            let placement = recourse.place(&PlaceRequest::new(&history, &case.cluster)).unwrap().placement;
            let (found, optimum) = (case.peaks(&placement), case.optimum(&placement));
            Judged { size, seed, mean: MEAN, found, optimum }
        })
        .collect();
    let unproved = judged.iter().filter(|case| case.optimum.is_none()).count();
    let above = |case: &&Judged| case.optimum.is_some_and(|best| best * 100 >= case.mean * 101);
    let used: Vec<&Judged> = judged.iter().filter(above).collect();
    let easy = judged.len() - unproved - used.len();
    let gap = |case: &Judged| case.found as f64 / case.optimum.unwrap() as f64 - 1.0;
    let average = used.iter().map(|case| gap(case)).sum::<f64>() / used.len() as f64;
    let over_mean =
        used.iter().map(|case| case.optimum.unwrap() as f64 / case.mean as f64 - 1.0).sum::<f64>();
    let worst = used.iter().max_by(|a, b| gap(a).total_cmp(&gap(b))).unwrap();
    println!(
        "{} cases drawn, {unproved} unproved, {easy} with an optimum less than 1 % above the mean; {} used, whose optimum \
         is {:.1} % above the mean on average\nrecourse: {:.3} % above the optimum on average, at the optimum in {} cases; \
         worst {:.2} % ({} experts, seed {})",
        judged.len(),
        used.len(),
        100.0 * over_mean / used.len() as f64,
        100.0 * average,
        used.iter().filter(|case| case.found == case.optimum.unwrap()).count(),
        100.0 * gap(worst),
        worst.size,
        worst.seed,
    );
    assert!(
        judged.iter().all(|case| case.optimum.is_none_or(|best| case.mean <= best && best <= case.found))
    );
    assert!(used.len() >= 200, "only {} cases", used.len());
    assert!(average <= 0.01, "{average}");
}

#[cfg(feature = "highs")]
#[test]
fn a_mixed_integer_programme_agrees_with_trying_all() {
    let compared: Vec<(usize, u64, bool)> = [(6, 0), (6, 1), (6, 2), (6, 3), (7, 0)]
        .par_iter()
        .map(|&(size, seed)| {
            let case = case(size, seed);
            let MilpSolution { placement, proved, .. } = Milp.solve(&case.history(), &case.cluster).unwrap();
            let contiguous = Contiguous::placement(size, &case.cluster).unwrap();
            let best = case.optimum(&contiguous).unwrap();
            let found = case.peaks(&placement);
            assert!(
                found >= best && (!proved || found == best),
                "{size} experts, seed {seed}: {found}, {best}"
            );
            (size, seed, proved)
        })
        .collect();
    println!("(experts, seed, proved): {compared:?}");
    assert!(compared.iter().filter(|case| case.2).count() >= 4, "{compared:?}");
}

#[cfg(not(feature = "highs"))]
#[test]
fn without_its_engine_milp_says_what_is_missing() {
    let case = case(6, 0);
    let message = Milp.solve(&case.history(), &case.cluster).unwrap_err().to_string();
    assert!(message.contains("--features highs"), "{message}");
}

#[test]
fn policies_that_solve_programmes_hold_on_small_cases() {
    let case = case(6, 0);
    let contiguous = case.peaks(&Contiguous::placement(6, &case.cluster).unwrap());
    let best = case.optimum(&Contiguous::placement(6, &case.cluster).unwrap()).unwrap();
    let rounded = place::policy("lp-round", 1, &case.cluster).unwrap();
    let history = case.history();
    let rounded = rounded.place(&PlaceRequest::new(&history, &case.cluster)).unwrap().placement;
    let found = case.peaks(&rounded);
    println!("mean {MEAN}, optimum {best}, lp-round {found}, contiguous {contiguous}");
    assert!(best <= found && found < contiguous);
    let large = Trace::from_loads(9, vec![0], vec!["0".into()], vec![1; 9]).unwrap();
    let cluster = Cluster::new(3, 1, 9, 3).unwrap();
    let message = Milp.solve(&History::from_trace(&large, 0), &cluster).unwrap_err().to_string();
    assert!(message.contains("8 experts at most, there are 9"), "{message}");
}

//! The loop closed: a model runs, its routing is recorded, forecast, planned for again, and experts move while it runs.
//!
//!     cargo run --release --example closed_loop [-- MAX_MOVES [STEPS.csv]]
//!
//! Tokens share a direction that turns from step to step, so the experts that a real router prefers change. Three placements
//! see the same routing: none, the first plan kept for good, and one that is planned again on the last steps, coming from what
//! is in force with few moves (at most MAX_MOVES, where given), and moved to within a budget of bytes per step. Every step is
//! checked against one dense memory in double precision, and written to STEPS.csv, from which `docs/draw_closed_loop.py` draws
//! the picture in the README.

use evenkeel::cluster::Cluster;
use evenkeel::exec::activations::Activations;
use evenkeel::exec::cpu::Cpu;
use evenkeel::exec::forward::step;
use evenkeel::exec::moves::Mover;
use evenkeel::exec::reference::Reference;
use evenkeel::exec::router::Router;
use evenkeel::exec::weights::{Dtype, RandomWeights, WeightSource};
use evenkeel::exec::{Aggregate, Backend, ExecConfig, Routed};
use evenkeel::forecast::History;
use evenkeel::model::Model;
use evenkeel::place::{self, Contiguous, Placement};
use evenkeel::split::{Method, Split, Splitter};
use evenkeel::trace::Trace;
use std::sync::Arc;

const WINDOW: usize = 10;
const WINDOWS: usize = 12;
const TOKENS_PER_RANK: usize = 32;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let max_moves: Option<usize> = std::env::args().nth(1).map(|most| most.parse()).transpose()?;
    let mut steps = String::from("step,no_plan,first_plan,replanned,moved\n");
    // Qwen3-30B's routing (128 experts, top-8) with experts of a size that runs in a moment.
    let model = Model { hidden: 64, intermediate: 32, ..Model::clone(&"qwen3-30b-a3b".parse()?) };
    let cluster = Cluster::new(8, 1, model.experts, 16)?;
    let exec = ExecConfig {
        model,
        cluster,
        router: Router::of(&model),
        capacity: None,
        method: Some(Method::Exact),
        then: None,
        aggregate: Aggregate::None,
        dtype: Dtype::Bf16,
        seed: 1,
    };
    let weights = RandomWeights { model, width: model.experts, dtype: exec.dtype, seed: 1 };
    let weights: Arc<dyn WeightSource> = Arc::new(weights);
    let contiguous = Contiguous::placement(model.experts, &cluster)?;
    let mut backend = Cpu::new(exec.clone(), weights.as_ref(), vec![contiguous.clone()])?;
    let mut reference = Reference::new(exec.clone(), Arc::clone(&weights));
    let tokens = Activations { skew: 0.8, drift: 0.02, ..Activations::new(64, 1) };
    let policy = place::policy("recourse:exact", 1, &cluster)?;

    // Three experts' worth of weights per rank and step.
    let mut mover = Mover::new(24 * backend.bytes(0, 0)?);
    let (mut loads, mut first, mut worst) = (Vec::new(), None::<Placement>, 0f64);
    println!("mean imbalance of {WINDOW} steps: the busiest rank's tokens over the average rank's\n");
    println!("{:>9}  {:>7}  {:>10}  {:>9}  {:>6}", "steps", "no plan", "first plan", "re-planned", "moved");
    for window in 0..WINDOWS {
        let (mut sums, mut moved) = ([0f64; 3], 0);
        for at in window * WINDOW..(window + 1) * WINDOW {
            let copies = mover.between_steps(&mut backend)?.copies;
            moved += copies;
            // Forward: norm, route, count, gather, split, dispatch, experts, combine, residual.
            let mut x: Vec<Vec<f32>> =
                (0..cluster.ranks()).map(|rank| tokens.of(at as u64, rank, TOKENS_PER_RANK)).collect();
            let run = step(&mut backend, 1, at as u64, &mut x, |_| Routed::Router, Some(&mut reference))?;
            let check = run.check.unwrap_or_default();
            assert!(check.ok(exec.dtype), "step {at}: {check:?}");
            worst = worst.max(check.output);
            // Record; and see what the other placements would have served of the same counts.
            let layer = &run.layers[0];
            loads.extend(&layer.counts);
            let now = [
                imbalance(&served(&contiguous, &layer.counts)?),
                imbalance(&served(first.as_ref().unwrap_or(&contiguous), &layer.counts)?),
                imbalance(&layer.rank_loads),
            ];
            sums.iter_mut().zip(now).for_each(|(sum, now)| *sum += now);
            steps += &format!("{at},{:.4},{:.4},{:.4},{copies}\n", now[0], now[1], now[2]);
        }
        let means = sums.map(|sum| sum / WINDOW as f64);
        let bar = "#".repeat(((means[2] - 1.0) * 40.0).round() as usize);
        println!(
            "{:>4}..{:<3}  {:>7.3}  {:>10.3}  {:>10.3}  {:>6}  {bar}",
            window * WINDOW,
            (window + 1) * WINDOW,
            means[0],
            means[1],
            means[2],
            moved
        );
        // Forecast from the last steps, plan again, and move.
        if !mover.is_done() {
            continue;
        }
        let labels = (0..(window + 1) * WINDOW).map(|at| at.to_string()).collect();
        let trace = Trace::from_loads(model.experts, vec![0], labels, loads.clone())?;
        let recent = History::window(&trace, 0, window * WINDOW..(window + 1) * WINDOW);
        // The first plan comes from nothing planned and may move what it likes.
        let limit = if first.is_some() { max_moves } else { None };
        let placement = policy.replan(&recent, &cluster, backend.placement(0), limit)?;
        first.get_or_insert_with(|| placement.clone());
        mover.aim(&backend, 0, placement);
    }
    if let Some(path) = std::env::args().nth(2) {
        std::fs::write(path, steps)?;
    }
    println!("\nlargest error of a token in {} steps: {worst:.1e} (2e-2 allowed)", WINDOW * WINDOWS);
    Ok(())
}

/// Tokens that every rank serves of these counts, split exactly.
fn served(placement: &Placement, counts: &[u64]) -> Result<Vec<u64>, Box<dyn std::error::Error>> {
    let mut split = Split::default();
    Splitter::new(placement.clone(), Method::Exact)?.split(counts, &mut split)?;
    Ok(split.rank_loads)
}

fn imbalance(loads: &[u64]) -> f64 {
    let mean = loads.iter().sum::<u64>() as f64 / loads.len() as f64;
    loads.iter().copied().max().unwrap_or(0) as f64 / mean
}

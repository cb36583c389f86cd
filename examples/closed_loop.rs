//! Closes the loop: a model runs, its routing is recorded and forecast, layers are re-planned, and experts
//! move during the run.
//!
//!     cargo run --release --example closed_loop [-- MAX_MOVES [STEPS.csv]]
//!
//! Tokens share a direction that turns from step to step, so the experts that a real router prefers change.
//! Three placements see the same routing: none, the first plan kept forever, and re-planning on the last
//! steps. Re-planning starts from the current placement with few moves (at most MAX_MOVES, if given), and
//! moves experts within a budget of bytes per step. Every step is compared with one dense memory in double
//! precision, and written to STEPS.csv. `scripts/draw_closed_loop.py` draws the picture in the README from
//! this file.

use evenkeel::cluster::Cluster;
use evenkeel::forecast::History;
use evenkeel::model::MoeModel;
use evenkeel::place::{self, Contiguous, PlaceRequest, Placement};
use evenkeel::split::{Split, SplitMethod, Splitter};
use evenkeel::trace::Trace;
use evenkeel_exec::activations::ActivationGenerator;
use evenkeel_exec::cpu::Cpu;
use evenkeel_exec::forward::run_step;
use evenkeel_exec::migration::ExpertMigrator;
use evenkeel_exec::reference::Reference;
use evenkeel_exec::router::Router;
use evenkeel_exec::weights::{Dtype, RandomWeights, WeightSource};
use evenkeel_exec::{Aggregate, Backend, ExecConfig, RoutingSource};
use std::sync::Arc;

const WINDOW: usize = 10;
const WINDOWS: usize = 12;
const TOKENS_PER_RANK: usize = 32;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let max_moves: Option<usize> = std::env::args().nth(1).map(|most| most.parse()).transpose()?;
    let mut steps = String::from("step,no_plan,first_plan,replanned,moved\n");
    // Qwen3-30B's routing (128 experts, top-8), with small experts that run quickly.
    let model = MoeModel { hidden: 64, intermediate: 32, ..MoeModel::clone(&"qwen3-30b-a3b".parse()?) };
    let cluster = Cluster::new(8, 1, model.experts, 16)?;
    let exec = ExecConfig {
        model,
        cluster,
        router: Router::for_model(&model),
        capacity: None,
        method: Some(SplitMethod::Exact),
        tie_break: None,
        aggregate: Aggregate::None,
        dynamic: None,
        dtype: Dtype::Bf16,
        seed: 1,
    };
    let weights = RandomWeights { model, width: model.experts, dtype: exec.dtype, seed: 1 };
    let weights: Arc<dyn WeightSource> = Arc::new(weights);
    let contiguous = Contiguous::placement(model.experts, &cluster)?;
    let mut backend = Cpu::new(exec.clone(), weights.as_ref(), vec![contiguous.clone()])?;
    let mut reference = Reference::new(exec.clone(), Arc::clone(&weights));
    let tokens = ActivationGenerator { skew: 0.8, drift: 0.02, ..ActivationGenerator::new(64, 1) };
    let policy = place::policy("recourse:exact", 1, &cluster)?;

    // The budget is the weights of three experts per rank and step.
    let mut mover = ExpertMigrator::new(24 * backend.expert_bytes(0, 0)?);
    let (mut loads, mut first, mut worst) = (Vec::new(), None::<Placement>, 0f64);
    println!("mean imbalance of {WINDOW} steps: the busiest rank's tokens over the average rank's\n");
    println!("{:>9}  {:>7}  {:>10}  {:>9}  {:>6}", "steps", "no plan", "first plan", "re-planned", "moved");
    for window in 0..WINDOWS {
        let (mut sums, mut moved) = ([0f64; 3], 0);
        for at in window * WINDOW..(window + 1) * WINDOW {
            let copies = mover.between_steps(&mut backend)?.copies;
            moved += copies;
            // Forward pass: norm, route, count, gather, split, dispatch, experts, combine, residual.
            let mut x: Vec<Vec<f32>> = (0..cluster.ranks())
                .map(|rank| tokens.token_vectors(at as u64, rank, TOKENS_PER_RANK))
                .collect();
            let run = run_step(
                &mut backend,
                1,
                at as u64,
                &mut x,
                |_| RoutingSource::Router,
                Some(&mut reference),
            )?;
            let check = run.check.unwrap_or_default();
            assert!(check.within_bounds(exec.dtype), "step {at}: {check:?}");
            worst = worst.max(check.output);
            // Records the counts, and computes the loads of the other placements for the same counts.
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
        // Forecasts from the last steps, re-plans, and begins the moves.
        if !mover.is_done() {
            continue;
        }
        let labels = (0..(window + 1) * WINDOW).map(|at| at.to_string()).collect();
        let trace = Trace::from_loads(model.experts, vec![0], labels, loads.clone())?;
        let recent = History::from_steps(&trace, 0, window * WINDOW..(window + 1) * WINDOW);
        // The first plan has no predecessor, so its moves are not limited.
        let limit = if first.is_some() { max_moves } else { None };
        let request = PlaceRequest::new(&recent, &cluster).previous(backend.placement(0)).max_moves(limit);
        let placement = policy.place(&request)?.placement;
        first.get_or_insert_with(|| placement.clone());
        mover.set_target(&backend, 0, placement);
    }
    if let Some(path) = std::env::args().nth(2) {
        std::fs::write(path, steps)?;
    }
    println!("\nlargest error of a token in {} steps: {worst:.1e} (2e-2 allowed)", WINDOW * WINDOWS);
    Ok(())
}

/// Returns the tokens that every rank serves of these counts, split exactly.
fn served(placement: &Placement, counts: &[u64]) -> Result<Vec<u64>, Box<dyn std::error::Error>> {
    let mut split = Split::default();
    Splitter::new(placement.clone(), SplitMethod::Exact)?.split(counts, &mut split)?;
    Ok(split.rank_loads)
}

fn imbalance(loads: &[u64]) -> f64 {
    let mean = loads.iter().sum::<u64>() as f64 / loads.len() as f64;
    loads.iter().copied().max().unwrap_or(0) as f64 / mean
}

//! Turns a trace into a plan by library calls, as `evenkeel plan` does.
//!
//!     cargo run --release --example offline

use evenkeel::cluster::Cluster;
use evenkeel::place;
use evenkeel::plan::{Plan, PlanRequest};
use evenkeel_trace::{Batching, synth};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Any trace is possible: `trace::read` reads recorded ones.
    let spec = synth::SynthSpec::default()
        .experts(64)
        .top_k(6)
        .layers(4)
        .steps(100)
        .batching(Batching::Prefill { tokens: 512 })
        .seed(7);
    let trace = synth::generate(&spec)?;

    // 16 ranks in 2 nodes, one redundant slot on each.
    let group = Cluster::builder().ranks(16).nodes(2).experts(trace.experts());
    let cluster = group.redundant_slots(16).build()?;
    for name in ["contiguous", "eplb", "lplb:torus:4x4"] {
        let cluster = if name.ends_with("4x4") { group.redundant_slots(32).build()? } else { cluster };
        let policy = place::policy(name, 1, &cluster)?;
        let made = PlanRequest::new(&trace, cluster, policy.as_ref()).run(&())?;
        let expected = made.plan.provenance.imbalance;
        println!(
            "{name:15} {} slots per rank: mean imbalance {:.3}, p95 {:.3}",
            cluster.slots_per_rank(),
            expected.mean,
            expected.p95
        );
        // The artefact reads back unchanged.
        assert_eq!(Plan::from_json(&made.plan.to_json()?)?, made.plan);
    }
    Ok(())
}

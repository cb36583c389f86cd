//! The library call inside a serving loop: one splitter per layer splits every batch in microseconds, with a
//! proof.
//!
//!     cargo run --release --example serving_loop

use evenkeel::cluster::Cluster;
use evenkeel::forecast::History;
use evenkeel::place::{self, PlaceRequest};
use evenkeel::split::{Split, SplitMethod, Splitter};
use evenkeel_trace::{Batching, synth};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let spec = synth::SynthSpec::default().layers(1).steps(60).batching(Batching::Decode { in_flight: 64 });
    let trace = synth::generate(&spec)?;
    let cluster = Cluster::builder().ranks(8).experts(trace.experts()).redundant_slots(8).build()?;

    // The slow loop runs occasionally: it places experts on past loads (here, the first 20 batches).
    let history = History::from_steps(&trace, 0, 0..20);
    let policy = place::policy("lplb:ring", 1, &cluster)?;
    let placement = policy.place(&PlaceRequest::new(&history, &cluster))?.placement;

    // The fast loop runs for every batch: counts per expert in, whole tokens per slot out. The memory is
    // reused.
    let mut splitter = Splitter::new(placement, SplitMethod::Exact)?;
    let mut split = Split::default();
    let (mut even, mut exact) = (0.0, 0.0);
    let mut baseline = Splitter::new(splitter.placement().clone(), SplitMethod::Even)?;
    for step in 20..60 {
        let loads = trace.loads(step, 0);
        let mean = loads.iter().sum::<u64>() as f64 / 8.0;
        baseline.split(loads, &mut split)?;
        even += split.peak() as f64 / mean / 40.0;
        splitter.split(loads, &mut split)?;
        splitter.check(loads, &split)?; // every token served; the certificate proves the peak
        exact += split.peak() as f64 / mean / 40.0;
    }
    println!("mean imbalance over 40 batches: even split {even:.3}, exact split {exact:.3}");
    println!(
        "last batch: tokens per rank {:?}; ranks {:?} prove the peak",
        split.rank_loads, split.certificate
    );
    Ok(())
}

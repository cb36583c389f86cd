//! Synthetic traces that behave like real routing.
//!
//! Input is a [`SynthSpec`]. Output is a [`Trace`] ([`generate`]) or a file written step by step
//! ([`write()`]). Each token draws its top-k experts without replacement from softmax weights. This equals
//! Gumbel top-k in law (a Plackett-Luce draw). The logits for expert `e` of layer `l`, in a request of kind
//! `d`, at step `t` are
//!
//! ```text
//! skew * tail(base[l][e])                             popularity that never changes
//! + kinds_spread * kind[l][d][e]                      preference of the kind of text
//! + dispersion * ( sqrt(c) * F[l][e] . z / sqrt(rank)
//!                + sqrt(1-c) * own[l][e] )            preference of the request, c = correlation
//! + drift * ar1[t][l][e]                              slow change of everything, AR(1) in steps
//! ```
//!
//! All letters are standard normal. `z` is one latent vector per request that all layers share, so the loads
//! of experts correlate within and across layers. Logistic-normal weights: Aitchison and Shen, Biometrika 67
//! (1980). The numbers depend only on the seed. Every layer draws from its own stream, whatever the number of
//! threads.

mod layer;
mod requests;
mod resample;
mod spec;

pub use evenkeel::trace::Resampling;
pub use resample::{draw_batches, resample};
pub use spec::{PRESETS, SynthSpec};

use super::write::TraceWriter;
use super::{Location, ReadOptions, ReadProgress, Trace, TraceError};
use evenkeel::rng::SeededRng;
use evenkeel::trace::build::SinkError;
use evenkeel::trace::build::TraceBuilder;
use evenkeel::trace::build::{Sink, StepLabel};
use layer::SynthLayer;
use rayon::prelude::*;
use requests::RequestStream;
use std::path::Path;

/// The first stream of the layers. The requests use stream 0.
const FIRST_LAYER_STREAM: u64 = 1;

/// Generates a trace in memory, with 8 bytes per step, layer and expert.
///
/// # Errors
/// Fails if the values of `spec` are inconsistent.
pub fn generate(spec: &SynthSpec) -> Result<Trace, TraceError> {
    let options = ReadOptions::default().memory(u64::MAX).experts(Some(spec.experts));
    let mut builder = TraceBuilder::new(&options)?;
    generate_into(spec, &(), &mut builder)?;
    builder.finish(Vec::new(), Vec::new())
}

/// Writes a trace step by step, and holds only one step. Returns the number of rows. `progress` receives
/// steps instead of bytes.
///
/// # Errors
/// Fails if the values of `spec` are inconsistent, or if `out` cannot be written.
pub fn write(spec: &SynthSpec, out: &Path, progress: &dyn ReadProgress) -> Result<u64, TraceError> {
    spec.check_values()?;
    let mut writer = TraceWriter::create(out, &ReadOptions::default())?;
    generate_into(spec, progress, &mut writer)?;
    Ok(writer.finish()?.0)
}

fn generate_into(
    spec: &SynthSpec,
    progress: &dyn ReadProgress,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    spec.check_values()?;
    let fault = |fault: SinkError| fault.into_trace_error(Path::new("synthetic trace"), Location::File);
    let mut requests = RequestStream::new(spec, SeededRng::new(spec.seed, 0));
    let mut layers: Vec<SynthLayer> = (0..spec.layers)
        .into_par_iter()
        .map(|layer| SynthLayer::new(spec, SeededRng::new(spec.seed, FIRST_LAYER_STREAM + layer as u64)))
        .collect();
    sink.begin_source();
    sink.declare_experts(spec.experts).map_err(fault)?;
    for step in 0..spec.steps {
        let portions = requests.next_step();
        layers.par_iter_mut().for_each(|layer| layer.draw_step(portions));
        sink.select_step(StepLabel::Number(step as u64)).map_err(fault)?;
        for (at, layer) in layers.iter().enumerate() {
            sink.add_counts(spec.first_layer + at as u32, layer.counts()).map_err(fault)?;
        }
        progress.report_bytes(step as u64 + 1, spec.steps as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Batching;

    fn small() -> SynthSpec {
        SynthSpec { experts: 16, top_k: 3, layers: 4, steps: 20, first_layer: 3, ..SynthSpec::default() }
    }

    #[test]
    fn every_token_draws_top_k_distinct_experts() {
        for batching in [Batching::Prefill { tokens: 100 }, Batching::Decode { in_flight: 100 }] {
            let spec = SynthSpec { batching, skew: 4.0, ..small() };
            let trace = generate(&spec).unwrap();
            assert_eq!((trace.layers(), trace.steps().len()), (&[3, 4, 5, 6][..], 20));
            for step in 0..20 {
                for layer in 0..4 {
                    let loads = trace.loads(step, layer);
                    assert_eq!(loads.iter().sum::<u64>(), 300);
                    assert!(loads.iter().all(|&tokens| tokens <= 100), "{loads:?}");
                }
            }
        }
    }

    #[test]
    fn same_seed_same_trace_for_any_thread_count() {
        let spec = small();
        let totals = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let trace = pool.install(|| generate(&spec)).unwrap();
            (0..20).flat_map(|step| trace.loads(step, 2).to_vec()).collect::<Vec<u64>>()
        };
        assert_eq!(totals(1), totals(4));
        let other = generate(&SynthSpec { seed: 1, ..spec.clone() }).unwrap();
        assert_ne!(totals(1)[..16], *other.loads(0, 2));
    }

    #[test]
    fn skew_and_dispersion_do_what_they_say() {
        let imbalance = |spec: &SynthSpec| {
            let trace = generate(spec).unwrap();
            let sum: f64 = (0..trace.steps().len())
                .map(|step| {
                    let loads = trace.loads(step, 0);
                    *loads.iter().max().unwrap() as f64 * 16.0 / loads.iter().sum::<u64>() as f64
                })
                .sum();
            sum / trace.steps().len() as f64
        };
        let flat = SynthSpec { skew: 0.0, dispersion: 0.0, drift: 0.0, kinds_spread: 0.0, ..small() };
        let flat_value = imbalance(&flat);
        assert!(flat_value < 1.3, "{flat_value}");
        assert!(imbalance(&SynthSpec { skew: 1.5, ..flat.clone() }) > flat_value + 0.5);
        assert!(imbalance(&SynthSpec { dispersion: 1.5, ..flat }) > flat_value + 0.1);
    }

    #[test]
    fn wrong_values_are_named() {
        for (spec, expected) in [
            (SynthSpec { experts: 0, ..small() }, "experts"),
            (SynthSpec { top_k: 17, ..small() }, "top-k"),
            (SynthSpec { skew: f64::NAN, ..small() }, "skew"),
            (SynthSpec { drift_persistence: 1.5, ..small() }, "persistence"),
            (SynthSpec { batching: Batching::Decode { in_flight: 0 }, ..small() }, "batch"),
        ] {
            let message = generate(&spec).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}

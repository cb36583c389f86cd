//! Batches for traces that hold only totals.
//!
//! In: a trace with few steps, each a sum over many batches. Out: a trace of single batches whose requests take each
//! recorded step as one kind of text. Batches drawn independently from averages would be far too easy to balance
//! (imbalance 1.03 where real ones have 1.13 to 1.44), so requests are as over-dispersed as in the recordings that the
//! presets are fitted to. Such figures are models of the traffic, not measurements of it; the notice says so.

use super::layer::Layer;
use super::requests::Requests;
use super::{LAYER_STREAMS, SynthSpec};
use crate::trace::dice::Dice;
use crate::trace::{Trace, TraceError};
use rayon::prelude::*;

/// Draws `spec.steps` batches from the steps of `trace`. Of `spec`, the shape (experts, layers) and the popularity
/// of experts (skew, kinds) are the trace's; batching, dispersion, requests, drift and seed are used as they are.
///
/// # Errors
/// When the trace holds no tokens or the values of `spec` do not go together.
pub fn resample(trace: &Trace, spec: &SynthSpec) -> Result<Trace, TraceError> {
    let busy =
        |step: usize| (0..trace.layers().len()).any(|layer| trace.loads(step, layer).iter().any(|&l| l > 0));
    let kinds: Vec<usize> = (0..trace.steps().len()).filter(|&step| busy(step)).collect();
    let idle = trace.idle_layers();
    let layers: Vec<usize> =
        (0..trace.layers().len()).filter(|layer| idle.binary_search(layer).is_err()).collect();
    if kinds.is_empty() {
        return Err(TraceError::Options("the trace holds no tokens: there is nothing to resample".into()));
    }
    let spec = SynthSpec {
        experts: trace.experts(),
        layers: layers.len(),
        first_layer: 0,
        kinds: kinds.len(),
        ..spec.clone()
    };
    spec.check()?;
    let mut requests = Requests::new(&spec, Dice::new(spec.seed, 0));
    let mut drawn: Vec<Layer> = layers
        .par_iter()
        .enumerate()
        .map(|(at, &layer)| {
            let logits = kinds.iter().map(|&step| logits(trace, step, layer)).collect();
            Layer::with_kinds(&spec, logits, Dice::new(spec.seed, LAYER_STREAMS + at as u64))
        })
        .collect();
    let mut loads = Vec::with_capacity(spec.steps * layers.len() * spec.experts);
    for _ in 0..spec.steps {
        let portions = requests.step();
        drawn.par_iter_mut().for_each(|layer| layer.step(portions));
        loads.extend(drawn.iter().flat_map(Layer::counts));
    }
    let ids = layers.iter().map(|&layer| trace.layers()[layer]).collect();
    let steps = (0..spec.steps).map(|step| step.to_string()).collect();
    let mut resampled = Trace::from_loads(spec.experts, ids, steps, loads)?;
    resampled.format = trace.format;
    resampled.files.clone_from(&trace.files);
    resampled.notices.clone_from(&trace.notices);
    resampled.notices.push(format!(
        "{} batches resampled from {} recorded step(s), over-dispersed, seed {}: a model, not a recording",
        spec.steps,
        kinds.len(),
        spec.seed
    ));
    Ok(resampled)
}

/// Log-shares of the experts in one recorded step; where the layer is empty in it, over the whole trace.
fn logits(trace: &Trace, step: usize, layer: usize) -> Vec<f64> {
    let here = trace.loads(step, layer);
    let loads = if here.iter().any(|&load| load > 0) { here } else { trace.totals(layer) };
    let total: f64 = loads.iter().map(|&load| load as f64).sum();
    // Half a token for experts never seen, as Jeffreys would.
    loads.iter().map(|&load| ((load as f64 + 0.5) / total * loads.len() as f64).ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Batching;

    fn totals() -> Trace {
        // Two kinds of text, layers 3 and 7 busy, 5 idle.
        let loads = vec![
            900, 50, 30, 20, 0, 0, 0, 0, 10, 10, 10, 970, //
            20, 30, 50, 900, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        Trace::from_loads(4, vec![3, 5, 7], vec!["a".into(), "b".into()], loads).unwrap()
    }

    #[test]
    fn batches_keep_the_shape_and_the_favourites() {
        let spec = SynthSpec {
            top_k: 1,
            steps: 300,
            batching: Batching::Prefill { tokens: 100 },
            request_tokens: 50.0,
            dispersion: 0.3,
            drift: 0.0,
            ..SynthSpec::default()
        };
        let trace = resample(&totals(), &spec).unwrap();
        assert_eq!((trace.layers(), trace.steps().len()), (&[3, 7][..], 300));
        assert!((0..300).all(|step| trace.loads(step, 1).iter().sum::<u64>() == 100));
        // Layer 3 mixes both kinds, layer 7 was seen in one only.
        let share = |layer: usize, expert: usize| trace.totals(layer)[expert] as f64 / 30_000.0;
        assert!(
            (0.3..0.7).contains(&share(0, 0)) && (0.3..0.7).contains(&share(0, 3)),
            "{:?}",
            trace.totals(0)
        );
        assert!(share(1, 3) > 0.9, "{:?}", trace.totals(1));
        assert!(trace.notices().iter().any(|n| n.contains("a model, not a recording")));
    }

    #[test]
    fn nothing_comes_of_nothing() {
        let empty = Trace::from_loads(2, vec![0], vec!["0".into()], vec![0, 0]).unwrap();
        assert!(resample(&empty, &SynthSpec::default()).unwrap_err().to_string().contains("no tokens"));
    }
}

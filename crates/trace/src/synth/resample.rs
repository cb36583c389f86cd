//! Batches for traces that hold only totals.
//!
//! Input is a trace with few steps, each a sum over many batches. Output is a trace of single batches, whose
//! requests take each recorded step as one kind of text. Independent draws from averages would be far too
//! easy to balance (imbalance 1.03, against 1.13 to 1.44 of real batches). So requests are as over-dispersed
//! as in the recordings to which the presets are fitted. Such figures model the traffic and do not measure
//! it; the notice states this.

use super::layer::SynthLayer;
use super::requests::RequestStream;
use super::{FIRST_LAYER_STREAM, SynthSpec};
use crate::{Batching, Resampling, Trace, TraceError};
use evenkeel::rng::SeededRng;
use rayon::prelude::*;

/// Draws batches, over-dispersed as in the recording to which the preset for such batches is fitted.
///
/// # Errors
/// Fails if the trace holds no tokens, or if a token draws more experts than the trace has.
pub fn draw_batches(resampling: &Resampling, totals: &Trace) -> Result<Trace, TraceError> {
    let like = match resampling.batching {
        Batching::Prefill { .. } => "deepseek-v2-lite-prefill",
        Batching::Decode { .. } => "gptoss20b-decode",
    };
    let (steps, top_k, batching, seed) =
        (resampling.steps, resampling.top_k, resampling.batching, resampling.seed);
    let spec = SynthSpec { top_k, steps, batching, seed, ..SynthSpec::from_preset(like)? };
    Ok(resample(totals, &spec)?.with_resampling(*resampling))
}

/// Draws `spec.steps` batches from the steps of `trace`. The shape (experts, layers) and the popularity of
/// experts (skew, kinds) come from the trace, not from `spec`. Batching, dispersion, requests, drift and seed
/// come from `spec`. Totals stay as recorded, and layers without tokens stay empty.
///
/// # Errors
/// Fails if the trace holds no tokens, or if the values of `spec` are inconsistent.
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
    spec.check_values()?;
    let mut requests = RequestStream::new(&spec, SeededRng::new(spec.seed, 0));
    let mut drawn: Vec<SynthLayer> = layers
        .par_iter()
        .enumerate()
        .map(|(at, &layer)| {
            let logits = kinds.iter().map(|&step| log_shares(trace, step, layer)).collect();
            SynthLayer::with_kinds(&spec, logits, SeededRng::new(spec.seed, FIRST_LAYER_STREAM + at as u64))
        })
        .collect();
    let width = trace.layers().len() * spec.experts;
    let mut loads = vec![0; spec.steps * width];
    for step in loads.chunks_exact_mut(width) {
        let portions = requests.next_step();
        drawn.par_iter_mut().for_each(|layer| layer.draw_step(portions));
        for (&layer, drawn) in layers.iter().zip(&drawn) {
            step[layer * spec.experts..][..spec.experts].copy_from_slice(drawn.counts());
        }
    }
    let steps = (0..spec.steps).map(|step| step.to_string()).collect();
    let drawn = Trace::from_loads(spec.experts, trace.layers().to_vec(), steps, loads)?;
    let mut resampled = drawn.with_origin_of(trace);
    resampled.add_notice(format!(
        "{} batches are drawn from the totals of {}, over-dispersed, with top-k {} and seed {}: figures on them are a \
         model, not a measurement",
        spec.steps,
        if kinds.len() == 1 { "1 recorded step".into() } else { format!("{} recorded steps", kinds.len()) },
        spec.top_k,
        spec.seed
    ));
    Ok(resampled)
}

/// Returns the log-shares of the experts in one recorded step. If the layer is empty in it, returns those of
/// the whole trace.
fn log_shares(trace: &Trace, step: usize, layer: usize) -> Vec<f64> {
    let here = trace.loads(step, layer);
    let loads = if here.iter().any(|&load| load > 0) { here } else { trace.totals(layer) };
    let total: f64 = loads.iter().map(|&load| load as f64).sum();
    // Half a token for experts without tokens is Jeffreys' prior.
    loads.iter().map(|&load| ((load as f64 + 0.5) / total * loads.len() as f64).ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Batching;

    fn totals() -> Trace {
        // Two kinds of text; layers 3 and 7 are busy, layer 5 is idle.
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
        assert_eq!((trace.layers(), trace.steps().len()), (&[3, 5, 7][..], 300));
        assert!((0..300).all(|step| trace.loads(step, 2).iter().sum::<u64>() == 100));
        assert!((0..300).all(|step| trace.loads(step, 1) == [0; 4]));
        assert_eq!((trace.totals(0), trace.idle_layers()), (&[920, 80, 80, 920][..], vec![1]));
        // Layer 3 mixes both kinds. Layer 7 has tokens in only one of them.
        let drawn = |layer, expert: usize| (0..300).map(|step| trace.loads(step, layer)[expert]).sum::<u64>();
        let share = |layer: usize, expert: usize| drawn(layer, expert) as f64 / 30_000.0;
        assert!(
            (0.3..0.7).contains(&share(0, 0)) && (0.3..0.7).contains(&share(0, 3)),
            "{:?}",
            trace.totals(0)
        );
        assert!(share(2, 3) > 0.9, "{}", share(2, 3));
        let notice = trace.notices().last().unwrap();
        assert!(notice.contains("2 recorded steps") && notice.contains("not a measurement"), "{notice}");
    }

    #[test]
    fn the_text_of_a_resampling_draws_the_same_batches() {
        for batching in [Batching::Prefill { tokens: 64 }, Batching::Decode { in_flight: 9 }] {
            let resampling = Resampling { steps: 12, top_k: 2, batching, seed: 7 };
            let (text, first) = (resampling.to_string(), draw_batches(&resampling, &totals()).unwrap());
            let again: Resampling = text.parse().unwrap();
            assert_eq!((again, first.resampling()), (resampling, Some(&resampling)), "{text}");
            let second = draw_batches(&again, &totals()).unwrap();
            assert!((0..12).all(|step| first.loads(step, 0) == second.loads(step, 0)));
        }
        for wrong in
            ["", "one batch per recorded step", "x batches of 1 tokens drawn from totals, top-k 1, seed 0"]
        {
            assert!(
                wrong.parse::<Resampling>().unwrap_err().to_string().contains("expected a text like"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn nothing_comes_of_nothing() {
        let empty = Trace::from_loads(2, vec![0], vec!["0".into()], vec![0, 0]).unwrap();
        assert!(resample(&empty, &SynthSpec::default()).unwrap_err().to_string().contains("no tokens"));
    }
}

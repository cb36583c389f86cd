//! Batches for traces that hold only totals.
//!
//! Input is a trace with few steps, each a sum over many batches. Output is a trace of single batches, whose
//! requests take each recorded step as one kind of text. Independent draws from averages would be far too
//! easy to balance (imbalance 1.03, against 1.13 to 1.44 of real batches). So requests differ, and by how
//! much was fitted to two recordings (docs/placement.md has the plot). Expected counts are the recorded ones.
//! Such figures model the traffic and do not measure it; the notice states this.

use super::layer::{MAX_LOGIT, SynthLayer};
use super::requests::RequestStream;
use super::{FIRST_LAYER_STREAM, SynthSpec};
use crate::{Batching, Resampling, Trace, TraceError};
use evenkeel::rng::SeededRng;
use rayon::prelude::*;
use std::f64::consts::TAU;

/// Difference between prefill requests if the totals show none, and their mean length.
///
/// The variance of the counts of a batch over that of independent draws was compared with the same ratio on
/// recordings, for batches of 64 to 2048 tokens. Ratios on gpt-oss-20b and DeepSeek-V2-Lite differ by a
/// factor of 3.5 for large batches. The drawn ones lie between them.
const PREFILL_DISPERSION: f64 = 0.85;
const PREFILL_REQUEST_TOKENS: f64 = 220.0;

/// Least difference between requests, however different the recorded steps are: that of DeepSeek-V2-Lite
/// within a domain.
const MIN_DISPERSION: f64 = 0.3;

/// Number of halvings with which a logit is found, to a ten-thousandth.
const BISECTIONS: usize = 20;

/// Draws batches, over-dispersed as recorded ones.
///
/// A decode batch has one token of each request, and the requests of all recorded steps are mixed. A prefill
/// batch has many tokens of each request, and consecutive requests come from the same recorded step, about a
/// batch of them: recorded steps are workloads, and a workload lasts for more than one request. The larger
/// such a batch is, the closer it is to the total of its step.
///
/// # Errors
/// Fails if the trace holds no tokens, or if a token draws more experts than the trace has.
pub fn draw_batches(resampling: &Resampling, totals: &Trace) -> Result<Trace, TraceError> {
    let &Resampling { steps, top_k, batching, seed } = resampling;
    let like = match batching {
        Batching::Prefill { tokens } => SynthSpec {
            dispersion: PREFILL_DISPERSION,
            request_tokens: PREFILL_REQUEST_TOKENS,
            request_spread: 0.7,
            topic_tokens: 128,
            topic_persistence: 0.9,
            drift: 0.0,
            kinds_run: (tokens as f64 / PREFILL_REQUEST_TOKENS).ceil() as usize,
            ..SynthSpec::default()
        },
        Batching::Decode { .. } => SynthSpec::from_preset("gptoss20b-decode")?,
    };
    // Steps that differ show a part of the difference between requests.
    let shown = step_deviation(totals);
    let dispersion = (like.dispersion.powi(2) - shown.powi(2)).max(MIN_DISPERSION.powi(2)).sqrt();
    let spec = SynthSpec { top_k, steps, batching, dispersion, seed, ..like };
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
            let logits = kinds.iter().map(|&step| log_weights(trace, &spec, step, layer)).collect();
            let rng = SeededRng::new(spec.seed, FIRST_LAYER_STREAM + at as u64);
            SynthLayer::with_kinds(&spec, logits, rng).with_equal_factors()
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

/// Returns the logits with which the experts are drawn as often as in one recorded step. If the layer is
/// empty in it, returns those of the whole trace.
///
/// The logits of the shares would be drawn too evenly: a token draws distinct experts, and requests differ.
/// In draws without replacement, expert `e` of weight `w_e` arrives after an exponential time of mean `1 /
/// w_e`, and the first `top_k` to arrive are drawn. Up to small fluctuations, these are the arrivals before
/// time 1 if the weights are such that `top_k` of them are expected. So `w_e` solves `E[1 - exp(-w_e z)] =
/// top_k p_e`, where `z` is the log-normal factor of a request (Rosen, Annals of Mathematical Statistics 43,
/// 1972).
fn log_weights(trace: &Trace, spec: &SynthSpec, step: usize, layer: usize) -> Vec<f64> {
    let here = trace.loads(step, layer);
    let loads = if here.iter().any(|&load| load > 0) { here } else { trace.totals(layer) };
    // Half a token for experts without tokens is Jeffreys' prior.
    let total: f64 = loads.iter().map(|&load| load as f64 + 0.5).sum();
    let deviation = spec.dispersion.hypot(spec.drift);
    // The trapezoidal rule is very exact for the density of the normal distribution.
    let nodes: Vec<(f64, f64)> = (-20..=20)
        .map(|at| f64::from(at) / 4.0)
        .map(|z| ((deviation * z).exp(), (-z * z / 2.0).exp() / (4.0 * TAU.sqrt())))
        .collect();
    let drawn = |logit: f64| -> f64 {
        let weight = logit.exp();
        nodes.iter().map(|(factor, density)| -(-weight * factor).exp_m1() * density).sum()
    };
    let solve = |&load: &u64| {
        let wanted = spec.top_k as f64 * (load as f64 + 0.5) / total;
        let (mut low, mut high) = (-MAX_LOGIT, MAX_LOGIT);
        for _ in 0..BISECTIONS {
            let middle = f64::midpoint(low, high);
            if drawn(middle) < wanted { low = middle } else { high = middle }
        }
        high
    };
    loads.iter().map(solve).collect()
}

/// Returns the standard deviation between the recorded steps, of the logarithms of the experts' shares.
/// Experts with less than an average share count in proportion to it, because their logarithms are noise.
fn step_deviation(trace: &Trace) -> f64 {
    let (mut squares, mut weights) = (0.0, 0.0);
    for layer in 0..trace.layers().len() {
        let rows: Vec<&[u64]> = (0..trace.steps().len())
            .map(|step| trace.loads(step, layer))
            .filter(|loads| loads.iter().any(|&load| load > 0))
            .collect();
        if rows.len() < 2 {
            continue;
        }
        let totals: Vec<f64> = rows.iter().map(|row| row.iter().map(|&load| load as f64).sum()).collect();
        for expert in 0..trace.experts() {
            let logs =
                || rows.iter().zip(&totals).map(|(row, total)| ((row[expert] as f64 + 0.5) / total).ln());
            let mean = logs().sum::<f64>() / rows.len() as f64;
            let weight = (mean.exp() * trace.experts() as f64).min(1.0);
            let square: f64 = logs().map(|log| (log - mean) * (log - mean)).sum();
            squares += weight * square / (rows.len() - 1) as f64;
            weights += weight;
        }
    }
    if weights > 0.0 { (squares / weights).sqrt() } else { 0.0 }
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

    /// Returns the mean distance of the shares of batches from those of the totals.
    fn mean_distance(drawn: &Trace, totals: &Trace) -> f64 {
        let share = |loads: &[u64], expert: usize| loads[expert] as f64 / loads.iter().sum::<u64>() as f64;
        let distance = |step: usize| {
            let of = |expert| share(drawn.loads(step, 0), expert) - share(totals.totals(0), expert);
            (0..drawn.experts()).map(|expert| of(expert).abs()).sum::<f64>()
        };
        (0..drawn.steps().len()).map(distance).sum::<f64>() / drawn.steps().len() as f64
    }

    #[test]
    fn expected_counts_are_the_recorded_ones_and_large_batches_are_close_to_them() {
        // Expert 0 is visited by nine tokens of ten, so that draws without correction would miss it.
        let loads: Vec<u64> = (0..32).map(|expert| 90_000 / (expert + 1) + 700).collect();
        let tokens = loads.iter().sum::<u64>() as f64 / 4.0;
        assert!((0.85..0.95).contains(&(loads[0] as f64 / tokens)));
        let totals = Trace::from_loads(32, vec![0], vec!["0".into()], loads.clone()).unwrap();
        let mut distances = vec![];
        for tokens in [64, 1024, 16_384] {
            let batching = Batching::Prefill { tokens };
            let steps = (2_000_000 / tokens).min(1000);
            let drawn = draw_batches(&Resampling { steps, top_k: 4, batching, seed: 1 }, &totals).unwrap();
            // Batches of 64 tokens are of too few requests in all.
            for expert in (0..32).filter(|_| tokens > 64) {
                let sum: u64 = (0..steps).map(|step| drawn.loads(step, 0)[expert]).sum();
                let wanted = loads[expert] as f64 / loads.iter().sum::<u64>() as f64;
                let found = sum as f64 / (steps * tokens * 4) as f64;
                assert!((found / wanted - 1.0).abs() < 0.12, "{tokens}: expert {expert}: {found} {wanted}");
            }
            distances.push(mean_distance(&drawn, &totals));
        }
        assert!(distances[0] > 1.5 * distances[1] && distances[1] > 2.5 * distances[2], "{distances:?}");
    }

    #[test]
    fn steps_that_differ_show_a_part_of_the_difference_between_requests() {
        let one = |loads: Vec<u64>| {
            let steps = (0..loads.len() / 2).map(|step| step.to_string()).collect();
            step_deviation(&Trace::from_loads(2, vec![0], steps, loads).unwrap())
        };
        assert_eq!((one(vec![7, 3]), one(vec![700, 300, 700, 300])), (0.0, 0.0));
        assert!(one(vec![0, 0, 0, 0]) == 0.0 && one(vec![900, 100, 100, 900]) > 1.0);
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

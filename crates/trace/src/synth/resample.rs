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
use crate::trace::{Batching, Trace, TraceError};
use rayon::prelude::*;
use std::fmt;
use std::str::FromStr;

/// How batches are drawn from totals. Its text is enough to draw the same batches again.
///
/// ```
/// use evenkeel::trace::synth::Resampling;
///
/// let text = "128 batches of 512 tokens drawn from totals, top-k 8, seed 0";
/// assert_eq!(text.parse::<Resampling>()?.to_string(), text);
/// # Ok::<(), evenkeel::trace::TraceError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resampling {
    /// Batches.
    pub steps: usize,
    /// Experts that each token draws.
    pub top_k: usize,
    /// Size and kind of a batch.
    pub batching: Batching,
    /// Seed of all draws.
    pub seed: u64,
}

impl Resampling {
    /// Draws the batches, over-dispersed as in the recording that the preset of such batches is fitted to.
    ///
    /// # Errors
    /// When the trace holds no tokens, or there are more experts to draw than the trace has.
    pub fn draw(&self, totals: &Trace) -> Result<Trace, TraceError> {
        let like = match self.batching {
            Batching::Prefill { .. } => "deepseek-v2-lite-prefill",
            Batching::Decode { .. } => "gptoss20b-decode",
        };
        let (steps, top_k, batching, seed) = (self.steps, self.top_k, self.batching, self.seed);
        let spec = SynthSpec { top_k, steps, batching, seed, ..SynthSpec::like(like)? };
        Ok(Trace { resampling: Some(*self), ..resample(totals, &spec)? })
    }
}

impl fmt::Display for Resampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.batching {
            Batching::Prefill { tokens } => write!(f, "{} batches of {tokens} tokens", self.steps)?,
            Batching::Decode { in_flight } => {
                write!(f, "{} decode batches of {in_flight} requests", self.steps)?;
            }
        }
        write!(f, " drawn from totals, top-k {}, seed {}", self.top_k, self.seed)
    }
}

impl FromStr for Resampling {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        let parse = || {
            let (batches, draw) = text.split_once(" drawn from totals, top-k ")?;
            let (top_k, seed) = draw.split_once(", seed ")?;
            let (steps, size, batching): (_, _, fn(usize) -> Batching) =
                if let Some((steps, size)) = batches.split_once(" decode batches of ") {
                    (steps, size.strip_suffix(" requests")?, |in_flight| Batching::Decode { in_flight })
                } else {
                    let (steps, size) = batches.split_once(" batches of ")?;
                    (steps, size.strip_suffix(" tokens")?, |tokens| Batching::Prefill { tokens })
                };
            Some(Resampling {
                steps: steps.parse().ok()?,
                top_k: top_k.parse().ok()?,
                batching: batching(size.parse().ok()?),
                seed: seed.parse().ok()?,
            })
        };
        parse().ok_or_else(|| {
            TraceError::Options(format!(
                "batches \"{text}\", expected as in \"128 batches of 512 tokens drawn from totals, top-k 8, seed 0\""
            ))
        })
    }
}

/// Draws `spec.steps` batches from the steps of `trace`. Of `spec`, the shape (experts, layers) and the popularity
/// of experts (skew, kinds) are the trace's; batching, dispersion, requests, drift and seed are used as they are.
/// Totals stay as recorded, and so do layers without tokens.
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
    let width = trace.layers().len() * spec.experts;
    let mut loads = vec![0; spec.steps * width];
    for step in loads.chunks_exact_mut(width) {
        let portions = requests.step();
        drawn.par_iter_mut().for_each(|layer| layer.step(portions));
        for (&layer, drawn) in layers.iter().zip(&drawn) {
            step[layer * spec.experts..][..spec.experts].copy_from_slice(drawn.counts());
        }
    }
    let steps = (0..spec.steps).map(|step| step.to_string()).collect();
    let mut resampled = Trace::from_loads(spec.experts, trace.layers().to_vec(), steps, loads)?;
    resampled.totals.clone_from(&trace.totals);
    resampled.formats.clone_from(&trace.formats);
    resampled.files.clone_from(&trace.files);
    resampled.notices.clone_from(&trace.notices);
    resampled.notices.push(format!(
        "{} batches are drawn from the totals of {}, over-dispersed, with top-k {} and seed {}: figures on them are a \
         model, not a measurement",
        spec.steps,
        if kinds.len() == 1 { "1 recorded step".into() } else { format!("{} recorded steps", kinds.len()) },
        spec.top_k,
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
        assert_eq!((trace.layers(), trace.steps().len()), (&[3, 5, 7][..], 300));
        assert!((0..300).all(|step| trace.loads(step, 2).iter().sum::<u64>() == 100));
        assert!((0..300).all(|step| trace.loads(step, 1) == [0; 4]));
        assert_eq!((trace.totals(0), trace.idle_layers()), (&[920, 80, 80, 920][..], vec![1]));
        // Layer 3 mixes both kinds, layer 7 was seen in one only.
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
            let (text, first) = (resampling.to_string(), resampling.draw(&totals()).unwrap());
            let again: Resampling = text.parse().unwrap();
            assert_eq!((again, first.resampling()), (resampling, Some(&resampling)), "{text}");
            let second = again.draw(&totals()).unwrap();
            assert!((0..12).all(|step| first.loads(step, 0) == second.loads(step, 0)));
        }
        for wrong in
            ["", "one batch per recorded step", "x batches of 1 tokens drawn from totals, top-k 1, seed 0"]
        {
            assert!(
                wrong.parse::<Resampling>().unwrap_err().to_string().contains("expected as in"),
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

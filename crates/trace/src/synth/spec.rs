//! What a synthetic trace shall be like.
//!
//! In: values set by a caller or a preset's name. Out: a checked [`SynthSpec`].

use crate::trace::{Batching, MAX_EXPERTS, MAX_LAYERS, MAX_STEPS, TraceError};

/// Names [`SynthSpec::like`] knows.
pub const PRESETS: [&str; 2] = ["gptoss20b-decode", "deepseek-v2-lite-prefill"];

/// The recipe of a synthetic trace; see the [module](super) for the model behind it.
/// Sizes of effects are standard deviations of logits: 0 is none, 1 makes odds of e to 1 common.
#[derive(Debug, Clone, PartialEq)]
pub struct SynthSpec {
    /// Experts per layer, `E`.
    pub experts: usize,
    /// Experts each token draws.
    pub top_k: usize,
    /// Number of MoE layers.
    pub layers: usize,
    /// Id of the first; the others follow.
    pub first_layer: u32,
    /// Batches.
    pub steps: usize,
    /// Prefill: the tokens of a batch come from one request after the other. Decode: one token
    /// from each request in flight; requests start staggered.
    pub batching: Batching,
    /// How unequal experts are for good.
    pub skew: f64,
    /// Shape of that: 1 is normal logits, above 1 a few experts stand out more.
    pub tail: f64,
    /// Kinds of requests (data sets, languages, domains).
    pub kinds: usize,
    /// How much kinds differ.
    pub kinds_spread: f64,
    /// Consecutive requests of one kind: 1 mixes them, more makes runs, 0 gives each kind one
    /// long run after the other (a hard shift).
    pub kinds_run: usize,
    /// How much requests of a kind differ.
    pub dispersion: f64,
    /// Share of that which experts have in common through the latent vector, 0 to 1.
    pub correlation: f64,
    /// Length of the latent vector: fewer means that more experts move together.
    pub rank: usize,
    /// Mean tokens of a request.
    pub request_tokens: f64,
    /// Spread of their logarithm; 0 makes all equally long.
    pub request_spread: f64,
    /// Tokens after which a request's taste moves on; 0 for never.
    pub topic_tokens: usize,
    /// How much of it stays then, 0 (all new) to 1 (nothing changes).
    pub topic_persistence: f64,
    /// Size of the slow change of everything.
    pub drift: f64,
    /// How much of it stays from step to step, 0 to 1: 0.99 changes over hundreds of steps.
    pub drift_persistence: f64,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for SynthSpec {
    fn default() -> Self {
        Self {
            experts: 64,
            top_k: 6,
            layers: 26,
            first_layer: 0,
            steps: 200,
            batching: Batching::Prefill { tokens: 512 },
            skew: 0.7,
            tail: 1.0,
            kinds: 4,
            kinds_spread: 0.4,
            kinds_run: 1,
            dispersion: 0.7,
            correlation: 0.5,
            rank: 8,
            request_tokens: 300.0,
            request_spread: 0.6,
            topic_tokens: 0,
            topic_persistence: 0.8,
            drift: 0.2,
            drift_persistence: 0.98,
            seed: 0,
        }
    }
}

impl SynthSpec {
    /// The recipe modelled on a real recording, by one of [`PRESETS`].
    ///
    /// # Errors
    /// When there is no such preset.
    pub fn like(name: &str) -> Result<Self, TraceError> {
        match name {
            // Fitted to shuffled order; traces/README.md has the figures of the fit.
            "gptoss20b-decode" => Ok(Self {
                experts: 32,
                top_k: 4,
                layers: 24,
                batching: Batching::Decode { in_flight: 64 },
                steps: 790,
                skew: 0.9,
                tail: 0.55,
                kinds: 6,
                kinds_spread: 0.6,
                dispersion: 0.8,
                correlation: 0.82,
                request_tokens: 336.0,
                request_spread: 0.5,
                topic_tokens: 32,
                drift: 0.002,
                ..Self::default()
            }),
            "deepseek-v2-lite-prefill" => Ok(Self {
                experts: 64,
                top_k: 6,
                layers: 26,
                first_layer: 1,
                batching: Batching::Prefill { tokens: 512 },
                steps: 48,
                skew: 0.2,
                tail: 1.1,
                kinds: 3,
                kinds_spread: 0.84,
                dispersion: 0.29,
                correlation: 0.25,
                request_tokens: 144.0,
                request_spread: 0.9,
                topic_tokens: 32,
                drift: 0.14,
                ..Self::default()
            }),
            _ => Err(TraceError::Options(format!(
                "no preset \"{name}\", expected one of {}",
                PRESETS.join(", ")
            ))),
        }
    }

    /// Do the values go together?
    pub(super) fn check(&self) -> Result<(), TraceError> {
        let wrong = |what: String| Err(TraceError::Options(format!("synthetic trace: {what}")));
        if !(1..=MAX_EXPERTS).contains(&self.experts) {
            return wrong(format!("{} experts, expected 1 to {MAX_EXPERTS}", self.experts));
        }
        if !(1..=self.experts).contains(&self.top_k) {
            return wrong(format!("top-k of {}, expected 1 to the {} experts", self.top_k, self.experts));
        }
        if self.layers == 0 || (self.first_layer as usize).saturating_add(self.layers) > MAX_LAYERS {
            return wrong(format!(
                "{} layers from id {}, expected at least one and ids below {MAX_LAYERS}",
                self.layers, self.first_layer
            ));
        }
        if self.steps == 0 || self.steps as u64 > MAX_STEPS {
            return wrong(format!("{} steps, expected 1 to {MAX_STEPS}", self.steps));
        }
        let (Batching::Prefill { tokens: batch } | Batching::Decode { in_flight: batch }) = self.batching;
        if !(1..=1 << 30).contains(&batch) {
            return wrong(format!("batches of {batch}, expected 1 to 2^30"));
        }
        if self.kinds == 0 || self.kinds > 1024 || self.rank == 0 || self.rank > 1024 {
            return wrong(format!("{} kinds and rank {}, expected 1 to 1024 each", self.kinds, self.rank));
        }
        for (name, size) in [
            ("skew", self.skew),
            ("tail", self.tail),
            ("kinds spread", self.kinds_spread),
            ("dispersion", self.dispersion),
            ("drift", self.drift),
            ("spread of request lengths", self.request_spread),
        ] {
            if !(0.0..=20.0).contains(&size) {
                return wrong(format!("{name} of {size}, expected 0 to 20"));
            }
        }
        for (name, share) in [
            ("correlation", self.correlation),
            ("topic persistence", self.topic_persistence),
            ("drift persistence", self.drift_persistence),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return wrong(format!("{name} of {share}, expected 0 to 1"));
            }
        }
        if !(1.0..=1e9).contains(&self.request_tokens) {
            return wrong(format!("requests of {} tokens, expected 1 to 1e9", self.request_tokens));
        }
        Ok(())
    }
}

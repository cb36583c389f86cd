//! The parameters of a synthetic trace.
//!
//! Input is values from a caller, or the name of a preset. Output is a checked [`SynthSpec`].

use crate::{Batching, MAX_EXPERTS, MAX_LAYERS, MAX_STEPS, TraceError};

/// The names that [`SynthSpec::from_preset`] accepts.
pub const PRESETS: [&str; 2] = ["gptoss20b-decode", "deepseek-v2-lite-prefill"];

/// The parameters of a synthetic trace. The [module](super) documents its model. Sizes of effects are
/// standard deviations of logits: 0 is none, and with 1 odds of e to 1 are common.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct SynthSpec {
    /// The number of experts per layer, `E`.
    pub experts: usize,
    /// The number of experts that each token draws.
    pub top_k: usize,
    /// The number of MoE layers.
    pub layers: usize,
    /// The id of the first layer. The others follow.
    pub first_layer: u32,
    /// The number of batches.
    pub steps: usize,
    /// The batching. Prefill takes the tokens of a batch from one request after the other. Decode takes one
    /// token from each request in flight; requests start staggered.
    pub batching: Batching,
    /// The permanent difference between experts.
    pub skew: f64,
    /// The shape of this difference: 1 means normal logits; above 1, a few experts stand out more.
    pub tail: f64,
    /// The number of kinds of requests (data sets, languages, domains).
    pub kinds: usize,
    /// The difference between kinds.
    pub kinds_spread: f64,
    /// The number of consecutive requests of one kind: 1 mixes the kinds, and more gives runs. 0 gives one
    /// long run per kind (a hard shift).
    pub kinds_run: usize,
    /// The difference between requests of a kind.
    pub dispersion: f64,
    /// The share of this difference that experts have in common through the latent vector, 0 to 1.
    pub correlation: f64,
    /// The length of the latent vector. A shorter one lets more experts move together.
    pub rank: usize,
    /// The mean number of tokens of a request.
    pub request_tokens: f64,
    /// The standard deviation of the logarithm of that number. 0 makes all requests equally long.
    pub request_spread: f64,
    /// The number of tokens after which the topic of a request changes; 0 for never.
    pub topic_tokens: usize,
    /// The share of the topic that stays after a change, 0 (all new) to 1 (no change).
    pub topic_persistence: f64,
    /// The size of the slow change of all loads.
    pub drift: f64,
    /// The share of this change that stays from step to step, 0 to 1. 0.99 changes over hundreds of steps.
    pub drift_persistence: f64,
    /// The seed of all random numbers.
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

/// Defines setters that take a specification and return the changed one.
macro_rules! define_setters {
    ($($field:ident: $type:ty),* $(,)?) => {$(
        #[doc = concat!("Sets [`Self::", stringify!($field), "`](#structfield.", stringify!($field), ").")]
        #[must_use]
        pub fn $field(mut self, $field: $type) -> Self {
            self.$field = $field;
            self
        }
    )*};
}

impl SynthSpec {
    define_setters! {
        experts: usize,
        top_k: usize,
        layers: usize,
        first_layer: u32,
        steps: usize,
        batching: Batching,
        skew: f64,
        tail: f64,
        kinds: usize,
        kinds_spread: f64,
        kinds_run: usize,
        dispersion: f64,
        correlation: f64,
        rank: usize,
        request_tokens: f64,
        request_spread: f64,
        topic_tokens: usize,
        topic_persistence: f64,
        drift: f64,
        drift_persistence: f64,
        seed: u64,
    }

    /// Returns the parameters of one of [`PRESETS`], modelled on a real recording.
    ///
    /// # Errors
    /// Fails if there is no such preset.
    pub fn from_preset(name: &str) -> Result<Self, TraceError> {
        match name {
            // The fit used a shuffled order. traces/README.md has its figures.
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

    /// Checks that the values are consistent.
    pub(super) fn check_values(&self) -> Result<(), TraceError> {
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

//! Requests that a deployment serves, with its limits.
//!
//! In: figures of a user. Out: a [`Workload`], checked.

use thiserror::Error;

/// Use of a deployment's GPUs for the two phases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serving {
    /// Some instances prefill, others decode. Their numbers follow from their rates.
    Disaggregated,
    /// Every instance prefills and decodes in turn.
    Mixed,
}

/// Requests that a deployment serves, and its limits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Workload {
    /// Tokens of a prompt.
    pub input: u64,
    /// Tokens of an answer.
    pub output: u64,
    /// Highest time per output token, milliseconds.
    pub tpot_ms: Option<f64>,
    /// Highest time to the first token, milliseconds.
    pub ttft_ms: Option<f64>,
    /// Tokens per request and step that the model verifies: 1 without drafts.
    pub verified: f64,
    /// Tokens per request and step that are accepted: 1 without drafts.
    pub accepted: f64,
    /// Coefficient of variation of the requests' context.
    pub length_spread: f64,
    /// Bytes of a number in the key-value cache.
    pub kv_bytes: f64,
    /// Rate at which a GPU reads experts from its host, gigabytes per second. Without it all weights have to
    /// fit.
    pub stream_gb_s: Option<f64>,
    /// Use of the GPUs.
    pub serving: Serving,
}

/// Error of a workload that cannot exist.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum WorkloadError {
    /// Prompts or answers are empty or too long.
    #[error("context {input}:{output}: expected numbers of tokens from 1 to {MAX_CONTEXT}")]
    Context {
        /// Tokens of a prompt.
        input: u64,
        /// Tokens of an answer.
        output: u64,
    },
    /// A limit is no positive time.
    #[error("{name} {value}: expected more than 0 milliseconds")]
    Limit {
        /// Name of the limit.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// Drafts verify too many tokens, or accept more than they verify.
    #[error("drafts {verified}:{accepted}: expected 1 to 64 verified tokens, and 1 to as many accepted ones")]
    Drafts {
        /// Verified tokens.
        verified: String,
        /// Accepted tokens.
        accepted: String,
    },
    /// The rate of streaming is out of range.
    #[error("stream rate {0}: expected 0.001 to 100000 gigabytes per second")]
    Stream(String),
    /// The spread of the context is no share.
    #[error("length spread {0}: expected 0 to 10")]
    Spread(String),
}

/// Longest context that is considered.
const MAX_CONTEXT: u64 = 1 << 20;

impl Workload {
    /// Returns the mean tokens of context of a request that decodes: its prompt and half of its answer.
    pub fn mean_context(&self) -> u64 {
        self.input + self.output / 2
    }

    /// Returns the output tokens per second of a GPU that decodes `batch` requests in steps of `step_ms`.
    pub(crate) fn decode_rate(&self, batch: u64, step_ms: f64) -> f64 {
        batch as f64 * self.accepted / step_ms * 1e3
    }

    /// Returns the GPU seconds of a request's prompt and of its answer, by the rates of a GPU in tokens per
    /// second.
    pub(crate) fn gpu_seconds(&self, prefill_rate: f64, decode_rate: f64) -> [f64; 2] {
        [self.input as f64 / prefill_rate, self.output as f64 / decode_rate]
    }

    /// Returns output tokens per second and GPU, over the GPUs of both phases.
    pub(crate) fn output_rate(&self, prefill_rate: f64, decode_rate: f64) -> f64 {
        let [prefill, decode] = self.gpu_seconds(prefill_rate, decode_rate);
        self.output as f64 / (prefill + decode)
    }

    /// Checks the ranges of all figures.
    ///
    /// # Errors
    /// Fails with the first figure that is outside its range.
    pub fn check(&self) -> Result<(), WorkloadError> {
        let Self { input, output, verified, accepted, length_spread, .. } = *self;
        if !(1..=MAX_CONTEXT).contains(&input) || !(1..=MAX_CONTEXT).contains(&output) {
            return Err(WorkloadError::Context { input, output });
        }
        for (name, limit) in [("tpot-ms", self.tpot_ms), ("ttft-ms", self.ttft_ms)] {
            if let Some(limit) = limit.filter(|limit| !(*limit > 0.0 && limit.is_finite())) {
                return Err(WorkloadError::Limit { name, value: limit.to_string() });
            }
        }
        if !(1.0..=64.0).contains(&verified) || !(1.0..=verified).contains(&accepted) {
            let (verified, accepted) = (verified.to_string(), accepted.to_string());
            return Err(WorkloadError::Drafts { verified, accepted });
        }
        if let Some(rate) = self.stream_gb_s.filter(|rate| !(1e-3..=1e5).contains(rate)) {
            return Err(WorkloadError::Stream(rate.to_string()));
        }
        if !(0.0..=10.0).contains(&length_spread) {
            return Err(WorkloadError::Spread(length_spread.to_string()));
        }
        Ok(())
    }
}

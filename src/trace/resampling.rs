//! Batches drawn from recorded totals: number, size and seed.

use super::{Batching, TraceError};
use std::fmt;
use std::str::FromStr;

/// Parameters of drawing batches from totals. The text form suffices to draw the same batches again.
///
/// ```
/// use evenkeel::trace::Resampling;
///
/// let text = "128 batches of 512 tokens drawn from totals, top-k 8, seed 0";
/// assert_eq!(text.parse::<Resampling>()?.to_string(), text);
/// # Ok::<(), evenkeel::trace::TraceError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resampling {
    /// Number of batches.
    pub steps: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Size and kind of a batch.
    pub batching: Batching,
    /// Seed of all draws.
    pub seed: u64,
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
                "batches \"{text}\": expected a text like \"128 batches of 512 tokens drawn from totals, top-k 8, seed 0\""
            ))
        })
    }
}

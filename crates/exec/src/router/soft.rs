//! Soft MoE: experts process mixtures of tokens, and tokens receive mixtures of results (arXiv:2308.00951,
//! section 2.1).

use super::softmax::softmax;
use super::{RouterError, RouterLoss, Routing};

/// The two mixtures of one source's tokens.
///
/// In logits `[token][mixture]`, mixture `s` is slot `s mod slots` of expert `s / slots`. `dispatch` is the
/// softmax over tokens, `combine` the softmax over mixtures.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SoftMixtures {
    tokens: usize,
    mixtures: usize,
    /// Share of each token in each mixture, `[mixture][token]`.
    pub dispatch: Vec<f32>,
    /// Share of each mixture's result in each token's result, `[token][mixture]`.
    pub combine: Vec<f32>,
}

/// Mixed rows: `[rows][width]`.
pub type MixedRows = Vec<f32>;

impl SoftMixtures {
    /// Computes the mixtures of logits `[token][mixtures]`.
    ///
    /// # Errors
    /// Fails if the logits are not whole rows.
    pub fn new(logits: &[f32], mixtures: usize) -> Result<Self, RouterError> {
        if mixtures == 0 || !logits.len().is_multiple_of(mixtures) {
            return Err(RouterError::Shape { given: logits.len(), width: mixtures });
        }
        let tokens = logits.len() / mixtures;
        let narrow = |numbers: Vec<f64>| numbers.into_iter().map(|x| x as f32).collect::<Vec<f32>>();
        let of = |mut numbers: Vec<f64>| {
            softmax(&mut numbers);
            narrow(numbers)
        };
        let column = |s: usize| (0..tokens).map(|t| f64::from(logits[t * mixtures + s])).collect();
        let dispatch = (0..mixtures).flat_map(|s| of(column(s))).collect();
        let combine = logits
            .chunks_exact(mixtures)
            .flat_map(|row| of(row.iter().map(|&x| f64::from(x)).collect()))
            .collect();
        Ok(Self { tokens, mixtures, dispatch, combine })
    }

    /// Returns the input of the experts, `[mixture][width]`, from tokens `[token][width]`. Returns nothing
    /// without tokens.
    pub fn mix_tokens(&self, tokens: &[f32], width: usize) -> MixedRows {
        if self.tokens == 0 {
            return vec![];
        }
        weighted_rows(&self.dispatch, tokens, self.mixtures, self.tokens, width)
    }

    /// Returns the output of the tokens, `[token][width]`, from the mixtures' results `[mixture][width]`.
    pub fn unmix_results(&self, results: &[f32], width: usize) -> MixedRows {
        weighted_rows(&self.combine, results, self.tokens, self.mixtures, width)
    }
}

/// Computes `[rows][inner] x [inner][width]`, summed in `f64`.
fn weighted_rows(shares: &[f32], values: &[f32], rows: usize, inner: usize, width: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows * width);
    let mut sum = vec![0f64; width];
    for row in shares.chunks_exact(inner.max(1)).take(rows) {
        sum.fill(0.0);
        for (&share, values) in row.iter().zip(values.chunks_exact(width.max(1))) {
            sum.iter_mut().zip(values).for_each(|(s, &v)| *s += f64::from(share) * f64::from(v));
        }
        out.extend(sum.iter().map(|&s| s as f32));
    }
    out
}

/// Returns the experts of all mixtures of a source.
pub(super) fn mixture_routing(tokens: usize, experts: usize, slots: usize) -> Routing {
    let mixtures = if tokens == 0 { 0 } else { experts * slots };
    Routing {
        top_k: 1,
        ids: (0..mixtures).map(|s| (s / slots) as i32).collect(),
        weights: vec![1.0; mixtures],
        dropped: 0,
        loss: RouterLoss::default(),
    }
}

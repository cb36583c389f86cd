//! Which experts a token visits, and how much each of them counts.
//!
//! In: the logits of one source's tokens, `[token][width]`. Out: a [`Routing`]: ids and weights, `[token][k]`. A router is
//! four small rules, each in the terms of its paper: by what experts are *selected*, what their *gate* is, how the gates of
//! the chosen are *normalised*, and what happens when an expert is full ([`Capacity`]). All arithmetic is `f64`; of equal
//! scores the lowest index is taken first.

mod capacity;
mod choose;
mod gshard;
mod loss;
mod noisy;
mod replay;
mod sigmoid;
mod soft;
mod softmax;

pub use capacity::{Capacity, Overflow};
pub use loss::RouterLoss;
pub use replay::replay;
pub use soft::{Soft, SoftMix};

use super::random::Stream;
use crate::model::Model;
use choose::{Chosen, Keep};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A way of routing tokens.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Router {
    /// Top-1 of a softmax, weighted by its probability (Switch Transformer, arXiv:2101.03961, section 2.1).
    Switch,
    /// Top-2 of a softmax, renormalised; the second expert is visited with probability `min(1, 2 g2)`, so that little
    /// weight seldom costs room (GShard, arXiv:2006.16668, algorithm 1).
    Gshard,
    /// Normal noise of a learned size on the logits, then a softmax over the `k` highest (Shazeer et al. 2017,
    /// arXiv:1701.06538, equations 3 to 5). Its logits are twice as wide: the second half sizes the noise.
    Noisy,
    /// Top-k of a softmax over all experts; with `renormalise` the weights of the chosen add up to 1 (Mixtral, Qwen3; without:
    /// DeepSeek-V2-Lite, OLMoE).
    Softmax {
        /// Divide by the sum of the chosen.
        renormalise: bool,
    },
    /// A softmax over the `k` highest logits alone (gpt-oss).
    TopkSoftmax,
    /// Sigmoid scores; selection by score + bias, within the best groups of experts only, a group counting as much as its
    /// two best; weights are the scores without bias, renormalised and scaled (DeepSeek-V3, arXiv:2412.19437, section 2.1.2,
    /// and its published code).
    Sigmoid {
        /// Groups that the experts are divided into, in order.
        groups: usize,
        /// Groups that a token may visit.
        top_groups: usize,
        /// What the renormalised weights are multiplied by.
        scale: f64,
        /// What selection adds to the scores, `[E]`; empty for none.
        bias: Vec<f64>,
    },
    /// No choice at all: every expert gets `slots` mixtures of all tokens (Soft MoE, arXiv:2308.00951); see [`Soft`].
    Soft {
        /// Mixtures per expert and source.
        slots: usize,
    },
}

/// Why tokens could not be routed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RouterError {
    /// No router has this name.
    #[error(
        "unknown router `{0}`: expected switch, gshard, noisy, softmax, softmax-renorm, topk-softmax, sigmoid, soft or replay"
    )]
    Unknown(String),
    /// More experts asked for than there are, or none.
    #[error("top-{top_k} of {experts} experts: expected 1 to {experts}")]
    TopK {
        /// Experts per token.
        top_k: usize,
        /// Experts per layer.
        experts: usize,
    },
    /// Logits of another shape.
    #[error("{given} logits, expected whole rows of {width}")]
    Shape {
        /// Logits given.
        given: usize,
        /// Logits per token.
        width: usize,
    },
    /// Groups that do not divide the experts, or too few experts within those that may be visited.
    #[error(
        "{experts} experts in {groups} groups of which {top_groups} may be visited: no room for top-{top_k}"
    )]
    Groups {
        /// Experts per layer.
        experts: usize,
        /// Groups.
        groups: usize,
        /// Groups that a token may visit.
        top_groups: usize,
        /// Experts per token.
        top_k: usize,
    },
    /// A bias of another length than the experts.
    #[error("a bias of {given} entries for {experts} experts")]
    Bias {
        /// Entries.
        given: usize,
        /// Experts per layer.
        experts: usize,
    },
    /// A logit or a replayed weight that is no number.
    #[error("token {token}: a score that is not a finite number")]
    NotFinite {
        /// Index of the token on its source.
        token: usize,
    },
    /// A replayed id that is no expert.
    #[error("position {position}: expert id {id}, expected -1 (no expert) to {}", experts - 1)]
    Id {
        /// Where in the ids, from 0.
        position: usize,
        /// What stands there.
        id: i32,
        /// Experts per layer.
        experts: usize,
    },
}

/// Where the tokens of one source go.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Routing {
    /// Experts per token.
    pub top_k: usize,
    /// Expert of every choice, `[token][k]`; -1 for none.
    pub ids: Vec<i32>,
    /// Its weight, `[token][k]`; 0 for none.
    pub weights: Vec<f32>,
    /// Choices that found their expert full and got no other.
    pub dropped: u64,
    /// The training losses of this routing, as statistics.
    pub loss: RouterLoss,
}

impl Routing {
    /// Whether both say the same: equal choices, and weights that differ in their last digit at most (the exponentials of two
    /// machines do).
    pub fn agrees(&self, other: &Routing) -> bool {
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 2.0 * f32::EPSILON * a.abs();
        self.top_k == other.top_k
            && self.ids == other.ids
            && self.dropped == other.dropped
            && self.weights.len() == other.weights.len()
            && self.weights.iter().zip(&other.weights).all(close)
    }
}

/// What routing one source's tokens needs besides their logits.
#[derive(Debug, Clone, Copy)]
pub struct RouteArgs {
    /// Logical experts, `E`.
    pub experts: usize,
    /// Experts per token, `k`.
    pub top_k: usize,
    /// Room per expert; `None` for as much as it takes.
    pub capacity: Option<Capacity>,
    /// Seed of whatever a router draws.
    pub random: Stream,
}

impl Router {
    /// The router that a model was published with; group figures are those of 256 experts in 8 groups of which 4 may be
    /// visited for DeepSeek-V3, no groups elsewhere.
    pub fn of(model: &Model) -> Self {
        let sigmoid = |groups, top_groups, scale| Router::Sigmoid { groups, top_groups, scale, bias: vec![] };
        match model.name {
            "switch-c" => Router::Switch,
            "glam-64b" => Router::Gshard,
            "deepseek-v3" | "deepseek-r1" => sigmoid(8, 4, 2.5),
            "glm-4.5" => sigmoid(1, 1, 2.5),
            "kimi-k2" => sigmoid(1, 1, 2.827),
            "gpt-oss-20b" | "gpt-oss-120b" => Router::TopkSoftmax,
            "deepseek-v2-lite" | "deepseek-moe-16b" | "olmoe-1b-7b" => Router::Softmax { renormalise: false },
            _ => Router::Softmax { renormalise: true },
        }
    }

    /// The same router with another selection bias, where it takes one.
    #[must_use]
    pub fn with_bias(&self, selection: &[f64]) -> Self {
        let mut router = self.clone();
        if let Router::Sigmoid { bias, .. } = &mut router {
            *bias = selection.to_vec();
        }
        router
    }

    /// Experts per token where the router fixes it.
    pub fn fixed_top_k(&self) -> Option<usize> {
        match self {
            Router::Switch | Router::Soft { .. } => Some(1),
            Router::Gshard => Some(2),
            _ => None,
        }
    }

    /// Logits per token.
    pub fn width(&self, experts: usize) -> usize {
        match self {
            Router::Noisy => 2 * experts,
            Router::Soft { slots } => slots * experts,
            _ => experts,
        }
    }

    /// Routes the tokens of one source; `logits` is `[token][width]`.
    ///
    /// [`Router::Soft`] mixes tokens rather than routing them: here its mixtures' ids are returned, `[E * slots]`, each with
    /// weight 1 and none where there is no token to mix ([`Soft`] makes the mixtures).
    ///
    /// # Errors
    /// When shapes do not fit each other or a logit is not finite.
    pub fn route(&self, logits: &[f32], args: &RouteArgs) -> Result<Routing, RouterError> {
        let (experts, width) = (args.experts, self.width(args.experts));
        let top_k = self.fixed_top_k().unwrap_or(args.top_k);
        if top_k == 0 || top_k > experts {
            return Err(RouterError::TopK { top_k, experts });
        }
        if !logits.len().is_multiple_of(width.max(1)) {
            return Err(RouterError::Shape { given: logits.len(), width });
        }
        if let Some(at) = logits.iter().position(|x| !x.is_finite()) {
            return Err(RouterError::NotFinite { token: at / width });
        }
        if let Router::Soft { slots } = *self {
            return Ok(soft::ids(logits.len() / width, experts, slots));
        }
        self.check(experts, top_k)?;
        let mut random = args.random;
        let mut chosen = Chosen::new(experts, top_k, logits.len() / width);
        for row in logits.chunks_exact(width) {
            match self {
                Router::Switch | Router::Gshard | Router::Softmax { .. } => softmax::all(row, &mut chosen),
                Router::Noisy => noisy::noisy(row, &mut random, &mut chosen),
                Router::Sigmoid { groups, top_groups, bias, .. } => {
                    sigmoid::limited(row, bias, *groups, *top_groups, &mut chosen);
                }
                _ => softmax::logits(row, &mut chosen),
            }
        }
        let loss = RouterLoss::of(logits, width, experts, &chosen);
        let second = |gates: &[f64]| gshard::visits(gates, &mut random);
        let keep: Option<Keep<'_>> = match self {
            Router::Gshard => Some(&mut { second }),
            _ => None,
        };
        Ok(chosen.settle(args.capacity, |gates| self.normalise(gates), keep, loss))
    }

    fn check(&self, experts: usize, top_k: usize) -> Result<(), RouterError> {
        if let Router::Sigmoid { groups, top_groups, bias, .. } = self {
            let (groups, top_groups) = (*groups, *top_groups);
            let fits = groups > 0
                && experts.is_multiple_of(groups)
                && (1..=groups).contains(&top_groups)
                && experts / groups * top_groups >= top_k;
            if !fits {
                return Err(RouterError::Groups { experts, groups, top_groups, top_k });
            }
            if !bias.is_empty() && bias.len() != experts {
                return Err(RouterError::Bias { given: bias.len(), experts });
            }
            if bias.iter().any(|b| !b.is_finite()) {
                return Err(RouterError::NotFinite { token: 0 });
            }
        }
        Ok(())
    }

    /// Gates of one token's chosen experts, in place, to their weights.
    fn normalise(&self, gates: &mut [f64]) {
        match self {
            Router::Switch | Router::Softmax { renormalise: false } | Router::Soft { .. } => {}
            Router::Gshard | Router::Softmax { renormalise: true } => softmax::scale_to(gates, 1.0),
            Router::Sigmoid { scale, .. } => softmax::scale_to(gates, *scale),
            Router::Noisy | Router::TopkSoftmax => softmax::softmax(gates),
        }
    }
}

impl fmt::Display for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Router::Switch => "switch",
            Router::Gshard => "gshard",
            Router::Noisy => "noisy",
            Router::Softmax { renormalise: false } => "softmax",
            Router::Softmax { renormalise: true } => "softmax-renorm",
            Router::TopkSoftmax => "topk-softmax",
            Router::Sigmoid { .. } => "sigmoid",
            Router::Soft { .. } => "soft",
        })
    }
}

impl FromStr for Router {
    type Err = RouterError;

    /// A router by name; `sigmoid` without groups or bias, `soft` with one mixture per expert.
    fn from_str(name: &str) -> Result<Self, RouterError> {
        Ok(match name {
            "switch" => Router::Switch,
            "gshard" => Router::Gshard,
            "noisy" => Router::Noisy,
            "softmax" => Router::Softmax { renormalise: false },
            "softmax-renorm" => Router::Softmax { renormalise: true },
            "topk-softmax" => Router::TopkSoftmax,
            "sigmoid" => Router::Sigmoid { groups: 1, top_groups: 1, scale: 1.0, bias: vec![] },
            "soft" => Router::Soft { slots: 1 },
            _ => return Err(RouterError::Unknown(name.to_owned())),
        })
    }
}

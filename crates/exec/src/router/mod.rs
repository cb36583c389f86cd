//! Routers: the experts of each token and their weights.
//!
//! Input: the logits of one source's tokens, `[token][width]`. Output: a [`Routing`]: ids and weights,
//! `[token][k]`. A router consists of four rules, in the terms of its paper:
//!
//! - the *selection* scores of experts
//! - their *gates*
//! - the *normalisation* of the chosen gates
//! - the handling of full experts ([`Capacity`])
//!
//! All arithmetic is `f64`. At equal scores the lowest index is chosen first.

mod capacity;
mod gshard;
mod loss;
mod noisy;
mod replay;
mod sigmoid;
mod soft;
mod softmax;
mod top_k;

pub use capacity::{Capacity, Overflow};
pub use loss::RouterLoss;
pub use replay::replay_routing;
pub use soft::{MixedRows, SoftMixtures};

use super::random::RandomStream;
use evenkeel::model::MoeModel;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use top_k::{ExpertScores, KeepSecond};

/// A rule that routes tokens.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Router {
    /// Top-1 of a softmax, weighted by its probability (Switch Transformer, arXiv:2101.03961, section 2.1).
    Switch,
    /// Top-2 of a softmax, renormalised. The second expert is visited with probability `min(1, 2 g2)`, so
    /// that low weights seldom use capacity (GShard, arXiv:2006.16668, algorithm 1).
    Gshard,
    /// Normal noise of a learned size on the logits, then a softmax over the `k` highest (Shazeer et al.
    /// 2017, arXiv:1701.06538, equations 3 to 5). Its logits are twice as wide: the second half determines
    /// the size of the noise.
    Noisy,
    /// Top-k of a softmax over all experts. With `renormalise` the chosen weights add up to 1 (Mixtral,
    /// Qwen3; without: DeepSeek-V2-Lite, OLMoE).
    Softmax {
        /// True to divide by the sum of the chosen weights.
        renormalise: bool,
    },
    /// A softmax over the `k` highest logits alone (gpt-oss).
    TopkSoftmax,
    /// Sigmoid scores. Selection uses score + bias, within the best groups of experts only; a group counts as
    /// much as its two best experts. Weights are the scores without bias, renormalised and scaled
    /// (DeepSeek-V3, arXiv:2412.19437, section 2.1.2, and its published code).
    Sigmoid {
        /// Groups into which the experts are divided, in order.
        groups: usize,
        /// Groups that a token may visit.
        top_groups: usize,
        /// Factor of the renormalised weights.
        scale: f64,
        /// Bias that selection adds to the scores, `[E]`; empty for none.
        bias: Vec<f64>,
    },
    /// No choice: every expert gets `slots` mixtures of all tokens (Soft MoE, arXiv:2308.00951); see
    /// [`SoftMixtures`].
    Soft {
        /// Mixtures per expert and source.
        slots: usize,
    },
}

/// An error of routing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RouterError {
    /// No router has this name.
    #[error(
        "unknown router `{0}`: expected switch, gshard, noisy, softmax, softmax-renorm, topk-softmax, sigmoid, soft or replay"
    )]
    Unknown(String),
    /// The number of experts per token is zero, or exceeds the number of experts.
    #[error("top-{top_k} of {experts} experts: expected 1 to {experts}")]
    TopK {
        /// Experts per token.
        top_k: usize,
        /// Experts per layer.
        experts: usize,
    },
    /// The logits have another shape.
    #[error("{given} logits, expected whole rows of {width}")]
    Shape {
        /// Number of logits.
        given: usize,
        /// Logits per token.
        width: usize,
    },
    /// The groups do not divide the experts, or those that a token may visit have too few experts.
    #[error(
        "{experts} experts in {groups} groups, of which a token visits {top_groups}: expected equal groups that hold top-{top_k}"
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
    /// The bias has another length than the number of experts.
    #[error("a bias of {given} entries for {experts} experts")]
    Bias {
        /// Entries.
        given: usize,
        /// Experts per layer.
        experts: usize,
    },
    /// A logit or a replayed weight is not finite.
    #[error("token {token}: a score that is not a finite number")]
    NotFinite {
        /// Index of the token on its source.
        token: usize,
    },
    /// A replayed id is not an expert.
    #[error("position {position}: expert id {id}, expected -1 (no expert) to {}", experts - 1)]
    Id {
        /// Position in the ids, from 0.
        position: usize,
        /// The id.
        id: i32,
        /// Experts per layer.
        experts: usize,
    },
}

/// The routing of the tokens of one source.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Routing {
    /// Experts per token.
    pub top_k: usize,
    /// Expert of every choice, `[token][k]`; -1 for none.
    pub ids: Vec<i32>,
    /// Weight of every choice, `[token][k]`; 0 for none.
    pub weights: Vec<f32>,
    /// Choices that exceeded the capacity of their expert and got no other.
    pub dropped: u64,
    /// The training losses of this routing, as statistics.
    pub loss: RouterLoss,
}

impl Routing {
    /// Returns whether two routings agree: equal choices, and weights that differ at most in their last
    /// digit. The exponential function of two machines may differ that much.
    pub fn agrees_with(&self, other: &Routing) -> bool {
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 2.0 * f32::EPSILON * a.abs();
        self.top_k == other.top_k
            && self.ids == other.ids
            && self.dropped == other.dropped
            && self.weights.len() == other.weights.len()
            && self.weights.iter().zip(&other.weights).all(close)
    }
}

/// The arguments of routing apart from the logits.
#[derive(Debug, Clone, Copy)]
pub struct RouteArgs {
    /// Logical experts, `E`.
    pub experts: usize,
    /// Experts per token, `k`.
    pub top_k: usize,
    /// Capacity per expert; `None` for no limit.
    pub capacity: Option<Capacity>,
    /// Random numbers of the router.
    pub random: RandomStream,
}

impl Router {
    /// Returns the router with which a model was published. DeepSeek-V3 has 256 experts in 8 groups, of which
    /// a token may visit 4. Other models have no groups.
    pub fn for_model(model: &MoeModel) -> Self {
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

    /// Returns the same router with another selection bias, if its kind has one.
    #[must_use]
    pub fn with_bias(&self, selection: &[f64]) -> Self {
        let mut router = self.clone();
        if let Router::Sigmoid { bias, .. } = &mut router {
            *bias = selection.to_vec();
        }
        router
    }

    /// Returns the number of experts per token, if the kind of router fixes it.
    pub fn fixed_top_k(&self) -> Option<usize> {
        match self {
            Router::Switch | Router::Soft { .. } => Some(1),
            Router::Gshard => Some(2),
            _ => None,
        }
    }

    /// Returns the logits per token.
    pub fn logit_width(&self, experts: usize) -> usize {
        match self {
            Router::Noisy => 2 * experts,
            Router::Soft { slots } => slots * experts,
            _ => experts,
        }
    }

    /// Routes the tokens of one source. `logits` is `[token][width]`.
    ///
    /// [`Router::Soft`] mixes tokens instead of routing them. Here it returns the ids of its mixtures, `[E *
    /// slots]`, each with weight 1, or none without tokens ([`SoftMixtures`] makes the mixtures).
    ///
    /// # Errors
    /// Fails if shapes do not fit each other, or if a logit is not finite.
    pub fn route_tokens(&self, logits: &[f32], args: &RouteArgs) -> Result<Routing, RouterError> {
        let (experts, width) = (args.experts, self.logit_width(args.experts));
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
            return Ok(soft::mixture_routing(logits.len() / width, experts, slots));
        }
        self.check_groups(experts, top_k)?;
        let mut random = args.random;
        let mut chosen = ExpertScores::new(experts, top_k, logits.len() / width);
        for row in logits.chunks_exact(width) {
            match self {
                Router::Switch | Router::Gshard | Router::Softmax { .. } => {
                    softmax::push_softmax(row, &mut chosen);
                }
                Router::Noisy => noisy::push_noisy(row, &mut random, &mut chosen),
                Router::Sigmoid { groups, top_groups, bias, .. } => {
                    sigmoid::push_group_limited(row, bias, *groups, *top_groups, &mut chosen);
                }
                _ => softmax::push_logits(row, &mut chosen),
            }
        }
        let loss = RouterLoss::from_logits(logits, width, experts, &chosen);
        let second = |gates: &[f64]| gshard::visits_second(gates, &mut random);
        let keep: Option<KeepSecond<'_>> = match self {
            Router::Gshard => Some(&mut { second }),
            _ => None,
        };
        Ok(chosen.apply_capacity(args.capacity, |gates| self.normalise_gates(gates), keep, loss))
    }

    fn check_groups(&self, experts: usize, top_k: usize) -> Result<(), RouterError> {
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

    /// Turns the gates of one token's chosen experts into weights, in place.
    fn normalise_gates(&self, gates: &mut [f64]) {
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

    /// Parses the name of a router. `sigmoid` has no groups or bias, `soft` has one mixture per expert.
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

//! The reference: one layer in one memory, without ranks, slots or plans, summed in `f64`.
//!
//! Input: the layer's weights, its input tokens and the routing of the executor. Output: the expected output,
//! and a [`ReferenceCheck`]. The reference is written as plain loops and shares no arithmetic with the
//! executor.
//!
//! Experts are taken from the executor's choice and checked separately. At a near tie `f32` and `f64` logits
//! may select different experts, and both are right. So three conditions must hold:
//!
//! - The logits of its decision equal those of the same tokens in `f64`, within the bound of `f32`.
//! - Its choice is the one that the router makes from exactly these logits.
//! - With this choice the output equals the reference's, within the bound of its dtype.

use super::backend::{ExecConfig, SourceRouting};
use super::error::ExecError;
use super::router::Router;
use super::weights::{Dtype, ExpertWeights, Matrix, WeightSource};
use evenkeel::model::Activation;
use rayon::prelude::*;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// The constant that RMSNorm adds to the mean square before the root.
pub const NORM_EPSILON: f64 = 1e-6;

/// The deviations of an executor from the reference.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct ReferenceCheck {
    /// The largest error of a token in any layer: `max|y - reference| / max|reference|` over its vector.
    pub output: f64,
    /// The largest error of a token's logits, measured in the same way.
    pub logits: f64,
    /// Sources whose choices differ from those that the router makes from their logits.
    pub misrouted: u64,
}

impl ReferenceCheck {
    /// Returns whether all deviations are within the bounds of a dtype.
    pub fn within_bounds(&self, dtype: Dtype) -> bool {
        self.output <= dtype.error_bound() && self.logits <= Dtype::F32.error_bound() && self.misrouted == 0
    }

    /// Combines two checks: the larger errors, and the sum of misrouted sources.
    #[must_use]
    pub fn merge(self, other: ReferenceCheck) -> ReferenceCheck {
        ReferenceCheck {
            output: self.output.max(other.output),
            logits: self.logits.max(other.logits),
            misrouted: self.misrouted + other.misrouted,
        }
    }
}

/// The reference implementation. It keeps the weights that it has used, in `f32`.
#[derive(Debug)]
pub struct Reference {
    config: ExecConfig,
    source: Arc<dyn WeightSource>,
    layers: HashMap<usize, ReferenceLayer>,
    experts: HashMap<(usize, usize), DenseExpert>,
}

/// The weights of a layer apart from its routed experts.
#[derive(Debug)]
struct ReferenceLayer {
    norm: Vec<f32>,
    router: Router,
    gate: Vec<f32>,
    bias: Vec<f32>,
    shared: Option<DenseExpert>,
}

/// An expert in `f32`, which holds bf16 exactly.
#[derive(Debug)]
struct DenseExpert {
    gate: Option<Vec<f32>>,
    up: Vec<f32>,
    down: Vec<f32>,
    biases: [Vec<f32>; 3],
    inner: usize,
}

impl DenseExpert {
    fn new(weights: &ExpertWeights, hidden: usize) -> Self {
        let biases = weights.biases.clone().map(|b| [b.gate, b.up, b.down]).unwrap_or_default();
        let (gate, up, down) =
            (weights.gate.as_ref().map(Matrix::to_f32), weights.up.to_f32(), weights.down.to_f32());
        let inner = up.len() / hidden;
        Self { gate, up, down, biases, inner }
    }

    fn forward(&self, x: &[f64], activation: Activation) -> Vec<f64> {
        let bias = |which: usize, i: usize| self.biases[which].get(i).map_or(0.0, |&b| f64::from(b));
        let inside: Vec<f64> = (0..self.inner)
            .map(|i| {
                let up = dot_row(&self.up, i, x) + bias(1, i);
                let gate = self.gate.as_ref().map_or(0.0, |gate| dot_row(gate, i, x) + bias(0, i));
                match activation {
                    Activation::SwiGlu => gate / (1.0 + (-gate).exp()) * up,
                    Activation::ClampedSwiGlu => {
                        let (gate, up) = (gate.min(7.0), up.clamp(-7.0, 7.0));
                        (up + 1.0) * (gate / (1.0 + (-1.702 * gate).exp()))
                    }
                    Activation::Relu => up.max(0.0),
                    Activation::Gelu => {
                        let c = (2.0 / std::f64::consts::PI).sqrt();
                        0.5 * up * (1.0 + (c * (up + 0.044_715 * up.powi(3))).tanh())
                    }
                }
            })
            .collect();
        (0..x.len()).map(|h| dot_row(&self.down, h, &inside) + bias(2, h)).collect()
    }
}

/// Multiplies row `i` of a matrix by `x`, with eight partial sums that are added at the end.
fn dot_row(matrix: &[f32], i: usize, x: &[f64]) -> f64 {
    let row = &matrix[i * x.len()..][..x.len()];
    let mut sums = [0f64; 8];
    let (rows, xs) = (row.chunks_exact(8), x.chunks_exact(8));
    let rest: f64 = rows.remainder().iter().zip(xs.remainder()).map(|(&w, x)| f64::from(w) * x).sum();
    for (row, x) in rows.zip(xs) {
        sums.iter_mut().zip(row).zip(x).for_each(|((sum, &w), x)| *sum += f64::from(w) * x);
    }
    sums.iter().sum::<f64>() + rest
}

impl Reference {
    /// Creates a reference for the run of `config`, with weights from `source`.
    pub fn new(config: ExecConfig, source: Arc<dyn WeightSource>) -> Self {
        Self { config, source, layers: HashMap::new(), experts: HashMap::new() }
    }

    /// Compares `y`, the values that a layer added to the tokens of one source, with the expected ones. `x`
    /// is the input of the layer; both are `[token][H]`.
    ///
    /// # Errors
    /// Fails if weights cannot be read, or if `y` has another size than `x`.
    pub fn check_layer(
        &mut self,
        [step, layer, source]: [usize; 3],
        x: &[f32],
        y: &[f32],
        routed: &SourceRouting,
    ) -> Result<ReferenceCheck, ExecError> {
        ExecError::expect_size("numbers of an output", y.len(), x.len())?;
        let expected = self.layer_output(layer, x, routed)?;
        let mut check = ReferenceCheck {
            output: relative_error(y, &expected, self.hidden()),
            ..ReferenceCheck::default()
        };
        if routed.logits.is_empty() {
            return Ok(check);
        }
        let logits = self.logits(layer, x)?;
        ExecError::expect_size("logits", routed.logits.len(), logits.len())?;
        let router = self.layer_weights(layer)?.router.clone();
        check.logits = relative_error(&routed.logits, &logits, router.logit_width(self.config.model.experts));
        let args = self.config.route_args(step as u64, layer, source);
        check.misrouted =
            u64::from(!router.route_tokens(&routed.logits, &args)?.agrees_with(&routed.routing));
        Ok(check)
    }

    /// Returns the values that the layer adds to the tokens of one source, `[token][H]`, before the residual.
    /// `x` is its input.
    ///
    /// # Errors
    /// Fails if weights cannot be read.
    pub fn layer_output(
        &mut self,
        layer: usize,
        x: &[f32],
        routed: &SourceRouting,
    ) -> Result<Vec<f64>, ExecError> {
        let (hidden, activation) = (self.hidden(), self.config.model.activation);
        self.layer_weights(layer)?;
        self.load_experts(layer, &routed.routing.ids)?;
        let of_layer = &self.layers[&layer];
        let tokens: Vec<Vec<f64>> = x.chunks_exact(hidden).map(|x| rms_norm(x, &of_layer.norm)).collect();
        // Input of the experts: the tokens, or mixtures of them.
        let mixed: Option<Vec<Vec<f64>>> = routed.soft.as_ref().map(|soft| {
            let shares = soft.dispatch.chunks_exact(tokens.len().max(1));
            shares.map(|shares| weighted_sum(shares, &tokens, hidden)).collect()
        });
        let rows = mixed.as_ref().unwrap_or(&tokens);
        let k = routed.routing.top_k.max(1);
        let outcome: Vec<Vec<f64>> = rows
            .par_iter()
            .enumerate()
            .map(|(token, x)| {
                let mut y = vec![0f64; hidden];
                for choice in token * k..(token + 1) * k {
                    let Ok(expert) = usize::try_from(routed.routing.ids[choice]) else { continue };
                    let Some(dense) = self.experts.get(&(layer, expert)) else { continue };
                    let weight = f64::from(routed.routing.weights[choice]);
                    y.iter_mut().zip(dense.forward(x, activation)).for_each(|(y, v)| *y += weight * v);
                }
                y
            })
            .collect();
        let mut y: Vec<Vec<f64>> = match &routed.soft {
            Some(soft) => {
                let shares = soft.combine.chunks_exact(outcome.len().max(1));
                shares.map(|shares| weighted_sum(shares, &outcome, hidden)).collect()
            }
            None => outcome,
        };
        if let Some(shared) = &of_layer.shared {
            y.par_iter_mut().zip(&tokens).for_each(|(y, x)| {
                y.iter_mut().zip(shared.forward(x, activation)).for_each(|(y, v)| *y += v);
            });
        }
        Ok(y.concat())
    }

    /// Returns the logits of tokens, `[token][width]`.
    ///
    /// # Errors
    /// Fails if weights cannot be read.
    pub fn logits(&mut self, layer: usize, x: &[f32]) -> Result<Vec<f64>, ExecError> {
        let hidden = self.hidden();
        let of_layer = self.layer_weights(layer)?;
        let width = of_layer.gate.len() / hidden;
        let bias = |i: usize| of_layer.bias.get(i).map_or(0.0, |&b| f64::from(b));
        let tokens = x.chunks_exact(hidden).map(|x| rms_norm(x, &of_layer.norm));
        let of = |x: Vec<f64>| (0..width).map(move |i| dot_row(&of_layer.gate, i, &x) + bias(i));
        Ok(tokens.flat_map(of).collect())
    }

    fn hidden(&self) -> usize {
        self.config.model.hidden as usize
    }

    fn layer_weights(&mut self, layer: usize) -> Result<&ReferenceLayer, ExecError> {
        let hidden = self.hidden();
        match self.layers.entry(layer) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => {
                let gate = self.source.router_weights(layer)?;
                let shared =
                    self.source.shared_weights(layer)?.map(|shared| DenseExpert::new(&shared, hidden));
                let router = self.config.router.with_bias(&gate.selection);
                let norm = self.source.norm_weights(layer)?;
                Ok(place.insert(ReferenceLayer {
                    norm,
                    router,
                    gate: gate.weight.to_f32(),
                    bias: gate.bias,
                    shared,
                }))
            }
        }
    }

    fn load_experts(&mut self, layer: usize, ids: &[i32]) -> Result<(), ExecError> {
        let hidden = self.hidden();
        for &id in ids {
            let Ok(expert) = usize::try_from(id) else { continue };
            if let Entry::Vacant(place) = self.experts.entry((layer, expert)) {
                place.insert(DenseExpert::new(&self.source.expert_weights(layer, expert)?, hidden));
            }
        }
        Ok(())
    }
}

fn rms_norm(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let square: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (square + NORM_EPSILON).sqrt();
    x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)).collect()
}

fn weighted_sum(shares: &[f32], rows: &[Vec<f64>], width: usize) -> Vec<f64> {
    let mut sum = vec![0f64; width];
    for (&share, row) in shares.iter().zip(rows) {
        sum.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(share) * v);
    }
    sum
}

/// Returns the largest error of a token, `max|y - reference| / max|reference|` over its vector of `width`.
/// The error is infinite if the reference is zero and `y` is not, or if `y` contains NaN.
pub fn relative_error(y: &[f32], reference: &[f64], width: usize) -> f64 {
    let one = |y: &[f32], reference: &[f64]| {
        let largest = reference.iter().fold(0f64, |m, r| m.max(r.abs()));
        let off = y.iter().zip(reference).map(|(&y, r)| (f64::from(y) - r).abs());
        let off = off.fold(0f64, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
        if off == 0.0 { 0.0 } else { off / largest }
    };
    y.chunks(width).zip(reference.chunks(width)).map(|(y, r)| one(y, r)).fold(0.0, f64::max)
}

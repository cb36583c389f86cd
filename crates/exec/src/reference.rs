//! The truth: one layer in one memory, without ranks, slots or plans, summed in `f64`.
//!
//! In: the layer's weights, the tokens that went in and what the executor decided about them. Out: what must come out, and a
//! [`Check`]. Plain loops, sharing no arithmetic with the executor.
//!
//! Experts are taken from the executor's choice and checked apart: at a near tie `f32` and `f64` logits may disagree on an
//! expert, and both are right. So three things must hold. The logits that it decided on are those of the same tokens in
//! `f64`, within the bound of `f32`. Its choice is what the router makes of just these logits. And with this choice the
//! output is the reference's, within the bound of its dtype.

use super::backend::{ExecConfig, SourceRouting};
use super::error::ExecError;
use super::router::Router;
use super::weights::{Dtype, ExpertWeights, Matrix, WeightSource};
use crate::model::Activation;
use rayon::prelude::*;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// What is added to the mean square before its root.
pub const EPSILON: f64 = 1e-6;

/// What was found wrong.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Check {
    /// The largest error of a token in any layer: `max|y - reference| / max|reference|` over its vector.
    pub output: f64,
    /// The same of its logits.
    pub logits: f64,
    /// Sources whose choices are not what their router makes of their logits.
    pub misrouted: u64,
}

impl Check {
    /// Whether everything is within the bounds of a dtype.
    pub fn ok(&self, dtype: Dtype) -> bool {
        self.output <= dtype.bound() && self.logits <= Dtype::F32.bound() && self.misrouted == 0
    }

    /// The worse of both, in everything.
    #[must_use]
    pub fn and(self, other: Check) -> Check {
        Check {
            output: self.output.max(other.output),
            logits: self.logits.max(other.logits),
            misrouted: self.misrouted + other.misrouted,
        }
    }
}

/// Computes layers in one memory; keeps the weights that it has used, in `f32`.
#[derive(Debug)]
pub struct Reference {
    config: ExecConfig,
    source: Arc<dyn WeightSource>,
    layers: HashMap<usize, Layer>,
    experts: HashMap<(usize, usize), Dense>,
}

/// What a layer has besides its experts.
#[derive(Debug)]
struct Layer {
    norm: Vec<f32>,
    router: Router,
    gate: Vec<f32>,
    bias: Vec<f32>,
    shared: Option<Dense>,
}

/// An expert in `f32`, which holds bf16 exactly.
#[derive(Debug)]
struct Dense {
    gate: Option<Vec<f32>>,
    up: Vec<f32>,
    down: Vec<f32>,
    biases: [Vec<f32>; 3],
    inner: usize,
}

impl Dense {
    fn new(weights: &ExpertWeights, hidden: usize) -> Self {
        let biases = weights.biases.clone().map(|b| [b.gate, b.up, b.down]).unwrap_or_default();
        let (gate, up, down) =
            (weights.gate.as_ref().map(Matrix::wide), weights.up.wide(), weights.down.wide());
        let inner = up.len() / hidden;
        Self { gate, up, down, biases, inner }
    }

    fn of(&self, x: &[f64], activation: Activation) -> Vec<f64> {
        let bias = |which: usize, i: usize| self.biases[which].get(i).map_or(0.0, |&b| f64::from(b));
        let inside: Vec<f64> = (0..self.inner)
            .map(|i| {
                let up = row(&self.up, i, x) + bias(1, i);
                let gate = self.gate.as_ref().map_or(0.0, |gate| row(gate, i, x) + bias(0, i));
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
        (0..x.len()).map(|h| row(&self.down, h, &inside) + bias(2, h)).collect()
    }
}

/// Row `i` of a matrix times `x`, in eight sums that are added at the end.
fn row(matrix: &[f32], i: usize, x: &[f64]) -> f64 {
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
    /// A reference for what `config` runs, with weights of `source`.
    pub fn new(config: ExecConfig, source: Arc<dyn WeightSource>) -> Self {
        Self { config, source, layers: HashMap::new(), experts: HashMap::new() }
    }

    /// Compares what a layer added to the tokens of one source, `y`, with what it should have, given `x`, what went in;
    /// both `[token][H]`.
    ///
    /// # Errors
    /// When weights cannot be had, or `y` has another size than `x`.
    pub fn check(
        &mut self,
        [step, layer, source]: [usize; 3],
        x: &[f32],
        y: &[f32],
        routed: &SourceRouting,
    ) -> Result<Check, ExecError> {
        ExecError::expect("numbers that came out", y.len(), x.len())?;
        let expected = self.layer(layer, x, routed)?;
        let mut check = Check { output: error(y, &expected, self.hidden()), ..Check::default() };
        if routed.logits.is_empty() {
            return Ok(check);
        }
        let logits = self.logits(layer, x)?;
        ExecError::expect("logits", routed.logits.len(), logits.len())?;
        let router = self.of(layer)?.router.clone();
        check.logits = error(&routed.logits, &logits, router.width(self.config.model.experts));
        let args = self.config.route_args(step as u64, layer, source);
        check.misrouted = u64::from(!router.route(&routed.logits, &args)?.agrees(&routed.routing));
        Ok(check)
    }

    /// What the layer adds to the tokens of one source, `[token][H]`, before the residual; `x` is what went in.
    ///
    /// # Errors
    /// When weights cannot be had.
    pub fn layer(&mut self, layer: usize, x: &[f32], routed: &SourceRouting) -> Result<Vec<f64>, ExecError> {
        let (hidden, activation) = (self.hidden(), self.config.model.activation);
        self.of(layer)?;
        self.load(layer, &routed.routing.ids)?;
        let of_layer = &self.layers[&layer];
        let tokens: Vec<Vec<f64>> = x.chunks_exact(hidden).map(|x| normalised(x, &of_layer.norm)).collect();
        // What the experts see: the tokens, or mixtures of them.
        let mixed: Option<Vec<Vec<f64>>> = routed.soft.as_ref().map(|soft| {
            let shares = soft.dispatch.chunks_exact(tokens.len().max(1));
            shares.map(|shares| combination(shares, &tokens, hidden)).collect()
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
                    y.iter_mut().zip(dense.of(x, activation)).for_each(|(y, v)| *y += weight * v);
                }
                y
            })
            .collect();
        let mut y: Vec<Vec<f64>> = match &routed.soft {
            Some(soft) => {
                let shares = soft.combine.chunks_exact(outcome.len().max(1));
                shares.map(|shares| combination(shares, &outcome, hidden)).collect()
            }
            None => outcome,
        };
        if let Some(shared) = &of_layer.shared {
            y.par_iter_mut().zip(&tokens).for_each(|(y, x)| {
                y.iter_mut().zip(shared.of(x, activation)).for_each(|(y, v)| *y += v);
            });
        }
        Ok(y.concat())
    }

    /// Logits of tokens, `[token][width]`.
    ///
    /// # Errors
    /// When weights cannot be had.
    pub fn logits(&mut self, layer: usize, x: &[f32]) -> Result<Vec<f64>, ExecError> {
        let hidden = self.hidden();
        let of_layer = self.of(layer)?;
        let width = of_layer.gate.len() / hidden;
        let bias = |i: usize| of_layer.bias.get(i).map_or(0.0, |&b| f64::from(b));
        let tokens = x.chunks_exact(hidden).map(|x| normalised(x, &of_layer.norm));
        let of = |x: Vec<f64>| (0..width).map(move |i| row(&of_layer.gate, i, &x) + bias(i));
        Ok(tokens.flat_map(of).collect())
    }

    fn hidden(&self) -> usize {
        self.config.model.hidden as usize
    }

    fn of(&mut self, layer: usize) -> Result<&Layer, ExecError> {
        let hidden = self.hidden();
        match self.layers.entry(layer) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => {
                let gate = self.source.gate(layer)?;
                let shared = self.source.shared(layer)?.map(|shared| Dense::new(&shared, hidden));
                let router = self.config.router.with_bias(&gate.selection);
                let norm = self.source.norm(layer)?;
                Ok(place.insert(Layer { norm, router, gate: gate.weight.wide(), bias: gate.bias, shared }))
            }
        }
    }

    fn load(&mut self, layer: usize, ids: &[i32]) -> Result<(), ExecError> {
        let hidden = self.hidden();
        for &id in ids {
            let Ok(expert) = usize::try_from(id) else { continue };
            if let Entry::Vacant(place) = self.experts.entry((layer, expert)) {
                place.insert(Dense::new(&self.source.expert(layer, expert)?, hidden));
            }
        }
        Ok(())
    }
}

fn normalised(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let square: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / x.len() as f64;
    let scale = 1.0 / (square + EPSILON).sqrt();
    x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)).collect()
}

fn combination(shares: &[f32], rows: &[Vec<f64>], width: usize) -> Vec<f64> {
    let mut sum = vec![0f64; width];
    for (&share, row) in shares.iter().zip(rows) {
        sum.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(share) * v);
    }
    sum
}

/// The largest error of a token, `max|y - reference| / max|reference|` over its vector of `width`; infinite where the
/// reference is zero and `y` is not, or `y` is no number.
pub fn error(y: &[f32], reference: &[f64], width: usize) -> f64 {
    let one = |y: &[f32], reference: &[f64]| {
        let largest = reference.iter().fold(0f64, |m, r| m.max(r.abs()));
        let off = y.iter().zip(reference).map(|(&y, r)| (f64::from(y) - r).abs());
        let off = off.fold(0f64, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
        if off == 0.0 { 0.0 } else { off / largest }
    };
    y.chunks(width).zip(reference.chunks(width)).map(|(y, r)| one(y, r)).fold(0.0, f64::max)
}

//! The truth: one layer in one memory, without ranks, slots or plans, summed in `f64`.
//!
//! In: the layer's weights, the tokens that went in and where the router sent them. Out: what must come out. Plain loops,
//! sharing no arithmetic with the executor. Routing is taken as given: at a near tie `f32` and `f64` logits may disagree on
//! an expert, and both are right.

use super::backend::SourceRouting;
use super::error::ExecError;
use super::weights::{ExpertWeights, Matrix, WeightSource};
use crate::model::{Activation, Model};
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;

/// What is added to the mean square before its root.
pub const EPSILON: f64 = 1e-6;

/// Computes layers in one memory; keeps the weights that it has used.
#[derive(Debug)]
pub struct Reference {
    model: Model,
    source: Arc<dyn WeightSource>,
    experts: HashMap<(usize, usize), Dense>,
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
        let wide = |matrix: &Matrix| {
            let mut numbers = Vec::new();
            matrix.read(0, matrix.len(), &mut numbers);
            numbers
        };
        let biases = weights.biases.clone().map(|b| [b.gate, b.up, b.down]).unwrap_or_default();
        let (gate, up, down) = (weights.gate.as_ref().map(wide), wide(&weights.up), wide(&weights.down));
        let inner = up.len() / hidden;
        Self { gate, up, down, biases, inner }
    }

    fn of(&self, x: &[f64], activation: Activation) -> Vec<f64> {
        let bias = |which: usize, i: usize| self.biases[which].get(i).map_or(0.0, |&b| f64::from(b));
        let row = |matrix: &[f32], i: usize, x: &[f64]| -> f64 {
            matrix[i * x.len()..][..x.len()].iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum()
        };
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

impl Reference {
    /// A reference for a model with weights of `source`.
    pub fn new(model: Model, source: Arc<dyn WeightSource>) -> Self {
        Self { model, source, experts: HashMap::new() }
    }

    /// Numbers per token.
    pub fn hidden(&self) -> usize {
        self.model.hidden as usize
    }

    /// What the layer adds to the tokens of one source, `[token][H]`, before the residual; `x` is what went in.
    ///
    /// # Errors
    /// When weights cannot be had.
    pub fn layer(
        &mut self,
        layer: usize,
        x: &[f32],
        routed: &SourceRouting,
    ) -> Result<Vec<f64>, ExecError> {
        let hidden = self.model.hidden as usize;
        let norm = self.source.norm(layer)?;
        let tokens: Vec<Vec<f64>> = x.chunks_exact(hidden).map(|x| normalised(x, &norm)).collect();
        // What the experts see: the tokens, or mixtures of them.
        let mixed: Option<Vec<Vec<f64>>> = routed.soft.as_ref().map(|soft| {
            let shares = soft.dispatch.chunks_exact(tokens.len().max(1));
            shares.map(|shares| combination(shares, &tokens, hidden)).collect()
        });
        let rows = mixed.as_ref().unwrap_or(&tokens);
        self.load(layer, &routed.routing.ids)?;
        let (k, activation) = (routed.routing.top_k.max(1), self.model.activation);
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
        if let Some(shared) = self.source.shared(layer)? {
            let shared = Dense::new(&shared, hidden);
            y.par_iter_mut().zip(&tokens).for_each(|(y, x)| {
                y.iter_mut().zip(shared.of(x, activation)).for_each(|(y, v)| *y += v);
            });
        }
        Ok(y.concat())
    }

    fn load(&mut self, layer: usize, ids: &[i32]) -> Result<(), ExecError> {
        for &id in ids {
            let Ok(expert) = usize::try_from(id) else { continue };
            if let std::collections::hash_map::Entry::Vacant(place) = self.experts.entry((layer, expert)) {
                place.insert(Dense::new(&self.source.expert(layer, expert)?, self.model.hidden as usize));
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

/// The largest error of a token, `max|y - reference| / max|reference|` over its vector of `hidden`; infinite where the
/// reference is zero and `y` is not, or `y` is no number.
pub fn error(y: &[f32], reference: &[f64], hidden: usize) -> f64 {
    let one = |y: &[f32], reference: &[f64]| {
        let largest = reference.iter().fold(0f64, |m, r| m.max(r.abs()));
        let off = y.iter().zip(reference).map(|(&y, r)| (f64::from(y) - r).abs());
        let off = off.fold(0f64, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
        if off == 0.0 { 0.0 } else { off / largest }
    };
    y.chunks(hidden).zip(reference.chunks(hidden)).map(|(y, r)| one(y, r)).fold(0.0, f64::max)
}

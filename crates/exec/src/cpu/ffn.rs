//! One expert's feed-forward network on its received rows.

#![allow(clippy::inline_always, reason = "code that is not inlined is not compiled for wider vectors")]

use super::matmul::times_transposed;
use crate::simd::{run_vectorised, sigmoid, tanh};
use crate::weights::ExpertWeights;
use evenkeel::model::Activation;

/// A runner of experts, whose buffers are reused from expert to expert.
#[derive(Debug, Default)]
pub struct Ffn {
    gate: Vec<f32>,
    up: Vec<f32>,
    /// bf16 weights, converted to `f32` for the product.
    widened: Vec<f32>,
}

impl Ffn {
    /// Computes `out = expert(x)` with `x` and `out` `[rows][hidden]`.
    ///
    /// # Panics
    /// Panics if `out` is shorter than `x`, or if the expert's matrices have another width. Callers ensure
    /// both.
    pub fn run(
        &mut self,
        expert: &ExpertWeights,
        activation: Activation,
        x: &[f32],
        hidden: usize,
        out: &mut [f32],
    ) {
        let rows = x.len() / hidden.max(1);
        let inner = expert.up.len() / hidden.max(1);
        if rows == 0 {
            return;
        }
        let Self { gate, up, widened } = self;
        up.resize(rows * inner, 0.0);
        times_transposed(x, &expert.up, up, [rows, inner, hidden], widened);
        gate.clear();
        if let Some(matrix) = &expert.gate {
            gate.resize(rows * inner, 0.0);
            times_transposed(x, matrix, gate, [rows, inner, hidden], widened);
        }
        if let Some(biases) = &expert.biases {
            add_bias(up, &biases.up);
            add_bias(gate, &biases.gate);
        }
        run_vectorised(|| apply_activation(activation, gate, up));
        times_transposed(up, &expert.down, out, [rows, hidden, inner], widened);
        if let Some(biases) = &expert.biases {
            add_bias(&mut out[..rows * hidden], &biases.down);
        }
    }
}

fn add_bias(rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len().max(1)) {
        row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
    }
}

/// Applies the activation between the matrices. The result is in `up`.
#[inline(always)]
fn apply_activation(activation: Activation, gate: &[f32], up: &mut [f32]) {
    let pairs = up.iter_mut().zip(gate);
    match activation {
        Activation::SwiGlu => pairs.for_each(|(up, &gate)| *up *= gate * sigmoid(gate)),
        Activation::ClampedSwiGlu => pairs.for_each(|(up, &gate)| {
            let gate = gate.min(7.0);
            *up = (up.clamp(-7.0, 7.0) + 1.0) * (gate * sigmoid(1.702 * gate));
        }),
        Activation::Relu => up.iter_mut().for_each(|up| *up = up.max(0.0)),
        Activation::Gelu => {
            let c = (2.0 / std::f32::consts::PI).sqrt();
            up.iter_mut()
                .for_each(|up| *up = 0.5 * *up * (1.0 + tanh(c * (*up + 0.044_715 * *up * *up * *up))));
        }
    }
}

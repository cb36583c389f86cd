//! One expert's feed-forward network on the rows that came for it.

use super::matmul::times_transposed;
use crate::exec::weights::ExpertWeights;
use crate::model::Activation;

/// Runs experts; its buffers are used again from expert to expert.
#[derive(Debug, Default)]
pub struct Ffn {
    gate: Vec<f32>,
    up: Vec<f32>,
    /// A bf16 matrix in `f32`, while it is multiplied.
    widened: Vec<f32>,
}

impl Ffn {
    /// `out = expert(x)` with `x` and `out` `[rows][hidden]`; `out` is given its size.
    pub fn run(
        &mut self,
        expert: &ExpertWeights,
        activation: Activation,
        x: &[f32],
        hidden: usize,
        out: &mut Vec<f32>,
    ) {
        let rows = x.len() / hidden.max(1);
        let inner = expert.up.len() / hidden.max(1);
        out.resize(rows * hidden, 0.0);
        if rows == 0 {
            return;
        }
        self.up.resize(rows * inner, 0.0);
        times_transposed(x, expert.up.wide(&mut self.widened), &mut self.up, [rows, inner, hidden]);
        if let Some(gate) = &expert.gate {
            self.gate.resize(rows * inner, 0.0);
            times_transposed(x, gate.wide(&mut self.widened), &mut self.gate, [rows, inner, hidden]);
        }
        if let Some(biases) = &expert.biases {
            add(&mut self.up, &biases.up);
            add(&mut self.gate, &biases.gate);
        }
        activate(activation, &self.gate, &mut self.up);
        times_transposed(&self.up, expert.down.wide(&mut self.widened), out, [rows, hidden, inner]);
        if let Some(biases) = &expert.biases {
            add(out, &biases.down);
        }
    }
}

fn add(rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len().max(1)) {
        row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
    }
}

/// What stands between the matrices, into `up`.
fn activate(activation: Activation, gate: &[f32], up: &mut [f32]) {
    let pairs = up.iter_mut().zip(gate);
    match activation {
        Activation::SwiGlu => pairs.for_each(|(up, &gate)| *up *= gate / (1.0 + (-gate).exp())),
        Activation::ClampedSwiGlu => pairs.for_each(|(up, &gate)| {
            let gate = gate.min(7.0);
            *up = (up.clamp(-7.0, 7.0) + 1.0) * (gate / (1.0 + (-1.702 * gate).exp()));
        }),
        Activation::Relu => up.iter_mut().for_each(|up| *up = up.max(0.0)),
        Activation::Gelu => {
            let c = (2.0 / std::f32::consts::PI).sqrt();
            up.iter_mut()
                .for_each(|up| *up = 0.5 * *up * (1.0 + (c * (*up + 0.044_715 * *up * *up * *up)).tanh()));
        }
    }
}

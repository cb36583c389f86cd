// Activations between an expert's matrices (crates/exec/src/cpu/ffn.rs), and the description of a matrix
// product.
#pragma once
#include "bf16.h"

enum { NOTHING, SWIGLU, CLAMPED, RELU, GELU };

EK_FN float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Activations with a gate: SWIGLU or CLAMPED.
EK_FN float gated(u32 which, float gate, float up) {
  const bool clamped = which == CLAMPED;
  if (clamped) {
    gate = fminf(gate, 7.0f);
    up = fminf(fmaxf(up, -7.0f), 7.0f) + 1.0f;
  }
  return up * (gate * sigmoid(clamped ? 1.702f * gate : gate));
}

// Activations without a gate: RELU, GELU (its tanh form) or NOTHING.
EK_FN float plain(u32 which, float up) {
  if (which == RELU) return fmaxf(up, 0.0f);
  if (which == GELU) return 0.5f * up * (1.0f + tanhf(0.7978845608f * (up + 0.044715f * up * up * up)));
  return up;
}

// One matrix product per group of rows, all in one launch. Rows of group g are offsets[g] .. offsets[g + 1].
// The matrices of a group are in one allocation, its cell. All rows of a matrix have length `inner`, a
// multiple of 8.
struct Job {
  const u32* offsets; // [groups + 1]
  const u64* cells;   // [groups], addresses
  const u64* rows;    // addresses of the rows; null if they are consecutive from `base`
  const u16* base;
  const float* scale; // per row, the weight of the result; null for 1
  u16* out;           // [row][columns]
  u64 first, second;  // offsets in a cell of the matrix, and of its partner if paired: gate and up
  u64 first_bias, second_bias; // offsets of the f32 biases; 0 for none
  u32 groups, inner, columns;
  u32 activation;
};

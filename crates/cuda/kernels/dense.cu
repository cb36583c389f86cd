// Kernels around the matrix products of cuBLAS: gathering rows before them, the activation between them,
// biases and weights after them.
#include "activation.h"
#include "tokens.h"

EK_FN u32 group_of(const u32* offsets, u32 groups, u32 row) {
  u32 low = 0, high = groups;
  EK_LOOP while (high - low > 1) {
    const u32 middle = (low + high) / 2;
    if (offsets[middle] <= row) low = middle;
    else high = middle;
  }
  return low;
}

EK_KERNEL(256) ek_permute(const u64* rows, u32 count, u32 width, u16* out) {
  EK_ROWS(row, count) {
    const Quad* from = (const Quad*)rows[row];
    Quad* to = (Quad*)(out + row * width);
    EK_EACH(Warp(), chunk, width / 8) to[chunk] = from[chunk];
  }
}

// Computes the input of the last product from `gate` and `up` [rows][columns], for the `count` rows of the
// groups. The groups need not begin at row 0. `gate` is null if there is none.
EK_KERNEL(256)
ek_activate(const Job job, const u16* gate, const u16* up, u32 count) {
  EK_ROWS(at_row, count) {
    const u64 row = job.offsets[0] + at_row;
    const u64 cell = job.cells[group_of(job.offsets, job.groups, (u32)row)];
    const float* first = job.first_bias ? (const float*)(cell + job.first_bias) : nullptr;
    const float* second = job.second_bias ? (const float*)(cell + job.second_bias) : nullptr;
    EK_EACH(Warp(), at, job.columns) {
      const u64 place = row * job.columns + at;
      float left = wide(up[place]);
      if (gate) {
        if (second) left += second[at];
        const float factor = wide(gate[place]) + (first ? first[at] : 0.0f);
        job.out[place] = narrow(gated(job.activation, factor, left));
      } else {
        if (first) left += first[at];
        job.out[place] = narrow(plain(job.activation, left));
      }
    }
  }
}

// Adds biases to results [rows][columns] and multiplies them by weights, in place, for the `count` rows of
// the groups.
EK_KERNEL(256) ek_weigh(const Job job, u32 count) {
  EK_ROWS(at_row, count) {
    const u64 row = job.offsets[0] + at_row;
    const u64 cell = job.cells[group_of(job.offsets, job.groups, (u32)row)];
    const float* bias = job.first_bias ? (const float*)(cell + job.first_bias) : nullptr;
    const float scale = job.scale ? job.scale[row] : 1.0f;
    EK_EACH(Warp(), at, job.columns) {
      u16* number = job.out + row * job.columns + at;
      *number = narrow(scale * (wide(*number) + (bias ? bias[at] : 0.0f)));
    }
  }
}

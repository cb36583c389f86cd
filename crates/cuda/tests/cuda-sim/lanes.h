// Tensor cores on a host with a thread per lane: the operands of a warp's lanes are stored for all of them to
// read.
#pragma once

#include "copies.h"

static const u16* ek_rows_of[256];
static u32 ek_left[256][4], ek_right[256][2];

static inline void load_four(u32* word, const u16* from) {
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x - lane;
  ek_rows_of[threadIdx.x] = from;
  __syncwarp();
  for (u32 j = 0; j < 4; ++j) {
    const u16* row = ek_rows_of[warp + 8 * j + lane / 4];
    word[j] = (u32)row[lane % 4 * 2] | (u32)row[lane % 4 * 2 + 1] << 16;
  }
  __syncwarp();
}

static inline float half_of(u32 pair, u32 which) { return which ? wide_high(pair) : wide_low(pair); }

static inline void multiply(Acc& sum, const FragA& a, const FragB& b) {
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x - lane;
  for (u32 j = 0; j < 4; ++j) ek_left[threadIdx.x][j] = a.word[j];
  for (u32 j = 0; j < 2; ++j) ek_right[threadIdx.x][j] = b.word[j];
  __syncwarp();
  for (u32 i = 0; i < 4; ++i) {
    const u32 row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
    float value = 0.0f;
    for (u32 k = 0; k < 16; ++k) {
      const float left = half_of(ek_left[warp + row % 8 * 4 + k % 8 / 2][row / 8 + 2 * (k / 8)], k % 2);
      value += left * half_of(ek_right[warp + column * 4 + k % 8 / 2][k / 8], k % 2);
    }
    sum.value[i] += value;
  }
  __syncwarp();
}

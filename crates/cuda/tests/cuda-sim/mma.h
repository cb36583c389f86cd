// Tensor cores on a host: fragments of all 32 lanes.
#pragma once

#include "copies.h"

#define EK_WARPS(warp, n) EK_EACH(Block(), warp, n)
#define EK_LANES(lane) EK_EACH(Block(), lane, 32u)

struct FragA {
  u32 word[32][4];
};
struct FragB {
  u32 word[32][2];
};
struct Acc {
  float value[32][4];
  float& at(u32 lane, u32 i) { return value[lane][i]; }
  void clear() { std::memset(value, 0, sizeof value); }
};

// ldmatrix: lanes 8j.. + 8 name the rows of matrix j; lane l gets words l % 4 of row l / 4 of each.
static inline void load_four(u32 (*word)[4], const u16* (*row_of)(const u16*, u32, u32, u32), const u16* tile, u32 row,
                             u32 step) {
  for (u32 j = 0; j < 4; ++j) {
    for (u32 lane = 0; lane < 32; ++lane) {
      const u16* from = row_of(tile, row, step, 8 * j + lane / 4);
      word[lane][j] = (u32)from[lane % 4 * 2] | (u32)from[lane % 4 * 2 + 1] << 16;
    }
  }
}

static inline void load_a(FragA& a, const u16* tile, u32 row, u32 step) {
  load_four(
      a.word,
      [](const u16* tile, u32 row, u32 step, u32 lane) {
        return tile + tile_at(row + (lane & 15u), 2 * step + (lane >> 4));
      },
      tile, row, step);
}

static inline void load_b(FragB& first, FragB& second, const u16* tile, u32 row, u32 step) {
  u32 word[32][4];
  load_four(
      word,
      [](const u16* tile, u32 row, u32 step, u32 lane) {
        return tile + tile_at(row + (lane & 7u) + ((lane >> 4) << 3), 2 * step + ((lane >> 3) & 1u));
      },
      tile, row, step);
  for (u32 lane = 0; lane < 32; ++lane) {
    first.word[lane][0] = word[lane][0];
    first.word[lane][1] = word[lane][1];
    second.word[lane][0] = word[lane][2];
    second.word[lane][1] = word[lane][3];
  }
}

static inline float half_of(u32 pair, u32 which) { return which ? wide_high(pair) : wide_low(pair); }

// Lane l holds, with g = l / 4 and t = l % 4:
//
// - A (g + 8 (j % 2), 2 t + 8 (j / 2)) in word j
// - B (2 t + 8 j, g) in word j
// - sums (g + 8 (i / 2), 2 t + i % 2)
static inline void multiply(Acc& sum, const FragA& a, const FragB& b) {
  float left[16][16], right[16][8];
  for (u32 lane = 0; lane < 32; ++lane) {
    const u32 g = lane / 4, t = lane % 4;
    for (u32 j = 0; j < 4; ++j) {
      for (u32 h = 0; h < 2; ++h) left[g + 8 * (j % 2)][2 * t + 8 * (j / 2) + h] = half_of(a.word[lane][j], h);
    }
    for (u32 j = 0; j < 2; ++j) {
      for (u32 h = 0; h < 2; ++h) right[2 * t + 8 * j + h][g] = half_of(b.word[lane][j], h);
    }
  }
  for (u32 lane = 0; lane < 32; ++lane) {
    for (u32 i = 0; i < 4; ++i) {
      const u32 row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
      float value = 0.0f;
      for (u32 k = 0; k < 16; ++k) value += left[row][k] * right[k][column];
      sum.value[lane][i] += value;
    }
  }
}

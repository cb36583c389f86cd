// Teams on a host: one thread runs all iterations of a section, in the order of `ek_order`.
#pragma once

#include <cstddef>
#include <cstdint>

#define EK_FN static inline
#define EK_FN_MEMBER inline
#define EK_CALL static inline
#define EK_LOOP
#define EK_SHORT

enum Order { ASCENDING, DESCENDING, SHUFFLED };
static Order ek_order = ASCENDING;
static u64 ek_dice = 1;
static u64 ek_sections = 0; // sections so far, most followed by a barrier: a measure of latency

static inline u64 ek_roll() {
  ek_dice += 0x9e3779b97f4a7c15ull;
  u64 z = (ek_dice ^ (ek_dice >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// A bijection of 0..n: at -> (at * factor + shift) mod n.
struct Permutation {
  u64 count, factor, shift;
  explicit Permutation(u64 n) : count(n), factor(1), shift(0) {
    ++ek_sections;
    if (ek_order == DESCENDING && n > 0) {
      factor = n - 1;
      shift = n - 1;
    } else if (ek_order == SHUFFLED && n > 1) {
      shift = ek_roll() % n;
      do factor = 1 + ek_roll() % n;
      while (common(factor, n) != 1);
    }
  }
  static u64 common(u64 a, u64 b) { return b == 0 ? a : common(b, a % b); }
  u32 operator()(u64 at) const { return (u32)((at * factor + shift) % count); }
};

struct Team {
  u32 lane() const { return 0; }
  u32 size() const { return 1; }
  void sync() const {}
  bool any(bool mine) const { return mine; }
  template <class T> T sum(T mine) const { return mine; }
  template <class T> T highest(T mine) const { return mine; }
  template <class T> T lowest(T mine) const { return mine; }
  u32 scan(u32* values, u32 n) const {
    u32 before = 0;
    for (u32 at = 0; at < n; ++at) {
      u32 own = values[at];
      values[at] = before;
      before += own;
    }
    return before;
  }
};
typedef Team Warp;
typedef Team Block;

template <class T, u32 N> struct Own {
  T own[N];
  T& operator[](u32 lane) { return own[lane]; }
};

#define EK_EACH(team, i, n)                                                       \
  for (Permutation ek_way((u64)(n)); ek_way.count > 0; ek_way.count = 0)                  \
    for (u64 ek_at = 0, ek_end = ek_way.count; ek_at < ek_end; ++ek_at)               \
      for (u32 i = ek_way(ek_at), ek_once = ((void)(team), 1); ek_once; ek_once = 0)
#define EK_FOR(team, i, n) EK_EACH(team, i, n)
#define EK_LANE(lane, n) EK_EACH(Block(), lane, n)
// A block's part of a grid: every gridDim-th item, spaced as on a GPU.
#define EK_SPREAD(i, n)                                                                             \
  for (u64 ek_block = (u64)blockIdx.x * 256, ek_end = (n); ek_block < ek_end; ek_block += (u64)gridDim.x * 256)  \
    for (u64 i = ek_block; i < ek_end && i < ek_block + 256; ++i)
#define EK_ROWS(row, n)                                                                             \
  for (u64 ek_block = (u64)blockIdx.x * 8, ek_end = (n); ek_block < ek_end; ek_block += (u64)gridDim.x * 8)      \
    for (u64 row = ek_block; row < ek_end && row < ek_block + 8; ++row)
#define EK_ONE(team) for (u32 ek_once = ((void)(team), 1); ek_once; ek_once = 0)
#define EK_FIRST_WARP

static inline u32 atomic_add(u32* at, u32 by) {
  u32 before = *at;
  *at += by;
  return before;
}
static inline void atomic_min(u32* at, u32 value) { *at = value < *at ? value : *at; }
static inline void atomic_or(u32* at, u32 bits) { *at |= bits; }

// Blocks of a launch are independent, so they run in any order too.
#define EK_GRID(block, n) EK_EACH(Block(), block, n)

// Runs a block.
template <class Work> static void ek_launch(Work work) { work(); }

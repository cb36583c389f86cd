// Teams of lanes, on a GPU and on a host, from one source.
//
// All code in these kernels consists of *sections*: loops whose iterations touch disjoint data (or meet in
// atomics that commute), each followed by a barrier. On a GPU the lanes of a warp or a block share the
// iterations. There are two ways to compile the kernels as C++:
//
// - EK_HOST: one thread runs the iterations in a selectable order (crates/cuda/tests/cuda-sim/order.h). So a
//   test can prove that the order does not matter.
// - EK_THREADS in addition: every lane is a thread with the code of a GPU
//   (crates/cuda/tests/cuda-sim/threads.h). So a sanitiser can prove that no barrier is missing.
//
//   EK_FOR(team, i, n) { ... }    a section: i runs through 0..n, then a barrier
//   EK_EACH(team, i, n) { ... }   the same without a barrier: reads only, to be followed by a reduction
//   EK_ONE(team) { ... }          a section of one iteration
//   EK_LANE(lane, n) { ... }      once per lane of a block of n, with state in Own<T, n>; no barrier
//   EK_SPREAD(i, n) { ... }       a block's part of n items, a lane each
//   EK_ROWS(row, n) { ... }       a block's part of n rows, a warp each
//
// Reductions (any, sum, highest, lowest) give every lane the same result; `scan` needs the values in memory.
// A barrier must separate a read outside a section, by all lanes, from the next write to the same value.
#pragma once

typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;

#define EK_NEVER 0xffffffffu

#ifdef EK_HOST
#include "cuda-sim/launch.h"
#else
#define EK_KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
#define EK_GRID_KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
// Shared memory, first with a size set at launch, then with a size known at compile time.
#define EK_SHARED(type, name) extern __shared__ type name[]
#define EK_SHARED_ARRAY(type, name, n) __shared__ type name[n]
#endif

#if defined(EK_HOST) && !defined(EK_THREADS)
#include "cuda-sim/order.h"
#else
#ifdef EK_THREADS
#include "cuda-sim/threads.h"
#endif

#define EK_FN __device__ __forceinline__
#define EK_FN_MEMBER __device__ __forceinline__
// A function that is not inlined, because it is long in relation to a call, or rarely reached.
#define EK_CALL __device__ __noinline__

#define EK_ALL_LANES 0xffffffffu

// The 32 lanes of one warp.
struct Warp {
  EK_FN u32 lane() const { return threadIdx.x & 31u; }
  EK_FN u32 size() const { return 32u; }
  EK_FN void sync() const { __syncwarp(); }
  EK_FN bool any(bool mine) const { return __any_sync(EK_ALL_LANES, mine) != 0; }
  template <class T> EK_FN T sum(T mine) const {
    for (u32 by = 16; by > 0; by >>= 1) mine += __shfl_xor_sync(EK_ALL_LANES, mine, by);
    return mine;
  }
  template <class T> EK_FN T highest(T mine) const {
    for (u32 by = 16; by > 0; by >>= 1) {
      T other = __shfl_xor_sync(EK_ALL_LANES, mine, by);
      mine = other > mine ? other : mine;
    }
    return mine;
  }
  template <class T> EK_FN T lowest(T mine) const {
    for (u32 by = 16; by > 0; by >>= 1) {
      T other = __shfl_xor_sync(EK_ALL_LANES, mine, by);
      mine = other < mine ? other : mine;
    }
    return mine;
  }
  // Computes exclusive prefix sums in place and returns the total. Values must be in shared memory, after a
  // barrier.
  EK_FN u32 scan(u32* values, u32 n) const {
    u32 before = 0;
    for (u32 begin = 0; begin < n; begin += 32) {
      u32 at = begin + lane();
      u32 own = at < n ? values[at] : 0;
      u32 upto = own;
      for (u32 by = 1; by < 32; by <<= 1) {
        u32 other = __shfl_up_sync(EK_ALL_LANES, upto, by);
        if (lane() >= by) upto += other;
      }
      if (at < n) values[at] = before + upto - own;
      before += __shfl_sync(EK_ALL_LANES, upto, 31);
    }
    __syncwarp();
    return before;
  }
};

// All lanes of one block.
struct Block {
  EK_FN u32 lane() const { return threadIdx.x; }
  EK_FN u32 size() const { return blockDim.x; }
  EK_FN void sync() const { __syncthreads(); }
};

// One pass through the body of a section, with the barrier after it.
template <class T> struct Section {
  T team;
  bool open;
  EK_FN explicit Section(T team) : team(team), open(true) {}
  EK_FN void close() {
    team.sync();
    open = false;
  }
};
template <class T> EK_FN Section<T> section(T team) { return Section<T>(team); }

#define EK_SPREAD(i, n)                                                                             \
  for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x, ek_end = (n); i < ek_end; i += (u64)gridDim.x * blockDim.x)
#define EK_ROWS(row, n) \
  for (u64 row = (u64)blockIdx.x * 8 + threadIdx.x / 32, ek_rows = (n); row < ek_rows; row += (u64)gridDim.x * 8)

#define EK_LANE(lane, n) if (const u32 lane = threadIdx.x; true)

// State that each of N lanes keeps between sections: in registers on a GPU, in an array on a host.
template <class T, u32 N> struct Own {
  T own;
  EK_FN_MEMBER T& operator[](u32) { return own; }
};

// A loop that is not unrolled, because most loops are short and larger code costs instruction fetches.
#ifndef EK_LOOP
#define EK_LOOP _Pragma("unroll 1")
#endif
// A short loop that is unrolled, so that the arrays it indexes stay in registers.
#ifndef EK_SHORT
#define EK_SHORT _Pragma("unroll")
#endif
#define EK_EACH(team, i, n) EK_LOOP for (u32 i = (team).lane(); i < (u32)(n); i += (team).size())
#define EK_FOR(team, i, n)                                           \
  for (auto ek_section = section(team); ek_section.open; ek_section.close()) \
  EK_EACH(team, i, n)
#define EK_ONE(team)                                                 \
  for (auto ek_section = section(team); ek_section.open; ek_section.close()) \
    if ((team).lane() == 0)
// Runs on the first warp of a block; the others continue to the next barrier of the block.
#define EK_FIRST_WARP if (threadIdx.x < 32)

EK_FN u32 atomic_add(u32* at, u32 by) { return atomicAdd(at, by); }
EK_FN void atomic_min(u32* at, u32 value) { atomicMin(at, value); }
EK_FN void atomic_or(u32* at, u32 bits) { atomicOr(at, bits); }
#endif

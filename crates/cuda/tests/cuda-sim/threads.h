// The intrinsics of team.h on a host, with a thread per lane. It is slow, but runs the same code as on a GPU.
// A missing barrier is a data race, which a thread sanitiser detects. Blocks have two warps unless a launch
// sets another number.
#pragma once

#include <cstddef>
#include <cstdint>
#include <pthread.h>
#include <thread>
#include <vector>

#define __device__
#define __forceinline__ inline
#define __noinline__
#define EK_LOOP
#define EK_SHORT

enum Order { ASCENDING, DESCENDING, SHUFFLED };
inline Order ek_order = ASCENDING; // has no effect here
inline u64 ek_dice = 1;
inline u64 ek_sections = 0; // not counted here

struct Dim {
  u32 x;
};
static thread_local Dim threadIdx = {0};
static Dim blockDim = {64};

static pthread_barrier_t ek_block_barrier, ek_warp_barriers[8];
static u64 ek_exchange[256];

static inline void __syncthreads() { pthread_barrier_wait(&ek_block_barrier); }
static inline void __syncwarp() { pthread_barrier_wait(&ek_warp_barriers[threadIdx.x / 32]); }

// Returns the value of lane `from` of this warp.
template <class T> static inline T ek_swap(T mine, u32 from) {
  __builtin_memcpy(&ek_exchange[threadIdx.x], &mine, sizeof mine);
  __syncwarp();
  T other;
  __builtin_memcpy(&other, &ek_exchange[threadIdx.x / 32 * 32 + from], sizeof other);
  __syncwarp();
  return other;
}
template <class T> static inline T __shfl_sync(u32, T mine, u32 from) { return ek_swap(mine, from); }
template <class T> static inline T __shfl_xor_sync(u32, T mine, u32 by) {
  return ek_swap(mine, (threadIdx.x % 32) ^ by);
}
template <class T> static inline T __shfl_up_sync(u32, T mine, u32 by) {
  u32 lane = threadIdx.x % 32;
  return ek_swap(mine, lane >= by ? lane - by : lane);
}
static inline int __any_sync(u32, int mine) {
  int all = 0;
  ek_exchange[threadIdx.x] = mine != 0;
  __syncwarp();
  for (u32 lane = 0; lane < 32; ++lane) all |= (int)ek_exchange[threadIdx.x / 32 * 32 + lane];
  __syncwarp();
  return all;
}

static inline u32 atomicAdd(u32* at, u32 by) { return __atomic_fetch_add(at, by, __ATOMIC_RELAXED); }
static inline void atomicOr(u32* at, u32 bits) { __atomic_fetch_or(at, bits, __ATOMIC_RELAXED); }
static inline void atomicMin(u32* at, u32 value) {
  u32 seen = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (value < seen && !__atomic_compare_exchange_n(at, &seen, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

// Blocks of a launch run one after the other.
#define EK_GRID(block, n) for (u32 block = 0; block < (u32)(n); ++block)

// Runs a block: executes `work` on every lane.
template <class Work> static void ek_launch(Work work) {
  pthread_barrier_init(&ek_block_barrier, nullptr, blockDim.x);
  for (u32 warp = 0; warp < blockDim.x / 32; ++warp) pthread_barrier_init(&ek_warp_barriers[warp], nullptr, 32);
  std::vector<std::thread> lanes;
  for (u32 lane = 0; lane < blockDim.x; ++lane) {
    lanes.emplace_back([&work, lane] {
      threadIdx.x = lane;
      work();
    });
  }
  for (std::thread& lane : lanes) lane.join();
  pthread_barrier_destroy(&ek_block_barrier);
  for (u32 warp = 0; warp < blockDim.x / 32; ++warp) pthread_barrier_destroy(&ek_warp_barriers[warp]);
}

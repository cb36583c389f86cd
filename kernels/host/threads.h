// Teams on a host, with a thread for every lane: slow, but a missing barrier is then a data race, which a thread
// sanitiser sees. Warps have 4 lanes and blocks 8, so that barriers come quickly; no kernel knows how many there are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <pthread.h>
#include <thread>
#include <vector>

#define EK_FN static inline
#define EK_FN_MEMBER inline
#define EK_CALL static inline
#define EK_LOOP

enum Order { ASCENDING, DESCENDING, SHUFFLED };
static Order ek_order = ASCENDING; // of no effect here
static u64 ek_dice = 1;
static u64 ek_sections = 0; // not counted here

#define EK_WARP_LANES 4u
#define EK_BLOCK_LANES 8u

static thread_local u32 ek_lane = 0;
static pthread_barrier_t ek_block_barrier;
static pthread_barrier_t ek_warp_barriers[EK_BLOCK_LANES / EK_WARP_LANES];
static u64 ek_exchange[EK_BLOCK_LANES];

struct Warp {
  u32 lane() const { return ek_lane % EK_WARP_LANES; }
  u32 size() const { return EK_WARP_LANES; }
  void sync() const { pthread_barrier_wait(&ek_warp_barriers[ek_lane / EK_WARP_LANES]); }
  template <class T, class Merge> T merge(T mine, Merge both) const {
    const u32 first = ek_lane - lane();
    ek_exchange[ek_lane] = (u64)mine;
    sync();
    T all = (T)ek_exchange[first];
    for (u32 lane = 1; lane < EK_WARP_LANES; ++lane) all = both(all, (T)ek_exchange[first + lane]);
    sync();
    return all;
  }
  bool any(bool mine) const {
    return merge(mine, [](bool a, bool b) { return a || b; });
  }
  template <class T> T sum(T mine) const {
    return merge(mine, [](T a, T b) { return a + b; });
  }
  template <class T> T highest(T mine) const {
    return merge(mine, [](T a, T b) { return a > b ? a : b; });
  }
  template <class T> T lowest(T mine) const {
    return merge(mine, [](T a, T b) { return a < b ? a : b; });
  }
  // No barrier before: the values have to be settled, as on a GPU.
  u32 scan(u32* values, u32 n) const {
    u32 total = 0;
    for (u32 at = 0; at < n && lane() == 0; ++at) {
      u32 own = values[at];
      values[at] = total;
      total += own;
    }
    total = sum(total);
    return total;
  }
};

struct Block {
  u32 lane() const { return ek_lane; }
  u32 size() const { return EK_BLOCK_LANES; }
  void sync() const { pthread_barrier_wait(&ek_block_barrier); }
};

template <class T> struct Section {
  T team;
  bool open = true;
  void close() {
    team.sync();
    open = false;
  }
};
template <class T> static Section<T> section(T team) { return Section<T>{team}; }

#define EK_EACH(team, i, n) for (u32 i = (team).lane(); i < (u32)(n); i += (team).size())
#define EK_FOR(team, i, n)                                                   \
  for (auto ek_section = section(team); ek_section.open; ek_section.close()) \
  EK_EACH(team, i, n)
#define EK_ONE(team)                                                         \
  for (auto ek_section = section(team); ek_section.open; ek_section.close()) \
    if ((team).lane() == 0)
#define EK_FIRST_WARP if (ek_lane < EK_WARP_LANES)

// Blocks of a launch run one after the other.
#define EK_GRID(block, n) for (u32 block = 0; block < (u32)(n); ++block)

// Runs a block: `work` on every lane.
template <class Work> static void ek_launch(Work work) {
  pthread_barrier_init(&ek_block_barrier, nullptr, EK_BLOCK_LANES);
  for (pthread_barrier_t& barrier : ek_warp_barriers) pthread_barrier_init(&barrier, nullptr, EK_WARP_LANES);
  std::vector<std::thread> lanes;
  for (u32 lane = 0; lane < EK_BLOCK_LANES; ++lane) {
    lanes.emplace_back([&work, lane] {
      ek_lane = lane;
      work();
    });
  }
  for (std::thread& lane : lanes) lane.join();
  pthread_barrier_destroy(&ek_block_barrier);
  for (pthread_barrier_t& barrier : ek_warp_barriers) pthread_barrier_destroy(&barrier);
}

static inline u32 atomic_add(u32* at, u32 by) { return __atomic_fetch_add(at, by, __ATOMIC_RELAXED); }
static inline void atomic_or(u32* at, u32 bits) { __atomic_fetch_or(at, bits, __ATOMIC_RELAXED); }
static inline void atomic_min(u32* at, u32 value) {
  u32 seen = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (value < seen && !__atomic_compare_exchange_n(at, &seen, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

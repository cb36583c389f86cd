// Products of a warp's tiles on tensor cores: bf16 in, f32 sums (mma.m16n8k16, compute capability 8.0 and
// later).
//
// On a GPU a lane holds its part of every fragment in registers. On a host a fragment holds the parts of all
// 32 lanes, and each function does the work of the whole warp. The layouts are those of the PTX manual
// ("Matrix fragments for mma.m16n8k16", "ldmatrix"). So the indexing of the callers runs on both.
//
//   EK_WARPS(warp, n) { ... }   once per warp of the block, which keep their state in Own<T, n>
//   EK_LANES(lane) { ... }      once per lane of a warp: reads and writes at(lane, i) of accumulators
#pragma once
#include "bf16.h"

// Tiles are stored in shared memory as rows of 64 numbers, in eight chunks of 16 bytes. Chunk c of row r is
// at place c ^ (r % 8). So the chunks of one column in eight rows are in different banks.
#define EK_DEPTH 64u
EK_FN u32 tile_at(u32 row, u32 chunk) { return row * EK_DEPTH + ((chunk ^ (row & 7u)) << 3); }

#if defined(EK_HOST) && !defined(EK_THREADS)
#include "cuda-sim/mma.h"
#else
#define EK_WARPS(warp, n) if (const u32 warp = threadIdx.x >> 5; true)
#define EK_LANES(lane) if (const u32 lane = threadIdx.x & 31u; true)

struct FragA {
  u32 word[4];
};
struct FragB {
  u32 word[2];
};
struct Acc {
  float value[4];
  EK_FN_MEMBER float& at(u32, u32 i) { return value[i]; }
  EK_FN_MEMBER void clear() { value[0] = value[1] = value[2] = value[3] = 0.0f; }
};

#ifdef EK_THREADS
#include "cuda-sim/lanes.h"
#else
EK_FN u32 shared_address(const void* at) { return (u32)__cvta_generic_to_shared(at); }

EK_FN void load_four(u32* word, const u16* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(shared_address(from))
               : "memory");
}

EK_FN void multiply(Acc& sum, const FragA& a, const FragB& b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(sum.value[0]), "+f"(sum.value[1]), "+f"(sum.value[2]), "+f"(sum.value[3])
               : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
}

// Begins an asynchronous copy of 16 bytes to shared memory. If `there` is false, it writes zeros and reads
// nothing. `from` must be a valid address in both cases.
EK_FN void copy_chunk(u16* to, const u16* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(to)), "l"(from), "r"(there ? 16u : 0u)
               : "memory");
}
// Ends a commit group: the copies since the last one belong together.
EK_FN void seal_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all but the last N commit groups of this lane have arrived. A barrier must follow to include
// the other lanes.
template <u32 N> EK_FN void await_copies() { asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory"); }
#endif

// Loads rows row.. + 16 and columns 16 * step.. + 16 of a tile.
EK_FN void load_a(FragA& a, const u16* tile, u32 row, u32 step) {
  const u32 lane = threadIdx.x & 31u;
  load_four(a.word, tile + tile_at(row + (lane & 15u), 2 * step + (lane >> 4)));
}

// Loads the same rows of a tile as the columns of two products of eight columns each.
EK_FN void load_b(FragB& first, FragB& second, const u16* tile, u32 row, u32 step) {
  const u32 lane = threadIdx.x & 31u;
  u32 word[4];
  load_four(word, tile + tile_at(row + (lane & 7u) + ((lane >> 4) << 3), 2 * step + ((lane >> 3) & 1u)));
  first.word[0] = word[0];
  first.word[1] = word[1];
  second.word[0] = word[2];
  second.word[1] = word[3];
}
#endif

// Experts as grouped matrix products on tensor cores. The number of rows of a group is read from device
// memory. So the host does not have to wait, and a graph can record the products. A feed-forward network
// takes two launches. The first computes gate and up with the activation. The columns of both alternate in
// groups of eight within a tile, so that a lane holds both factors of the product. The second computes down
// with the routing weights.
//
// As many blocks as fit process all tiles of ROWS x 128 sums (64 + 64 if gate and up alternate). The operands
// of a tile arrive in pieces of 64 along the inner width, in a ring of three stages in shared memory.
// cp.async fills the ring while tensor cores process the pieces that have arrived. Tiles are numbered group
// by group and, within a group, in stripes of sixteen tiles of rows, down the rows first. So blocks that run
// at the same time share both operands in the cache.
#include "activation.h"
#include "mma.h"

#define EK_FFN_LANES 256u
#define EK_FFN_COLUMNS 128u
#define EK_FFN_STAGES 3u
#define EK_FFN_STRIPE 16u

// The division of a tile of ROWS rows between the eight warps of a block.
template <u32 ROWS> struct Cut {
  static constexpr u32 DOWN = ROWS >= 64 ? 2 : 1, ACROSS = 8 / DOWN;
  static constexpr u32 HIGH = ROWS / (16 * DOWN), WIDE = EK_FFN_COLUMNS / (8 * ACROSS);
  static constexpr u32 STAGE = (ROWS + EK_FFN_COLUMNS) * EK_DEPTH;
  // Rows of the left operand of which one lane copies chunks.
  static constexpr u32 LOADS = ROWS >= 32 ? ROWS / 32 : 1;
};

// A part of one product.
struct Tile {
  u32 group, first, end, column; // rows first .. end over all groups; the first column of the result
};

// The data that a lane copies: chunk lane % 8 of some rows of both operands.
template <u32 ROWS> struct Source {
  const u16* left[Cut<ROWS>::LOADS]; // null for rows past the end
  const u16* right;
  u32 right_rows; // a bit for each existing row
};

template <u32 ROWS> struct Sums {
  Acc at[Cut<ROWS>::HIGH][Cut<ROWS>::WIDE];
};

template <bool PAIRED> EK_FN u32 tiles_across(u32 columns) {
  const u32 wide = PAIRED ? EK_FFN_COLUMNS / 2 : EK_FFN_COLUMNS;
  return (columns + wide - 1) / wide;
}

template <u32 ROWS> EK_FN u32 tiles_down(const Job& job, u32 group) {
  return (job.offsets[group + 1] - job.offsets[group] + ROWS - 1) / ROWS;
}

// Finds tile number `index`. `starts` are the numbers of the groups' first tiles.
template <u32 ROWS, bool PAIRED> EK_FN Tile find_tile(const Job& job, const u32* starts, u32 index) {
  u32 low = 0, high = job.groups;
  EK_LOOP while (high - low > 1) {
    const u32 middle = (low + high) / 2;
    if (starts[middle] <= index) low = middle;
    else high = middle;
  }
  const u32 across = tiles_across<PAIRED>(job.columns), down = tiles_down<ROWS>(job, low);
  const u32 own = index - starts[low], stripe = own / (EK_FFN_STRIPE * across);
  const u32 left = down - stripe * EK_FFN_STRIPE, height = left < EK_FFN_STRIPE ? left : EK_FFN_STRIPE;
  const u32 inside = own - stripe * EK_FFN_STRIPE * across;
  const u32 first = job.offsets[low] + (stripe * EK_FFN_STRIPE + inside % height) * ROWS;
  const u32 wide = PAIRED ? EK_FFN_COLUMNS / 2 : EK_FFN_COLUMNS;
  return {low, first, job.offsets[low + 1], inside / height * wide};
}

template <u32 ROWS, bool PAIRED> EK_FN void aim(Source<ROWS>& source, const Job& job, const Tile& tile, u32 lane) {
  const u32 chunk = lane & 7u, row = lane >> 3;
  EK_SHORT for (u32 j = 0; j < Cut<ROWS>::LOADS; ++j) {
    const u32 at = row + 32 * j, global = tile.first + at;
    source.left[j] = nullptr;
    if (at < ROWS && global < tile.end) {
      const u16* from = job.rows ? (const u16*)job.rows[global] : job.base + (u64)global * job.inner;
      source.left[j] = from + 8 * chunk;
    }
  }
  // Row r of the right operand is column r. If two matrices alternate, it is column r / 16 * 8 + r % 8 of one
  // of them.
  const bool second = PAIRED && (row & 8u) != 0;
  const u32 begin = tile.column + (PAIRED ? row / 16 * 8 + row % 8 : row), step = PAIRED ? 16 : 32;
  source.right_rows = 0;
  EK_SHORT for (u32 j = 0; j < 4; ++j) {
    if (begin + step * j < job.columns) source.right_rows |= 1u << j;
  }
  const u16* matrix = (const u16*)(job.cells[tile.group] + (second ? job.second : job.first));
  // The address is within the matrix even without any existing row.
  source.right = matrix + (source.right_rows ? (u64)begin * job.inner : 0) + 8 * chunk;
}

// Begins to copy piece `step` of both operands.
template <u32 ROWS, bool PAIRED>
EK_FN void copy_piece(const Source<ROWS>& source, const Job& job, u16* stage, u32 step, u32 lane) {
  const u32 chunk = lane & 7u, row = lane >> 3, along = step * EK_DEPTH;
  const bool inside = along + 8 * chunk < job.inner;
  EK_SHORT for (u32 j = 0; j < Cut<ROWS>::LOADS; ++j) {
    const u32 at = row + 32 * j;
    if (at < ROWS) {
      const bool there = inside && source.left[j] != nullptr;
      copy_chunk(stage + tile_at(at, chunk), there ? source.left[j] + along : source.right - 8 * chunk, there);
    }
  }
  u16* right = stage + ROWS * EK_DEPTH;
  EK_SHORT for (u32 j = 0; j < 4; ++j) {
    const bool there = inside && ((source.right_rows >> j) & 1u) != 0;
    const u64 step_rows = (u64)(PAIRED ? 16 : 32) * j * job.inner;
    copy_chunk(right + tile_at(row + 32 * j, chunk), there ? source.right + step_rows + along : source.right - 8 * chunk,
               there);
  }
}

// Computes a warp's part of the products of one stage.
template <u32 ROWS> EK_FN void work(Sums<ROWS>& sums, const u16* stage, u32 warp) {
  typedef Cut<ROWS> C;
  const u16* right = stage + ROWS * EK_DEPTH;
  const u32 row = warp / C::ACROSS * C::HIGH * 16, column = warp % C::ACROSS * C::WIDE * 8;
  EK_SHORT for (u32 step = 0; step < EK_DEPTH / 16; ++step) {
    FragA a[C::HIGH];
    FragB b[C::WIDE];
    EK_SHORT for (u32 i = 0; i < C::HIGH; ++i) load_a(a[i], stage, row + 16 * i, step);
    EK_SHORT for (u32 j = 0; j < C::WIDE; j += 2) load_b(b[j], b[j + 1], right, column + 8 * j, step);
    EK_SHORT for (u32 i = 0; i < C::HIGH; ++i) {
      EK_SHORT for (u32 j = 0; j < C::WIDE; ++j) multiply(sums.at[i][j], a[i], b[j]);
    }
  }
}

// Stores a warp's part of the result.
template <u32 ROWS, bool PAIRED> EK_FN void store(Sums<ROWS>& sums, const Job& job, const Tile& tile, u32 warp) {
  typedef Cut<ROWS> C;
  constexpr u32 EACH = PAIRED ? 2 : 1;
  const u32 row = tile.first + warp / C::ACROSS * C::HIGH * 16;
  const u32 column = tile.column + warp % C::ACROSS * C::WIDE / EACH * 8;
  const u64 cell = job.cells[tile.group];
  const float* first_bias = job.first_bias ? (const float*)(cell + job.first_bias) : nullptr;
  const float* second_bias = job.second_bias ? (const float*)(cell + job.second_bias) : nullptr;
  EK_LANES(lane) {
    EK_SHORT for (u32 i = 0; i < C::HIGH; ++i) {
      EK_SHORT for (u32 half = 0; half < 2; ++half) {
        const u32 at = row + 16 * i + 8 * half + (lane >> 2);
        if (at >= tile.end) continue;
        const float scale = job.scale ? job.scale[at] : 1.0f;
        EK_SHORT for (u32 j = 0; j < C::WIDE; j += EACH) {
          const u32 to = column + 8 * (j / EACH) + 2 * (lane & 3u);
          if (to >= job.columns) continue;
          float value[2];
          EK_SHORT for (u32 k = 0; k < 2; ++k) {
            float left = sums.at[i][j].at(lane, 2 * half + k);
            float right = sums.at[i][j + EACH - 1].at(lane, 2 * half + k);
            if (first_bias) left += first_bias[to + k];
            if (PAIRED && second_bias) right += second_bias[to + k];
            value[k] = scale * (PAIRED ? gated(job.activation, left, right) : plain(job.activation, left));
          }
          *(u32*)(job.out + (u64)at * job.columns + to) = narrow_pair(value[0], value[1]);
        }
      }
    }
  }
}

// Runs block `block` of `blocks`. `shared` has room for the stages, followed by groups + 1 numbers.
template <u32 ROWS, bool PAIRED> EK_FN void grouped(Block team, u16* shared, const Job& job, u32 block, u32 blocks) {
  u32* starts = (u32*)(shared + EK_FFN_STAGES * Cut<ROWS>::STAGE);
  EK_FOR(team, group, job.groups) starts[group] = tiles_down<ROWS>(job, group) * tiles_across<PAIRED>(job.columns);
  EK_FIRST_WARP {
    const Warp warp;
    const u32 all = warp.scan(starts, job.groups);
    EK_ONE(warp) starts[job.groups] = all;
  }
  team.sync();
  const u32 tiles = starts[job.groups], steps = (job.inner + EK_DEPTH - 1) / EK_DEPTH;
  Own<Source<ROWS>, EK_FFN_LANES> source;
  Own<Sums<ROWS>, 8> sums;
  EK_LOOP for (u32 index = block; index < tiles; index += blocks) {
    const Tile tile = find_tile<ROWS, PAIRED>(job, starts, index);
    EK_LANE(lane, EK_FFN_LANES) aim<ROWS, PAIRED>(source[lane], job, tile, lane);
    EK_WARPS(warp, 8u) {
      EK_SHORT for (u32 i = 0; i < Cut<ROWS>::HIGH; ++i) {
        EK_SHORT for (u32 j = 0; j < Cut<ROWS>::WIDE; ++j) sums[warp].at[i][j].clear();
      }
    }
    EK_LOOP for (u32 step = 0; step < EK_FFN_STAGES - 1; ++step) {
      if (step < steps) {
        u16* stage = shared + step * Cut<ROWS>::STAGE;
        EK_LANE(lane, EK_FFN_LANES) copy_piece<ROWS, PAIRED>(source[lane], job, stage, step, lane);
      }
      seal_copies();
    }
    EK_LOOP for (u32 step = 0; step < steps; ++step) {
      await_copies<EK_FFN_STAGES - 2>();
      // After this barrier the copies of all lanes for this piece have arrived, and no lane reads the stage
      // that is filled next.
      team.sync();
      const u32 next = step + EK_FFN_STAGES - 1;
      if (next < steps) {
        u16* stage = shared + next % EK_FFN_STAGES * Cut<ROWS>::STAGE;
        EK_LANE(lane, EK_FFN_LANES) copy_piece<ROWS, PAIRED>(source[lane], job, stage, next, lane);
      }
      seal_copies();
      const u16* stage = shared + step % EK_FFN_STAGES * Cut<ROWS>::STAGE;
      EK_WARPS(warp, 8u) work<ROWS>(sums[warp], stage, warp);
    }
    EK_WARPS(warp, 8u) store<ROWS, PAIRED>(sums[warp], job, tile, warp);
    // The remaining commit groups are empty. The next tile begins in a stage that other lanes may still read.
    await_copies<0>();
    team.sync();
  }
}

#define EK_GROUPED(name, rows, paired, fit)                              \
  EK_GRID_KERNEL(256, fit) name(const Job job) {                         \
    EK_SHARED(Quad, shared);                                             \
    grouped<rows, paired>(Block(), (u16*)shared, job, blockIdx.x, gridDim.x); \
  }

EK_GROUPED(ek_pair_16, 16, true, 2)
EK_GROUPED(ek_pair_64, 64, true, 2)
EK_GROUPED(ek_pair_128, 128, true, 2)
EK_GROUPED(ek_single_16, 16, false, 2)
EK_GROUPED(ek_single_64, 64, false, 2)
EK_GROUPED(ek_single_128, 128, false, 2)

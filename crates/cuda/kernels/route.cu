// Routes tokens to experts: RMSNorm, logits, the k best of every token, capacity per expert. The rules are
// those of crates/exec/src/router: logits are f32, all later values f64; of equal scores the lowest index
// comes first.
#include "bf16.h"

#define EK_EPSILON 1e-6f
#define EK_LOGIT_TILE 64u
#define EK_LOGIT_DEPTH 16u
// Distance of two lines in shared memory, in numbers. It is larger than a tile, so that fewer lanes use the
// same bank when they write. It is a multiple of four, because four numbers are read at once.
#define EK_LOGIT_PITCH 68u

struct alignas(16) Four {
  float at[4];
};

// Norms one token: x / sqrt(mean(x^2) + epsilon) * weight, in f32 for the router and bf16 for the experts.
EK_FN void norm_token(Warp team, const float* x, const float* weight, u32 hidden, float* exact, u16* rounded) {
  float mine = 0.0f;
  EK_EACH(team, at, hidden) mine += x[at] * x[at];
  const float scale = 1.0f / sqrtf(team.sum(mine) / (float)hidden + EK_EPSILON);
  EK_FOR(team, at, hidden) {
    const float value = x[at] * scale * weight[at];
    exact[at] = value;
    rounded[at] = narrow(value);
  }
}

// A lane's sums of a tile of logits: rows 4 (lane / 16) + i and columns 4 (lane % 16) + j.
struct LogitSums {
  float at[4][4];
};

// Computes a tile of 64 tokens x 64 logits over the inner numbers from .. to. The result is a partial sum,
// which `choose` adds up. Sums of 16 products are added to sums of such sums, which keeps their error small.
EK_FN void logits_tile(Block team, float* shared, const float* x, const float* weight, u32 tokens, u32 width, u32 hidden,
                       u32 token, u32 logit, u32 from, u32 to, float* out) {
  // The operands are transposed: a line for each inner number.
  float *left = shared, *right = shared + EK_LOGIT_DEPTH * EK_LOGIT_PITCH;
  Own<LogitSums, 256> sums;
  EK_LANE(lane, 256u) {
    for (u32 i = 0; i < 4; ++i) {
      for (u32 j = 0; j < 4; ++j) sums[lane].at[i][j] = 0.0f;
    }
  }
  EK_LOOP for (u32 begin = from; begin < to; begin += EK_LOGIT_DEPTH) {
    EK_FOR(team, at, EK_LOGIT_TILE * EK_LOGIT_DEPTH) {
      const u32 row = at / EK_LOGIT_DEPTH, k = at % EK_LOGIT_DEPTH, along = begin + k;
      const u32 place = k * EK_LOGIT_PITCH + row;
      left[place] = token + row < tokens && along < to ? x[(u64)(token + row) * hidden + along] : 0.0f;
      right[place] = logit + row < width && along < to ? weight[(u64)(logit + row) * hidden + along] : 0.0f;
    }
    EK_LANE(lane, 256u) {
      const u32 row = lane / 16 * 4, column = lane % 16 * 4;
      float part[4][4] = {};
      EK_SHORT for (u32 k = 0; k < EK_LOGIT_DEPTH; ++k) {
        const Four rows = *(const Four*)(left + k * EK_LOGIT_PITCH + row);
        const Four columns = *(const Four*)(right + k * EK_LOGIT_PITCH + column);
        EK_SHORT for (u32 i = 0; i < 4; ++i) {
          EK_SHORT for (u32 j = 0; j < 4; ++j) part[i][j] += rows.at[i] * columns.at[j];
        }
      }
      for (u32 i = 0; i < 4; ++i) {
        for (u32 j = 0; j < 4; ++j) sums[lane].at[i][j] += part[i][j];
      }
    }
    team.sync();
  }
  EK_LANE(lane, 256u) {
    for (u32 i = 0; i < 4; ++i) {
      const u32 row = token + lane / 16 * 4 + i;
      for (u32 j = 0; j < 4; ++j) {
        const u32 column = logit + lane % 16 * 4 + j;
        if (row < tokens && column < width) out[(u64)row * width + column] = sums[lane].at[i][j];
      }
    }
  }
}

// The selection and weighting rule of a router.
enum { ALL, RENORMALISED, CHOSEN, SIGMOID };
struct Rule {
  const float* bias;       // added to the logits, [width]; null for none
  const double* selection; // added to the scores for selection only, [experts]; null for none
  double scale;            // factor of renormalised weights
  u32 kind, experts, top_k, groups, top_groups;
};

// Maps a number to a whole number with the same order; zero is below all.
EK_FN u64 ordered(double value) {
  const u64 bits = double_bits(value + 0.0); // without negative zero
  return bits >> 63 ? ~bits : bits | 1ull << 63;
}

EK_FN double of_ordered(u64 key) {
  const u64 bits = key >> 63 ? key & ~(1ull << 63) : ~key;
#ifdef EK_HOST
  double value;
  __builtin_memcpy(&value, &bits, 8);
  return value;
#else
  return __longlong_as_double((long long)bits);
#endif
}

EK_FN double probability(double x) { return 1.0 / (1.0 + exp(-x)); }

// Returns the lowest index of the highest key, and clears that key.
EK_FN u32 take_best(Warp team, u64* keys, u32 n) {
  u64 mine = 0;
  EK_EACH(team, at, n) mine = keys[at] > mine ? keys[at] : mine;
  const u64 best = team.highest(mine);
  u32 place = EK_NEVER;
  EK_EACH(team, at, n) place = keys[at] == best && at < place ? at : place;
  place = team.lowest(place);
  team.sync();
  EK_ONE(team) keys[place] = 0;
  return place;
}

// Keeps only keys of the best groups. A group counts as much as the sum of its two best keys, or its only
// one.
EK_FN void limit_groups(Warp team, const Rule& rule, u64* keys, u64* groups) {
  const u32 each = rule.experts / rule.groups;
  EK_FOR(team, group, rule.groups) {
    u64 first = 0, second = 0;
    for (u32 at = group * each; at < (group + 1) * each; ++at) {
      const u64 key = keys[at];
      if (key > first) {
        second = first;
        first = key;
      } else if (key > second) {
        second = key;
      }
    }
    groups[group] = ordered(each > 1 ? of_ordered(first) + of_ordered(second) : of_ordered(first));
  }
  EK_FOR(team, at, rule.experts) {
    const u32 own = at / each;
    u32 better = 0;
    for (u32 other = 0; other < rule.groups; ++other) {
      better += groups[other] > groups[own] || (groups[other] == groups[own] && other < own);
    }
    if (better >= rule.top_groups) keys[at] = 0;
  }
}

// Adds up the partial logits of one token, [parts][tokens][experts], and chooses. `keys` has room for a
// number per expert, per group and per choice. `bad` becomes the lowest token with a logit that is not
// finite.
EK_FN void choose_token(Warp team, u64* keys, const Rule& rule, const float* parts, u32 count, u64 stride, u32 token,
                        float* logits, i32* ids, float* weights, u32* bad) {
  const u64 row = (u64)token * rule.experts;
  EK_FOR(team, at, rule.experts) {
    float logit = 0.0f;
    for (u32 part = 0; part < count; ++part) logit += parts[part * stride + row + at];
    if (rule.bias) logit += rule.bias[at];
    logits[row + at] = logit;
    if (!(fabsf(logit) <= 3.4028234e38f)) atomic_min(bad, token);
    const double score = rule.kind == SIGMOID ? probability((double)logit) : (double)logit;
    keys[at] = ordered(rule.kind == SIGMOID && rule.selection ? score + rule.selection[at] : score);
  }
  double highest = 0.0, sum = 1.0;
  if (rule.kind == ALL || rule.kind == RENORMALISED) {
    u64 top = 0;
    EK_EACH(team, at, rule.experts) top = keys[at] > top ? keys[at] : top;
    highest = of_ordered(team.highest(top));
    double mine = 0.0;
    EK_EACH(team, at, rule.experts) mine += exp((double)logits[row + at] - highest);
    sum = team.sum(mine);
    team.sync();
  }
  u64* groups = keys + rule.experts;
  double* gates = (double*)(groups + rule.groups);
  if (rule.kind == SIGMOID && rule.top_groups < rule.groups) limit_groups(team, rule, keys, groups);
  EK_LOOP for (u32 choice = 0; choice < rule.top_k; ++choice) {
    const u32 expert = take_best(team, keys, rule.experts);
    EK_ONE(team) {
      const double logit = (double)logits[row + expert];
      ids[(u64)token * rule.top_k + choice] = (i32)expert;
      gates[choice] = rule.kind == CHOSEN ? logit : rule.kind == SIGMOID ? probability(logit) : exp(logit - highest) / sum;
    }
  }
  EK_ONE(team) {
    double factor = 1.0;
    if (rule.kind == CHOSEN) {
      const double first = gates[0];
      double all = 0.0;
      for (u32 choice = 0; choice < rule.top_k; ++choice) {
        gates[choice] = exp(gates[choice] - first);
        all += gates[choice];
      }
      factor = all;
    } else if (rule.kind != ALL) {
      double all = 0.0;
      for (u32 choice = 0; choice < rule.top_k; ++choice) all += gates[choice];
      factor = all > 0.0 ? rule.scale / all : 1.0;
    }
    for (u32 choice = 0; choice < rule.top_k; ++choice) {
      const double gate = rule.kind == CHOSEN ? gates[choice] / factor : gates[choice] * factor;
      weights[(u64)token * rule.top_k + choice] = (float)gate;
    }
  }
}

// Limits one expert's capacity by dropping surplus choices. First choices of all tokens take precedence over
// second ones. `shared` has room for TILE numbers.
#define EK_TILE_OF_ROOM 1024u
EK_FN void limit_room(Warp team, u32* shared, u32 expert, u32 tokens, u32 top_k, u64 room, i32* ids, float* weights,
                      u32* dropped) {
  u64 before = 0;
  EK_LOOP for (u32 choice = 0; choice < top_k; ++choice) {
    EK_LOOP for (u32 first = 0; first < tokens; first += EK_TILE_OF_ROOM) {
      const u32 here = tokens - first < EK_TILE_OF_ROOM ? tokens - first : EK_TILE_OF_ROOM;
      EK_FOR(team, at, here) shared[at] = ids[(u64)(first + at) * top_k + choice] == (i32)expert;
      const u32 all = team.scan(shared, here);
      EK_FOR(team, at, here) {
        const u64 own = (u64)(first + at) * top_k + choice;
        if (ids[own] == (i32)expert && before + shared[at] >= room) {
          ids[own] = -1;
          weights[own] = 0.0f;
          atomic_add(dropped, 1);
        }
      }
      before += all;
    }
  }
}

// One warp per token.
EK_KERNEL(256)
ek_norm(const float* x, const float* weight, u32 tokens, u32 hidden, float* exact, u16* rounded) {
  EK_ROWS(token, tokens) {
    norm_token(Warp(), x + (u64)token * hidden, weight, hidden, exact + (u64)token * hidden, rounded + (u64)token * hidden);
  }
}

// The grid has tiles of tokens, tiles of logits, and parts of the inner width (a multiple of 16 numbers
// each).
EK_KERNEL(256)
ek_logits(const float* x, const float* weight, u32 tokens, u32 width, u32 hidden, u32 part, float* parts) {
  EK_SHARED_ARRAY(Four, shared, EK_LOGIT_DEPTH * EK_LOGIT_PITCH / 2);
  const u32 from = blockIdx.z * part, to = from + part < hidden ? from + part : hidden;
  logits_tile(Block(), shared[0].at, x, weight, tokens, width, hidden, blockIdx.x * EK_LOGIT_TILE, blockIdx.y * EK_LOGIT_TILE,
              from, to, parts + (u64)blockIdx.z * tokens * width);
}

// One warp per block and token. Ids after the last token have been set to -1 before.
EK_KERNEL(32)
ek_choose(const Rule rule, const float* parts, u32 count, u32 tokens, float* logits, i32* ids, float* weights, u32* bad) {
  EK_SHARED(u64, keys);
  choose_token(Warp(), keys, rule, parts, count, (u64)tokens * rule.experts, blockIdx.x, logits, ids, weights, bad);
}

// Adds up partial logits, for routers on the host.
EK_KERNEL(256) ek_add_up(const float* parts, const float* bias, u32 count, u32 tokens, u32 width, float* logits) {
  EK_SPREAD(at, (u64)tokens * width) {
    float logit = 0.0f;
    for (u32 part = 0; part < count; ++part) logit += parts[part * (u64)tokens * width + at];
    logits[at] = bias ? logit + bias[at % width] : logit;
  }
}

// One warp per block and expert.
EK_KERNEL(32)
ek_room(u32 tokens, u32 top_k, u64 room, i32* ids, float* weights, u32* dropped) {
  EK_SHARED_ARRAY(u32, shared, EK_TILE_OF_ROOM);
  limit_room(Warp(), shared, blockIdx.x, tokens, top_k, room, ids, weights, dropped);
}

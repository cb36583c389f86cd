// Chunks of top-k ids, shared by `count` and `map`. A chunk is CHUNK consecutive ids, the work of one block.
#pragma once
#include "team.h"

#define EK_CHUNK 256u
// Numbers that a warp sums at a time.
#define EK_TILE 1024u

// Returns the expert of an id, or EK_NEVER.
template <class Id> EK_FN u32 expert_of(Id id, u32 experts) {
  return id >= 0 && (u64)id < experts ? (u32)id : EK_NEVER;
}

EK_FN u32 chunk_length(u64 ids, u64 chunk) {
  u64 rest = ids - chunk * EK_CHUNK;
  return rest < EK_CHUNK ? (u32)rest : EK_CHUNK;
}

// Chunks of top-k ids, shared by `count` and `map`. A chunk is CHUNK consecutive ids, one block's work.
#pragma once
#include "team.h"

#define EK_CHUNK 256u

// The expert that an id names; EK_NEVER for -1, and for what is no expert, which counts as a fault.
template <class Id> EK_FN u32 expert_of(Id id, u32 experts, u32* faults) {
  if (id >= 0 && (u64)id < experts) return (u32)id;
  if (id != -1) atomic_add(faults, 1);
  return EK_NEVER;
}

EK_FN u32 chunk_length(u64 ids, u64 chunk) {
  u64 rest = ids - chunk * EK_CHUNK;
  return rest < EK_CHUNK ? (u32)rest : EK_CHUNK;
}

// evenkeel: load-balancing planner for Mixture-of-Experts models under expert parallelism. C interface.
//
// Functions return EK_OK or say in ek_last_error() what was wrong. Handles are opaque: made by *_new and *_read, freed by
// *_free. A handle is used by one thread at a time; different handles by different threads. After a fork each process goes
// on with its own. Nothing unwinds across this border.
//
// Made by cbindgen from bindings/c/src; `EVENKEEL_HEADER=write cargo test -p evenkeel-c` makes it anew.

#ifndef EVENKEEL_H
#define EVENKEEL_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

// How a call ended.
typedef enum {
  // Done.
  EK_OK = 0,
  // An argument or a file is not what was expected.
  EK_INVALID = 1,
  // This machine lacks what was asked for, a GPU for example.
  EK_UNAVAILABLE = 2,
  // A defect of the library.
  EK_INTERNAL = 3,
} ek_status;

// Splits and redirects batches on one GPU, for one source rank.
typedef struct ek_device_planner ek_device_planner;

// Placements for all busy layers of a model on one group of ranks.
typedef struct ek_plan ek_plan;

// Splits batches of one layer and says which slot serves which token.
typedef struct ek_planner ek_planner;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Makes a planner on GPU `device` for rank `source`: one row of `physical_to_logical[layers * slots]` per layer, up to
// `capacity` ids per batch. EK_UNAVAILABLE where there is no GPU that will do.
ek_status ek_device_planner_new(const int64_t *physical_to_logical,
                                size_t layers,
                                size_t slots,
                                size_t experts,
                                size_t ranks,
                                size_t nodes,
                                size_t source,
                                size_t capacity,
                                size_t device,
                                ek_device_planner **out);

// Frees a planner; null is let be.
void ek_device_planner_free(ek_device_planner *planner);

// Where the planner keeps this rank's counts, `[experts]` of uint32 in device memory, as ek_device_planner_count leaves them:
// what the ranks gather (ncclAllGather, say).
ek_status ek_device_planner_own_counts(const ek_device_planner *planner,
                                       const uint32_t **out);

// Enqueues the counting of `ids[len]` in device memory, of `id_bytes` 4 or 8 each, on the caller's `stream` (a cudaStream_t).
ek_status ek_device_planner_count(ek_device_planner *planner,
                                  const void *ids,
                                  size_t len,
                                  size_t id_bytes,
                                  void *stream);

// Enqueues the split of a layer (by its position) by `counts[ranks * experts]`, everybody's, and writes the slot of every id
// that was counted to `slots[len]`. All memory is the device's; nothing waits for the host, so a graph can record it.
ek_status ek_device_planner_redirect(ek_device_planner *planner,
                                     size_t layer,
                                     const uint32_t *counts,
                                     const void *ids,
                                     size_t len,
                                     size_t id_bytes,
                                     void *slots,
                                     void *stream);

// Plans from a trace file or folder in any format that evenkeel reads. `redundant` counts slots beyond one per expert over
// all ranks; `policy` is a name as on the command line ("recourse", "eplb", ..), null for the default; `groups` are the
// model's expert groups, 1 where routing knows none.
ek_status ek_plan_new(const char *trace,
                      size_t ranks,
                      size_t nodes,
                      size_t redundant,
                      size_t groups,
                      const char *policy,
                      ek_plan **out);

// Reads and checks a plan file.
ek_status ek_plan_read(const char *path, ek_plan **out);

// Frees a plan; null is let be.
void ek_plan_free(ek_plan *plan);

// The shape of a plan: planned layers, logical experts, ranks, slots on each rank. Any pointer to a number may be null.
ek_status ek_plan_shape(const ek_plan *plan, size_t *layers, size_t *experts, size_t *ranks, size_t *slots_per_rank);

// One planned layer, by its position from 0: its real id, and which expert each slot holds, into
// `physical_to_logical[ranks * slots_per_rank]`, -1 for an empty slot. Either pointer may be null.
ek_status ek_plan_layer(const ek_plan *plan, size_t position, uint32_t *id, int64_t *physical_to_logical);

// Writes a plan to a file: as evenkeel reads it where `dialect` is null, or as a serving stack does: "sglang", "trtllm",
// "vllm", "vllm-ascend", "eplb".
ek_status ek_plan_write(const ek_plan *plan,
                        const char *path,
                        const char *dialect);

// Makes a planner for one layer of a plan, by its real id.
ek_status ek_plan_planner(const ek_plan *plan, uint32_t layer, ek_planner **out);

// Makes a planner for one layer: `physical_to_logical[slots]` says which expert each slot holds (-1: none), rank r having the
// slots r * slots / ranks and on; `nodes` divides `ranks`. The planner is put where `out` points.
ek_status ek_planner_new(const int64_t *physical_to_logical,
                         size_t slots,
                         size_t experts,
                         size_t ranks,
                         size_t nodes,
                         ek_planner **out);

// Frees a planner; null is let be.
void ek_planner_free(ek_planner *planner);

// Splits one batch. `counts[ranks * experts]` are the tokens that each rank routed to each expert, rank by rank.
// `quotas[slots]` receives the tokens that each slot serves and `peak` the busiest rank's; either may be null.
ek_status ek_planner_split(ek_planner *planner, const uint64_t *counts, size_t len, uint64_t *quotas, uint64_t *peak);

// Counts one source's `ids[len]` (-1: none) into `counts[experts]`: what the other ranks have to be told.
ek_status ek_planner_count_i32(ek_planner *planner, const int32_t *ids, size_t len, uint64_t *counts);

// As ek_planner_count_i32.
ek_status ek_planner_count_i64(ek_planner *planner, const int64_t *ids, size_t len, uint64_t *counts);

// Writes to `slots[len]`, other memory than `ids`, the physical slot of every one of rank `source`'s `ids[len]`, by the last
// split; -1 stays -1. The ids are those that were counted.
ek_status ek_planner_redirect_i32(ek_planner *planner,
                                  const int32_t *ids,
                                  size_t len,
                                  size_t source,
                                  int32_t *slots);

// As ek_planner_redirect_i32.
ek_status ek_planner_redirect_i64(ek_planner *planner, const int64_t *ids, size_t len, size_t source, int64_t *slots);

// What went wrong in this thread's last call that failed, in words; empty before any. Valid until the thread's next call.
const char *ek_last_error(void);

// The library's version, as "1.2.3".
const char *ek_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* EVENKEEL_H */

// One batch in a serving loop: count, gather, split, redirect.
//
//     cc split.c -I../include -L../../../target/release -levenkeel_c -o split && ./split
//
// Four ranks, eight experts, three slots each. In a server every rank runs these steps. Here one process
// plays all ranks.

#include "evenkeel.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { RANKS = 4, EXPERTS = 8, SLOTS = 12, TOKENS = 32, TOPK = 2 };

static void must(ek_status status) {
    if (status != EK_OK) {
        fprintf(stderr, "error: %s\n", ek_last_error());
        exit(1);
    }
}

int main(void) {
    // Rank r owns slots 3r, 3r + 1 and 3r + 2: two experts of its own and a replica of its neighbour's first.
    const int64_t physical_to_logical[SLOTS] = {0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 0};
    const ek_cluster cluster = {.experts = EXPERTS, .ranks = RANKS, .nodes = 1, .slots = SLOTS};
    ek_planner *planner = NULL;
    must(ek_planner_new(physical_to_logical, &cluster, &planner));

    // Routed expert ids of the four ranks: expert 0 is hot.
    int32_t ids[RANKS][TOKENS * TOPK], slots[RANKS][TOKENS * TOPK];
    uint64_t counts[RANKS][EXPERTS];
    for (int rank = 0; rank < RANKS; rank++) {
        for (int i = 0; i < TOKENS * TOPK; i++) {
            ids[rank][i] = i % 3 == 0 ? 0 : (i * 5 + rank) % EXPERTS;
        }
        ids[rank][7] = -1; // padding
        must(ek_planner_count_i32(planner, ids[rank], TOKENS * TOPK, counts[rank]));
    }

    uint64_t quotas[SLOTS], peak, served[SLOTS] = {0};
    must(ek_planner_split(planner, &counts[0][0], RANKS * EXPERTS, quotas, &peak));
    for (size_t rank = 0; rank < RANKS; rank++) {
        must(ek_planner_redirect_i32(planner, ids[rank], TOKENS * TOPK, rank, slots[rank]));
        for (int i = 0; i < TOKENS * TOPK; i++) {
            if (slots[rank][i] >= 0) {
                served[slots[rank][i]]++;
            }
        }
    }

    printf("evenkeel %s: peak %llu tokens\n", ek_version(), (unsigned long long)peak);
    for (int slot = 0; slot < SLOTS; slot++) {
        printf("slot %2d, rank %d, expert %lld: %3llu tokens\n", slot, slot / 3, (long long)physical_to_logical[slot],
               (unsigned long long)quotas[slot]);
        if (quotas[slot] != served[slot]) {
            fprintf(stderr, "error: %llu were sent there\n", (unsigned long long)served[slot]);
            return 1;
        }
    }

    // Invalid arguments return a status and a message instead of a crash.
    const ek_cluster wrong = {.experts = 7, .ranks = RANKS, .nodes = 1, .slots = SLOTS};
    ek_planner *none = NULL;
    if (ek_planner_new(physical_to_logical, &wrong, &none) != EK_INVALID || none != NULL) {
        return 1;
    }
    printf("a wrong number of experts: %s\n", ek_last_error());
    ek_planner_free(planner);
    return 0;
}

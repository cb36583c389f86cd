#!/usr/bin/env python3
"""Prints the tables of docs/dynamic.md: copies before every batch on recorded traces.

    cargo build --release
    python3 scripts/measure_dynamic.py [stationary|shifting|foresight|homes|planned ...]

The rows are those of scripts/measure_placement.py. Every table states its commands. Two memories are compared
with static replicas of the same number of slots. EVENKEEL_REAL_TRACES names the folder with the recorded
traces, EVENKEEL the program. Only Python's standard library is used.
"""

import sys

from measure_placement import CLUSTERS, ROWS, TRACES, run

# Layers with experts of each trace. Every third one is simulated.
LAYERS = {"gptoss20b-decode": list(range(24)), "deepseek-v2-lite-domains": list(range(1, 27))}


def simulate(name, order, ranks, redundant, layers, *more):
    folder, options, experts, _, _ = ROWS[name]
    words = ["dynamic", f"{TRACES}/{folder}", *options.split(), "--experts", experts, "--order", order, "--ranks", ranks]
    words += ["--redundant", redundant, "--layers", ",".join(map(str, layers)), "--splits", "exact"]
    policies = [] if "--policies" in more else ["--policies", "recourse:exact"]
    return run([*words, *policies, *more])["dynamic"]["rows"]


def mean(parts):
    """Returns the mean of figures over layers, from (figure, layers)."""
    return sum(figure * count for figure, count in parts) / sum(count for _, count in parts)


def same_memory(order):
    """Prints the rows of one order: static replicas, and both memories with as many slots."""
    print("    evenkeel simulate dynamic $EVENKEEL_REAL_TRACES/FOLDER BATCHES --ranks RANKS --redundant SLOTS --layers LAYERS \\")
    print(f"        --order {order} --policies recourse:exact --splits exact --slot-memory MEMORY --json\n")
    print("Mean excess, and in brackets the mean copies before a batch of a layer with their proved lower bound. `static` has the")
    print("redundant slots of every layer filled once. `kept` has one of them filled before each batch. `shared` gives up one static")
    print("slot per rank in one layer, and all layers share it. Every third layer is simulated.\n")
    print("| trace | ranks x redundant | static | shared | kept |\n|---|---|---|---|---|")
    sums = {"static": 0.0, "shared": 0.0, "kept": 0.0}
    copies = {}
    for name, (folder, *_) in ROWS.items():
        all_layers = LAYERS[folder]
        layers = all_layers[::3]
        for ranks, per_rank in CLUSTERS:
            kept, = simulate(name, order, ranks, ranks * (per_rank - 1), layers, "--slot-memory", "kept")
            first, = simulate(name, order, ranks, ranks * (per_rank - 1), layers[:1], "--slot-memory", "shared")
            full, = simulate(name, order, ranks, ranks * per_rank, layers, "--slot-memory", "shared")
            rest, = simulate(name, order, ranks, ranks * per_rank, layers[1:], "--slot-memory", "shared")
            shared = lambda key: mean([(first[key]["mean"], 1), (rest[key]["mean"], len(all_layers) - 1)])
            excess = {"static": full["static_excess"]["mean"], "shared": shared("excess"), "kept": kept["excess"]["mean"]}
            for memory, value in excess.items():
                sums[memory] += value
            made = {"shared": (shared("copies"), shared("least_copies")), "kept": (kept["copies"]["mean"], kept["least_copies"]["mean"])}
            for memory, (count, _) in made.items():
                copies.setdefault((memory, ranks), []).append(count)
            cells = [f"{excess[memory]:.4f} ({made[memory][0]:.2f}, {made[memory][1]:.2f})" for memory in ("shared", "kept")]
            print(f"| {name} | {ranks} x {per_rank} | {excess['static']:.4f} | {cells[0]} | {cells[1]} |", flush=True)
    print(f"\nSummed excess: static {sums['static']:.4f}, shared {sums['shared']:.4f} ({sums['shared'] / sums['static']:.3f} of it), "
          f"kept {sums['kept']:.4f} ({sums['kept'] / sums['static']:.3f}).")
    for (memory, ranks), counts in sorted(copies.items()):
        print(f"Copies, {memory}, {ranks} ranks: {sum(counts) / len(counts):.2f} on average, {max(counts):.2f} in the worst row.")
    print()


def stationary():
    print("### Stationary: requests and sequences shuffled\n")
    same_memory("shuffled")


def shifting():
    print("### Shifting, planned once: requests and domains in recorded order\n")
    same_memory("recorded")


def foresight():
    """Prints the value of knowing loads before routing."""
    print("### Copies chosen before routing\n")
    print("    evenkeel simulate dynamic $EVENKEEL_REAL_TRACES/FOLDER BATCHES --ranks RANKS --redundant RANKS --layers 0,6,12,18 \\")
    print("        --order recorded --policies recourse:exact --splits exact --slot-memory MEMORY --foresee FORESIGHT --json\n")
    print("Mean excess, and copies in brackets.\n")
    kinds = ["previous", "mean:4", "mean:16", "perfect"]
    print("| trace | ranks | memory | static | " + " | ".join(kinds) + " |\n|---|---|---|---|" + "---|" * len(kinds))
    for name in ("gpt-oss, decode 16", "gpt-oss, decode 64", "dsv2-lite, prefill 512"):
        layers = [layer + (name[0] == "d") for layer in (0, 6, 12, 18)]
        for ranks in (8, 32):
            for memory in ("shared", "kept"):
                cells = []
                for kind in kinds:
                    row, = simulate(name, "recorded", ranks, ranks, layers, "--slot-memory", memory, "--foresee", kind)
                    cells.append(f"{row['excess']['mean']:.4f} ({row['copies']['mean']:.2f})")
                print(f"| {name} | {ranks} | {memory} | {row['static_excess']['mean']:.4f} | " + " | ".join(cells) + " |", flush=True)
    print()


def homes():
    """Prints the copies that a placement of recourse saves."""
    print("### Copies with and without static replicas\n")
    print("    evenkeel simulate dynamic $EVENKEEL_REAL_TRACES/FOLDER BATCHES --ranks RANKS --redundant SLOTS --layers 0,6,12,18 \\")
    print("        --order shuffled --policies POLICY --splits exact --slot-memory shared --dynamic 2 --json\n")
    print("Mean copies before a batch of a layer, in brackets the mean excess.\n")
    print("| trace | ranks | contiguous homes | homes by recourse | recourse, one replica per rank | share |\n|---|---|---|---|---|---|")
    for name in ROWS:
        layers = [layer + (name[0] == "d") for layer in (0, 6, 12, 18)]
        for ranks in (8, 16, 32):
            cells, counts = [], []
            for policy, redundant in (("contiguous", 0), ("recourse:exact", 0), ("recourse:exact", ranks)):
                row, = simulate(name, "shuffled", ranks, redundant, layers, "--slot-memory", "shared", "--dynamic", 2, "--policies", policy)
                cells.append(f"{row['copies']['mean']:.2f} ({row['excess']['mean']:.4f})")
                counts.append(row["copies"]["mean"])
            print(f"| {name} | {ranks} | " + " | ".join(cells) + f" | {counts[2] / max(counts[0], 1e-9):.2f} |", flush=True)
    print()


def planned():
    """Prints the copies that a placement planned for dynamic slots saves."""
    print("### Placements for dynamic slots\n")
    print("    evenkeel simulate dynamic $EVENKEEL_REAL_TRACES/FOLDER BATCHES --ranks RANKS --redundant RANKS --layers 3,12 \\")
    print("        --order ORDER --policies recourse:exact,recourse:exact:dynamic=1 --splits exact --slot-memory shared --json\n")
    print("Mean copies before a batch of a layer, in brackets the mean excess.\n")
    policies = ["recourse:exact", "recourse:exact:dynamic=1"]
    orders = ["shuffled", "recorded"]
    print("| trace | ranks | " + " | ".join(f"{order}: peaks | {order}: copies" for order in orders) + " |\n|---|---|---|---|---|---|")
    sums = {order: [0.0, 0.0] for order in orders}
    for name in ("gpt-oss, decode 16", "gpt-oss, decode 64", "dsv2-lite, prefill 256", "dsv2-lite, prefill 512"):
        layers = [layer + (name[0] == "d") for layer in (3, 12)]
        for ranks in (8, 16, 32):
            cells = []
            for order in orders:
                more = ["--slot-memory", "shared", "--policies", ",".join(policies)]
                for number, row in enumerate(simulate(name, order, ranks, ranks, layers, *more)):
                    sums[order][number] += row["copies"]["mean"]
                    cells.append(f"{row['copies']['mean']:.2f} ({row['excess']['mean']:.4f})")
            print(f"| {name} | {ranks} | " + " | ".join(cells) + " |", flush=True)
    for order, (peaks, copies) in sums.items():
        print(f"\nSummed copies, {order}: {peaks:.2f} by the search for peaks, {copies:.2f} by the search for copies ({copies / peaks:.3f}).")
    print()


TABLES = {"stationary": stationary, "shifting": shifting, "foresight": foresight, "homes": homes, "planned": planned}

if __name__ == "__main__":
    if not TRACES:
        sys.exit("EVENKEEL_REAL_TRACES names no folder: expected the folder with the recorded traces")
    for name in sys.argv[1:] or TABLES:
        if name not in TABLES:
            sys.exit(f"{name}: expected {', '.join(TABLES)}")
        TABLES[name]()

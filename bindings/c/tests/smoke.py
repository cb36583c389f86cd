"""Tests the C interface through ctypes: plans, planners and messages, without a GPU."""

import ctypes
import os
import sys
import tempfile

lib = ctypes.CDLL(sys.argv[1])
lib.ek_last_error.restype = lib.ek_version.restype = ctypes.c_char_p
OK, INVALID, UNAVAILABLE = 0, 1, 2
handle = ctypes.c_void_p


def said():
    return lib.ek_last_error().decode()


class Options(ctypes.Structure):
    """Mirrors ek_plan_options."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("ranks", ctypes.c_size_t),
        ("nodes", ctypes.c_size_t),
        ("redundant", ctypes.c_size_t),
        ("groups", ctypes.c_size_t),
        ("policy", ctypes.c_char_p),
        ("uneven", ctypes.c_bool),
        ("coverage", ctypes.c_uint32),
        ("speeds", ctypes.POINTER(ctypes.c_uint32)),
        ("speed_count", ctypes.c_size_t),
        ("has_memory_budget", ctypes.c_bool),
        ("memory_budget", ctypes.c_size_t),
        ("previous", ctypes.c_void_p),
        ("lost_ranks", ctypes.POINTER(ctypes.c_size_t)),
        ("lost_rank_count", ctypes.c_size_t),
        ("has_max_moves", ctypes.c_bool),
        ("max_moves", ctypes.c_size_t),
        ("horizon_steps", ctypes.c_uint64),
        ("link_gbps", ctypes.c_uint64),
        ("link_bytes", ctypes.c_uint64),
        ("model", ctypes.c_char_p),
        ("gpu", ctypes.c_char_p),
    ]


class Cluster(ctypes.Structure):
    """Mirrors ek_cluster."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("experts", "ranks", "nodes", "slots")]


def make_plan(out, ranks, redundant, **more):
    options = Options(ctypes.sizeof(Options), ranks, 1, redundant, 1, b"eplb", **more)
    return lib.ek_plan_new(trace, ctypes.byref(options), ctypes.byref(out))


samples = os.path.join(os.path.dirname(__file__), "..", "..", "..", "traces")
plan, planner = handle(), handle()
trace = os.path.join(samples, "sample-decode.csv.zst").encode()
assert make_plan(plan, 8, 8) == OK, said()
shape = [ctypes.c_size_t() for _ in range(4)]
assert lib.ek_plan_shape(plan, *map(ctypes.byref, shape)) == OK
layers, experts, ranks, per_rank = (number.value for number in shape)
slots, layer = ranks * per_rank, ctypes.c_uint32()
held = (ctypes.c_int64 * slots)()
assert lib.ek_plan_layer(plan, 0, ctypes.byref(layer), held) == OK and set(held) == set(range(experts))
assert lib.ek_plan_layer(plan, layers, None, None) == INVALID and "layers" in said()

with tempfile.TemporaryDirectory() as folder:
    for dialect in (None, b"sglang", b"trtllm", b"vllm", b"vllm-ascend", b"eplb"):
        path = os.path.join(folder, "plan").encode()
        assert lib.ek_plan_write(plan, path, dialect) == OK, said()
        assert os.path.getsize(path) > 0
    assert lib.ek_plan_write(plan, path, b"word") == INVALID and "unknown format" in said()
    assert lib.ek_plan_write(plan, path, None) == OK
    again = handle()
    assert lib.ek_plan_read(path, ctypes.byref(again)) == OK
    lib.ek_plan_free(again)
assert lib.ek_plan_read(b"/nowhere.json", ctypes.byref(again)) == INVALID and "/nowhere.json" in said()

assert lib.ek_plan_planner(plan, layer, ctypes.byref(planner)) == OK
counts = (ctypes.c_uint64 * (ranks * experts))(*[(7 * i) % 23 for i in range(ranks * experts)])
quotas, peak = (ctypes.c_uint64 * slots)(), ctypes.c_uint64()
assert lib.ek_planner_split(planner, counts, len(counts), quotas, ctypes.byref(peak)) == OK, said()
loads = [sum(quotas[r * per_rank : (r + 1) * per_rank]) for r in range(ranks)]
assert sum(quotas) == sum(counts) and max(loads) == peak.value
assert lib.ek_planner_split(planner, counts, 3, None, None) == INVALID and "3 loads" in said(), said()
assert lib.ek_planner_split(planner, None, len(counts), None, None) == INVALID and "counts: null" in said()
assert lib.ek_planner_split(None, counts, len(counts), None, None) == INVALID and "planner: null" in said()



class DynamicSlots(ctypes.Structure):
    """Mirrors ek_dynamic_slots."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("per_rank", ctypes.c_size_t),
        ("kept", ctypes.c_bool),
        ("has_max_copies", ctypes.c_bool),
        ("max_copies", ctypes.c_uint32),
        ("imbalance_millionths", ctypes.c_uint32),
    ]


class Copy(ctypes.Structure):
    """Mirrors ek_copy."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("expert", "sender", "to", "slot")]


# Copies before a batch: expert 0 is hot.
dynamic = handle()
sizes = Cluster(experts=experts, ranks=ranks, nodes=1, slots=slots)
wanted = DynamicSlots(ctypes.sizeof(DynamicSlots), 1, False, False, 0, 10000)
assert lib.ek_planner_new_dynamic(held, ctypes.byref(sizes), ctypes.byref(wanted), ctypes.byref(dynamic)) == OK, said()
hot = (ctypes.c_uint64 * (ranks * experts))(*[900 if i % experts == 0 else 7 for i in range(ranks * experts)])
wide = slots + ranks
quotas = (ctypes.c_uint64 * wide)()
assert lib.ek_planner_split(dynamic, hot, len(hot), quotas, ctypes.byref(peak)) == OK, said()
assert sum(quotas) == sum(hot) and peak.value * ranks <= 1.02 * sum(hot)
count, copies = ctypes.c_size_t(), (Copy * ranks)()
assert lib.ek_planner_copies(dynamic, None, 0, ctypes.byref(count)) == OK and 0 < count.value <= ranks
assert lib.ek_planner_copies(dynamic, copies, 0, None) == INVALID and "room for 0" in said()
assert lib.ek_planner_copies(dynamic, copies, ranks, ctypes.byref(count)) == OK
after = (ctypes.c_int64 * wide)()
assert lib.ek_planner_placement(dynamic, after, wide) == OK, said()
for copy in copies[: count.value]:
    assert after[copy.slot] == copy.expert and copy.slot // (per_rank + 1) == copy.to != copy.sender
assert lib.ek_planner_placement(dynamic, after, slots) == INVALID and f"expected {wide}" in said()
expected = (ctypes.c_uint64 * experts)(*[7200 if i == 0 else 56 for i in range(experts)])
assert lib.ek_planner_prepare_copies(dynamic, expected, experts) == OK, said()
assert lib.ek_planner_copies(dynamic, copies, ranks, ctypes.byref(count)) == OK and count.value > 0
assert lib.ek_planner_prepare_copies(planner, expected, experts) == INVALID and "dynamic" in said(), said()
wrong = handle()
short = DynamicSlots(8, 1)
assert lib.ek_planner_new_dynamic(held, ctypes.byref(sizes), ctypes.byref(short), ctypes.byref(wrong)) == INVALID
assert "size 8" in said() and lib.ek_planner_new_dynamic(held, ctypes.byref(sizes), None, ctypes.byref(wrong)) == INVALID
lib.ek_planner_free(dynamic)

# Sizes beyond any memory are refused before the first allocation.
wrong = handle()
for wanted, number in ((2**31, 8), (2**33, 8), (2**64 - 1, 8), (0, 8), (8, 2**32 + 8), (8, 0)):
    sizes = Cluster(experts=wanted, ranks=number, nodes=1, slots=8)
    status = lib.ek_planner_new(held, ctypes.byref(sizes), ctypes.byref(wrong))
    assert status == INVALID and "expected" in said() or "ranks" in said(), said()
assert lib.ek_planner_new(held, None, ctypes.byref(wrong)) == INVALID and "cluster: null" in said()
for size in (2**31, 2**62, 2**64 - 1):
    assert make_plan(wrong, size, 1) == INVALID, said()
    assert lib.ek_planner_split(planner, counts, ctypes.c_size_t(2**63), None, None) == INVALID, said()

# Plans that follow another one, and their constraints.
following = handle()
lost = (ctypes.c_size_t * 1)(3)
assert make_plan(following, 7, 7 * per_rank - experts, previous=plan, lost_ranks=lost, lost_rank_count=1) == OK, said()
assert lib.ek_plan_shape(following, None, None, ctypes.byref(shape[2]), None) == OK and shape[2].value == 7
lib.ek_plan_free(following)
assert make_plan(following, 8, 8, previous=plan, has_max_moves=True, max_moves=0) == OK, said()
assert lib.ek_plan_layer(following, 0, None, held) == OK
lib.ek_plan_free(following)
assert make_plan(following, 8, experts, coverage=1, previous=plan, link_bytes=2**40, model=b"gpt-oss-20b") == OK, said()
lib.ek_plan_free(following)
for options, words in (
    ({"has_max_moves": True}, "expected a previous plan"),
    ({"coverage": 3}, "expected 0 to 2"),
    ({"link_bytes": 1}, "expected model too"),
    ({"horizon_steps": 1, "model": b"gpt-oss-20b"}, "expected model and gpu too"),
    ({"horizon_steps": 1, "model": b"gpt-oss-20b", "gpu": b"h100"}, "link_gbps 0"),
    ({"speeds": (ctypes.c_uint32 * 1)(1), "speed_count": 1}, "1 speeds for 8 ranks"),
    ({"previous": plan, "has_memory_budget": True, "memory_budget": 9, "link_bytes": 1, "model": b"gpt-oss-20b"}, "expected one of them"),
):
    assert make_plan(wrong, 8, 8, **options) == INVALID and words in said(), (options, said())
short = Options(8, 8, 1, 8, 1)
assert lib.ek_plan_new(trace, ctypes.byref(short), ctypes.byref(wrong)) == INVALID and "size 8" in said()
assert lib.ek_plan_new(trace, None, ctypes.byref(wrong)) == INVALID and "options: null" in said()

device = handle()
sizes = Cluster(experts=experts, ranks=ranks, nodes=1, slots=slots)
status = lib.ek_device_planner_new(held, 1, ctypes.byref(sizes), 0, 1024, 0, ctypes.byref(device))
assert status in (OK, UNAVAILABLE), said()
lib.ek_device_planner_free(device)
lib.ek_planner_free(planner)
lib.ek_plan_free(plan)
lib.ek_planner_free(None)
print("ok")

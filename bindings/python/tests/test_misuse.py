"""Wrong arguments raise exceptions. They never end the process, panic, or take unbounded memory.

Every argument of every native function is replaced by values of other types, signs, shapes and sizes. The
process has a limited address space. The test fails if a process ends, or if an exception is no `Exception` (a
Rust panic).
"""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

CALLS = textwrap.dedent(
    """
    import os, resource, sys, tempfile
    import numpy as np
    import evenkeel
    from evenkeel import _native as native

    part, parts = int(sys.argv[1]), int(sys.argv[2])
    # 1 GiB beyond what is mapped already.
    mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (1 << 30),) * 2)

    numbers = [-1, 0, 1, 3, 7, 2**16 + 1, 2**31, 2**32 + 1, 2**33, 2**62, 2**63 - 1, 2**64, -2**63, 10**30]
    broadcast = np.broadcast_to(np.int64(0), (2**20, 2**20))
    arrays = [
        np.zeros(0, np.int64), np.zeros((0, 3), np.int64), np.zeros((3, 0), np.int64), np.zeros((0, 0, 0), np.int64), np.int64(3),
        np.array(3), np.arange(8), np.arange(8)[::-1], np.arange(16).reshape(4, 4).T, np.full((2, 4), -1), np.full(8, 2**62),
        np.full((2, 2, 2), 2**63 - 1), np.full((2, 8), 2**64 - 1, np.uint64), np.full((1, 1, 8), 2**64 - 1, np.uint64),
        np.full((2, 8), np.nan), np.full((2, 8), np.inf, np.float32), np.full((2, 8), -1, np.float32), np.zeros((2, 8), bool),
        np.array([None, "x"], object), np.arange(8, dtype=">i8"), np.arange(8, dtype=np.int8), np.arange(8, dtype=np.int32),
        np.full((3, 3), 2**31 - 1, np.int32), np.arange(8, dtype=np.float64), np.array(["a"]), np.zeros((1, 1, 70000), np.uint64),
        broadcast, np.broadcast_to(np.int64(0), 2**40), np.broadcast_to(np.uint64(1), (2**14, 2**13, 2**13)),
        np.broadcast_to(np.int32(0), (2**40, 1)), np.broadcast_to(np.float32(1), (2**20, 2**20)), np.broadcast_to(np.int64(-1), (2**40, 0)),
    ]
    others = [1.5, float("nan"), True, "x", "", "recourse:" * 1000, "\\x00", None, b"x", [], [[]], [1, 2], [2**40], {}, object(), "../../x", -0.0]
    odd = numbers + arrays + others

    trace = evenkeel.Trace.from_loads(np.arange(64, dtype=np.uint64).reshape(4, 2, 8))
    plan = evenkeel.plan(trace, 2, 4)
    counts = np.ones((2, 8), np.uint64)

    def planner():
        made = evenkeel.Planner(np.array([0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 0, 1]), 2)
        made.split(counts)
        return made

    maps = np.array([[0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 0, 1]] * 2)
    router = native.StackRouter("vllm", maps, 2)
    ids = np.arange(8).reshape(4, 2)
    # Some calls write to the paths that they are given.
    temporary = tempfile.TemporaryDirectory()
    folder = os.path.join(temporary.name, "a", "b")
    os.makedirs(folder)
    os.chdir(folder)
    calls = [
        (evenkeel.Trace.from_loads, [np.ones((2, 2, 4), np.uint64), [0, 1]], {}),
        (native.read_trace, [folder + "/none.csv"], dict(format=None, experts=8, layers="0-3", batch_tokens=4, decode_batch=None,
         order="recorded", seed=0, step_column=None, arrays=None)),
        (native.plan, [trace, 2, 4], dict(policy="eplb", nodes=1, groups=1, split=None, moe_layers=None)),
        (native.plan, [trace, 2, 4], dict(policy="recourse", nodes=1, groups=1, split="vllm", moe_layers=[0, 1])),
        (native.plan, [trace, 2], dict(redundant=None, policy="eplb", num_redundant_experts=4)),
        (native.Plan.from_json, ["{}"], {}),
        (native.Plan.load, [folder + "/none"], {}),
        (plan.save, [folder + "/p.json"], {}),
        (plan.export, ["sglang"], dict(moe_layers=[0, 1])),
        (plan.planner, [0], {}),
        (evenkeel.Planner, [maps[0], 2], dict(nodes=1, experts=8, keep=None)),
        (evenkeel.Planner, [maps[0], 2], dict(nodes=1, experts=8, keep="vector")),
        (lambda c: planner().split(c), [counts], {}),
        (lambda *a: planner().redirect(*a), [ids, 0, np.zeros((4, 2), np.int64)], {}),
        (lambda i: planner().count(i), [ids], {}),
        (lambda c: planner().check(c), [counts], {}),
        (native.StackRouter, ["sglang-random", maps, 2, 1, 8], dict(tp_size=1, rebalanced=False, seed=0)),
        (native.StackRouter, ["vllm-ascend", maps, 2, 1, 8], dict(tp_size=1, rebalanced=False, seed=0)),
        (router.redirect, [0, ids, 0], {}),
        (router.loads, [0, [ids, ids]], {}),
        (native.replicate, [np.zeros((2, 1), np.int64), 10, 8, 2, np.ones(8, np.uint64)], {}),
        (native.rebalance, [np.ones((2, 8), np.float32), 12, 2, 1, 2], {}),
        (native.replan, [np.ones((3, 2, 8), np.uint64), 12, 2], dict(policy="eplb", groups=1, nodes=1, previous=maps, max_moves=2)),
        (native.inverse, [maps, 8], {}),
        (native.imbalance, [np.ones((3, 2, 8), np.uint64), maps, 2], dict(split="even", nodes=1)),
        (native.named_split, ["recourse:vllm"], {}),
        (native.with_split, ["recourse", "vllm"], {}),
    ]

    made = 0
    for number, (function, positional, keywords) in enumerate(calls):
        if number % parts != part:
            continue
        places = list(range(len(positional))) + list(keywords)
        variants = [(place, value) for place in places for value in odd]
        for place, value in variants:
            args, named = list(positional), dict(keywords)
            if isinstance(place, int):
                args[place] = value
            else:
                named[place] = value
            name = getattr(function, "__name__", "call")
            kind = getattr(value, "shape", None)
            shown = f"{type(value).__name__} of shape {kind}" if kind is not None else repr(value)[:60]
            print(f"{number} {name}, argument {place}: {shown}", file=sys.stderr, flush=True)
            try:
                function(*args, **named)
            except Exception:
                pass
            made += 1
    print(made)
    """
)

PARTS = 6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("part", range(PARTS))
def test_wrong_arguments_are_exceptions(part):
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", CALLS, str(part), str(PARTS)], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, "\n".join(done.stderr.splitlines()[-12:])
    assert int(done.stdout) > 200
    assert "panicked" not in done.stderr


FORKS = textwrap.dedent(
    """
    import os, sys, threading
    import numpy as np
    import evenkeel

    slots = np.concatenate([np.arange(512), np.arange(512)])
    planner = evenkeel.Planner(slots, 16, keep="vector")
    counts = np.random.default_rng(1).integers(0, 1000, (16, 512)).astype(np.uint64)
    expected = planner.split(counts).peak
    stop = False

    def split():
        while not stop:
            planner.split(counts)

    thread = threading.Thread(target=split, daemon=True)
    thread.start()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            os._exit(0 if planner.split(counts).peak == expected else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0, status
    stop = True
    thread.join()
    """
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_during_another_threads_split_does_not_hang():
    process = subprocess.Popen([sys.executable, "-c", FORKS], start_new_session=True)
    try:
        assert process.wait(timeout=120) == 0
    finally:
        # A child that hangs would outlive its parent.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

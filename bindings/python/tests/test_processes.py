"""Ranks agree bit for bit; threads and forks are safe."""

import hashlib
import multiprocessing
import os
import threading

import numpy as np
import pytest

import evenkeel


def digest(ring, seed):
    """Returns a digest of all results of twenty batches on which ranks must agree."""
    planner = evenkeel.Planner(ring, 8)
    rng = np.random.default_rng(seed)
    seen = hashlib.sha256()
    for _ in range(20):
        ids = rng.choice(16, size=(8, 64), p=rng.dirichlet(np.full(16, 0.4)))
        counts = np.stack([np.bincount(part, minlength=16) for part in ids])
        seen.update(planner.split(counts).quotas.tobytes())
        for source in range(8):
            seen.update(planner.redirect(ids[source], source).tobytes())
    loads = rng.integers(0, 100, (4, 2, 16))
    seen.update(evenkeel.eplb.rebalance_experts(loads, 24, 1, 1, 8, policy="recourse")[0].tobytes())
    return seen.hexdigest()


def report(ring, queue):
    queue.put(digest(ring, 5))


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_eight_processes_agree(ring, method):
    here = digest(ring, 5)  # with "fork", children inherit a used library with its planning threads
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    ranks = [context.Process(target=report, args=(ring, queue)) for _ in range(8)]
    for rank in ranks:
        rank.start()
    assert {queue.get(timeout=120) for _ in ranks} == {here}
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_planner_goes_on_after_a_fork(ring):
    planner = evenkeel.Planner(ring, 8)
    counts = np.arange(128).reshape(8, 16)
    before = planner.split(counts).quotas
    child = os.fork()
    if child == 0:
        os._exit(0 if (planner.split(counts).quotas == before).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (planner.split(counts).quotas == before).all()


def test_threads_share_a_planner(ring):
    planner = evenkeel.Planner(ring, 8)
    batches = [np.random.default_rng(seed).integers(0, 99, (8, 16)) for seed in range(4)]
    expected = [planner.split(batch).quotas for batch in batches]
    wrong = []

    def work(which):
        for _ in range(200):
            if (planner.split(batches[which]).quotas != expected[which]).any():
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

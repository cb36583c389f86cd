"""What several tests need."""

import multiprocessing
import queue
import sys
import time

import numpy as np
import pytest
import stacks


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """Plug-ins are off unless a test turns them on."""
    for name in ("EVENKEEL_POLICY", "EVENKEEL_MAX_MOVES", "EVENKEEL_SPLIT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ring():
    """Sixteen experts on eight ranks; each rank copies the first expert of the next: [slots]."""
    homes = np.arange(16).reshape(8, 2)
    copies = np.roll(homes[:, 0], -1)
    return np.concatenate([homes, copies[:, None]], axis=1).reshape(-1).astype(np.int64)


def pytest_terminal_summary(terminalreporter):
    """What tests have measured is told, not judged."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.location[2]}: {name}: {value}")


def counts_of(ids, experts):
    """Tokens per expert of one source's ids."""
    ids = np.asarray(ids).reshape(-1)
    return np.bincount(ids[ids >= 0], minlength=experts).astype(np.uint64)


def run_ranks(ranks, target, *args):
    """What `target(rank, .., answers)` puts into `answers`, by rank; each in a fresh process."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    started = [context.Process(target=target, args=(rank, *args, answers)) for rank in range(ranks)]
    for process in started:
        process.start()
    got, until = {}, time.monotonic() + 120
    while len(got) < ranks:
        try:
            rank, answer = answers.get(timeout=1)
            got[rank] = answer
        except queue.Empty:
            failed = [process for process in started if process.exitcode not in (None, 0)]
            if failed or time.monotonic() > until:
                for process in started:
                    process.terminate()
                pytest.fail(f"{len(failed)} of {ranks} ranks failed, {len(got)} answered")
    for process in started:
        process.join(60)
        assert process.exitcode == 0
    return got


@pytest.fixture
def clean():
    """A process without the stacks' modules, before and after; skips where the stacks or torch are missing."""
    torch = stacks.torch()
    before = set(sys.modules)
    yield torch
    stacks.forget(before)


@pytest.fixture
def exact(clean, monkeypatch):
    """As ``clean``, with the split of every batch turned on."""
    monkeypatch.setenv("EVENKEEL_SPLIT", "exact")
    return clean

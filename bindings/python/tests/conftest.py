"""Shared fixtures and helpers of the tests."""

import multiprocessing
import pathlib
import queue
import subprocess
import sys
import time

import numpy as np
import pytest
import stacks

SKIPPED = pathlib.Path(__file__).resolve().parents[3] / ".ci/skipped"


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """Turns plug-ins off unless a test turns them on."""
    for name in ("EVENKEEL_POLICY", "EVENKEEL_MAX_MOVES", "EVENKEEL_SPLIT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ring():
    """Returns sixteen experts on eight ranks, [slots]: each rank also holds a replica of the first expert of
    the next rank.
    """
    homes = np.arange(16).reshape(8, 2)
    copies = np.roll(homes[:, 0], -1)
    return np.concatenate([homes, copies[:, None]], axis=1).reshape(-1).astype(np.int64)


def pytest_terminal_summary(terminalreporter):
    """Prints the measurements of tests. They are reported, not judged."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.location[2]}: {name}: {value}")


def pytest_sessionfinish(session):
    """Reports every skip through `.ci/skipped`. In CI a skip that is not allowed fails the session."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    for report in reporter.stats.get("skipped", []) if SKIPPED.is_file() else []:
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if subprocess.run([SKIPPED, reason, report.nodeid]).returncode:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def counts_of(ids, experts):
    """Returns the tokens per expert of one source's ids."""
    ids = np.asarray(ids).reshape(-1)
    return np.bincount(ids[ids >= 0], minlength=experts).astype(np.uint64)


def run_ranks(ranks, target, *args):
    """Returns the values that `target(rank, .., answers)` puts into `answers`, by rank. Each rank runs in a
    fresh process.
    """
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
    """Provides a process without the stacks' modules, before and after. Skips if the stacks or torch are
    missing.
    """
    torch = stacks.torch()
    before = set(sys.modules)
    yield torch
    stacks.forget(before)


@pytest.fixture
def exact(clean, monkeypatch):
    """Provides ``clean`` with the exact split of every batch turned on."""
    monkeypatch.setenv("EVENKEEL_SPLIT", "exact")
    return clean

"""What the plug-ins share: settings from the environment, and one way to plan again."""

from __future__ import annotations

import functools
import logging
import os
from typing import Any, NamedTuple, Optional

import numpy as np

from . import _native
from ._arrays import whole

logger = logging.getLogger("evenkeel")


@functools.lru_cache(maxsize=None)
def warn_once(message: str) -> None:
    """For what every batch would say again."""
    logger.warning(message)


class Settings(NamedTuple):
    """How a plug-in plans."""

    policy: str
    max_moves: Optional[int]


def settings() -> Optional[Settings]:
    """``EVENKEEL_POLICY`` turns plug-ins on and names their policy (recourse, eplb, ..); ``EVENKEEL_MAX_MOVES`` limits the
    experts that ranks newly receive, per layer and re-planning. ``None`` where plug-ins are off."""
    policy = os.environ.get("EVENKEEL_POLICY", "")
    if policy in ("", "off"):
        return None
    moves = os.environ.get("EVENKEEL_MAX_MOVES")
    if moves is not None and not moves.isdigit():
        raise _native.Error(f"EVENKEEL_MAX_MOVES {moves!r}: expected a number of experts")
    return Settings(policy, None if moves is None else int(moves))


def replan(
    how: Settings,
    batches: Any,
    slots: int,
    ranks: int,
    nodes: int,
    groups: Optional[int],
    running: Optional[np.ndarray],
) -> np.ndarray:
    """Physical-to-logical maps [layers, slots] for batches [batches, layers, experts].

    Layers without load keep what is running. A running placement of another shape (ranks came or went) is let be, and so are
    nodes that ranks do not divide over.
    """
    loads = whole(batches, "loads")
    layers, experts = loads.shape[1:]
    usable = (
        running is not None
        and running.shape == (layers, slots)
        and running.min(initial=0) >= 0
        and running.max(initial=0) < experts
        and all(len(np.unique(row)) == experts for row in running)
    )
    if running is not None and not usable:
        logger.info("evenkeel: the running placement has another shape: planned from scratch")
    running = np.ascontiguousarray(running, dtype=np.int64) if usable else None
    busy = loads.any(axis=(0, 2))
    if not busy.any() and running is not None:
        return running.copy()
    maps = _native.replan(
        loads,
        slots,
        ranks,
        policy=how.policy,
        groups=groups or 1,
        nodes=nodes if nodes and ranks % nodes == 0 else 1,
        previous=running,
        max_moves=how.max_moves if usable else None,
    )
    if running is not None:
        maps[~busy] = running[~busy]
    return maps

"""Re-planning inside a stack, and its line in the log."""

from __future__ import annotations

import logging
from typing import Any, Callable, Optional, Tuple

import numpy as np

from . import _native
from ._active_split import ActiveSplit, resolved
from ._arrays import whole
from ._plugin import Settings, logger

#: Largest number of batches, at equal distances, on which the log's figures are computed. It bounds their
#: cost.
BATCHES = 16


def replan(
    how: Settings,
    batches: Any,
    slots: int,
    ranks: int,
    nodes: int,
    groups: Optional[int],
    running: Optional[np.ndarray],
    active: Callable[[], ActiveSplit],
) -> np.ndarray:
    """Returns physical-to-logical maps [layers, slots] for batches [batches, layers, experts].

    ``active`` returns the split of the batches. It is called only if there is a load to plan for. Layers
    without load keep their running placement. A running placement of another shape (the number of ranks has
    changed) is ignored. Nodes are ignored if the ranks do not divide evenly over them.
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
    how, judged = resolved(how, active())
    groups, nodes = groups or 1, nodes if nodes and ranks % nodes == 0 else 1
    maps = _native.replan(
        loads,
        slots,
        ranks,
        policy=how.policy,
        groups=groups,
        nodes=nodes,
        previous=running,
        max_moves=how.max_moves if usable else None,
    )
    if running is not None:
        maps[~busy] = running[~busy]
    if busy.any() and logger.isEnabledFor(logging.INFO):
        log_replan(how.policy, judged, loads, maps, ranks, nodes, groups, running)
    return maps


def moves(maps: np.ndarray, running: np.ndarray, ranks: int, experts: int) -> int:
    """Returns the number of experts that ranks newly receive, over all layers."""
    held = []
    for placement in (maps, running):
        layers, slots = placement.shape
        rank = np.broadcast_to(np.arange(slots) * ranks // slots, placement.shape)
        holds = np.zeros((layers, ranks, experts), dtype=bool)
        holds[np.arange(layers)[:, None], rank, placement] = True
        held.append(holds)
    return int((held[0] & ~held[1]).sum())


def log_replan(
    policy: str,
    judged: Tuple[str, ...],
    loads: np.ndarray,
    maps: np.ndarray,
    ranks: int,
    nodes: int,
    groups: int,
    running: Optional[np.ndarray],
) -> None:
    """Logs the mean imbalance of the new placement ``maps``, of EPLB's and of the ``running`` one, and the
    moves.

    The figures refer to the loads that the placement was planned on, under each split of ``judged``.
    """
    busy_batches = np.flatnonzero(loads.any(axis=(1, 2)))
    count = len(busy_batches)
    if count > BATCHES:
        busy_batches = busy_batches[np.arange(BATCHES) * count // BATCHES]
    batches = np.ascontiguousarray(loads[busy_batches])
    placements = [("", maps), ("eplb ", _eplb(loads, maps.shape[1], ranks, nodes, groups)), ("running ", running)]
    figures = []
    for split in judged:
        known = [
            f"{name}{_native.imbalance(batches, placement, ranks, split=split, nodes=nodes):.3f}"
            for name, placement in placements
            if placement is not None
        ]
        compared = f" ({', '.join(known[1:])})" if known[1:] else ""
        figures.append(f"{known[0]}{compared} under {split}")
    if len(loads) == 1:
        on = "totals, not single batches"
    else:
        on = f"{len(batches)} of {count} batches" if count > len(batches) else f"{count} batches"
    moved = "" if running is None else f"; {moves(maps, running, ranks, loads.shape[2])} moves"
    layers = int(loads.any(axis=(0, 2)).sum())
    logger.info("evenkeel: %s: mean imbalance of %d layers on %s %s%s", policy, layers, on, "; ".join(figures), moved)


def _eplb(loads: np.ndarray, slots: int, ranks: int, nodes: int, groups: int) -> Optional[np.ndarray]:
    """Returns EPLB's placement of the same loads, planned from scratch; ``None`` if EPLB has none."""
    weights = loads.sum(axis=0, dtype=np.float32)
    try:
        return _native.rebalance(weights, slots, groups, nodes, ranks)
    except _native.Error:
        return None

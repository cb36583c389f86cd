"""DeepSeek's EPLB call, with any policy."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import numpy as np

from . import _native
from ._arrays import like, to_numpy, whole


def rebalance_experts(
    weight: Any,
    num_replicas: int,
    num_groups: int,
    num_nodes: int,
    num_gpus: int,
    *,
    policy: str = "eplb",
    previous: Optional[Any] = None,
    max_moves: Optional[int] = None,
) -> Tuple[Any, Any, Any]:
    """Places experts, with the signature and the outputs of DeepSeek's ``rebalance_experts``.

    ``weight`` is [layers, experts]: load statistics of all logical experts. It is a NumPy array, a torch
    tensor or any object with DLPack or the array protocol. ``num_replicas`` counts physical experts,
    ``num_groups`` expert groups.

    ``policy="eplb"`` returns EPLB's own result, bit for bit. Its sorts are stable: among equal weights the
    lower index comes first, as in the stable sorts of NumPy and torch.

    Any other policy also accepts ``weight`` as [batches, layers, experts], and uses each batch separately.
    ``recourse`` plans for the split in its name: ``recourse:even`` for replicas that share evenly, as EPLB's
    do, ``recourse:exact``, ``recourse:vllm``, .. . Without a split in its name it plans for any split.
    ``previous``, a physical-to-logical map, keeps experts in place where possible. ``max_moves`` limits the
    experts that ranks newly receive, per layer.

    Returns ``physical_to_logical_map`` [layers, num_replicas], ``logical_to_physical_map`` [layers, experts,
    X] padded with -1, and ``expert_count`` [layers, experts]. All are int64, on the CPU, in the library of
    ``weight``. Raises ``evenkeel.Error`` for a shape that cannot be placed.
    """
    loads = to_numpy(weight)
    if loads.ndim not in (2, 3):
        raise _native.Error(f"weight: shape {loads.shape}: expected [layers, experts] or [batches, layers, experts]")
    experts = loads.shape[-1]
    if policy == "eplb" and previous is None:
        if loads.ndim == 3:
            loads = loads.sum(axis=0)
        weights = np.ascontiguousarray(loads, dtype=np.float32)
        maps = _native.rebalance(weights, num_replicas, num_groups, num_nodes, num_gpus)
    else:
        batches = whole(loads if loads.ndim == 3 else loads[None])
        running = None if previous is None else np.ascontiguousarray(to_numpy(previous), dtype=np.int64)
        maps = _native.replan(
            batches,
            num_replicas,
            num_gpus,
            policy=policy,
            groups=num_groups,
            nodes=num_nodes,
            previous=running,
            max_moves=max_moves,
        )
    copies, counts = _native.inverse(maps, experts)
    return like(weight, maps), like(weight, copies), like(weight, counts)


__all__ = ["rebalance_experts"]

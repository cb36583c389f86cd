"""SGLang's plug-in for the placement and for the split of its batches, through the entry point
`sglang.srt.plugins`.

Two variables of the environment turn the two parts on independently::

    EVENKEEL_POLICY=recourse python -m sglang.launch_server --enable-eplb ...
    EVENKEEL_SPLIT=exact python -m sglang.launch_server --moe-a2a-backend deepep \\
        --ep-dispatch-algorithm lp ...
"""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

import numpy as np

from . import _native, _split_hook
from ._active_split import ActiveSplit, always, exactly, unknown
from ._arrays import like, to_numpy
from ._plugin import Settings, logger, settings
from ._replan import replan

TARGET = "sglang.srt.eplb.eplb_algorithms.rebalance_experts"


def running_placement() -> Optional[np.ndarray]:
    """Returns the logical expert of each physical one, [layers, physical]; ``None`` if no server runs in this
    process.
    """
    from sglang.srt.eplb.expert_location import get_global_expert_location_metadata

    metadata = get_global_expert_location_metadata()
    return None if metadata is None else to_numpy(metadata.physical_to_logical_map_cpu)


def active_split() -> ActiveSplit:
    """Returns the split of SGLang's batches, according to the configuration of the server in this process."""
    try:
        from sglang.srt.runtime_context import get_exec

        options = get_exec().moe
        algorithm, backend = options.ep_dispatch_algorithm, options.moe_a2a_backend
    except (ImportError, AttributeError, ValueError) as why:
        return unknown("SGLang", why)
    if algorithm not in ("static", "dynamic", "fake", "lp"):
        return unknown("SGLang", f"--ep-dispatch-algorithm {algorithm}")
    same_tokens = backend == "none"
    if _split_hook.wanted() and (algorithm in ("static", "dynamic") if same_tokens else algorithm == "lp"):
        # In a graph our hook leaves the choice to SGLang's `dynamic`, also with `lp`.
        return exactly("sglang-dynamic" if same_tokens else "sglang-random", has_graphs())
    if algorithm == "lp":
        return always("exact")
    if same_tokens:
        return always("sglang-dynamic")
    return always("sglang-static" if algorithm == "static" else "sglang-random")


def has_graphs() -> bool:
    """Returns whether SGLang may run batches in CUDA graphs. An unreadable configuration counts as yes."""
    try:
        from sglang.srt.model_executor.cuda_graph_config import cuda_graph_fully_disabled

        return not cuda_graph_fully_disabled()
    except (ImportError, AttributeError, ValueError):
        return True


def rebalance_function(
    how: Settings, running: Optional[Callable[[], Optional[np.ndarray]]] = None
) -> Callable[..., Tuple[Any, Any, Any]]:
    """Returns the replacement of SGLang's ``rebalance_experts``.

    ``running`` returns the current placement. The default is ``running_placement``.
    """

    def rebalance_experts(
        tokens_per_expert: Any,
        num_physical_experts: int,
        num_local_physical_experts: int,
        num_groups: Optional[int],
        num_nodes: int,
        algorithm: Any = None,
    ) -> Tuple[Any, Any, Any]:
        """Returns maps for batches [batches, layers, experts].

        The maps are physical-to-logical [layers, physical], its inverse [layers, experts, X] padded with -1,
        and the number of replicas [layers, experts].
        """
        loads = to_numpy(tokens_per_expert)
        ranks = num_physical_experts // num_local_physical_experts
        now = (running or running_placement)()
        maps = replan(how, loads, num_physical_experts, ranks, num_nodes, num_groups, now, active_split)
        copies, counts = _native.inverse(maps, loads.shape[-1])
        return tuple(like(tokens_per_expert, part) for part in (maps, copies, counts))

    return rebalance_experts


def register() -> None:
    """Installs the hooks that ``EVENKEEL_POLICY`` (placement) and ``EVENKEEL_SPLIT`` (every batch) request.
    """
    how, exact = settings(), _split_hook.wanted()
    if how is None and not exact:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    if how is not None:
        HookRegistry.register(TARGET, rebalance_function(how), HookType.REPLACE)
        logger.info("evenkeel: SGLang's expert placement is by %s", how.policy)
    if exact:
        from ._sglang_split import hooks

        for target, hook, kind in hooks():
            HookRegistry.register(target, hook, HookType(kind))
        logger.info("evenkeel: SGLang's batches are split exactly")

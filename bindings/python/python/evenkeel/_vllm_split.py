"""Exact split of every batch inside vLLM, instead of ``eplb_map_to_physical_and_record`` of its fused-MoE
routers.

That function receives neither the owner of its tokens nor the number of ranks. A wrapper of
``MoERunner._apply_quant_method`` notes the owner. Two cases exist:

- All ranks have the same tokens: without all-to-all kernels, or with routing after a plain dispatch. Each
  rank splits alone.
- Each rank has its own tokens: with kernels that dispatch by themselves. The counts are gathered over the EP
  group. vLLM brings every rank to every layer, with dummy batches if a rank has no request.

In any other case vLLM's own mapping stays. Loads are recorded as vLLM records them.
"""

from __future__ import annotations

import functools
import sys
import threading
from typing import Any, Callable, Dict, Optional, Tuple

import numpy as np

from ._native import Error
from ._plugin import logger, warn_once
from ._split_hook import ExactSplit, Group, gather_by, opaque

_here = threading.local()

#: Configuration under which the last ``MoERunner`` was made. It is the server's object, so later changes are
#: visible.
_config: Any = None


def server_config() -> Any:
    """Returns the ``VllmConfig`` of the server in this process; ``None`` before a model exists."""
    return _config


def noting_config(made: Callable[..., None]) -> Callable[..., None]:
    """Returns ``MoERunner.__init__`` with a note of the configuration.

    vLLM sets the configuration while it makes a model, on every rank, but not while it plans.
    """

    @functools.wraps(made)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        global _config
        current = getattr(sys.modules.get("vllm.config"), "get_current_vllm_config_or_none", lambda: None)()
        _config = _config if current is None else current
        made(self, *args, **kwargs)

    return init


def own_tokens(runner: Any) -> Optional[bool]:
    """Returns whether the tokens of a ``MoERunner`` belong to its rank alone (True) or are the same on all
    ranks (False).

    ``None`` means that neither is certain.
    """
    if not runner.moe_config.moe_parallel_config.use_all2all_kernels or runner.do_naive_dispatch_combine:
        return False
    return True if runner._quant_method.supports_internal_mk else None


def noting_tokens(method: Callable[..., Any]) -> Callable[..., Any]:
    """Returns ``MoERunner._apply_quant_method`` with a note of the owner of its batch's tokens."""

    @functools.wraps(method)
    def apply(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = getattr(_here, "own", None)
        _here.own = own_tokens(self)
        try:
            return method(self, *args, **kwargs)
        finally:
            _here.own = before

    return apply


def ep_group(own: bool) -> Group:
    """Returns the current expert-parallel ranks, with gathering if each rank has its own tokens."""
    from vllm.distributed import parallel_state

    group = parallel_state.get_ep_group()
    gather = gather_by(group) if own and group.world_size > 1 else None
    return Group(group.world_size, group.rank_in_group, parallel_state.get_node_count(), gather)


class Placements:
    """Placements of a model's layers, read from the device only after vLLM has written its maps."""

    def __init__(self) -> None:
        # The tensors stay referenced, so that no other tensor can reuse their addresses.
        self._read: Dict[int, Tuple[int, np.ndarray, Any]] = {}
        self._made: Dict[Any, Tuple[int, np.ndarray]] = {}

    def of(self, logical_to_physical: Any, physical: int) -> Optional[np.ndarray]:
        """Returns the placement from one layer's map [experts, X], padded with -1; ``None`` if later changes
        would be invisible.
        """
        if logical_to_physical.is_inference():
            if logical_to_physical.is_cuda:
                warn_once("evenkeel: vLLM's maps do not say when they are written: vLLM's own mapping stays")
                return None
            return self._inverse(logical_to_physical.numpy(), physical)
        # The maps of all layers are views of one tensor with one write counter. One read serves all layers.
        version = logical_to_physical._version
        key = (logical_to_physical.data_ptr(), tuple(logical_to_physical.shape), physical)
        known = self._made.get(key)
        if known is not None and known[0] == version:
            return known[1]
        base = logical_to_physical._base
        if base is None or base.dim() != 3 or not base.is_contiguous():
            base = logical_to_physical
        whole = self._read.get(base.data_ptr())
        if whole is None or whole[0] != version or whole[1].shape != tuple(base.shape):
            from vllm.utils.gpu_sync_debug import gpu_sync_allowed

            with gpu_sync_allowed():
                whole = (version, base.detach().cpu().numpy().copy(), base)
            self._read[base.data_ptr()] = whole
        copies = whole[1]
        if copies.ndim == 3:
            behind = logical_to_physical.data_ptr() - base.data_ptr()
            copies = copies[behind // (base.stride(0) * base.element_size())]
        placement = self._inverse(copies, physical)
        self._made[key] = (version, placement)
        return placement

    @staticmethod
    def _inverse(copies: np.ndarray, physical: int) -> np.ndarray:
        placement = np.full(physical, -1, dtype=np.int64)
        experts, at = np.nonzero(copies >= 0)
        placement[copies[experts, at]] = experts
        return placement


def record(slots: Any, expert_load_view: Any, record_enabled: Any, num_unpadded_tokens: Any) -> None:
    """Adds the load of each physical expert to ``expert_load_view``, without padding rows, if
    ``record_enabled``.
    """
    import torch

    counted = (slots >= 0) & record_enabled
    if num_unpadded_tokens is not None:
        rows = torch.arange(slots.shape[0], device=slots.device).view(-1, *[1] * (slots.dim() - 1))
        counted = counted & (rows < num_unpadded_tokens)
    served = slots.clamp(min=0).reshape(-1).to(torch.int64)
    expert_load_view.scatter_add_(0, served, counted.reshape(-1).to(expert_load_view.dtype))


def mapping(original: Callable[..., Any], group: Callable[[bool], Group] = ep_group) -> Callable[..., Any]:
    """Returns the replacement of vLLM's ``eplb_map_to_physical_and_record``."""
    split, placements = ExactSplit(), Placements()

    @opaque
    @functools.wraps(original)
    def eplb_map_to_physical_and_record(
        topk_ids: Any,
        expert_load_view: Any,
        logical_to_physical_map: Any,
        logical_replica_count: Any,
        record_enabled: Any,
        num_unpadded_tokens: Any = None,
    ) -> Any:
        slots, own = None, getattr(_here, "own", None)
        capturing = topk_ids.is_cuda and sys.modules["torch"].cuda.is_current_stream_capturing()
        if own is not None and not capturing:
            placement = placements.of(logical_to_physical_map, expert_load_view.shape[0])
            if placement is not None:
                layer = logical_to_physical_map.data_ptr()
                slots = split.redirect(layer, placement, logical_replica_count.shape[0], group(own), topk_ids)
        if slots is None:
            return original(
                topk_ids=topk_ids,
                expert_load_view=expert_load_view,
                logical_to_physical_map=logical_to_physical_map,
                logical_replica_count=logical_replica_count,
                record_enabled=record_enabled,
                num_unpadded_tokens=num_unpadded_tokens,
            )
        record(slots, expert_load_view, record_enabled, num_unpadded_tokens)
        return slots

    return eplb_map_to_physical_and_record


def replace(module: Any, name: str, new: Any) -> None:
    """Replaces a module's function by ``new``, in the module and in all modules that have imported it."""
    old = getattr(module, name)
    for other in list(sys.modules.values()):
        if getattr(other, "__dict__", {}).get(name) is old:
            setattr(other, name, new)
    setattr(module, name, new)


def install() -> None:
    """Hooks into vLLM's routers, once per process. Raises ``Error`` for a vLLM version without the expected
    functions.
    """
    name = "eplb_map_to_physical_and_record"
    try:
        from vllm.model_executor.layers.fused_moe.router import base_router
        from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

        original, method = getattr(base_router, name), MoERunner._apply_quant_method
    except (ImportError, AttributeError) as why:
        raise Error(f"EVENKEEL_SPLIT=exact: {why}: expected vLLM's routers as in 0.33") from why
    if hasattr(original, "__wrapped__"):
        return
    replace(base_router, name, mapping(original))
    MoERunner._apply_quant_method = noting_tokens(method)
    MoERunner.__init__ = noting_config(MoERunner.__init__)
    logger.info("evenkeel: vLLM's batches are split exactly")

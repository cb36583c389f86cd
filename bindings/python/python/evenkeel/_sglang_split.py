"""Exact split of every batch inside SGLang, hooked into one function.

The function is ``srt.eplb.expert_location_dispatch.topk_ids_logical_to_physical``. ``--moe-a2a-backend``
distinguishes two cases:

- ``none``: all ranks run the same tokens. Each rank splits them alone, and all obtain the same result.
  Nothing is gathered.
- any other backend with ``--ep-dispatch-algorithm lp``: each rank has its own tokens, and their counts are
  gathered. Only under this algorithm does SGLang bring every rank to every layer, also ranks without tokens.
  It does so through its ``LPLBSolver``, which ``ExactSolver`` replaces. Under another algorithm SGLang's own
  mapping stays.

SGLang records the slots that this module returns.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Tuple

import numpy as np

from ._arrays import to_numpy
from ._plugin import warn_once
from ._split_hook import ExactSplit, Group, gather_by, opaque

DISPATCH = "sglang.srt.eplb.expert_location_dispatch.topk_ids_logical_to_physical"
INPUTS = "sglang.srt.layers.moe.topk.resolve_routing_inputs"
SOLVER = "sglang.srt.eplb.lplb_solver.LPLBSolver"

#: Attribute of an ``ExpertLocationDispatchInfo``: the number of token rows of its batch. All further rows are
#: padding.
ROWS = "evenkeel_rows"


class ExactSolver:
    """Replacement of SGLang's ``LPLBSolver``. SGLang makes one per layer after each move of experts."""

    def __init__(
        self,
        phy2log: Any,
        log2phy: Any,
        num_gpus: int,
        ep_group: Any = None,
        logical_to_all_physical_map_num_valid: Any = None,
    ) -> None:
        from sglang.srt.runtime_context import get_parallel

        self._placement = to_numpy(phy2log).astype(np.int64)
        self._experts = int(log2phy.shape[0])
        alone = ep_group is None or num_gpus == 1
        self._group = Group(
            num_gpus,
            0 if alone else ep_group.rank_in_group,
            get_parallel().nnodes,
            None if alone else gather_by(ep_group),
        )
        self._split = ExactSplit()

    def solve(self, topk_ids: Any) -> "ExactSolver":
        """Returns the solution that SGLang requests before it maps. A rank without tokens has nothing to map,
        so it joins the others' exchange of counts here.
        """
        if topk_ids.numel() == 0:
            self.redirect(topk_ids)
        return self

    def redirect(self, topk_ids: Any) -> Optional[Any]:
        """Returns the physical expert of every id; ``None`` if SGLang's own choice stays."""
        return self._split.redirect(0, self._placement, self._experts, self._group, topk_ids)


class SameTokens:
    """The split of ranks that all have the same tokens, on the current placement."""

    def __init__(self) -> None:
        self._split = ExactSplit()

    def redirect(self, topk_ids: Any, info: Any) -> Optional[Any]:
        """Redirects as ``ExactSolver.redirect``, in the layer of ``info``."""
        from sglang.srt.eplb.expert_location import get_global_expert_location_metadata

        metadata = get_global_expert_location_metadata()
        if metadata is None:
            return None
        rows = metadata.logical_to_all_physical_map_num_valid
        row = info.partial_logical_to_all_physical_map_num_valid
        layer, rest = divmod(row.data_ptr() - rows.data_ptr(), rows.stride(0) * rows.element_size())
        if rest or not 0 <= layer < rows.shape[0]:
            return None
        placement = metadata.physical_to_logical_map_cpu[layer].numpy()
        return self._split.redirect(layer, placement, rows.shape[1], Group(metadata.ep_size), topk_ids)


def tokens_only(topk_ids: Any, rows: Any) -> Any:
    """Returns the ids with those of padding rows, from ``rows`` on, as -1."""
    import torch

    if rows is None:
        return topk_ids
    at = torch.arange(topk_ids.shape[0], device=topk_ids.device).unsqueeze(1)
    return torch.where(at < rows, topk_ids, torch.full_like(topk_ids, -1))


def hooks() -> List[Tuple[str, Callable[..., Any], str]]:
    """Returns the hooks for SGLang's registry: (target, hook, type of hook)."""
    same = SameTokens()

    @opaque
    def redirect(original: Callable[..., Any], topk_ids: Any, info: Any, log2phy_prob: Any = None) -> Any:
        """Wraps SGLang's function: logical ids [tokens, k] in, physical ids out, -1 for no expert and for
        padding.
        """
        if isinstance(log2phy_prob, ExactSolver):
            # Without tokens, ``solve`` has already taken part in the exchange of counts.
            slots = log2phy_prob.redirect(tokens_only(topk_ids, getattr(info, ROWS, None))) if len(topk_ids) else topk_ids
            if slots is not None:
                return slots
            from sglang.srt.eplb import expert_location_dispatch

            return expert_location_dispatch._topk_ids_logical_to_physical_dynamic(topk_ids, info)
        if info is not None and info.ep_dispatch_algorithm in ("static", "dynamic"):
            if getattr(info, "rank_invariant", False):
                slots = same.redirect(tokens_only(topk_ids, getattr(info, ROWS, None)), info)
                if slots is not None:
                    return slots
            else:
                warn_once(
                    f"evenkeel: EVENKEEL_SPLIT=exact with --ep-dispatch-algorithm {info.ep_dispatch_algorithm}: SGLang's own "
                    "mapping stays; with lp all ranks' counts can be gathered"
                )
        return original(topk_ids, info, log2phy_prob)

    def note_rows(result: Any, *_args: Any, **_kwargs: Any) -> None:
        """Stores the number of token rows in a batch's dispatch info, after SGLang has made it."""
        rows, info = result
        if info is not None:
            setattr(info, ROWS, rows)

    return [(DISPATCH, redirect, "around"), (INPUTS, note_rows, "after"), (SOLVER, ExactSolver, "replace")]

"""Every batch split exactly inside SGLang: hooks on ``srt.eplb.expert_location_dispatch.topk_ids_logical_to_physical``.

Two cases, told apart by ``--moe-a2a-backend``:

- none: all ranks run the same tokens. Each splits them for itself, and all come to the same answer; nothing is gathered.
- any other, with ``--ep-dispatch-algorithm lp``: each rank has tokens of its own. Their counts are gathered. This is the
  algorithm in which SGLang brings every rank to every layer, those without tokens too, by its ``LPLBSolver``; ours takes
  that class's place. With another algorithm SGLang's own mapping stays.

What SGLang records is what comes out here.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Tuple

import numpy as np

from ._arrays import to_numpy
from ._split import ExactSplit, Group, gather_by, opaque
from ._stack import warn_once

DISPATCH = "sglang.srt.eplb.expert_location_dispatch.topk_ids_logical_to_physical"
INPUTS = "sglang.srt.layers.moe.topk.resolve_routing_inputs"
SOLVER = "sglang.srt.eplb.lplb_solver.LPLBSolver"

#: Where an ``ExpertLocationDispatchInfo`` keeps how many of its batch's rows are tokens; the rest is padding.
ROWS = "evenkeel_rows"


class ExactSolver:
    """Takes the place of SGLang's ``LPLBSolver``: made anew for every layer whenever experts have been moved."""

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
        """SGLang asks for a solution before it maps. A rank without tokens has nothing to map, so it meets the others here."""
        if topk_ids.numel() == 0:
            self.redirect(topk_ids)
        return self

    def redirect(self, topk_ids: Any) -> Optional[Any]:
        """The physical expert of every id; None where SGLang's own choice is to stand."""
        return self._split.redirect(0, self._placement, self._experts, self._group, topk_ids)


class SameTokens:
    """The split of ranks that all have the same tokens, by the placement in force."""

    def __init__(self) -> None:
        self._split = ExactSplit()

    def redirect(self, topk_ids: Any, info: Any) -> Optional[Any]:
        """As ``ExactSolver.redirect``, for the layer that ``info`` is of."""
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
    """The ids with those of padding rows, from ``rows`` on, as -1."""
    import torch

    if rows is None:
        return topk_ids
    at = torch.arange(topk_ids.shape[0], device=topk_ids.device).unsqueeze(1)
    return torch.where(at < rows, topk_ids, torch.full_like(topk_ids, -1))


def hooks() -> List[Tuple[str, Callable[..., Any], str]]:
    """What is to be hooked in where, and how: (target, hook, type of hook)."""
    same = SameTokens()

    @opaque
    def redirect(original: Callable[..., Any], topk_ids: Any, info: Any, log2phy_prob: Any = None) -> Any:
        """Around SGLang's function: logical ids [tokens, k] in, physical ids out, -1 for none and for padding."""
        if isinstance(log2phy_prob, ExactSolver):
            # The solver has been to the other ranks already where there are no tokens.
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
        """After SGLang has found a batch's dispatch info: how many of the rows are tokens goes with it."""
        rows, info = result
        if info is not None:
            setattr(info, ROWS, rows)

    return [(DISPATCH, redirect, "around"), (INPUTS, note_rows, "after"), (SOLVER, ExactSolver, "replace")]

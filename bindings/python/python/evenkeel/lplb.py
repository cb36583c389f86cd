"""LPLB's planner with exact splits."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import numpy as np

from . import _native
from ._arrays import like, of_torch, to_numpy


class Planner:
    """Planner that splits each batch over the replicas of a replica graph, with the signature of LPLB's
    ``Planner``.

    ``redundant_to_original`` is [group, D]. Rank ``i`` of a group holds a replica of the ``d``-th heaviest
    expert of rank ``redundant_to_original[i, d]``. ``n_routed_experts`` counts physical experts,
    ``n_logical_routed_experts`` logical ones. ``group`` is a ``torch.distributed`` process group over which
    counts are gathered. Without it, the ids that a planner receives are those of all ranks.

    Three properties differ from LPLB. Every split is optimal. Whole tokens meet the quotas exactly. Load
    flows through the whole group of ranks. ``physical_to_logical`` may be set to any placement, with any
    number of replicas.
    """

    def __init__(
        self,
        redundant_to_original: Any,
        n_routed_experts: int,
        n_logical_routed_experts: int,
        ep_size: Optional[int] = None,
        group: Any = None,
    ) -> None:
        self.group = group
        self._rank = 0
        if group is not None:
            import torch.distributed as dist

            size = dist.get_world_size(group)
            if ep_size not in (None, size):
                raise _native.Error(f"ep_size {ep_size}: the group has {size} ranks")
            ep_size, self._rank = size, dist.get_rank(group)
        if ep_size is None:
            raise _native.Error("ep_size: expected a number of ranks, or a group")
        self.r2o = np.ascontiguousarray(to_numpy(redundant_to_original), dtype=np.int64)
        self.n_routed_experts = n_routed_experts
        self.n_logical_routed_experts = n_logical_routed_experts
        self.ep_size = ep_size
        self.n_group = ep_size // max(len(self.r2o), 1)
        self.update_redundancy_mapping()

    def update_redundancy_mapping(self, workload: Optional[Any] = None) -> Tuple[Any, Any, Any]:
        """Places experts for a past workload [experts] (``None``: in the order of their numbers).

        Returns ``phy2log`` [physical], ``log2phy`` [experts, X] padded with -1 and ``logcnt`` [experts],
        int64.
        """
        loads = None if workload is None else np.ascontiguousarray(to_numpy(workload))
        phy2log = _native.replicate(
            self.r2o, self.n_routed_experts, self.n_logical_routed_experts, self.ep_size, loads
        )
        self._place(phy2log)
        return tuple(like(workload, part) for part in (self.phy2log, self.log2phy, self.logcnt))

    @property
    def physical_to_logical(self) -> np.ndarray:
        """Logical expert of each physical one: [physical], int64."""
        return self.phy2log

    @physical_to_logical.setter
    def physical_to_logical(self, phy2log: Any) -> None:
        self._place(np.ascontiguousarray(to_numpy(phy2log), dtype=np.int64))

    def _place(self, phy2log: np.ndarray) -> None:
        experts = self.n_logical_routed_experts
        self._planner = _native.Planner(phy2log, self.ep_size, experts=experts)
        copies, counts = _native.inverse(phy2log[None], experts)
        self.phy2log, self.log2phy, self.logcnt = phy2log, copies[0], counts[0]

    def run(self, indices: Any, avail_counter: Any = None, n_sms: Optional[int] = None) -> Any:
        """Returns the physical expert of every logical id in ``indices`` (int32 or int64, any shape; -1 stays
        -1).

        Every rank of the group has to call it. ``avail_counter``, if given, grows by the number of groups, as
        LPLB's does for every accepted solution. Here all solutions are accepted. ``n_sms`` is accepted and
        ignored. ``evenkeel.cuda`` handles ids in device memory without copying them.
        """
        ids = np.ascontiguousarray(to_numpy(indices))
        own = self._planner.count(ids)
        self._planner.split(self._gather(own))
        slots = self._planner.redirect(ids, self._rank)
        if avail_counter is not None:
            avail_counter += self.n_group
        answer = like(indices, slots)
        return answer.to(indices.device) if of_torch(indices) else answer

    def split(self, workload: Any) -> _native.Split:
        """Returns the quotas for the workload [experts] of all ranks together."""
        counts = np.zeros((self.ep_size, self.n_logical_routed_experts), dtype=np.uint64)
        counts[0] = to_numpy(workload)
        return self._planner.split(counts)

    def _gather(self, own: np.ndarray) -> np.ndarray:
        counts = np.zeros((self.ep_size, self.n_logical_routed_experts), dtype=np.uint64)
        if self.group is None:
            counts[self._rank] = own
            return counts
        import torch
        import torch.distributed as dist

        mine = torch.from_numpy(own.astype(np.int64))
        if dist.get_backend(self.group) == "nccl":
            mine = mine.cuda()
        parts = [torch.empty_like(mine) for _ in range(self.ep_size)]
        dist.all_gather(parts, mine, group=self.group)
        return torch.stack(parts).cpu().numpy()


__all__ = ["Planner"]

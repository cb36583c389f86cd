"""Exact split of every batch inside a serving stack: logical ids in, physical ids out, on the current
placement.

The hooks of SGLang and vLLM share this module. A hook passes its layer, the layer's placement, and the
function that gathers the ranks' counts. The result has the shape, type and device of the ids. -1 stays -1.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Callable, Dict, Hashable, NamedTuple, Optional

import numpy as np

from . import _native
from .cuda import DevicePlanner

#: Function from this rank's counts, [experts] of int32, to those of all ranks, [ranks, experts], on the same
#: device.
Gather = Callable[[Any], Any]


def wanted() -> bool:
    """Returns whether ``EVENKEEL_SPLIT=exact`` turns on the exact split of every batch. The default is off.
    """
    value = os.environ.get("EVENKEEL_SPLIT", "")
    if value not in ("", "off", "exact"):
        raise _native.Error(f"EVENKEEL_SPLIT {value!r}: expected exact or off")
    return value == "exact"


class Group(NamedTuple):
    """The ranks that share a layer's experts, and this rank's number among them.

    ``gather`` collects the counts of all ranks. Every rank has to take part for every batch of every layer.
    Without it, the ids of this rank are those of the whole group: each rank has all tokens, or there is one
    rank. All ranks then obtain the same result independently.
    """

    ranks: int
    rank: int = 0
    nodes: int = 1
    gather: Optional[Gather] = None


def gather_by(group: Any) -> Gather:
    """Returns a function that gathers over a stack's ``GroupCoordinator`` or a ``torch.distributed`` process
    group.
    """

    def gather(own: Any) -> Any:
        import torch
        import torch.distributed as dist

        if hasattr(group, "all_gather"):
            return group.all_gather(own.unsqueeze(0), dim=0)
        ranks = dist.get_world_size(group)
        if own.is_cuda:
            everyone = torch.empty((ranks, own.shape[0]), dtype=own.dtype, device=own.device)
            dist.all_gather_into_tensor(everyone, own, group=group)
            return everyone
        parts = [torch.empty_like(own) for _ in range(ranks)]
        dist.all_gather(parts, own, group=group)
        return torch.stack(parts)

    return gather


class _Layer:
    """Placement and planners of one layer: one planner on the host and one on the GPU, both made on first
    use.
    """

    def __init__(self, placement: np.ndarray, experts: int, group: Group) -> None:
        ranks, nodes = group.ranks, group.nodes
        if len(placement) % ranks:
            raise _native.Error(f"{len(placement)} physical experts do not divide over {ranks} ranks")
        self.placement = placement
        self.experts, self.ranks = experts, ranks
        self.nodes = nodes if nodes > 0 and ranks % nodes == 0 else 1
        #: If no expert has several replicas, no choice exists.
        self.replicated = bool((np.bincount(placement[placement >= 0], minlength=experts) > 1).any())
        self._lock = threading.Lock()
        self._host: Optional[_native.Planner] = None
        self._device: Dict[Any, Any] = {}

    def on_host(self, ids: Any, source: int, gather: Optional[Gather]) -> Any:
        import torch

        with self._lock:
            if self._host is None:
                self._host = _native.Planner(self.placement, self.ranks, nodes=self.nodes, experts=self.experts)
        logical = ids.numpy()
        logical = np.where((logical >= 0) & (logical < self.experts), logical, logical.dtype.type(-1))
        own = self._host.count(logical).astype(np.int32)
        if gather is None:
            counts = np.zeros((self.ranks, self.experts), dtype=np.int32)
            counts[source] = own
        else:
            counts = gather(torch.from_numpy(own)).numpy()
        with self._lock:
            self._host.split(counts)
            return torch.from_numpy(self._host.redirect(logical, source))

    def on_device(self, ids: Any, source: int, gather: Optional[Gather]) -> Any:
        """Enqueues count, gather, split and redirect on the caller's stream. Ids that are no expert become
        -1, as on the host.
        """
        import torch

        planner, own, alone = self._planner(ids, source)
        stream = torch.cuda.current_stream(ids.device).cuda_stream
        planner.count(ids, stream)
        if gather is None:
            alone[source].copy_(own)
            counts = alone
        else:
            counts = gather(own).contiguous()
        return planner.redirect(0, counts, ids, torch.empty_like(ids), stream)

    def _planner(self, ids: Any, source: int) -> Any:
        """Returns a planner with room for these ids, its counts as a tensor, and a tensor for the counts of a
        single source.
        """
        import torch

        with self._lock:
            key = (ids.device.index, source)
            room, made = self._device.get(key, (0, None))
            if room < ids.numel():
                room = max(4096, 1 << (ids.numel() - 1).bit_length())
                planner = DevicePlanner(
                    self.placement[None], self.ranks, source, room,
                    device=ids.device.index, nodes=self.nodes, experts=self.experts,
                )  # fmt: skip
                own = torch.as_tensor(planner.own_counts, device=ids.device)
                with torch.inference_mode(False):  # the next batch may write in any inference mode
                    alone = torch.zeros((self.ranks, self.experts), dtype=torch.int32, device=ids.device)
                made = (planner, own, alone)
                self._device[key] = (room, made)
            return made


class ExactSplit:
    """Exact splits of the batches of a model's layers. Each layer keeps its planners until its placement
    changes.
    """

    def __init__(self) -> None:
        self._layers: Dict[Hashable, _Layer] = {}

    def redirect(self, layer: Hashable, placement: np.ndarray, experts: int, group: Group, ids: Any) -> Optional[Any]:
        """Returns the physical experts for a batch's logical ``ids``, a torch tensor of any shape and integer
        type.

        ``placement`` [physical] has the logical expert of each physical one, -1 for an empty slot. ``None``
        means that the stack's own mapping stays. That is so if every expert has one replica. It is also so
        while a CUDA graph is recorded, since a graph would keep the current placement forever. All ranks
        obtain the same answer.
        """
        import torch

        if ids.is_cuda and torch.cuda.is_current_stream_capturing():
            return None
        kept = self._layers.get(layer)
        if (
            kept is None
            or (kept.experts, kept.ranks) != (experts, group.ranks)
            or not np.array_equal(kept.placement, placement)
        ):
            kept = _Layer(np.array(placement, dtype=np.int64), experts, group)
            self._layers[layer] = kept
        if not kept.replicated:
            return None
        alone = group.ranks == 1 or group.gather is None
        gather = None if alone else group.gather
        if ids.numel() == 0:
            if gather is not None:  # the other ranks wait for this rank's counts
                gather(torch.zeros(experts, dtype=torch.int32, device=ids.device))
            return ids
        # Ranks with the same tokens have to choose the same slots, so all of them act as rank 0.
        source = 0 if alone else group.rank
        plain = ids.detach()
        if plain.dtype not in (torch.int32, torch.int64):
            plain = plain.to(torch.int32)
        plain = plain.contiguous()
        slots = kept.on_device(plain, source, gather) if ids.is_cuda else kept.on_host(plain, source, gather)
        return slots if slots.dtype == ids.dtype else slots.to(ids.dtype)


def opaque(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps ``torch.compile`` out of a function that gathers over ranks and calls into this library."""
    import torch

    compiler = getattr(torch, "compiler", None)
    return compiler.disable(function) if hasattr(compiler, "disable") else function

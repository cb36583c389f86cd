"""vLLM's placement policy (`EPLB_POLICIES`) and the split of its batches, by the entry point `vllm.general_plugins`.

Turned on by the environment, each by itself::

    EVENKEEL_POLICY=recourse EVENKEEL_SPLIT=exact vllm serve MODEL --enable-expert-parallel --enable-eplb
"""

from __future__ import annotations

from typing import Any, Optional

import numpy as np

from . import _split
from ._active_split import ActiveSplit, always, exactly, unknown
from ._arrays import like, to_numpy
from ._replan import replan
from ._stack import Settings, log_through, logger, settings


def active_split() -> ActiveSplit:
    """Returns how vLLM's batches are split, by the configuration of the server that runs in this process."""
    if not _split.wanted():
        return always("vllm")
    from ._vllm_split import server_config

    try:
        mode = server_config().compilation_config.cudagraph_mode.name
    except AttributeError:
        return unknown("vLLM", "no model with a MoERunner was made under a configuration with a cudagraph_mode")
    return exactly("vllm", mode != "NONE")


def policy_class(base: type, how: Settings) -> type:
    """A policy for vLLM: `base` is its ``AbstractEplbPolicy``."""

    class EvenkeelPolicy(base):  # type: ignore[misc, valid-type]
        """Places experts by evenkeel, keeping what can stay where it is."""

        @classmethod
        def rebalance_experts(
            cls,
            weight: Any,
            num_replicas: int,
            num_groups: int,
            num_nodes: int,
            num_ranks: int,
            old_global_expert_indices: Optional[Any] = None,
        ) -> Any:
            """Loads [layers, experts] in, the logical expert of every physical one out: [layers, num_replicas], int64."""
            running = None if old_global_expert_indices is None else to_numpy(old_global_expert_indices)
            loads = np.asarray(to_numpy(weight))[None]
            maps = replan(how, loads, num_replicas, num_ranks, num_nodes, num_groups, running, active_split)
            return like(weight, maps)

    return EvenkeelPolicy


def register() -> None:
    """Hooks in what ``EVENKEEL_POLICY`` (vLLM's default policy) and ``EVENKEEL_SPLIT`` (every batch) ask for."""
    how = settings()
    log_through("vllm")
    if how is not None:
        from vllm.distributed.eplb import policy

        policy.EPLB_POLICIES["default"] = policy_class(policy.AbstractEplbPolicy, how)
        logger.info("evenkeel: vLLM's expert placement is by %s", how.policy)
    if _split.wanted():
        from ._vllm_split import install

        install()

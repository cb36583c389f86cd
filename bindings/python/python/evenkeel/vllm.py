"""vLLM's plug-in for the placement policy and for the split of batches, through the entry point
`vllm.general_plugins`.

The policy takes the place of the default one in `EPLB_POLICIES`. Two variables of the environment turn the
two parts on independently::

    EVENKEEL_POLICY=recourse EVENKEEL_SPLIT=exact vllm serve MODEL --enable-expert-parallel --enable-eplb
"""

from __future__ import annotations

from typing import Any, Optional

import numpy as np

from . import _split_hook
from ._active_split import ActiveSplit, always, exactly, unknown
from ._arrays import like, to_numpy
from ._plugin import Settings, log_through, logger, settings
from ._replan import replan


def active_split() -> ActiveSplit:
    """Returns the split of vLLM's batches, according to the configuration of the server in this process."""
    if not _split_hook.wanted():
        return always("vllm")
    from ._vllm_split import server_config

    try:
        mode = server_config().compilation_config.cudagraph_mode.name
    except AttributeError:
        return unknown("vLLM", "no model with a MoERunner was made under a configuration with a cudagraph_mode")
    return exactly("vllm", mode != "NONE")


def policy_class(base: type, how: Settings) -> type:
    """Returns a policy class for vLLM. `base` is vLLM's ``AbstractEplbPolicy``."""

    class EvenkeelPolicy(base):  # type: ignore[misc, valid-type]
        """Policy that places experts by evenkeel and keeps them in place if possible."""

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
            """Returns the logical expert of each physical one, [layers, num_replicas], int64, for loads
            [layers, experts].
            """
            running = None if old_global_expert_indices is None else to_numpy(old_global_expert_indices)
            loads = np.asarray(to_numpy(weight))[None]
            maps = replan(how, loads, num_replicas, num_ranks, num_nodes, num_groups, running, active_split)
            return like(weight, maps)

    return EvenkeelPolicy


def register() -> None:
    """Installs the hooks that ``EVENKEEL_POLICY`` (vLLM's default policy) and ``EVENKEEL_SPLIT`` (every
    batch) request.
    """
    how = settings()
    log_through("vllm")
    if how is not None:
        from vllm.distributed.eplb import policy

        policy.EPLB_POLICIES["default"] = policy_class(policy.AbstractEplbPolicy, how)
        logger.info("evenkeel: vLLM's expert placement is by %s", how.policy)
    if _split_hook.wanted():
        from ._vllm_split import install

        install()

"""vllm-ascend's placement policy, found by the entry point `vllm.general_plugins`.

Turned on by the environment; the server's own `eplb_policy_type` is then ignored::

    DYNAMIC_EPLB=true EVENKEEL_POLICY=recourse vllm serve MODEL --enable-expert-parallel \\
        --additional-config '{"eplb_config": {"dynamic_eplb": true}}'
"""

from __future__ import annotations

from typing import Any, List, Tuple

import numpy as np

from ._active_split import always
from ._arrays import to_numpy
from ._replan import replan
from ._stack import Settings, log_through, logger, settings


def policy_class(base: type, how: Settings) -> type:
    """A policy for vllm-ascend: `base` is its ``EplbPolicy``."""

    class EvenkeelPolicy(base):  # type: ignore[misc, valid-type]
        """Places experts by evenkeel, keeping what can stay where it is."""

        def rebalance_experts(
            self, current_expert_table: Any, expert_workload: Any
        ) -> Tuple[int, np.ndarray, List[List[List[int]]]]:
            """The running table [layers, ranks, slots] and the load of every slot, likewise (or [batches, layers, ranks,
            slots]), in. Out: whether anything changes, the layers in the order in which they should, the new table."""
            table = np.asarray(to_numpy(current_expert_table)).astype(np.int64)
            loads = np.asarray(to_numpy(expert_workload))
            layers, ranks, per_rank = table.shape
            batches = loads.reshape(-1, layers, ranks * per_rank)
            running = table.reshape(layers, -1)
            experts = int(running.max()) + 1
            logical = np.zeros((len(batches), layers, experts), dtype=batches.dtype)
            for layer in range(layers):
                for batch in range(len(batches)):
                    np.add.at(logical[batch, layer], running[layer], batches[batch, layer])
            rule = always("vllm-ascend")
            maps = replan(how, logical, ranks * per_rank, ranks, 1, 1, running, lambda: rule)
            changed = (maps != running).sum(axis=1)
            priority = np.argsort(-changed, kind="stable")
            return int(changed.any()), priority, maps.reshape(table.shape).tolist()

    return EvenkeelPolicy


def register() -> None:
    """Makes evenkeel's policy the one that vllm-ascend's factory makes, if ``EVENKEEL_POLICY`` says so and it is there."""
    how = settings()
    if how is None:
        return
    try:
        from vllm_ascend.eplb.core.policy import policy_factory
    except ImportError:
        return
    log_through("vllm")
    made = policy_class(policy_factory.EplbPolicy, how)
    policy_factory.PolicyFactory.generate_policy = staticmethod(lambda policy_type: made())
    logger.info("evenkeel: vllm-ascend's expert placement is by %s", how.policy)

"""vllm-ascend's plug-in for the placement policy, through the entry point `vllm.general_plugins`.

A variable of the environment turns it on. The server then ignores its own `eplb_policy_type`::

    DYNAMIC_EPLB=true EVENKEEL_POLICY=recourse vllm serve MODEL --enable-expert-parallel \\
        --additional-config '{"eplb_config": {"dynamic_eplb": true}}'
"""

from __future__ import annotations

from typing import Any, List, Tuple

import numpy as np

from ._active_split import always
from ._arrays import to_numpy
from ._plugin import Settings, log_through, logger, settings
from ._replan import replan


def policy_class(base: type, how: Settings) -> type:
    """Returns a policy class for vllm-ascend. `base` is vllm-ascend's ``EplbPolicy``."""

    class EvenkeelPolicy(base):  # type: ignore[misc, valid-type]
        """Policy that places experts by evenkeel and keeps them in place if possible."""

        def rebalance_experts(
            self, current_expert_table: Any, expert_workload: Any
        ) -> Tuple[int, np.ndarray, List[List[List[int]]]]:
            """Plans for the running table [layers, ranks, slots] and the load of every slot.

            The load has the same shape or is [batches, layers, ranks, slots]. Returns whether anything
            changes, the order in which the layers should change, and the new table.
            """
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
    """Makes vllm-ascend's factory return evenkeel's policy, if ``EVENKEEL_POLICY`` is set and the factory
    exists.
    """
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

"""Load-balancing planner for Mixture-of-Experts models under expert parallelism.

The package computes placements with redundant experts from routing statistics. From the counts of each batch
it computes whole-token quotas with the lowest possible peak:

>>> import evenkeel, numpy as np
>>> trace = evenkeel.Trace.from_loads(np.array([[[90, 10, 10, 10]], [[70, 30, 10, 10]]]))
>>> plan = evenkeel.plan(trace, ranks=2, redundant=2, policy="eplb")
>>> planner = plan.planner(layer=0)
>>> split = planner.split(np.array([[50, 5, 5, 5], [40, 5, 5, 5]]))
>>> split.peak
60
>>> planner.redirect(np.array([[0, 1], [0, -1]]), source=0).shape
(2, 2)

``advise`` recommends a deployment: GPUs, parallelism, redundant experts.

``StackRouter`` predicts the slots of tokens that a serving stack splits by its own rule. ``evenkeel.eplb``
and ``evenkeel.lplb`` have the calls of DeepSeek's EPLB and LPLB. ``evenkeel.cuda`` runs the fast loop on a
GPU. ``evenkeel.vllm``, ``evenkeel.sglang`` and ``evenkeel.vllm_ascend`` are the plug-ins of those stacks.
``evenkeel.client`` posts loads to a running ``evenkeel serve``.
"""

from . import client, cuda, eplb, lplb, sglang, vllm, vllm_ascend
from ._advise import Advice, advise
from ._native import (
    Error,
    Plan,
    Planner,
    Split,
    StackRouter,
    Trace,
    Unavailable,
    __version__,
    plan,
    read_trace,
)

__all__ = [
    "Advice",
    "Error",
    "Plan",
    "Planner",
    "Split",
    "StackRouter",
    "Trace",
    "Unavailable",
    "__version__",
    "advise",
    "client",
    "cuda",
    "eplb",
    "lplb",
    "plan",
    "read_trace",
    "sglang",
    "vllm",
    "vllm_ascend",
]

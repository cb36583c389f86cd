"""Advice on deployments: how many GPUs, which parallelism, replicas or not."""

import json
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from . import _native


class Advice:
    """The deployment to run, compared with doing nothing.

    ``text`` is the answer in sentences. ``table`` has a column per figure and a row per deployment of the
    Pareto front, so that ``pandas.DataFrame(advice.table)`` and ``polars.DataFrame(advice.table)`` read it.
    ``plan`` and ``prefill_plan`` place all layers for the advised deployment.
    """

    def __init__(self, document: Dict[str, Any], plan: Optional[_native.Plan], prefill_plan: Optional[_native.Plan]):
        self.document = document
        self.plan = plan
        self.prefill_plan = prefill_plan

    @property
    def text(self) -> str:
        """The answer in sentences, the verdict first."""
        return self.document["verdict"]["text"]

    @property
    def is_worth_it(self) -> bool:
        """True if balancing gains more than the error of the figures."""
        return self.document["verdict"]["is_worth_it"]

    @property
    def gain(self) -> Optional[float]:
        """The gain of balancing in output tokens per second and GPU, as a share. None without a baseline."""
        return self.document["verdict"]["gain"]

    @property
    def error(self) -> float:
        """The relative error of the gain."""
        return self.document["verdict"]["error"]

    @property
    def table(self) -> Dict[str, List[Any]]:
        """Figures of the deployments by column, best rate first."""
        options = self.document["options"]
        names = [name for name, value in options[0].items() if not isinstance(value, dict)]
        return {name: [option[name] for option in options] for name in names}

    @property
    def compared(self) -> Dict[str, List[Any]]:
        """Parts of a decode step by column, a row per policy on the advised GPUs."""
        rows = [{**row, **row["decode_step"]} for row in self.document["compared"]]
        return {name: [row[name] for row in rows] for name in rows[0] if name != "decode_step"}

    @property
    def launch(self) -> List[Dict[str, Any]]:
        """Commands of the serving stacks: dictionaries with stack, role, text and notes."""
        return self.document["launch"]

    def __repr__(self) -> str:
        return f"<Advice: {self.text}>"

    def __str__(self) -> str:
        return self.text


def advise(
    trace: _native.Trace,
    model: str,
    gpu: str,
    gpus: Union[int, Sequence[int], str],
    context: Tuple[int, int],
    *,
    framework: str = "sglang",
    tpot_ms: Optional[float] = None,
    ttft_ms: Optional[float] = None,
    serving: str = "disaggregated",
    max_redundant: int = 2,
    kv_dtype: str = "bf16",
    drafts: Tuple[float, float] = (1.0, 1.0),
    length_spread: float = 0.0,
    stream_gb_s: Optional[float] = None,
    seed: int = 0,
    plan: bool = True,
) -> Advice:
    """Recommends a deployment: GPUs, parallelism, redundant experts, policy.

    ``model`` is a known name or the path of a config.json. ``gpus`` are numbers of GPUs of an instance: 32,
    [16, 32] or "16..96". ``context`` is the mean number of tokens of prompts and of answers. ``tpot_ms`` and
    ``ttft_ms`` limit the time per output token and to the first token. ``drafts`` are the tokens that a step
    verifies and accepts per request. ``stream_gb_s`` is the rate at which a GPU reads experts that do not
    fit from its host. ``plan=False`` leaves the plans out.

    >>> import evenkeel, numpy as np
    >>> loads = np.random.default_rng(0).integers(100, 300, (8, 2, 128))
    >>> trace = evenkeel.Trace.from_loads(loads)
    >>> advice = evenkeel.advise(trace, "qwen3-30b-a3b", "h100", 8, (2000, 500), plan=False)
    >>> advice.is_worth_it
    False

    Raises ``Error`` if no deployment fits into memory and limits.
    """
    if framework not in ("sglang", "vllm", "trtllm"):
        raise _native.Error(f'framework "{framework}": expected sglang, vllm or trtllm')
    if serving not in ("disaggregated", "mixed"):
        raise _native.Error(f'serving "{serving}": expected disaggregated or mixed')
    if kv_dtype not in ("bf16", "fp8"):
        raise _native.Error(f'kv_dtype "{kv_dtype}": expected bf16 or fp8')
    document, decode, prefill = _native.advise(
        trace,
        model,
        gpu,
        gpus,
        context,
        framework,
        tpot_ms,
        ttft_ms,
        serving == "mixed",
        max_redundant,
        1.0 if kv_dtype == "fp8" else 2.0,
        drafts,
        length_spread,
        stream_gb_s,
        seed,
        plan,
    )
    return Advice(json.loads(document), decode, prefill)

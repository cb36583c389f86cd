"""Native part of the package. The package's documentation describes it."""

import os
from typing import Any, Dict, List, Literal, Optional, Sequence, Tuple, Union

import numpy as np
from numpy.typing import NDArray

_Path = Union[str, "os.PathLike[str]"]
_Split = Literal[
    "exact", "even", "sglang-static", "sglang-dynamic", "sglang-random", "vllm", "vllm-ascend", "trtllm"
]
_Dialect = Literal["sglang", "trtllm", "vllm", "vllm-ascend", "eplb"]
__version__: str

class Error(ValueError):
    """Error that the caller can fix. The message states the expected value."""

class Unavailable(RuntimeError):
    """A requirement that this machine lacks, for example a GPU."""

class Trace:
    """Token counts of a recorded run: loads[step, layer, expert]."""

    experts: int
    layers: NDArray[np.uint32]
    steps: List[str]
    notices: List[str]
    @staticmethod
    def from_loads(loads: NDArray[Any], layers: Optional[Sequence[int]] = None) -> Trace: ...
    def loads(self) -> NDArray[np.uint64]: ...
    def totals(self) -> NDArray[np.uint64]: ...
    def columns(self) -> Dict[str, NDArray[Any]]: ...

def read_trace(
    paths: Union[_Path, Sequence[_Path]],
    *,
    format: Optional[str] = None,
    experts: Optional[int] = None,
    layers: Optional[str] = None,
    batch_tokens: Optional[int] = None,
    decode_batch: Optional[int] = None,
    order: Literal["recorded", "shuffled"] = "recorded",
    seed: int = 0,
    step_column: Optional[str] = None,
    arrays: Optional[Sequence[str]] = None,
) -> Trace: ...

class Plan:
    """Placements for all busy layers of a model on one group of ranks."""

    ranks: int
    nodes: int
    slots_per_rank: int
    experts: int
    layers: NDArray[np.uint32]
    physical_to_logical: NDArray[np.int64]
    imbalance: NDArray[np.float64]
    split: str
    figures: dict[str, tuple[float, Optional[float]]]
    @staticmethod
    def load(path: _Path) -> Plan: ...
    @staticmethod
    def from_json(text: str) -> Plan: ...
    def to_json(self) -> str: ...
    def save(self, path: _Path) -> None: ...
    unrecorded_layers: List[int]
    moves: Dict[int, List[Tuple[int, Optional[int], int, int]]]
    def export(self, to: _Dialect, *, moe_layers: Optional[Sequence[int]] = None) -> str: ...
    def planner(self, layer: int) -> Planner: ...

def advise(
    trace: Trace,
    model: str,
    gpu: str,
    gpus: Union[int, Sequence[int], str],
    context: Tuple[int, int],
    framework: str,
    tpot_ms: Optional[float],
    ttft_ms: Optional[float],
    mixed: bool,
    max_redundant: int,
    kv_bytes: float,
    drafts: Tuple[float, float],
    length_spread: float,
    stream_gb_s: Optional[float],
    seed: int,
    plan: bool,
) -> Tuple[str, Optional[Plan], Optional[Plan]]: ...
def plan(
    trace: Trace,
    ranks: int,
    redundant: Optional[int] = None,
    *,
    policy: str = "recourse",
    nodes: int = 1,
    groups: int = 1,
    split: Optional[_Split] = None,
    moe_layers: Optional[Sequence[int]] = None,
    num_redundant_experts: Optional[int] = None,
    uneven: bool = False,
    previous: Optional[Plan] = None,
    lost_ranks: Optional[Sequence[int]] = None,
    max_moves: Optional[int] = None,
    speeds: Optional[Sequence[int]] = None,
    memory_budget: Optional[int] = None,
    survive_rank_loss: Optional[Literal["1", "best"]] = None,
    horizon_steps: Optional[int] = None,
    link_gbps: Optional[int] = None,
    link_budget_bytes: Optional[int] = None,
    model: Optional[str] = None,
    gpu: Optional[str] = None,
) -> Plan: ...

class Split:
    """Quotas of one batch: whole tokens with the lowest possible peak."""

    quotas: NDArray[np.uint64]
    rank_loads: NDArray[np.uint64]
    peak: int
    certificate: NDArray[np.uint32]
    copies: NDArray[np.uint32]
    least_copies: int
    imbalance: float

class Planner:
    """Planner that splits the batches of one layer and redirects their tokens to slots."""

    ranks: int
    experts: int
    def __init__(
        self,
        physical_to_logical: NDArray[np.int64],
        ranks: int,
        *,
        nodes: int = 1,
        experts: Optional[int] = None,
        keep: Optional[Literal["peak", "vector"]] = None,
        dynamic_slots: int = 0,
        memory: Literal["shared", "kept"] = "shared",
        imbalance_limit: float = 0.01,
        max_copies: Optional[int] = None,
    ) -> None: ...
    @property
    def physical_to_logical(self) -> NDArray[np.int64]: ...
    def prepare_copies(self, expected: NDArray[Any]) -> NDArray[np.uint32]: ...
    def split(self, counts: NDArray[Any]) -> Split: ...
    def redirect(
        self, topk_ids: NDArray[Any], source: int, out: Optional[NDArray[Any]] = None
    ) -> NDArray[Any]: ...
    def count(self, topk_ids: NDArray[Any]) -> NDArray[np.uint64]: ...
    def check(self, counts: NDArray[Any]) -> None: ...

class StackRouter:
    """Router of ids by a serving stack's own rule."""

    stack: str
    ranks: int
    experts: int
    def __init__(
        self,
        stack: str,
        maps: NDArray[np.int64],
        ranks: int,
        nodes: int = 1,
        experts: Optional[int] = None,
        *,
        tp_size: int = 1,
        rebalanced: bool = False,
        seed: int = 0,
    ) -> None: ...
    def redirect(self, layer: int, topk_ids: NDArray[Any], source: int = 0) -> NDArray[Any]: ...
    def loads(self, layer: int, ids_per_source: Sequence[NDArray[Any]]) -> NDArray[np.uint64]: ...

class DevicePlanner:
    experts: int
    ranks: int
    device: int
    def __init__(
        self,
        physical_to_logical: NDArray[np.int64],
        ranks: int,
        source: int,
        capacity: int,
        *,
        device: int = 0,
        nodes: int = 1,
        experts: Optional[int] = None,
    ) -> None: ...
    def own_counts(self) -> int: ...
    def count(self, ids: int, len: int, wide: bool, stream: int) -> None: ...
    def redirect(
        self, layer: int, counts: int, ids: int, len: int, wide: bool, slots: int, stream: int
    ) -> None: ...
    def check_faults(self) -> None: ...

def devices() -> List[Tuple[str, Tuple[int, int]]]: ...
def replicate(
    redundant_to_original: NDArray[np.int64],
    slots_in_all: int,
    experts: int,
    ranks: int,
    workload: Optional[NDArray[Any]] = None,
) -> NDArray[np.int64]: ...
def rebalance(
    weight: NDArray[np.float32], num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> NDArray[np.int64]: ...
def replan(
    loads: NDArray[Any],
    slots_in_all: int,
    ranks: int,
    *,
    policy: str,
    groups: int = 1,
    nodes: int = 1,
    previous: Optional[NDArray[np.int64]] = None,
    max_moves: Optional[int] = None,
) -> NDArray[np.int64]: ...
def inverse(
    physical_to_logical: NDArray[np.int64], experts: int
) -> Tuple[NDArray[np.int64], NDArray[np.int64]]: ...
def imbalance(
    loads: NDArray[Any], maps: NDArray[np.int64], ranks: int, *, split: str, nodes: int = 1
) -> float: ...
def named_split(policy: str) -> Optional[str]: ...
def with_split(policy: str, split: str) -> str: ...

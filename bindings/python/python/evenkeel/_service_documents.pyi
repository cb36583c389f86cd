"""Documents of ``evenkeel serve``, from its OpenAPI document. cli/tests/it/serve_documents.rs writes them.
"""

from typing import Any, Literal, TypedDict

from typing_extensions import NotRequired

class CopyStatus(TypedDict):
    assumed: list[str]
    available_ms: NotRequired[float | None]
    copy_share: NotRequired[float | None]
    expert_ms: float
    gpu: str
    link_gbps: int
    model: str
    move_cost: NotRequired[float | None]
    passed_ms: float
    spent_ms: float
    spent_share: float
    step_ms: float

class Decision(TypedDict):
    accepted: int
    busiest_bytes: NotRequired[int | None]
    bytes: NotRequired[int | None]
    calibration: NotRequired[GainEstimate]
    copy_ms: float
    cost_ms: float
    duration_ms: float
    gain_ms: float
    imbalance: Imbalances
    judged_steps: int
    layers: int
    moves: int
    number: int
    outcome: DecisionOutcome
    phase: Phase
    plan: int
    reason: str
    rejected_moves: int
    step: NotRequired[int | None]
    timestamp_unix_s: int
    trigger: Trigger

DecisionOutcome = Literal["applied", "kept", "dry_run", "skipped", "failed"]

class GainEstimate(TypedDict):
    error: float
    ratio: float
    trials: int

class GainStatus(TypedDict):
    after_break: GainEstimate
    calm: GainEstimate

class HistoryPoint(TypedDict):
    accepted: int
    bound: float
    max: float
    mean: float
    plan: int
    step: int
    steps: int
    timestamp_unix_s: int

class Imbalances(TypedDict):
    after: float
    before: float
    bound: float

class ModelSpec(TypedDict):
    gpu: NotRequired[str | None]
    groups: NotRequired[int]
    link_gbps: NotRequired[int | None]
    model: NotRequired[str | None]
    nodes: NotRequired[int]
    ranks: int
    redundant: NotRequired[int]

class ModelStatus(TypedDict):
    decide: Any
    name: str
    phases: list[PhaseStatus]
    shape: ModelSpec
    sources: list[SourceStatus]

Phase = Literal["all", "prefill", "decode"]

class PhaseStatus(TypedDict):
    accepted: int
    copies: CopyStatus
    decisions: int
    down: list[int]
    due_in: int
    experts: int
    gains: NotRequired[GainStatus]
    lag: int
    last_step_unix_s: NotRequired[int | None]
    latest: NotRequired[HistoryPoint | None]
    layers: list[int]
    observed_step_ms: NotRequired[float | None]
    phase: Phase
    plan: int
    plan_step: NotRequired[int | None]
    planning: bool
    quiet_seconds: NotRequired[int | None]
    run: NotRequired[RunStatus | None]
    step: NotRequired[int | None]
    stopped_after_seconds: int

class RankChangeResponse(TypedDict):
    decisions: list[Decision]

class Receipt(TypedDict):
    accepted: int
    lag: int
    repeated: int
    run: int

class RunStatus(TypedDict):
    first: int
    id: NotRequired[str | None]
    number: int

class SourceStatus(TypedDict):
    error: NotRequired[str | None]
    errors: int
    last_skipped: NotRequired[str | None]
    path: str
    phase: Phase
    sglang: NotRequired[str | None]
    since_unix_s: NotRequired[int | None]
    skipped_lines: int
    up: bool

Trigger = Literal["first", "interval", "drift", "manual", "rank_down", "rank_up"]

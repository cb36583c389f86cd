"""The split that the batches of a stack receive. Policies plan for it, and placements are judged under it."""

from __future__ import annotations

from typing import NamedTuple, Optional, Tuple

from . import _native
from ._plugin import Settings, warn_once


class ActiveSplit(NamedTuple):
    """The split of a stack's batches, according to its configuration."""

    #: Split to plan for. ``None`` if batches are split in several ways, or if the configuration cannot be
    #: read.
    planned: Optional[str]
    #: Splits under which placements are judged: those that batches receive, or bounds of them.
    judged: Tuple[str, ...]


def always(split: str) -> ActiveSplit:
    """Returns one split for all batches."""
    return ActiveSplit(split, (split,))


def exactly(rule: str, graphs: bool) -> ActiveSplit:
    """Returns the exact split.

    With ``graphs``, batches in CUDA graphs follow the stack's ``rule``, which is therefore judged as well.
    """
    return ActiveSplit(None, ("exact", rule)) if graphs else always("exact")


def unknown(stack: str, why: object) -> ActiveSplit:
    """Returns the split of a stack whose configuration cannot be read, and logs that once."""
    warn_once(f"evenkeel: {stack}'s split cannot be read ({why}): planned for any, judged by exact and even")
    return ActiveSplit(None, ("exact", "even"))


def resolved(how: Settings, active: ActiveSplit) -> Tuple[Settings, Tuple[str, ...]]:
    """Returns the settings with the split in the policy's name, and the splits under which placements are
    judged.

    A split that the name already contains stays, and comes first among the judged ones.
    """
    named = _native.named_split(how.policy)
    if named is not None:
        return how, tuple(dict.fromkeys((named, *active.judged)))
    plans_for_split = how.policy == "recourse" or how.policy.startswith("recourse:")
    if active.planned is None or not plans_for_split:
        return how, active.judged
    return how._replace(policy=_native.with_split(how.policy, active.planned)), active.judged

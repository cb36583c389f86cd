"""The split that a stack's batches really get, which a policy plans for and by which its placements are judged."""

from __future__ import annotations

from typing import NamedTuple, Optional, Tuple

from . import _native
from ._stack import Settings, warn_once


class ActiveSplit(NamedTuple):
    """The split of a stack's batches, as its configuration says it."""

    #: The split to plan for. ``None`` where batches are split in more than one way, or the configuration cannot be read.
    planned: Optional[str]
    #: The splits to judge by: those that batches get, or the bounds of what they may get.
    judged: Tuple[str, ...]


def always(split: str) -> ActiveSplit:
    """Returns one split for all batches."""
    return ActiveSplit(split, (split,))


def exactly(rule: str, graphs: bool) -> ActiveSplit:
    """Returns the exact split; with ``graphs``, also the stack's ``rule``, which batches in CUDA graphs get."""
    return ActiveSplit(None, ("exact", rule)) if graphs else always("exact")


def unknown(stack: str, why: object) -> ActiveSplit:
    """Returns the split of a stack whose configuration cannot be read; the log says so once."""
    warn_once(f"evenkeel: {stack}'s split cannot be read ({why}): planned for any, judged by exact and even")
    return ActiveSplit(None, ("exact", "even"))


def resolved(how: Settings, active: ActiveSplit) -> Tuple[Settings, Tuple[str, ...]]:
    """Returns the settings with the split in the policy's name, and the splits to judge by.

    A split that the name has already stays, and comes first among those to judge by.
    """
    named = _native.named_split(how.policy)
    if named is not None:
        return how, tuple(dict.fromkeys((named, *active.judged)))
    plans_for_split = how.policy == "recourse" or how.policy.startswith("recourse:")
    if active.planned is None or not plans_for_split:
        return how, active.judged
    return how._replace(policy=_native.with_split(how.policy, active.planned)), active.judged

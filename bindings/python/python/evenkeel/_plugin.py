"""Shared parts of the plug-ins: settings from the environment, and the log."""

from __future__ import annotations

import functools
import logging
import os
from typing import NamedTuple, Optional

from . import _native

logger = logging.getLogger("evenkeel")


@functools.lru_cache(maxsize=None)
def warn_once(message: str) -> None:
    """Logs a message once, although every batch causes it again."""
    logger.warning(message)


def log_through(stack: str) -> None:
    """Gives the log a stack's handlers and level, if neither this logger nor the root has a handler."""
    theirs = logging.getLogger(stack)
    if logger.handlers or logging.getLogger().handlers or not theirs.handlers:
        return
    logger.setLevel(theirs.getEffectiveLevel())
    for handler in theirs.handlers:
        logger.addHandler(handler)


class Settings(NamedTuple):
    """Planning options of a plug-in."""

    policy: str
    max_moves: Optional[int]


def settings() -> Optional[Settings]:
    """Returns the settings from the environment; ``None`` if plug-ins are off.

    ``EVENKEEL_POLICY`` turns plug-ins on and names their policy (recourse, eplb, ..). ``EVENKEEL_MAX_MOVES``
    limits the experts that ranks newly receive, per layer and re-planning.
    """
    policy = os.environ.get("EVENKEEL_POLICY", "")
    if policy in ("", "off"):
        return None
    moves = os.environ.get("EVENKEEL_MAX_MOVES")
    if moves is not None and not moves.isdigit():
        raise _native.Error(f"EVENKEEL_MAX_MOVES {moves!r}: expected a number of experts")
    return Settings(policy, None if moves is None else int(moves))

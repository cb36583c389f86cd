"""CPU arrays of any library, without an import of that library."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def of_torch(values: Any) -> bool:
    """Returns whether this is a tensor of torch, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)


def to_numpy(values: Any) -> np.ndarray:
    """Returns NumPy's view of an array or tensor, through DLPack or the array protocol. Tensors on a device
    are copied.
    """
    if isinstance(values, np.ndarray):
        return values
    if of_torch(values):
        return values.detach().cpu().numpy()
    if hasattr(values, "__dlpack__") and hasattr(values, "__dlpack_device__"):
        kind, _ = values.__dlpack_device__()
        if int(kind) == 1:
            return np.from_dlpack(values)
    return np.asarray(values)


def like(example: Any, values: np.ndarray) -> Any:
    """Returns ``values`` in the library of ``example``: torch for torch (on the CPU), NumPy otherwise."""
    if of_torch(example):
        return sys.modules["torch"].from_numpy(values)
    return values


def whole(values: np.ndarray, name: str = "weight") -> np.ndarray:
    """Returns loads as whole tokens.

    Integers stay as they are. Fractions become multiples of a millionth of the largest load, which is finer
    than any difference that a plan depends on.
    """
    values = np.asarray(values)
    if values.dtype.kind in "iu":
        return np.ascontiguousarray(values)
    values = values.astype(np.float64)
    if not np.isfinite(values).all() or (values < 0).any():
        from ._native import Error

        raise Error(f"{name}: expected numbers from 0 on")
    if not np.array_equal(values, np.rint(values)) or values.max(initial=0.0) > 2.0**52:
        values = values * (1e6 / values.max())
    return np.rint(values).astype(np.uint64)

"""The fast loop on a GPU: ids in device memory in, slots in device memory out, on the caller's stream.

No call waits for the host, and nothing is allocated after set-up, so a CUDA graph can record a whole step.
Arrays may come from any library with ``__cuda_array_interface__`` (torch, CuPy, Numba, ..) or DLPack.
"""

from __future__ import annotations

import ctypes
from typing import Any, List, NamedTuple, Optional, Tuple

from . import _native
from ._native import DevicePlanner as _DevicePlanner
from ._native import Error, Unavailable


def devices() -> List[Tuple[str, Tuple[int, int]]]:
    """Returns name and compute capability of every GPU. Raises ``Unavailable`` if there is none."""
    return _native.devices()


class _Memory(NamedTuple):
    address: int
    shape: Tuple[int, ...]
    kind: str  # NumPy's typestr: "<i4", "<i8", "<u4"
    keep: Any  # object that keeps the memory alive

    @property
    def size(self) -> int:
        size = 1
        for extent in self.shape:
            size *= extent
        return size


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


def _contiguous(shape: Tuple[int, ...], strides: Tuple[int, ...]) -> bool:
    expected = 1
    for extent, stride in zip(reversed(shape), reversed(strides)):
        if extent != 1 and stride != expected:
            return False
        expected *= extent
    return True


def _memory(array: Any, name: str, kinds: Tuple[str, ...], device: int, stream: int) -> _Memory:
    if hasattr(array, "__cuda_array_interface__"):
        about = array.__cuda_array_interface__
        shape, kind = tuple(about["shape"]), about["typestr"]
        strides = about.get("strides")
        width = int(kind[2:])
        if strides is not None and not _contiguous(shape, tuple(s // width for s in strides)):
            raise Error(f"{name}: expected contiguous memory")
        memory = _Memory(int(about["data"][0]), shape, kind, array)
    elif hasattr(array, "__dlpack__"):
        memory = _dlpack(array, name, device, stream)
    else:
        raise Error(f"{name}: expected an array in device memory (__cuda_array_interface__ or DLPack)")
    if memory.kind not in kinds:
        raise Error(f"{name}: {memory.kind}: expected one of {', '.join(kinds)}")
    return memory


def _dlpack(array: Any, name: str, device: int, stream: int) -> _Memory:
    kind, ordinal = array.__dlpack_device__()
    if int(kind) not in (2, 13):
        raise Error(f"{name}: expected memory of a CUDA device")
    if int(ordinal) != device:
        raise Error(f"{name}: on device {ordinal}: the planner is on device {device}")
    # In DLPack, 1 and 2 are the default streams, and 0 is ambiguous.
    capsule = array.__dlpack__(stream=stream or 1)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _DLTensor.from_address(pointer(capsule, b"dltensor"))
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if tensor.strides and not _contiguous(shape, tuple(tensor.strides[i] for i in range(tensor.ndim))):
        raise Error(f"{name}: expected contiguous memory")
    letter = {0: "i", 1: "u", 2: "f"}.get(tensor.code, "?")
    # The unused capsule frees the memory when it is deleted.
    address = (tensor.data or 0) + tensor.byte_offset
    return _Memory(address, shape, f"<{letter}{tensor.bits // 8}", capsule)


class DevicePlanner:
    """Planner that splits and redirects batches on one GPU, for one source rank.

    ``physical_to_logical`` is a NumPy array [layers, slots], int64. ``capacity`` is the largest number of ids
    of a batch. Raises ``Unavailable`` if no usable GPU exists.

    Each batch of a layer takes three steps. ``count(ids)`` counts. All ranks gather their ``own_counts`` into
    ``counts`` [ranks, experts], for example by ``torch.distributed.all_gather_into_tensor``.
    ``redirect(layer, counts, ids, out)`` splits and redirects.

    ``stream`` is the caller's ``cudaStream_t`` as a number (``torch.cuda.current_stream().cuda_stream``), 0
    for the default stream.
    """

    def __init__(
        self,
        physical_to_logical: Any,
        ranks: int,
        source: int,
        capacity: int,
        *,
        device: int = 0,
        nodes: int = 1,
        experts: Optional[int] = None,
    ) -> None:
        self._inner = _DevicePlanner(
            physical_to_logical, ranks, source, capacity, device=device, nodes=nodes, experts=experts
        )
        self.ranks, self.experts, self.device = ranks, self._inner.experts, device

    @property
    def own_counts(self) -> "_Counts":
        """This rank's counts as the last ``count`` leaves them: [experts], int32, as
        ``__cuda_array_interface__``.
        """
        return _Counts(self._inner, self.experts)

    def count(self, ids: Any, stream: int = 0) -> None:
        """Enqueues the counting of a batch's ids, int32 or int64, -1 for none."""
        ids = _memory(ids, "ids", ("<i4", "<i8"), self.device, stream)
        self._inner.count(ids.address, ids.size, ids.kind == "<i8", stream)

    def redirect(self, layer: int, counts: Any, ids: Any, out: Any, stream: int = 0) -> Any:
        """Enqueues the split of a layer by the counts of all ranks, [ranks, experts] int32, and the redirect.

        The physical slot of every counted id is written to ``out``, which must not overlap ``ids``. Returns
        ``out``.
        """
        everyone = _memory(counts, "counts", ("<i4", "<u4"), self.device, stream)
        given = _memory(ids, "ids", ("<i4", "<i8"), self.device, stream)
        slots = _memory(out, "out", (given.kind,), self.device, stream)
        if everyone.shape != (self.ranks, self.experts):
            raise Error(f"counts: shape {everyone.shape}: expected {(self.ranks, self.experts)}")
        if slots.shape != given.shape:
            raise Error(f"out: shape {slots.shape}: expected {given.shape}")
        wide = given.kind == "<i8"
        self._inner.redirect(layer, everyone.address, given.address, given.size, wide, slots.address, stream)
        return out

    def check_faults(self) -> None:
        """Waits for the GPU. Raises ``Error`` if an id was no expert or was not counted."""
        self._inner.check_faults()


class _Counts:
    """Device memory of a planner, valid as long as this object lives."""

    def __init__(self, owner: _DevicePlanner, experts: int) -> None:
        self._owner = owner
        self.__cuda_array_interface__ = {
            "shape": (experts,),
            "typestr": "<i4",
            "data": (owner.own_counts(), False),
            "strides": None,
            "version": 3,
        }


__all__ = ["DevicePlanner", "Error", "Unavailable", "devices"]

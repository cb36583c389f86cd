"""Without a GPU, the fast loop on a GPU reports that. With one, it gives the slots that the CPU gives."""

import numpy as np
import pytest

import evenkeel


def gpu():
    try:
        return evenkeel.cuda.devices()
    except evenkeel.Unavailable as why:
        return str(why)


@pytest.mark.skipif(not isinstance(gpu(), str), reason="this machine has a GPU")
def test_unavailable_is_said(ring):
    assert "CUDA" in gpu()
    with pytest.raises(evenkeel.Unavailable, match="CUDA"):
        evenkeel.cuda.DevicePlanner(ring[None], 8, 0, 1024)


@pytest.mark.skipif(isinstance(gpu(), str), reason="no GPU")
def test_the_same_slots_as_on_the_cpu(ring):
    torch = pytest.importorskip("torch", reason="no torch")
    ids = torch.randint(0, 16, (512, 2), dtype=torch.int32)
    counts = np.zeros((8, 16), dtype=np.int32)
    counts[3] = np.bincount(ids.reshape(-1), minlength=16)
    planner = evenkeel.Planner(ring, 8)
    planner.split(counts)
    expected = planner.redirect(ids.numpy(), 3)
    device = evenkeel.cuda.DevicePlanner(ring[None], 8, 3, 4096)
    on_gpu, out = ids.cuda(), torch.empty_like(ids, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream
    device.count(on_gpu, stream)
    assert (torch.as_tensor(device.own_counts, device="cuda").cpu().numpy() == counts[3]).all()
    device.redirect(0, torch.from_numpy(counts).cuda(), on_gpu, out, stream)
    device.check_faults()
    assert (out.cpu().numpy() == expected).all()


def test_memory_is_checked_before_anything_is_launched():
    from evenkeel.cuda import _memory

    class Tensor:
        def __init__(self, **about):
            self.__cuda_array_interface__ = {"data": (4096, False), "version": 3, **about}

    memory = _memory(Tensor(shape=(3, 2), typestr="<i4", strides=None), "ids", ("<i4",), 0, 0)
    assert (memory.address, memory.size) == (4096, 6)
    assert _memory(Tensor(shape=(3, 1), typestr="<i8", strides=(8, 8)), "ids", ("<i8",), 0, 0).size == 3
    with pytest.raises(evenkeel.Error, match="contiguous"):
        _memory(Tensor(shape=(3, 2), typestr="<i4", strides=(16, 4)), "ids", ("<i4",), 0, 0)
    with pytest.raises(evenkeel.Error, match="<f4"):
        _memory(Tensor(shape=(3,), typestr="<f4", strides=None), "ids", ("<i4",), 0, 0)
    with pytest.raises(evenkeel.Error, match="CUDA device"):
        _memory(np.zeros(3, dtype=np.int32), "ids", ("<i4",), 0, 0)
    with pytest.raises(evenkeel.Error, match="device memory"):
        _memory([1, 2], "ids", ("<i4",), 0, 0)

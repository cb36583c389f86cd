"""What vLLM's kernel uses of Triton's language, on torch's tensors: the kernel's published source runs as it is, one program after
the other. Pointers are a tensor with offsets; loads and stores behind a mask touch nothing outside of the tensor."""

import types


class Pointer:
    def __init__(self, torch, tensor, offsets=0):
        self.torch, self.tensor, self.offsets = torch, tensor, offsets

    def __add__(self, offsets):
        return Pointer(self.torch, self.tensor, self.offsets + offsets)

    def at(self, mask):
        offsets = self.torch.as_tensor(self.offsets)
        return offsets if mask is None else self.torch.where(mask, offsets, self.torch.zeros_like(offsets))


def language(torch):
    """`tl` and `triton` for a module that is taken from its source, and what turns a kernel into one that can be launched."""
    program = types.SimpleNamespace(id=0)

    def load(pointer, mask=None, other=0):
        values = pointer.tensor.view(-1)[pointer.at(mask)]
        return values if mask is None else torch.where(mask, values, torch.full_like(values, other))

    def store(pointer, values, mask):
        pointer.tensor.view(-1)[pointer.at(mask)[mask]] = values[mask].to(pointer.tensor.dtype)

    def atomic_add(pointer, value, mask):
        at = pointer.at(mask)[mask]
        pointer.tensor.view(-1).index_add_(0, at, torch.full_like(at, value).to(pointer.tensor.dtype))

    tl = types.SimpleNamespace(
        constexpr=int, int64=torch.int64, load=load, store=store, atomic_add=atomic_add,
        program_id=lambda _: program.id,
        arange=torch.arange,
        where=lambda mask, values, other: torch.where(mask, values, torch.full_like(values, other)),
        maximum=lambda values, least: values.clamp(min=least),
    )  # fmt: skip
    triton = types.SimpleNamespace(cdiv=lambda a, b: -(-a // b))

    class Kernel:
        """`kernel[grid](..)`: every program of the grid, in order."""

        def __init__(self, function):
            self.function = function

        def __getitem__(self, grid):
            def launch(*args, **meta):
                args = [Pointer(torch, arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
                for program.id in range(grid(meta)[0]):
                    self.function(*args, **meta)

            return launch

    return tl, triton, Kernel

"""Values of fewer bits than a byte, values that float16 has, and a tensor's bytes. Importing this does not load torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def half_precision(values: torch.Tensor) -> torch.Tensor:
    """The nearest values that float16 has, as float32: infinite beyond 65,504."""
    return values.half().float()


def pack_nibbles(values: torch.Tensor) -> torch.Tensor:
    """Integers 0 … 15 [N, M] → uint8 [N, ceil(M/2)], the first of each pair in the low nibble."""
    import torch

    values = values.to(torch.uint8)
    if values.shape[1] % 2:
        values = torch.nn.functional.pad(values, (0, 1))
    pairs = values.contiguous().view(torch.int16)  # first + 256 · second, on a little-endian machine
    return pairs.bitwise_or(pairs >> 4).to(torch.uint8)  # the low byte: first + 16 · second


def unpack_nibbles(packed: torch.Tensor, count: int) -> torch.Tensor:
    """uint8 [N, ceil(count/2)] → uint8 [N, count]."""
    import torch

    both = torch.stack((packed & 0x0F, packed >> 4), dim=-1)
    return both.view(packed.shape[0], -1)[:, :count]


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, without a copy where it is contiguous."""
    import torch

    array: Any = tensor.contiguous().view(torch.uint8).numpy()
    return memoryview(array).cast("B")

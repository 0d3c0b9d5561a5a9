"""Values of fewer bits than a byte, values that float16 has, and a tensor's bytes. Importing this does not load torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def half_precision(values: torch.Tensor) -> torch.Tensor:
    """The nearest values that float16 has, as float32: infinite beyond 65,504."""
    return values.half().float()


def rounded_up(count: int, multiple: int) -> int:
    """The least multiple that is not below."""
    return -(-count // multiple) * multiple


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


def pack_bits(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers 0 … 2^bits - 1 [N, M] → uint8 [N, ceil(M · bits / 8)]: value i of a row in its bits i · bits and up, counted
    from the lowest of its first byte. bits: 1 … 8."""
    import torch

    if bits in (4, 8):
        return pack_nibbles(values) if bits == 4 else values.to(torch.uint8)
    rows, count = values.shape
    eights = torch.nn.functional.pad(values.to(torch.uint8), (0, -count % 8)).view(rows, -1, 8)
    together = torch.zeros(eights.shape[:2], dtype=torch.int64)
    for i in range(8):
        together |= eights[..., i].long() << (bits * i)
    packed = together[..., None].view(torch.uint8)[..., :bits]  # the lower bytes, on a little-endian machine
    return packed.reshape(rows, -1)[:, : -(-count * bits // 8)].contiguous()


def unpack_bits(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The inverse of `pack_bits`: uint8 [N, ceil(count · bits / 8)] → uint8 [N, count]."""
    import torch

    if bits in (4, 8):
        return unpack_nibbles(packed, count) if bits == 4 else packed[:, :count]
    rows, size = packed.shape
    groups = torch.nn.functional.pad(packed, (0, -size % bits)).view(rows, -1, bits)
    together = torch.nn.functional.pad(groups, (0, 8 - bits)).view(torch.int64)
    mask = (1 << bits) - 1
    values = torch.cat([((together >> (bits * i)) & mask).to(torch.uint8) for i in range(8)], dim=-1)
    return values.view(rows, -1)[:, :count]


def tensors_of(shapes: Sequence[Sequence[int]], data: memoryview) -> list[torch.Tensor] | None:
    """Float32 tensors whose `tensor_bytes` lie one after the other; None where these are not the bytes of such shapes."""
    import torch

    positive = all(size > 0 for shape in shapes for size in shape)
    if not positive or 4 * sum(map(math.prod, shapes)) != len(data):
        return None
    made, at = [], 0
    for shape in shapes:
        made.append(torch.empty(list(shape)))  # aligned as torch's own: sums may depend on that
        buffer = tensor_bytes(made[-1])
        buffer[:] = data[at : at + len(buffer)]
        at += len(buffer)
    return made


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, without a copy where it is contiguous."""
    import torch

    flat = tensor.contiguous().reshape(-1)  # a last dimension of 1 may have any stride
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array).cast("B")

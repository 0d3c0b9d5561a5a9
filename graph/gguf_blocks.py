"""The blocks of GGUF files that can be taken over: which tensor types, how their bytes lie, and what they are held as.

    Q4_0: w = d · (q - 8), blocks of 32            → int4
    Q4_1: w = d · q + m, blocks of 32              → int4 with an offset
    Q8_0: w = d · q, q in -128 … 127, blocks of 32 → int8
    Q4_K: w = d · s · q - e · m, blocks of 32, eight of which share d and e, float16; s and m have 6 bits
                                                   → int4 with an offset, d · s and e · m rounded to float16

The layouts are those of ggml's ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType

from pocketphi.graph.formats import Int4, Int8
from pocketphi.graph.kept import Grouped, Kept

_BLOCK = 32
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GgufBlocks:
    """One tensor type. unpack: rows as they lie in the file, uint8 [rows, row bytes] → (q uint8 [rows, K], scales, minimums or
    None: float32 [rows, K/32], perhaps not finite)"""

    kept: Kept
    unpack: Callable[[Bytes], tuple[Bytes, Floats, Floats | None]]

    def rows(self, data: Bytes) -> Grouped:
        q, scale, bias = self.unpack(data)
        low = None if bias is None else torch.from_numpy(bias)
        return Grouped(torch.from_numpy(q), torch.from_numpy(scale), self.kept.format.bits, bias=low)


def _halves(data: Bytes) -> Floats:
    """Two bytes each, the last axis: float16 → float32."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)[..., 0]


def _nibbles(packed: Bytes) -> Bytes:
    """Byte j of a block holds elements j (low nibble) and j + its number of bytes (high nibble)."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _q4_0(data: Bytes) -> tuple[Bytes, Floats, Floats | None]:
    blocks = data.reshape(len(data), -1, 2 + _BLOCK // 2)
    return _nibbles(blocks[..., 2:]).reshape(len(data), -1), _halves(blocks[..., :2]), None


def _q4_1(data: Bytes) -> tuple[Bytes, Floats, Floats | None]:
    blocks = data.reshape(len(data), -1, 4 + _BLOCK // 2)
    return _nibbles(blocks[..., 4:]).reshape(len(data), -1), _halves(blocks[..., :2]), _halves(blocks[..., 2:4])


def _q8_0(data: Bytes) -> tuple[Bytes, Floats, Floats | None]:
    blocks = data.reshape(len(data), -1, 2 + _BLOCK)
    return (blocks[..., 2:] ^ np.uint8(0x80)).reshape(len(data), -1), _halves(blocks[..., :2]), None


def _q4_k(data: Bytes) -> tuple[Bytes, Floats, Floats | None]:
    """Bytes of eight blocks: d, e, twelve of s and m, 128 of q, of which 32 hold two blocks.

    The first four s and m are the lower 6 bits of bytes 0 … 3 and 4 … 7; of the others, the lower 4 bits are those of bytes
    8 … 11 (s in the low nibbles), the upper 2 the highest of bytes 0 … 3 and 4 … 7.
    """
    blocks = data.reshape(len(data), -1, 144)
    six = blocks[..., 4:16]
    first, second, both = six[..., :4], six[..., 4:8], six[..., 8:]
    s = np.concatenate([first & 63, both & 15 | first >> 6 << 4], axis=-1)
    m = np.concatenate([second & 63, both >> 4 | second >> 6 << 4], axis=-1)
    scale, low = _halves(blocks[..., :2])[..., None] * s, _halves(blocks[..., 2:4])[..., None] * m
    q = _nibbles(blocks[..., 16:].reshape(len(data), -1, 4, _BLOCK))
    return q.reshape(len(data), -1), scale.reshape(len(data), -1), -low.reshape(len(data), -1)


_ROUNDS = "scales and minimums, products of a float16 and 6 bits, are rounded to float16; values are kept as they are"
BLOCKS = {
    GGMLQuantizationType.Q4_0: GgufBlocks(Kept(Int4, _BLOCK), _q4_0),
    GGMLQuantizationType.Q4_1: GgufBlocks(Kept(Int4, _BLOCK, "offset"), _q4_1),
    GGMLQuantizationType.Q8_0: GgufBlocks(Kept(Int8, _BLOCK), _q8_0),
    GGMLQuantizationType.Q4_K: GgufBlocks(Kept(Int4, _BLOCK, "offset", _ROUNDS), _q4_k),
}

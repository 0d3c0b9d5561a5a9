"""Products with stored weights: decoded in pieces that fit a core's cache, on worker threads, kept where memory allows.

Measured on one core of a 2023 server CPU, per weight and token: int4 0.4 ns, with each weight rounded to float16 0.6 ns; a
kept float32 matrix 0.4 ns, as it does not fit a cache. Torch's own threads are not used: they wait for each other after each
of the many short steps.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from pocketphi.targets.coreml.raw import for_kernel
from pocketphi.targets.coreml.weights import Blockwise, Known, Stored, Weight, pick_blocks

_PIECE = 1 << 18
"""Weights in a piece: 0.9 MB of buffers. Half of it takes a fifth more time, four times it as well."""
_ALONE = 1 << 19
"""Below this many weights a product is not worth a second thread."""


class Streamer:
    """threads: workers for products; keep_bytes: memory for decoded weights, kept from their first use on.

    keep_products: also those that a product could decode in pieces. To keep but a part of them gains nothing.
    """

    def __init__(self, threads: int, keep_bytes: int, keep_products: bool) -> None:
        self.threads = threads
        self._left = keep_bytes
        self._keep_products = keep_products
        self._kept: dict[Hashable, Tensor] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._buffers = threading.local()

    def dense(self, weight: Weight) -> Tensor:
        """All of a weight, in the type that kernels compute with: float32 or int64, or bool."""
        kept = self._kept.get(weight.key)
        if kept is not None:
            return kept
        value = for_kernel(weight.dense())
        size = value.numel() * value.itemsize
        if size <= self._left:
            self._left -= size
            self._kept[weight.key] = value
        return value

    def product(self, weight: Weight, x: Tensor) -> Tensor:
        """x float32 [..., K] · weight [N, K]ᵀ → float32 [..., N]."""
        rows, columns = weight.shape
        if x.shape[-1] != columns:
            raise ValueError(f"a product of {list(x.shape)} with a weight [{rows}, {columns}] transposed")
        flat = x.reshape(-1, columns)
        plain = isinstance(weight, Stored) and weight.raw.dtype == "fp32"
        if plain or weight.key in self._kept or self._fits(weight):
            return torch.nn.functional.linear(x, weight.dense() if plain else self.dense(weight))
        out = torch.empty(rows, flat.shape[0])
        if is_nibbles(weight):
            assert isinstance(weight, Blockwise)
            nibbles, even, odd = weight, flat[:, ::2].t().contiguous(), flat[:, 1::2].t().contiguous()
            self._over_rows(weight, lambda a, b: self._nibbles(nibbles, even, odd, out, a, b))
        else:
            turned = flat.t().contiguous()
            self._over_rows(weight, lambda a, b: torch.mm(weight.rows(a, b).float(), turned, out=out[a:b]))
        return out.t().reshape(*x.shape[:-1], rows)

    def product_of_rows(self, weight: Weight, x: Tensor) -> Tensor:
        """x float32 [..., K] · weight [K, N] → float32 [..., N]."""
        rows, columns = weight.shape
        if x.shape[-1] != rows:
            raise ValueError(f"a product of {list(x.shape)} with a weight [{rows}, {columns}]")
        if weight.key in self._kept or self._fits(weight):
            return x @ self.dense(weight)
        flat, lock = x.reshape(-1, rows), threading.Lock()
        out = torch.zeros(flat.shape[0], columns)

        def add(start: int, stop: int) -> None:
            part = flat[:, start:stop] @ weight.rows(start, stop).float()
            with lock:
                out.add_(part)

        self._over_rows(weight, add)
        return out.view(*x.shape[:-1], columns)

    def _nibbles(self, weight: Blockwise, even: Tensor, odd: Tensor, out: Tensor, start: int, stop: int) -> None:
        """Rows [start, stop) of a product with four-bit weights, without putting the two values of a byte side by side.

        even, odd: x's columns, [K/2, M]. With the value in a byte's high bits (masked, or shifted there) the byte is 16
        times it, and so the scale is divided by 16, exactly.
        """
        rows, blocks = stop - start, weight.scale.shape[1]
        size = (rows, blocks, weight.shape[1] // blocks // 2)
        assert isinstance(weight.data, Stored)
        kind = torch.int8 if weight.data.raw.dtype == "int4" else torch.uint8
        data = weight.data.raw.rows(start, stop).data.view(kind).view(size)
        high, values, rounded = self._buffer("b", kind, size), self._buffer("f", torch.float32, size), None
        if weight.half:
            rounded = self._buffer("h", torch.float16, size)
        block = weight.shape[0] // weight.scale.shape[0]
        scale = pick_blocks(weight.scale, slice(start, stop), block).float().unsqueeze(-1)
        shift = None
        if weight.offset is not None:
            shift = pick_blocks(weight.offset, slice(start, stop), block).float().unsqueeze(-1) * scale
        sixteenth = scale / 16
        for first, x in ((True, even), (False, odd)):
            if first:
                torch.bitwise_left_shift(data, 4, out=high)
            else:
                torch.bitwise_and(data, -16 if kind == torch.int8 else 0xF0, out=high)
            values.copy_(high)
            values.mul_(sixteenth)
            if shift is not None:
                values.sub_(shift)
            if rounded is not None:
                rounded.copy_(values)
                values.copy_(rounded)
            matrix, part = values.view(rows, -1), out[start:stop]
            if x.shape[1] == 1:
                line, vector = part.view(-1), x.view(-1)
                torch.mv(matrix, vector, out=line) if first else line.addmv_(matrix, vector)
            else:
                torch.mm(matrix, x, out=part) if first else part.addmm_(matrix, x)

    def _buffer(self, name: str, kind: torch.dtype, size: tuple[int, ...]) -> Tensor:
        """Memory of this thread, used again and again."""
        count = size[0] * size[1] * size[2]
        held = getattr(self._buffers, name + str(kind), None)
        if held is None or held.numel() < count:
            held = torch.empty(max(count, _PIECE // 2), dtype=kind)
            setattr(self._buffers, name + str(kind), held)
        return held[:count].view(size)

    def _over_rows(self, weight: Weight, work: Callable[[int, int], object]) -> None:
        """Call `work(start, stop)` for pieces that cover the rows, each thread a run of them."""
        rows = weight.shape[0]
        step = max(1, _PIECE // max(1, weight.count // rows))

        def run(first: int, last: int) -> None:
            for start in range(first, last, step):
                work(start, min(start + step, last))

        if self.threads < 2 or weight.count < _ALONE:
            run(0, rows)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))
        cuts = [rows * i // self.threads for i in range(self.threads + 1)]
        for future in [self._pool.submit(run, a, b) for a, b in itertools.pairwise(cuts)]:
            future.result()

    def _fits(self, weight: Weight) -> bool:
        return self._keep_products and weight.count * 4 <= self._left


class Held:
    """A weight as kernels see it: with its shape, and decoded or multiplied by a `Streamer`."""

    def __init__(self, weight: Weight, streamer: Streamer) -> None:
        self.weight, self.shape = weight, weight.shape
        self.dense = functools.partial(streamer.dense, weight)
        self.product = functools.partial(streamer.product, weight)
        self.product_of_rows = functools.partial(streamer.product_of_rows, weight)

    def take(self, index: Tensor) -> Tensor:
        """Rows by number, decoded: float32, int64 or bool."""
        return for_kernel(self.weight.pick(index))


def is_nibbles(weight: Weight) -> bool:
    """Whether the fast product applies: a matrix of stored four-bit values in blocks of even length along its rows."""
    if not isinstance(weight, Blockwise) or not isinstance(weight.data, Stored) or len(weight.shape) != 2:
        return False
    parameters = (weight.scale, weight.offset) if weight.offset is not None else (weight.scale,)
    block = weight.shape[1] // weight.scale.shape[1]
    stored = all(isinstance(p, Stored | Known) for p in parameters)
    return stored and weight.data.raw.dtype in ("int4", "uint4") and block % 2 == 0

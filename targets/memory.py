"""What a model takes in memory while a runtime runs it: weights as they lie there, what the runtime keeps besides, the cache,
what a prompt needs on the way through. Plain arithmetic: no graph, no torch.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pocketphi.graph.config import EMBEDDING, ModelConfig
from pocketphi.graph.formats import Layout
from pocketphi.graph.packing import rounded_up


@dataclass(frozen=True)
class Runtime:
    """What a runtime does with a model.

    float_bytes: of a norm's weight, a rotary value or a scale; activation_bytes: of a hidden value; buffers: how many times the
    tensors of a layer are held at once; scale_copies: of the scales, beyond the one in the file, and one more of those that lie
    there in eight bits; fixed: bytes of the runtime itself; chunk: tokens that go through at once, None for a whole prompt;
    kv_per_token: bytes of keys and values over all layers; kv_multiple: of which the cache's rows are a multiple; kv_most: its
    rows at most, where it keeps the newest tokens alone; tables_end: whether the rotary tables end with the cache;
    mask_bytes: of each pair of a new token and a token so far, where a mask of all heads is held
    """

    float_bytes: int
    activation_bytes: int
    buffers: float
    fixed: int
    chunk: int | None
    kv_per_token: int
    kv_multiple: int = 1
    kv_most: int | None = None
    scale_copies: int = 0
    tables_end: bool = False
    mask_bytes: int = 0


@dataclass(frozen=True)
class Footprint:
    """Bytes while a model runs.

    files: the weights as saved; weights: what the runtime keeps of them; packing: the largest matrix, there twice while it is
    packed; read_per_token: weights that each new token reads; kv_per_token: of the cache, whose rows are a multiple of
    kv_multiple, at most kv_most; activations: of the longest piece of a prompt; fixed: the runtime; context: tokens that are
    planned for
    """

    files: int
    weights: int
    packing: int
    read_per_token: int
    kv_per_token: int
    kv_multiple: int
    activations: int
    fixed: int
    context: int
    kv_most: int | None = None

    def with_adapters(self, sizes: Collection[int]) -> Footprint:
        """The same with adapters of so many bytes, all of which an app may load; a token reads those of one."""
        weights, read = self.weights + sum(sizes), self.read_per_token + max(sizes, default=0)
        return dataclasses.replace(self, weights=weights, read_per_token=read)

    def kv_cache(self, context: int | None = None) -> int:
        """Bytes of a cache for so many tokens, or for those that are planned for."""
        tokens = self.context if context is None else context
        rows = tokens if self.kv_most is None else min(tokens, self.kv_most)
        return rounded_up(rows, self.kv_multiple) * self.kv_per_token

    def total(self, context: int | None = None) -> int:
        """Bytes at the peak, with a cache of `context` tokens: while it is loaded, or while it runs."""
        return self.weights + self.fixed + max(self.packing, self.activations + self.kv_cache(context))

    def largest_context(self, available: int) -> int:
        """Tokens that fit, any number of them where the cache keeps the newest; 0 where not even the weights do."""
        left = available - self.weights - self.fixed
        tokens = (left - self.activations) // self.kv_per_token
        if left >= self.packing and self.kv_most is not None and tokens >= self.kv_most:
            return sys.maxsize
        return 0 if left < self.packing else max(0, tokens // self.kv_multiple * self.kv_multiple)

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "kv_cache": self.kv_cache(), "total": self.total()}


@dataclass(frozen=True)
class Matrix:
    """A quantized weight as a target keeps it: bytes in its file, bytes of the values alone, how many scales it has, and how
    many scales and offsets are multiples of their row's."""

    bytes: int
    values: int
    scales: int
    by_row: int

    @staticmethod
    def of(layout: Layout, held: int) -> Matrix:
        """held: what it takes in the file."""
        scales = math.prod(layout["scale"].shape) if "scale" in layout else 0
        by_row = scales * sum(unit in layout for unit in ("row_scale", "row_offset"))
        return Matrix(held, next(iter(layout.values())).bytes, scales, by_row)


def footprint_of(
    config: ModelConfig, runtime: Runtime, matrices: Mapping[str, Matrix], longest: int, held: int, prompt: int
) -> Footprint:
    """matrices: the quantized weights by name; longest, held: tokens that the files are for, and that the cache holds; prompt:
    the longest text that is read at once."""
    read = {
        n: matrix for n, matrix in matrices.items() if config.tied_embeddings or n != EMBEDDING
    }  # of others only rows
    norms = sum(math.prod(shape) for shape in config.tensors().values() if len(shape) == 1) * runtime.float_bytes
    positions = rounded_up(held, runtime.kv_multiple) if runtime.tables_end else longest
    files = sum(matrix.bytes for matrix in matrices.values()) + norms
    files += _rotary_bytes(config, positions, longest, runtime)
    of_read = sum(matrix.bytes for matrix in read.values())
    looked_up = sum(matrix.bytes for matrix in matrices.values()) - of_read
    piece = min(prompt, held, runtime.chunk or held)
    per_token = sum(int(matrix.bytes * _share(config, name)) for name, matrix in read.items())
    scales = sum(matrix.scales for matrix in read.values()) * runtime.float_bytes
    expanded, expanded_of_read = (
        sum(matrix.by_row for matrix in some.values()) * runtime.float_bytes if runtime.scale_copies else 0
        for some in (matrices, read)
    )
    return Footprint(
        files=files,
        weights=files - looked_up + runtime.scale_copies * scales + expanded,
        packing=max(matrix.values for matrix in read.values()) if runtime.scale_copies else 0,
        read_per_token=per_token + norms + expanded_of_read,
        kv_per_token=runtime.kv_per_token,
        kv_multiple=runtime.kv_multiple,
        activations=_activations(config, piece, runtime) + piece * held * runtime.mask_bytes,
        fixed=runtime.fixed,
        context=held,
        kv_most=runtime.kv_most,
    )


def _share(config: ModelConfig, name: str) -> float:
    """Of a matrix, what a token reads: all of it, or the rows of its experts."""
    count = config.experts_of(name)
    return config.experts.chosen / count if config.experts and count > 1 else 1.0


def _rotary_bytes(config: ModelConfig, positions: int, longest: int, runtime: Runtime) -> int:
    """Sine and cosine of each position; LongRoPE's short rows lie before them where a text can be longer.

    positions: rows of a table; longest: text that the program is made for
    """
    original = config.long_rope.original_max_position if config.long_rope else longest
    rows = positions + (original if original < longest and positions > original else 0)
    return rows * config.rotary_dim * runtime.float_bytes


def _activations(config: ModelConfig, tokens: int, runtime: Runtime) -> int:
    """The tensors between a layer's operators: five as wide as the model, the packed q, k, v, and the MLP's three halves; of
    experts, those of each that a token goes through, and what they make."""
    width = 5 * config.hidden_size + config.qkv_size + 3 * config.intermediate_size
    if config.experts:
        width += (config.experts.chosen - 1) * 3 * config.intermediate_size + config.experts.chosen * config.hidden_size
    return int(runtime.buffers * tokens * width * runtime.activation_bytes) + 4 * config.vocab_size

"""How much memory a model takes while it runs, from its config and options alone: weights as they lie in memory, what each
runtime keeps besides, the cache, what a prompt needs on the way through. Every command that speaks of memory asks here.

The numbers of ONNX Runtime 1.32 (`benchmarks/footprint.py` measures again) and of our TVM runtime were measured on x86;
Core ML's follow from the package, and have not been measured on a device. What a cached value takes is in
`targets/kv_cache.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.options import CompileOptions, eight_bit_weights
from pocketphi.graph.config import EMBEDDING, ModelConfig, read_config
from pocketphi.graph.errors import InputError
from pocketphi.targets.coreml.form import DEFAULT_CHUNK, DEFAULT_CONTEXT
from pocketphi.targets.kv_cache import kv_cache_bytes
from pocketphi.targets.ort_mobile.prefill import chunk_of

if TYPE_CHECKING:
    from pocketphi.graph.checkpoint import Checkpoint

_ENTRIES = 16
"""Values of a palette's table, as `graph.palette` has them."""
PROMPT = 512
"""Tokens of the longest prompt that is planned for, unless the user says another number."""


@dataclass(frozen=True)
class Runtime:
    """What a runtime does with a model.

    scale_bytes, offset_bytes, float_bytes: of a block's scale and offset, of a norm's weight or a rotary value; zero_bytes: of
    the zero points of rows × blocks; activation_bytes: of a hidden value; buffers: how many times the tensors of a layer are
    held at once; scale_copies: of the scales, beyond the one in the file; fixed: bytes of the runtime itself; chunk: tokens
    that go through at once, None for a whole prompt; kv_multiple: of which the cache's rows are a multiple, None for the
    chunk; context: tokens that are planned for where nobody asked; weights_file: of a bundle; measured: where
    """

    scale_bytes: int
    offset_bytes: int
    float_bytes: int
    zero_bytes: Callable[[int, int], int]
    activation_bytes: int
    buffers: float
    scale_copies: int
    fixed: int
    chunk: int | None
    kv_multiple: int | None
    context: int
    weights_file: str
    measured: str


RUNTIMES: Mapping[str, Runtime] = {
    "ort-mobile": Runtime(
        scale_bytes=4,
        offset_bytes=4,
        float_bytes=4,
        zero_bytes=lambda rows, blocks: rows * math.ceil(blocks / 2),
        activation_bytes=4,
        buffers=1.9,
        scale_copies=2,  # the packed weights hold them again, with sums of blocks for int8 activations; the mapped ones stay
        fixed=22_500_000,
        chunk=None,  # `chunk_of` says it: whole prompts only where LongRoPE may change inside of one
        kv_multiple=1,
        context=4096,  # the app asks for as many (`max_length`)
        weights_file="model.onnx.data",
        measured="with onnxruntime 1.32 on x86",
    ),
    "coreml": Runtime(
        scale_bytes=2,
        offset_bytes=2,
        float_bytes=2,
        zero_bytes=lambda rows, blocks: math.ceil(rows * blocks / 2),
        activation_bytes=2,
        buffers=2.0,
        scale_copies=0,
        fixed=20_000_000,
        chunk=DEFAULT_CHUNK,
        kv_multiple=None,
        context=DEFAULT_CONTEXT,  # in the package
        weights_file="model.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
        measured="nowhere: an estimate",
    ),
    "tvm-arm": Runtime(
        scale_bytes=2,
        offset_bytes=4,
        float_bytes=4,
        zero_bytes=lambda rows, blocks: rows * blocks,
        activation_bytes=4,
        buffers=0.7,
        scale_copies=0,
        fixed=9_300_000,
        chunk=256,
        kv_multiple=16,
        context=4096,  # the app asks for as many (`max_tokens`)
        weights_file="model.params",
        measured="with our runtime on x86",
    ),
}


@dataclass(frozen=True)
class Footprint:
    """Bytes while a model runs.

    files: the weights as saved; weights: what the runtime keeps of them; packing: the largest matrix, there twice while it is
    packed; read_per_token: weights that each new token reads; kv_per_token: of the cache, whose rows are a multiple of
    kv_multiple; activations: of the longest piece of a prompt; fixed: the runtime; context: tokens that are planned for
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

    def kv_cache(self, context: int | None = None) -> int:
        """Bytes of a cache for so many tokens, or for those that are planned for."""
        tokens = self.context if context is None else context
        return _rounded_up(tokens, self.kv_multiple) * self.kv_per_token

    def total(self, context: int | None = None) -> int:
        """Bytes at the peak, with a cache of `context` tokens: while it is loaded, or while it runs."""
        return self.weights + self.fixed + max(self.packing, self.activations + self.kv_cache(context))

    def largest_context(self, available: int) -> int:
        """Tokens of cache that fit; 0 where not even the weights do."""
        left = available - self.weights - self.fixed
        tokens = (left - self.activations) // self.kv_per_token
        return 0 if left < self.packing else max(0, tokens // self.kv_multiple * self.kv_multiple)

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "kv_cache": self.kv_cache(), "total": self.total()}


def footprint(
    config: ModelConfig,
    target: str,
    options: CompileOptions,
    prompt: int = PROMPT,
    context: int | None = None,
    offsets: Collection[str] = (),
) -> Footprint:
    """prompt: the longest text that is read at once; context: tokens of the cache, the options' or the runtime's default if
    None; offsets: weights whose blocks have one (`--recipe keep` of a file in Q4_1)."""
    runtime, shapes = RUNTIMES[target], config.tensors()
    matrices = {n: _matrix(config, n, options, target, n in offsets) for n, shape in shapes.items() if len(shape) == 2}
    sizes = {name: matrix.bytes(runtime) for name, matrix in matrices.items()}
    norms = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 1) * runtime.float_bytes
    longest = min(options.context or config.max_position, config.max_position)
    held = context or (longest if options.context else min(longest, runtime.context))
    chunk = _chunk(config, options, target, longest, held)
    multiple = runtime.kv_multiple or chunk or 1
    # Core ML's tables end where its cache does
    positions = longest if runtime.kv_multiple else _rounded_up(held, multiple)
    files = sum(sizes.values()) + norms + _rotary_bytes(config, positions, longest, runtime)
    embedding = 0 if config.tied_embeddings else sizes.pop(EMBEDDING)  # rows of it are read, no more
    scales = sum(matrices[name].scales for name in sizes) * runtime.scale_bytes
    return Footprint(
        files=files,
        weights=files - embedding + runtime.scale_copies * scales,
        packing=max(matrices[name].value_bytes for name in sizes) if runtime.scale_copies else 0,
        read_per_token=sum(sizes.values()) + norms,
        kv_per_token=kv_cache_bytes(config, target, options.kv_cache),
        kv_multiple=multiple,
        activations=_activations(config, min(prompt, held, chunk or held), runtime),
        fixed=runtime.fixed,
        context=held,
    )


def kept_offsets(source: Checkpoint) -> set[str]:
    """The weights that a file holds in blocks with an offset (Q4_1), and `--recipe keep` leaves so."""
    return {name for name in source.tensors if source.int4_kind(name) == "offset"}


def bundle_footprint(bundle: Bundle, target: str, prompt: int = PROMPT, context: int | None = None) -> Footprint:
    """Of a bundle that there is: its recipe, and its weights at the size that they have."""
    if target not in RUNTIMES:
        raise InputError(f"{bundle.path}: target {target}: expected one of {', '.join(RUNTIMES)}")
    recipe, details = bundle.manifest.recipe, bundle.manifest.targets[target]
    options = CompileOptions(
        "-",
        bundle.path,
        (target,),
        block=recipe.block,
        symmetric=recipe.symmetric,
        palette=recipe.palette,
        embedding_bits=recipe.embedding_bits,
        head_bits=recipe.head_bits,
        context=recipe.context if details.context is None else details.context,
        chunk=details.chunk,
        kv_cache=details.kv_cache or "fp16",
    )
    made = footprint(read_config(bundle.path), target, options, prompt, context)
    bundle.file(RUNTIMES[target].weights_file)
    files = bundle.manifest.files[RUNTIMES[target].weights_file].bytes
    return dataclasses.replace(made, files=files, weights=made.weights + files - made.files)


@dataclass(frozen=True)
class _Matrix:
    """A quantized weight as a target keeps it.

    rows: with those that fill up a vector; bits: of a value; block: values in a row that share a scale; tables: those of a
    palette, in place of scales; zeros, offsets: whether blocks have these as well
    """

    rows: int
    columns: int
    bits: int
    block: int
    tables: int = 0
    zeros: bool = False
    offsets: bool = False

    @property
    def value_bytes(self) -> int:
        return self.rows * self.columns * self.bits // 8

    @property
    def scales(self) -> int:
        return 0 if self.tables else self.rows * (self.columns // self.block)

    def bytes(self, runtime: Runtime) -> int:
        """As it lies in the file, and in memory where that is mapped."""
        zeros = runtime.zero_bytes(self.rows, self.columns // self.block) if self.zeros else 0
        offsets = self.scales * runtime.offset_bytes if self.offsets else 0
        return self.value_bytes + (self.scales + _ENTRIES * self.tables) * runtime.scale_bytes + zeros + offsets


def _matrix(config: ModelConfig, name: str, options: CompileOptions, target: str, offsets: bool) -> _Matrix:
    """How a weight of the checkpoint is stored, by the options."""
    rows, columns = config.tensors()[name]
    if name in eight_bit_weights(options, config):
        return _Matrix(rows, columns, 8, (0 if options.palette else options.block) or columns)
    if options.palette:
        return _Matrix(rows, columns, 4, columns, tables=rows // options.palette)
    rows = _rounded_up(rows, _lanes(options)) if target == "tvm-arm" else rows
    return _Matrix(rows, columns, 4, options.block or columns, 0, not options.symmetric and not offsets, offsets)


def _lanes(options: CompileOptions) -> int:
    """Rows of a vector, to whose multiple TVM's matrices are filled up."""
    from pocketphi.targets.tvm_arm.platform import Platform

    return Platform.of(options.os, options.cpu).isa.lanes


def _chunk(config: ModelConfig, options: CompileOptions, target: str, longest: int, held: int) -> int | None:
    """Tokens of a prompt that go through at once; None for all of them.

    longest, held: tokens that the files are for, and that the cache holds
    """
    if target == "ort-mobile":
        return chunk_of(config, longest)
    chunk = RUNTIMES[target].chunk
    return min(options.chunk or chunk or held, held) if target == "coreml" else chunk


def _rotary_bytes(config: ModelConfig, positions: int, longest: int, runtime: Runtime) -> int:
    """Sine and cosine of each position; LongRoPE's short rows lie before them where a text can be longer.

    positions: rows of a table; longest: text that the program is made for
    """
    original = config.long_rope.original_max_position if config.long_rope else longest
    rows = positions + (original if original < longest and positions > original else 0)
    return rows * config.rotary_dim * runtime.float_bytes


def _activations(config: ModelConfig, tokens: int, runtime: Runtime) -> int:
    """The tensors between a layer's operators: five as wide as the model, the packed q, k, v, and the MLP's three halves."""
    width = 5 * config.hidden_size + config.qkv_size + 3 * config.intermediate_size
    return int(runtime.buffers * tokens * width * runtime.activation_bytes) + 4 * config.vocab_size


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple

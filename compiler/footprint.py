"""How much memory a model takes while it runs, from its config alone: what each runtime keeps of the weights, the cache, what a
prompt needs on the way through.

The numbers of ONNX Runtime 1.32 (`benchmarks/footprint.py` measures again) and of our TVM runtime were measured on x86;
Core ML's follow from the package, and have not been measured on a device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pocketphi.compiler.options import CompileOptions
from pocketphi.graph.config import ModelConfig
from pocketphi.targets.tvm_arm.kv_cache import KV_CACHES


@dataclass(frozen=True)
class Runtime:
    """What a runtime does with a model.

    scale_bytes, float_bytes: of a block's scale, and of a norm's weight; kv_bytes: of a cached value, None where `--kv-cache`
    says; activation_bytes: of a hidden value; buffers: how many times the tensors of a layer are held at once; scale_copies:
    of the scales, beyond the one in the file; fixed: bytes of the runtime itself; chunk: tokens that go through at once, None
    for a whole prompt; measured: where
    """

    scale_bytes: int
    float_bytes: int
    kv_bytes: int | None
    activation_bytes: int
    buffers: float
    scale_copies: int
    fixed: int
    chunk: int | None
    measured: str


RUNTIMES: Mapping[str, Runtime] = {
    # the packed weights hold the scales again, and with them sums of blocks for int8 activations; the mapped ones stay
    "ort-mobile": Runtime(4, 4, 4, 4, 1.9, 2, 22_500_000, None, "with onnxruntime 1.32 on x86"),
    "coreml": Runtime(2, 2, 2, 2, 2.0, 0, 20_000_000, 64, "nowhere: an estimate"),
    "tvm-arm": Runtime(2, 4, None, 4, 0.7, 0, 9_300_000, 256, "with our runtime on x86"),
}


@dataclass(frozen=True)
class Footprint:
    """Bytes while a model runs.

    files: the weights as saved; weights: what the runtime keeps of them; packing: the largest matrix, there twice while it is
    packed; read_per_token: weights that each new token reads; kv_per_token: of the cache; activations: of the longest piece of
    a prompt; fixed: the runtime
    """

    files: int
    weights: int
    packing: int
    read_per_token: int
    kv_per_token: int
    activations: int
    fixed: int

    def total(self, context: int) -> int:
        """Bytes at the peak, with a cache of `context` tokens: while it is loaded, or while it runs."""
        return self.weights + self.fixed + max(self.packing, self.activations + context * self.kv_per_token)

    def largest_context(self, available: int) -> int:
        """Tokens of cache that fit; 0 or less where not even the weights do."""
        return (available - self.total(0)) // self.kv_per_token


def footprint(config: ModelConfig, target: str, options: CompileOptions, context: int, prompt: int) -> Footprint:
    """context: tokens that the position tables and the cache are made for; prompt: the longest text that is read at once."""
    runtime = RUNTIMES[target]
    matrices = {name: shape for name, shape in config.tensors().items() if len(shape) == 2}
    sizes = {name: _int4_bytes(shape, options, runtime) for name, shape in matrices.items()}
    norms = sum(math.prod(shape) for shape in config.tensors().values() if len(shape) == 1) * runtime.float_bytes
    files = sum(sizes.values()) + norms + _rotary_bytes(config, context, runtime)
    embedding = 0 if config.tied_embeddings else sizes.pop("model.embed_tokens.weight")  # rows of it are read, no more
    scales = sum(_scale_bytes(matrices[name], options, runtime) for name in sizes)
    resident = sum(sizes.values()) + norms
    return Footprint(
        files=files,
        weights=files - embedding + runtime.scale_copies * scales,
        packing=max(math.prod(matrices[name]) // 2 for name in sizes) if runtime.scale_copies else 0,
        read_per_token=resident,
        kv_per_token=_kv_per_token(config, options, runtime),
        activations=_activations(config, min(prompt, _chunk(options, runtime) or prompt), runtime),
        fixed=runtime.fixed,
    )


def _kv_per_token(config: ModelConfig, options: CompileOptions, runtime: Runtime) -> int:
    if runtime.kv_bytes is None:
        return KV_CACHES[options.kv_cache].bytes(config, 1)
    return config.kv_cache_bytes(1, runtime.kv_bytes)


def _chunk(options: CompileOptions, runtime: Runtime) -> int | None:
    return runtime.chunk and (options.chunk or runtime.chunk)


def _int4_bytes(shape: tuple[int, ...], options: CompileOptions, runtime: Runtime) -> int:
    """Two values a byte, a scale for each block, and half a byte of zero point where blocks have one."""
    blocks = shape[0] * math.ceil(shape[1] / (options.block or shape[1]))
    zeros = 0 if options.symmetric else math.ceil(blocks / 2)
    return shape[0] * shape[1] // 2 + blocks * runtime.scale_bytes + zeros


def _scale_bytes(shape: tuple[int, ...], options: CompileOptions, runtime: Runtime) -> int:
    return shape[0] * math.ceil(shape[1] / (options.block or shape[1])) * runtime.scale_bytes


def _rotary_bytes(config: ModelConfig, context: int, runtime: Runtime) -> int:
    """Sine and cosine of each position; LongRoPE has short rows as well."""
    rows = context + (min(context, config.long_rope.original_max_position) if config.long_rope else 0)
    return rows * config.rotary_dim * runtime.float_bytes


def _activations(config: ModelConfig, tokens: int, runtime: Runtime) -> int:
    """The tensors between a layer's operators: five as wide as the model, the packed q, k, v, and the MLP's three halves."""
    width = 5 * config.hidden_size + config.qkv_size + 3 * config.intermediate_size
    return int(runtime.buffers * tokens * width * runtime.activation_bytes) + 4 * config.vocab_size

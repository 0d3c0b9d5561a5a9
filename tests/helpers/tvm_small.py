"""A small Relax module with the calling convention of a TVM bundle, the bundle around it, and the same model in numpy.

Two caches, written in place: every token adds `embed[token] @ wk` and `embed[token] @ wv` as a row, and reads the products of
all rows so far:  out[h, d] = Σⱼ k[h, j, d] · v[h, j, d],  logits = out @ wo.  In place of LongRoPE, keys are doubled when more
than `long_after` tokens are there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

VOCAB, HIDDEN, HEADS, DIM, CONTEXT, CHUNK = 96, 16, 2, 8, 48, 8
WIDTH = HEADS * DIM
SHAPES = {"embed": (VOCAB, HIDDEN), "wk": (HIDDEN, WIDTH), "wv": (HIDDEN, WIDTH), "wo": (WIDTH, VOCAB)}
CPU = {
    "x86_64": ({"kind": "llvm", "mcpu": "x86-64-v3"}, ["avx2", "f16c", "fma"]),
    "aarch64": (
        {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76", "mattr": ["+neon", "+dotprod"]},
        ["dotprod"],
    ),
}
"""Architecture → TVM's target, and the features that the bundle declares."""


def small_params(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


class SmallModel:
    """The numpy version. step: logits float32[tokens, VOCAB]. bound: what rounding explains, of the last step."""

    def __init__(self, params: dict[str, np.ndarray], mode: str = "saved", long_after: int | None = None) -> None:
        self.params, self.cache, self.long_after = params, np.float16 if mode == "saved" else np.float32, long_after
        self.tokens: list[int] = []
        self.bound = np.zeros(0)

    def step(self, tokens: list[int]) -> np.ndarray:
        self.tokens += tokens
        absolute = {name: np.abs(value) for name, value in self.params.items()}
        # every sum in another order: half a unit of float32 a term; a key or value on an edge of float16 falls either way
        terms = HIDDEN + len(self.tokens) + WIDTH
        epsilon = terms * 2.0**-24 + (2 * 2.0**-10 if self.cache is np.float16 else 0)
        self.bound = epsilon * self._logits(absolute, np.float32)[-len(tokens) :]
        return self._logits(self.params, self.cache)[-len(tokens) :]

    def _logits(self, p: dict[str, np.ndarray], cache: type) -> np.ndarray:
        rows = p["embed"][self.tokens]
        factor = 2 if self.long_after and len(self.tokens) > self.long_after else 1
        k, v = ((rows @ w).astype(cache).astype(np.float32) for w in (factor * p["wk"], p["wv"]))
        return np.cumsum(k * v, axis=0, dtype=np.float32) @ p["wo"]


def write_small_bundle(
    folder: Path,
    toolchain: Any,
    params: dict[str, np.ndarray],
    long_after: int | None = None,
    system_lib: str = "",
    extra_bytes: int = 0,
) -> Path:
    """model.so (or an archive), model.params, model.json. extra_bytes: of one more parameter that no function reads."""
    import tvm

    folder.mkdir(parents=True)
    table, digest, size = write_params(folder / "model.params", params, extra_bytes)
    target, features = CPU[toolchain.arch]
    description = {
        "format": 1,
        "target": {"os": "linux", "arch": toolchain.arch, "features": features},
        "vocab": VOCAB,
        "context": CONTEXT,
        "chunk": CHUNK,
        "long_rope_after": long_after,
        "cache": {
            "count": 2,
            "shape": {"saved": [HEADS, CONTEXT, DIM], "exact": [HEADS, CONTEXT, DIM]},
            "dtype": {"saved": "float16", "exact": "float32"},
        },
        "functions": {
            "saved": {"prefill": "prefill", "decode": "decode", "prefill_all": "prefill_all"},
            "exact": {
                "prefill": {"name": "prefill_exact", "params": list(range(len(table)))},
                "decode": "decode_exact",
                "prefill_all": "prefill_all_exact",
            },
        },
        "params": table,
        "params_bytes": size,
        "params_digest": digest,
    }
    module = small_module(json.dumps(description), long_after, extra_bytes // 4)
    if system_lib:
        module = module.with_attr("system_lib_prefix", system_lib)
    name = "libmodel.a" if system_lib else "model.so"
    executable = tvm.compile(module, tvm.target.Target(target))
    executable.export_library(str(folder / name), fcompile=toolchain.fcompile)
    (folder / "model.json").write_text(json.dumps({**description, "system_lib": system_lib or None}))
    return folder


def write_params(path: Path, params: dict[str, np.ndarray], extra: int) -> tuple[list[dict[str, Any]], str, int]:
    data, table = b"", []
    for name, value in params.items():
        data += bytes(-len(data) % 64)
        table.append({"name": name, "dtype": "float32", "shape": list(value.shape), "offset": len(data)})
        data += value.tobytes()
    if extra:
        data += bytes(-len(data) % 64)
        table.append({"name": "extra", "dtype": "float32", "shape": [extra // 4], "offset": len(data)})
        data += bytes(extra)
    path.write_bytes(data)
    return table, hashlib.sha256(data).hexdigest(), len(data)


def small_module(description: str, long_after: int | None = None, extra: int = 0) -> Any:
    """prefill, decode, prefill_all and their exact versions, and description, unless that is empty."""
    from tvm import relax
    from tvm.ir import StringImm

    builder = relax.BlockBuilder()
    for mode, dtype in (("", "float16"), ("_exact", "float32")):
        for name in ("prefill", "decode", "prefill_all"):
            _function(builder, name + mode, dtype, long_after, extra)
    if description:
        with builder.function("description", []):
            builder.emit_func_output(StringImm(description))
    return builder.get()


def _function(builder: Any, name: str, dtype: str, long_after: int | None, extra: int) -> None:
    from tvm import relax, tirx

    tokens = 1 if name.startswith("decode") else tirx.Var("s", "int64")
    rows = tirx.Var("rows", "int64")
    cache = relax.TensorType((HEADS, rows, DIM), dtype)
    inputs = [
        relax.Var("tokens", relax.TensorType((tokens,), "int32")),
        relax.Var("position", relax.TensorType((2 if long_after else 1,), "int32")),
    ]
    caches = [relax.Var(n, cache) for n in ("k", "v")]
    shapes = {**SHAPES, "extra": (extra,)} if extra else SHAPES
    params = {n: relax.Var(n, relax.TensorType(shape, "float32")) for n, shape in shapes.items()}
    write, read = (builder.add_func(f, f.__name__) for f in _prim_functions(dtype, long_after or 0))
    with builder.function(name, [*inputs, *caches, *params.values()]):
        with builder.dataflow():
            weights = [params[n] for n in ("embed", "wk", "wv")]
            written = relax.call_tir_inplace(write, [*inputs, *weights, *caches], [5, 6], [cache, cache])
            pair = builder.emit(written)
            k, v = (builder.emit(relax.TupleGetItem(pair, i)) for i in (0, 1))
            result = relax.TensorType((tokens if "_all" in name else 1, VOCAB), "float32")
            out = builder.emit_output(relax.call_tir(read, [*inputs, k, v, params["wo"]], result))
        builder.emit_func_output(out)


def _prim_functions(dtype: str, long_after: int) -> tuple[Any, Any]:
    from tvm.script import tirx as T  # noqa: N812 – the field's name for it

    length = 2 if long_after else 1

    @T.prim_func(private=True, s_tir=True)
    def write(a: T.handle, b: T.handle, c: T.handle, d: T.handle, e: T.handle, f: T.handle, g: T.handle):
        s, rows = T.int64(), T.int64()
        tokens = T.match_buffer(a, (s,), "int32")
        position = T.match_buffer(b, (length,), "int32")
        embed = T.match_buffer(c, (VOCAB, HIDDEN), "float32")
        wk = T.match_buffer(d, (HIDDEN, WIDTH), "float32")
        wv = T.match_buffer(e, (HIDDEN, WIDTH), "float32")
        k = T.match_buffer(f, (HEADS, rows, DIM), dtype)
        v = T.match_buffer(g, (HEADS, rows, DIM), dtype)
        for i in T.parallel(s):
            for j in range(WIDTH):
                sums = T.alloc_buffer((2,), "float32")
                sums[0] = T.float32(0)
                sums[1] = T.float32(0)
                for h in range(HIDDEN):
                    sums[0] = sums[0] + embed[tokens[i], h] * wk[h, j]
                    sums[1] = sums[1] + embed[tokens[i], h] * wv[h, j]
                if T.bool(bool(long_after)) and position[length - 1] > long_after:
                    sums[0] = sums[0] * T.float32(2)
                k[j // DIM, position[0] + i, j % DIM] = T.cast(sums[0], dtype)
                v[j // DIM, position[0] + i, j % DIM] = T.cast(sums[1], dtype)

    @T.prim_func(private=True, s_tir=True)
    def read(a: T.handle, b: T.handle, c: T.handle, d: T.handle, e: T.handle, f: T.handle):
        s, rows, n = T.int64(), T.int64(), T.int64()
        T.match_buffer(a, (s,), "int32")
        position = T.match_buffer(b, (length,), "int32")
        k = T.match_buffer(c, (HEADS, rows, DIM), dtype)
        v = T.match_buffer(d, (HEADS, rows, DIM), dtype)
        wo = T.match_buffer(e, (WIDTH, VOCAB), "float32")
        logits = T.match_buffer(f, (n, VOCAB), "float32")
        for r in range(n):
            sums = T.alloc_buffer((WIDTH,), "float32")
            for j in range(WIDTH):
                sums[j] = T.float32(0)
                for i in range(position[0] + s - n + r + 1):
                    key, value = k[j // DIM, i, j % DIM], v[j // DIM, i, j % DIM]
                    sums[j] = sums[j] + T.cast(key, "float32") * T.cast(value, "float32")
            for c in T.parallel(VOCAB):
                logits[r, c] = T.float32(0)
                for j in range(WIDTH):
                    logits[r, c] = logits[r, c] + sums[j] * wo[j, c]

    return write, read

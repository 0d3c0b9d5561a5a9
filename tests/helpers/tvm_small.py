"""A small Relax module with the calling convention of a TVM bundle, and the same model in numpy.

Two caches, written in place; every token adds `embed[token] @ wk` and `embed[token] @ wv` as a row, and reads the products
of all rows so far:  out[h, d] = Σⱼ k[h, j, d] · v[h, j, d]  and  logits = out @ wo.  With LongRoPE's rule the keys are doubled
once more than `long_after` tokens are there.
"""

from __future__ import annotations

import numpy as np

VOCAB, HIDDEN, HEADS, DIM, CONTEXT, CHUNK = 96, 16, 2, 8, 48, 8
WIDTH = HEADS * DIM
SHAPES = {"embed": (VOCAB, HIDDEN), "wk": (HIDDEN, WIDTH), "wv": (HIDDEN, WIDTH), "wo": (WIDTH, VOCAB)}


def small_params(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


class SmallModel:
    """The numpy version. step: logits float32[tokens, VOCAB]."""

    def __init__(self, params: dict[str, np.ndarray], cache: type = np.float16, long_after: int | None = None) -> None:
        self.params, self.cache, self.long_after = params, cache, long_after
        self.tokens: list[int] = []

    def step(self, tokens: list[int]) -> np.ndarray:
        self.tokens += tokens
        p, rows = self.params, self.params["embed"][self.tokens]
        factor = 2 if self.long_after and len(self.tokens) > self.long_after else 1
        k, v = ((rows @ w).astype(self.cache).astype(np.float32) for w in (factor * p["wk"], p["wv"]))
        return (np.cumsum(k * v, axis=0, dtype=np.float32) @ p["wo"])[-len(tokens) :]


def small_module(digest: str, long_after: int | None = None, every_position: bool = True):
    """An IRModule with prefill, decode, prefill_all and their exact versions, and params_digest."""
    from tvm import relax
    from tvm.ir import StringImm

    builder = relax.BlockBuilder()
    for mode, dtype in (("", "float16"), ("_exact", "float32")):
        for name in ("prefill", "decode", "prefill_all"):
            if name != "prefill_all" or every_position:
                _function(builder, name + mode, dtype, long_after)
    with builder.function("params_digest", []):
        builder.emit_func_output(StringImm(digest))
    return builder.get()


def _function(builder, name: str, dtype: str, long_after: int | None) -> None:
    from tvm import relax, tirx

    tokens = 1 if name.startswith("decode") else tirx.Var("s", "int64")
    rows = tirx.Var("rows", "int64")
    result = tokens if "_all" in name else 1

    def tensor(shape: tuple, kind: str) -> relax.TensorType:
        return relax.TensorType(shape, kind)

    position = tensor((2 if long_after else 1,), "int32")
    cache = tensor((HEADS, rows, DIM), dtype)
    inputs = [relax.Var("tokens", tensor((tokens,), "int32")), relax.Var("position", position)]
    caches = [relax.Var(n, cache) for n in ("k", "v")]
    params = {n: relax.Var(n, tensor(shape, "float32")) for n, shape in SHAPES.items()}
    write, read = prim_functions(dtype, long_after or 0)
    with builder.function(name, [*inputs, *caches, *params.values()]):
        with builder.dataflow():
            weights = [params[n] for n in ("embed", "wk", "wv")]
            changed = builder.emit(
                relax.call_tir_inplace(
                    builder.add_func(write, "write_" + name), [*inputs, *weights, *caches], [5, 6], [cache, cache]
                )
            )
            k, v = (builder.emit(relax.TupleGetItem(changed, i)) for i in (0, 1))
            logits = relax.call_tir(
                builder.add_func(read, "read_" + name),
                [*inputs, k, v, params["wo"]],
                tensor((result, VOCAB), "float32"),
            )
            out = builder.emit_output(logits)
        builder.emit_func_output(out)


def prim_functions(dtype: str, long_after: int):
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
                    sums[j] = sums[j] + T.cast(k[j // DIM, i, j % DIM], "float32") * T.cast(
                        v[j // DIM, i, j % DIM], "float32"
                    )
            for c in T.parallel(VOCAB):
                logits[r, c] = T.float32(0)
                for j in range(WIDTH):
                    logits[r, c] = logits[r, c] + sums[j] * wo[j, c]

    return write, read

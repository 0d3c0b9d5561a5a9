"""Decode in Phi-3-small's attention on `tvm-arm`: a block-sparse layer against a dense one, over full-size caches.

    python benchmarks/sparse_attention.py [--tokens 8192] [--cache fp16] [--isa avx2] [--calls 40]

Of one layer: 32 heads over 8, 128 dimensions, blocks of 64, 16 of them near, every eighth beyond. Both kernels run in turn, so
that what else the machine does falls on both; each call writes a token and attends to all before it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import preflight

preflight.require(__file__)

import numpy as np  # noqa: E402 - tvm may be missing
import tvm  # noqa: E402

from pocketphi.graph.published import PUBLISHED  # noqa: E402
from pocketphi.targets.tvm_arm.isa import ISAS, Isa  # noqa: E402
from pocketphi.targets.tvm_arm.kernels.attention import AttentionForm, attention  # noqa: E402
from pocketphi.targets.tvm_arm.kv_cache import KV_CACHES  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="*", default=[1024, 4096, 8192])
    parser.add_argument("--cache", choices=KV_CACHES, default="fp16")
    parser.add_argument("--isa", choices=ISAS, default="avx2")
    parser.add_argument("--calls", type=int, default=40)
    asked = parser.parse_args()
    for tokens in asked.tokens:
        dense, sparse = measured(ISAS[asked.isa], tokens, asked.cache, asked.calls)
        print(f"{tokens:6} tokens, {asked.cache}: dense {dense:.2f} ms, sparse {sparse:.2f} ms, {dense / sparse:.2f} ×")


def measured(isa: Isa, tokens: int, cache: str, calls: int) -> tuple[float, float]:
    """Milliseconds of a call, the medians: dense, sparse."""
    config, kind = PUBLISHED["phi-3-small-8k"], KV_CACHES[cache]
    if config.sparse is None:
        raise SystemExit("the published shape is not block-sparse")
    pattern = (config.sparse.block, config.sparse.local, config.sparse.stride, config.sparse.step)
    rng = np.random.default_rng(0)
    shape = (config.kv_heads, tokens, kind.row(config.head_dim))
    random = rng.integers(-127, 128, shape) if kind.dtype == "int8" else rng.standard_normal(shape)
    caches = [tvm.runtime.tensor(random.astype(kind.dtype)) for _ in range(2)]
    tables = [tvm.runtime.tensor(np.ones((tokens, config.head_dim // 2), np.float32)) for _ in range(2)]
    qkv = tvm.runtime.tensor(rng.standard_normal((1, config.qkv_size)).astype(np.float32))
    out = tvm.runtime.tensor(np.zeros((1, config.hidden_size), np.float32))
    position = tvm.runtime.tensor(np.array([tokens - 1], np.int32))
    kernels = [
        _kernel(isa, AttentionForm(**_sizes(config, tokens), cache=kind, single=True, sparse=s))
        for s in (None, pattern)
    ]
    times: tuple[list[float], list[float]] = ([], [])
    for call in range(calls + 5):
        for kernel, found in zip(kernels, times):
            start = time.perf_counter()
            kernel(qkv, *caches, *tables, position, out)
            if call >= 5:
                found.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])


def _sizes(config: Any, tokens: int) -> dict[str, Any]:
    dim = config.head_dim
    sizes = {"heads": config.heads, "kv_heads": config.kv_heads, "dim": dim, "rotary": dim, "table_rows": tokens}
    return {**sizes, "scale": config.own.scale(dim), "window": 0, "long_after": 0}


def _kernel(isa: Isa, form: AttentionForm) -> Any:
    target = tvm.target.Target(isa.target())
    return tvm.compile(tvm.IRModule({"f": attention("f", isa, form)}), target=target)["f"]


if __name__ == "__main__":
    main()

"""What a K/V cache of int8 or int4 costs, and how fast attention over it is. See README.md.

Quality: the float graph of a model with each cache, against the same graph with a cache of float32, over the tokens of a text.
Speed: attention of one layer of Phi-3-mini's shape over caches of some lengths, each type in turn, in the runtime itself.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import preflight

preflight.require(__file__)

import numpy as np  # noqa: E402 - packages may be missing
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
import tvm  # noqa: E402
from common import Bar, print_table  # noqa: E402
from onnx import helper  # noqa: E402

from pocketphi.compiler.known_graphs import KnownGraphs  # noqa: E402
from pocketphi.compiler.measure import Distance  # noqa: E402
from pocketphi.compiler.text import tokens_of, windows  # noqa: E402
from pocketphi.graph.opening import open_checkpoint  # noqa: E402
from pocketphi.graph.program import Weights  # noqa: E402
from pocketphi.graph.published import PUBLISHED  # noqa: E402
from pocketphi.graph.rounded_cache import FixedScales, RoundedCache, observer  # noqa: E402
from pocketphi.passes.cache_scales import TOKENS, measure_scales  # noqa: E402
from pocketphi.passes.calibrate import WINDOW, default_text, held_out_text  # noqa: E402
from pocketphi.targets.ort_mobile import kv_cache as of_ort  # noqa: E402
from pocketphi.targets.tvm_arm.isa import ISAS  # noqa: E402
from pocketphi.targets.tvm_arm.kernels.attention import AttentionForm, attention  # noqa: E402
from pocketphi.targets.tvm_arm.kv_cache import KV_CACHES  # noqa: E402
from pocketphi.targets.tvm_arm.rounded_cache import RowScales, TurnedInt4  # noqa: E402

BARS = {"int8": 0.01, "int4": 0.03}
"""KL added, in nats a token."""
SHAPE = PUBLISHED["phi-3-mini-4k"]
CHUNK = 128
"""Tokens of a prompt's piece."""
_ROWS = 1 << 16
"""Of the rotary tables."""


def quality(model: str, text: str, tokens: int) -> dict[str, Distance]:
    """By target and type of cache: how far it is from one of float32."""
    source = open_checkpoint(model)
    program, _ = KnownGraphs(source).fused(max(tokens, 2048))
    files, config = source.tokenizer_files(), source.config
    measured = windows(tokens_of(None, default_text(), files, config, TOKENS), WINDOW)
    found = measure_scales(program, {}, measured, {8, 4})
    caches: dict[str, RoundedCache] = {
        f"ort-mobile {of_ort}": FixedScales(bits, [(one.keys, one.values) for one in found[bits]])
        for of_ort, bits in (("int8", 8), ("int4", 4))
    }
    caches |= {"tvm-arm int8": RowScales(), "tvm-arm int4": TurnedInt4([one.mean for one in found[4]])}
    asked = torch.tensor([tokens_of(text, "", files, config, tokens)])
    weights, inputs = Weights(program.weights, keep=True), program.prefill_inputs(asked)
    expected = program.run(inputs, weights)["logits"][0]
    distances = {}
    for name, cache in caches.items():
        distances[name] = Distance()
        distances[name].add(expected, program.run(inputs, weights, observer(program, cache))["logits"][0])
        print(f"{name}: KL {distances[name].kl:.4f}, same choice {distances[name].top1:.3f}", file=sys.stderr)
    return distances


def speed(tokens: int, isa: str, calls: int) -> dict[str, tuple[float, float]]:
    """Milliseconds of attention in one layer, by target and cache: of a token, and of a piece of a prompt, with `tokens` tokens
    in the cache afterwards. Medians of calls that are made in turn."""
    makers: Mapping[str, Callable[[int], Callable[[], None]]] = {
        **{f"ort-mobile {name}": lambda count, name=name: _ort(name, tokens, count) for name in of_ort.KV_CACHES},  # type: ignore[misc]
        **{f"tvm-arm {name}": lambda count, name=name: _tvm(name, isa, tokens, count) for name in KV_CACHES},  # type: ignore[misc]
    }
    medians: dict[str, list[float]] = {name: [] for name in makers}
    for count in (1, CHUNK):
        runs = {name: make(count) for name, make in makers.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for call in range(calls + 2):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if call >= 2:
                    times[name].append(1000 * (time.perf_counter() - start))
        for name, one in times.items():
            medians[name].append(statistics.median(one))
    return {name: (decode, prefill) for name, (decode, prefill) in medians.items()}


def _ort(name: str, tokens: int, count: int) -> Callable[[], None]:
    """A call of `GroupQueryAttention` on one thread: `count` new tokens, the last of which is number `tokens`."""
    kind = of_ort.KV_CACHES[name]
    heads, dim, rng = SHAPE.heads, SHAPE.head_dim, np.random.default_rng(0)
    dtype = np.dtype(kind.dtype)
    typed, cache = helper.np_dtype_to_tensor_dtype(dtype), [1, heads, tokens, kind.row(dim)]
    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": heads}
    names, constants = ["qkv", "", "", "past_k", "past_v", "last", "total"], []
    if kind.rounds:
        attributes |= {"kv_cache_bit_width": kind.bits, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
        names += ["", "", "", "", "", "ks", "vs"]
        scales = np.full((heads, dim), 4 / 2 ** (kind.bits - 1), np.float32)
        constants = [onnx.numpy_helper.from_array(scales, name) for name in ("ks", "vs")]
    node = helper.make_node("GroupQueryAttention", names, ["out", "k", "v"], domain="com.microsoft", **attributes)
    value, single, whole = helper.make_tensor_value_info, onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
    inputs = [value("qkv", single, [1, count, 3 * heads * dim]), value("last", whole, [1]), value("total", whole, [])]
    inputs += [value(f"past_{which}", typed, cache) for which in "kv"]
    outputs = [value("out", single, [1, count, heads * dim]), *(value(which, typed, cache) for which in "kv")]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "g", inputs, outputs, constants)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("qkv", rng.standard_normal((1, count, 3 * heads * dim)).astype(np.float32))
    binding.bind_cpu_input("last", np.array([tokens - 1], np.int32))
    binding.bind_cpu_input("total", np.array(tokens, np.int32))
    for which in "kv":
        held = onnxruntime.OrtValue.ortvalue_from_numpy(_random(dtype, cache, rng))
        binding.bind_ortvalue_input(f"past_{which}", held)
        binding.bind_ortvalue_output(which, held)
    binding.bind_output("out")
    return lambda: session.run_with_iobinding(binding)


def _tvm(name: str, isa: str, tokens: int, count: int) -> Callable[[], None]:
    """A call of our kernel, on one thread."""
    kind, rng = KV_CACHES[name], np.random.default_rng(0)
    heads, dim = SHAPE.heads, SHAPE.head_dim
    kernel = _kernel(name, isa, count == 1)
    shape = (heads, tokens, kind.row(dim))
    held = [_random(np.dtype(kind.dtype), shape, rng) for _ in range(2)]
    tables = [np.ones((_ROWS, dim // 2), np.float32) for _ in range(2)]
    centre = [np.zeros((heads, dim), np.float32)] if kind.centred else []
    qkv, out = (
        rng.standard_normal((count, 3 * heads * dim)).astype(np.float32),
        np.zeros((count, heads * dim), np.float32),
    )
    position = np.array([tokens - count], np.int32)
    arguments = [tvm.runtime.tensor(one) for one in (qkv, *held, *tables, *centre, position, out)]
    return lambda: kernel(*arguments)


@functools.cache
def _kernel(name: str, isa: str, single: bool) -> Any:
    heads, dim = SHAPE.heads, SHAPE.head_dim
    form = AttentionForm(heads, heads, dim, dim, _ROWS, dim**-0.5, 0, 0, KV_CACHES[name], single=single)
    target = tvm.target.Target(ISAS[isa].target())
    return tvm.compile(tvm.IRModule({"f": attention("f", ISAS[isa], form)}), target=target)["f"]


def _random(dtype: np.dtype[Any], shape: Any, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Values of a cache; bytes are those of numbers near one, and of scales of no unusual size."""
    if dtype.kind == "f":
        return rng.standard_normal(shape, np.float32).astype(dtype)
    return rng.integers(56, 72, shape).astype(dtype)


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="sample", help="a Hugging Face folder or a model's name (default %(default)s)")
    p.add_argument("--text", type=Path, help="text to measure on (default: documentation of Python's library)")
    p.add_argument("--tokens", type=int, default=2048, help="of the text (default %(default)s)")
    p.add_argument("--lengths", type=int, nargs="*", default=[512, 4096, 16384], help="of caches (default %(default)s)")
    p.add_argument("--isa", choices=ISAS, default="avx2", help="of our kernels (default %(default)s)")
    p.add_argument("--calls", type=int, default=15, help="of which the median is taken (default %(default)s)")
    p.add_argument("--no-quality", action="store_true", help="speed only")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    a = p.parse_args()
    torch.set_num_threads(1)
    found, bars = {}, []
    if not a.no_quality:
        text = held_out_text() if a.text is None else a.text.read_text("utf-8")
        found = quality(a.model, text, a.tokens)
        rows = [[name, f"{one.kl:.4f}", f"{one.top1:.3f}"] for name, one in found.items()]
        print_table(
            f"Against a cache of float32, {a.tokens} tokens", ["cache", "KL, nats a token", "same choice"], rows
        )
        bars = [Bar(f"{name}: KL added", one.kl, BARS[name.split()[1]], "nats") for name, one in found.items()]
    rows, times = [], {}
    for length in a.lengths:
        by_cache = times[length] = speed(length, a.isa, a.calls)
        print(f"{length}: {by_cache}", file=sys.stderr)
        for name, (decode, prefill) in by_cache.items():
            first = next(own for other, own in by_cache.items() if other.split()[0] == name.split()[0])
            cells = (f"{decode:.2f}", f"{decode / first[0]:.2f}", f"{prefill:.1f}", f"{prefill / first[1]:.2f}")
            rows.append([str(length), name, *cells])
    titles = ["tokens", "cache", "decode, ms", "ratio", f"{CHUNK} of a prompt, ms", "ratio"]
    print_table("Attention of one layer, one thread; ratios to the target's default", titles, rows)
    if bars:
        print_table("Limits", ["figure", "measured", "limit", ""], [bar.row() for bar in bars])
    if a.json:
        data = {"kl": {name: [one.kl, one.top1] for name, one in found.items()}, "ms": times}
        a.json.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    return int(any(bar.missed for bar in bars))


if __name__ == "__main__":
    sys.exit(main())

"""ONNX Runtime's K/V caches of whole numbers, and windowed ones: what the operator does, and what our files make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from target_files import prepared
from tiny_phi3 import fused, inputs, quantized, rounding

from pocketphi.compiler.footprint import footprint
from pocketphi.compiler.options import compile_options
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.decoder import ProgramRunner
from pocketphi.graph.errors import InputError
from pocketphi.graph.program import Program
from pocketphi.graph.random_weights import PUBLISHED
from pocketphi.graph.rounded_cache import FixedScales, observer
from pocketphi.passes.cache_scales import Measured, measure_scales
from pocketphi.passes.last_logits import LastLogits
from pocketphi.targets.ort_mobile.kv_cache import windowed_rows
from pocketphi.targets.ort_mobile.options import OrtMobile

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402 - only where onnx is installed

from pocketphi.targets.ort_mobile.host import GenaiRunner, OrtHost, OrtRunner, accuracy_level  # noqa: E402

HEADS, KV, DIM = 4, 2, 32
TYPES = {8: (TensorProto.INT8, np.int8), 4: (TensorProto.UINT8, np.uint8)}
GIB = 1 << 30


class Operator:
    """One `GroupQueryAttention` without rotary, with a scale for each channel, and its cache of C rows."""

    def __init__(self, bits: int, scales: list[np.ndarray], rows: int, window: int = 0, windowed: bool = False) -> None:
        kind, dtype = TYPES[bits]
        width = DIM * bits // 8
        attributes: dict[str, Any] = {"num_heads": HEADS, "kv_num_heads": KV, "kv_cache_bit_width": bits}
        attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
        if window:
            attributes |= {"local_window_size": window, "sliding_window_cache": int(windowed)}
        names = ["qkv", "", "", "past_k", "past_v", "last", "total", *[""] * 5, "ks", "vs"]
        node = helper.make_node("GroupQueryAttention", names, ["out", "k", "v"], domain="com.microsoft", **attributes)
        value, cache = helper.make_tensor_value_info, [1, KV, rows, width]
        graph = helper.make_graph(
            [node],
            "g",
            [
                value("qkv", TensorProto.FLOAT, [1, "s", (HEADS + 2 * KV) * DIM]),
                *(value(name, kind, cache) for name in ("past_k", "past_v")),
                value("last", TensorProto.INT32, [1]),
                value("total", TensorProto.INT32, []),
            ],
            [value("out", TensorProto.FLOAT, [1, "s", HEADS * DIM]), value("k", kind, cache), value("v", kind, cache)],
            [onnx.numpy_helper.from_array(scale, name) for scale, name in zip(scales, ("ks", "vs"))],
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        self.session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self.cache = [ort.OrtValue.ortvalue_from_numpy(np.full(cache, 77, dtype)) for _ in range(2)]
        self.bits, self.past = bits, 0

    def step(self, qkv: np.ndarray) -> np.ndarray:
        """Append tokens float32 [S, width]; what they attend to, [S, HEADS · DIM]."""
        self.past += len(qkv)
        binding = self.session.io_binding()
        binding.bind_cpu_input("qkv", qkv[None])
        binding.bind_cpu_input("last", np.array([self.past - 1], np.int32))
        binding.bind_cpu_input("total", np.array(self.past, np.int32))
        for name, cache in zip("kv", self.cache):
            binding.bind_ortvalue_input(f"past_{name}", cache)
            binding.bind_ortvalue_output(name, cache)
        binding.bind_output("out")
        self.session.run_with_iobinding(binding)
        return np.asarray(binding.get_outputs()[-1].numpy()[0])

    def numbers(self) -> list[np.ndarray]:
        """Of keys and values: int [KV, C, DIM]; of four bits the first in the lower half of a byte."""
        held = [cache.numpy()[0] for cache in self.cache]
        if self.bits == 8:
            return [one.astype(int) for one in held]
        return [np.stack([one & 15, one >> 4], -1).reshape(KV, -1, DIM).astype(int) - 8 for one in held]


def attended(qkv: np.ndarray, keys: np.ndarray, values: np.ndarray, window: int) -> np.ndarray:
    """In float64: causal attention of qkv's queries over keys and values [KV, S, DIM]."""
    out = np.zeros((len(qkv), HEADS, DIM))
    for at, row in enumerate(qkv):
        first = max(0, at + 1 - window) if window else 0
        for head in range(HEADS):
            query, kv = row[head * DIM : (head + 1) * DIM].astype(np.float64), head * KV // HEADS
            scores = keys[kv, first : at + 1] @ query * DIM**-0.5
            power = np.exp(scores - scores.max())
            out[at, head] = power / power.sum() @ values[kv, first : at + 1]
    return out.reshape(len(qkv), -1)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("window", "rows"), [(0, 40), (16, 40), (16, 16), (16, 20)])
def test_the_operator_attends_to_what_the_reference_keeps(bits: int, window: int, rows: int) -> None:
    """A prompt, steps and chunks, within a full cache and in one of the window's size: the values that our reference of a
    cache keeps, in float64, to float32's rounding; and, where nothing was evicted, the same numbers in the cache."""
    generator = np.random.default_rng(0)
    qkv = generator.standard_normal((40, (HEADS + 2 * KV) * DIM)).astype(np.float32)
    most = (1 << bits - 1) - 1
    scales = [
        generator.uniform(2, 3, (KV, DIM)).astype(np.float32) / np.float32(most) for _ in range(2)
    ]  # some are cut
    made = Operator(bits, scales, rows, window, windowed=rows < 40)
    came = np.concatenate([made.step(piece) for piece in np.split(qkv, [17, 18, 19, 30])])
    cache = FixedScales(bits, [(torch.from_numpy(scales[0]), torch.from_numpy(scales[1]))])
    exact = [
        torch.from_numpy(part.reshape(40, KV, DIM).swapaxes(0, 1).copy())
        for part in np.split(qkv[:, HEADS * DIM :], 2, 1)
    ]
    keys, values = (one.numpy() for one in cache.kept(0, exact[0], exact[1]))
    assert np.abs(came - attended(qkv, keys, values, window)).max() <= 40 * DIM * np.finfo(np.float32).eps
    if rows == 40:
        for numbers, scale, kept in zip(made.numbers(), scales, (keys, values)):
            assert np.array_equal(numbers.astype(np.float32) * scale[:, None], kept)
            assert (numbers.min(), numbers.max()) == (-most - 1, most)


@pytest.mark.parametrize("bits", [8, 4])
def test_halves_go_to_even_numbers_and_the_reciprocal_is_what_multiplies(bits: int) -> None:
    most = (1 << bits - 1) - 1
    halves = np.random.default_rng(0).integers(-most, most, (500, KV, DIM)) + np.float32(0.5)
    scale = np.random.default_rng(1).uniform(0.001, 0.1, (KV, DIM)).astype(np.float32)
    keys = (halves.astype(np.float32) * scale).astype(np.float32)
    qkv = np.concatenate([np.zeros((500, HEADS * DIM), np.float32), keys.reshape(500, -1), keys.reshape(500, -1)], 1)
    made = Operator(bits, [scale, scale], 500)
    made.step(qkv)
    expected = np.clip(np.rint(keys * (np.float32(1) / scale)), -most - 1, most).swapaxes(0, 1)
    assert np.array_equal(made.numbers()[0], expected)
    cache = FixedScales(bits, [(torch.from_numpy(scale), torch.from_numpy(scale))])
    rows = torch.from_numpy(keys.swapaxes(0, 1).copy())
    assert np.array_equal(cache.kept(0, rows, rows)[0].numpy(), expected.astype(np.float32) * scale[:, None])


def scales_of(program: Program, bits: int, tokens: torch.Tensor) -> Measured:
    return measure_scales(program, program.weights, tokens, {bits})[bits]


@pytest.mark.parametrize("variant", ["tiny", "partial"])
def test_scales_reach_as_far_as_a_key_is_seen_to(variant: str) -> None:
    """Keys of a text, as the whole program computes them: none is cut in 8 bits at its own place, and none needs more than the
    length of its pair, which no position changes. Values reach as far as they are, and means are means."""
    program = fused(variant)
    tokens = inputs(program.config, 40, batch=2)["input_ids"]
    outputs = program.run(program.prefill_inputs(tokens))
    half = program.config.rotary_dim // 2
    further = []
    for number, layer in enumerate(scales_of(program, 8, tokens)):
        values = outputs[f"present.{number}.value"].abs().amax((0, 2))
        assert torch.allclose(layer.values * 127, values, rtol=1e-5)
        keys = outputs[f"present.{number}.key"]
        assert torch.allclose(layer.mean, keys.mean((0, 2)), atol=1e-6)
        own, reach = keys.abs().amax((0, 2)), layer.keys * 127
        length = torch.sqrt(keys[..., :half].square() + keys[..., half : 2 * half].square()).amax((0, 2))
        assert (reach >= own * (1 - 1e-5)).all()
        assert (reach[:, : 2 * half] <= torch.cat([length, length], -1) * (1 + 1e-5)).all()
        assert torch.allclose(reach[:, 2 * half :], own[:, 2 * half :], rtol=1e-5)
        further.append((reach[:, : 2 * half] / own[:, : 2 * half]).max())
    assert max(further) > 1.5  # a slow pair, which such a short text does not turn


def test_scales_of_four_bits_are_cut_where_that_loses_less() -> None:
    program = fused()
    tokens = inputs(program.config, 200, batch=2)["input_ids"]
    wide, four = scales_of(program, 8, tokens), scales_of(program, 4, tokens)
    outputs = program.run(program.prefill_inputs(tokens))
    for layer in range(program.config.layers):
        values = outputs[f"present.{layer}.value"]
        cut, whole = four[layer].values, wide[layer].values * 127 / 7
        assert (cut <= whole * (1 + 1e-6)).all()
        assert (cut < 0.95 * whole).any()

        def lost(scale: torch.Tensor, values: torch.Tensor = values) -> torch.Tensor:
            cache = FixedScales(4, [(scale, scale)])
            return (cache.kept(0, values, values)[1] - values).square().sum((0, 2))

        assert (lost(cut) <= lost(whole) * (1 + 1e-6)).all()


class Bundle:
    """Files of a variant with a cache of a type, their host, and the program with every position's logits."""

    def __init__(self, folder: Path, variant: str, cache: str, windowed: bool = False) -> None:
        program = quantized(variant)
        LastLogits()(program)
        made = prepared(program, OrtMobile(kv_cache=cache, windowed_cache=windowed))
        if made.cache_bits:
            tokens = inputs(program.config, 64)["input_ids"]
            made.take_scales(scales_of(fused(variant), made.cache_bits, tokens))
        self.packaged = made.write(folder, lambda amount: None)
        (folder / "config.json").write_text(json.dumps(program.config.to_hf()))
        self.folder, self.host, self.program = folder, OrtHost(folder), quantized(variant)

    @property
    def config(self) -> ModelConfig:
        return self.program.config


@pytest.mark.parametrize(("variant", "cache"), [("tiny", "int8"), ("partial", "int4"), ("longrope", "int8")])
def test_files_in_float32_are_the_program_with_such_a_cache(tmp_path: Path, variant: str, cache: str) -> None:
    """Prefill and decode with activations in float32. A key or value on an edge between two numbers may fall either way in
    another order of sums, which each CPU has of its own: such a one moves as much as any rounding does, and there are few.
    Three texts of four have none, at a bound that float32's own rounding explains."""
    made = Bundle(tmp_path, variant, cache)
    runs = [_off(made, tmp_path, seed) for seed in range(4)]
    assert sum(off > bound for off, bound, _ in runs) <= 1
    assert all(plain > 100 * bound and off < plain / 4 for off, bound, plain in runs)


def _off(made: Bundle, folder: Path, seed: int) -> tuple[float, float, float]:
    """How far logits are from the program's with such a cache; what rounding explains; how far from those of a plain cache."""
    tokens = inputs(made.config, 60, seed=seed)["input_ids"]
    kept = made.host.rounded_cache()
    assert kept is not None
    expected = ProgramRunner(made.program, observe=observer(made.program, kept)).step(tokens)[0]
    runner = OrtRunner(folder, 60, changes=[accuracy_level(0)])
    came = torch.cat([runner.step(piece)[0] for piece in tokens.split([40, *[1] * 20], dim=1)])
    bound = rounding(made.config, float(expected.abs().max()), 60)
    plain = ProgramRunner(made.program).step(tokens)[0]
    return float((came - expected[39:]).abs().max()), bound, float((came - plain[39:]).abs().max())


def test_what_a_file_says_of_its_cache(tmp_path: Path) -> None:
    made = Bundle(tmp_path, "tiny", "int4")
    config = made.config
    assert made.packaged.details == {
        "accuracy_level": 4,
        "kv_cache": "int4",
        "kv_cache_bytes_per_token": 2 * config.layers * config.kv_heads * config.head_dim // 2,
    }
    assert dict(made.host.details(made.program)) == made.packaged.details
    assert len(made.host.own_weights()) == 2 * config.layers
    assert set(made.host.own_weights()) & set(made.host.weights()) == set()
    assert set(made.packaged.weights) == {*made.host.own_weights(), *made.host.weights()}


@pytest.mark.parametrize("cache", ["fp32", "int8"])
def test_a_windowed_cache_is_a_full_one_on_both_sides_of_the_window(tmp_path: Path, cache: str) -> None:
    """Window 48: logits of 47, 48, 49 and 250 tokens, decoded one by one after a prompt, and read at once, of the same files
    with caches of 48 rows, of some more, and of all."""
    made = Bundle(tmp_path, "tiny", cache, windowed=True)
    tokens = inputs(made.config, 250)["input_ids"]
    assert made.config.sliding_window == 48
    logits = {}
    for rows in (48, 53, 250):
        for split in ([250], [20, *[1] * 60, 100, *[1] * 70], [130, 120]):
            runner = OrtRunner(tmp_path, 250, changes=[accuracy_level(0)])
            runner._rows = rows
            found: dict[int, torch.Tensor] = {}
            at = 0
            for piece in tokens.split(split, dim=1):
                at += piece.shape[1]
                found[at] = runner.step(piece)[0, -1]
            assert all(value.numpy().shape[2] == rows for value in runner._caches.values())
            logits[rows, len(split)] = found
    bound = rounding(made.config, float(logits[250, 1][250].abs().max()), 250)
    for (rows, steps), found in logits.items():
        for at in {47, 48, 49, 80, 250} & found.keys():
            # in whole numbers, a key on an edge may fall either way where a prompt came in other pieces
            expected = logits[250, steps][at]
            assert (found[at] - expected).abs().max() <= bound, (rows, steps, at)
    if cache == "fp32":
        assert (logits[48, 132][250] - logits[250, 1][250]).abs().max() <= bound


def test_genai_runs_each_cache_beyond_the_window(tmp_path: Path) -> None:
    """The same files in onnxruntime-genai, with as few rows as it allocates for a window: 48 and a chunk."""
    pytest.importorskip("onnxruntime_genai")
    for cache in ("fp32", "int8"):
        folder = tmp_path / cache
        folder.mkdir()
        made = Bundle(folder, "tiny", cache, windowed=True)
        tokens = inputs(made.config, 250)["input_ids"]
        pieces = tokens.split([47, 1, 1, 111, *[1] * 90], dim=1)
        assert windowed_rows(made.config, 256) == 48 + 127
        full = OrtRunner(folder, 250)
        full._rows = 250
        expected = torch.cat([full.step(piece)[0, -1:] for piece in pieces])
        genai = GenaiRunner(folder, 250)
        came = torch.cat([genai.step(piece)[0] for piece in pieces])
        assert (came - expected).abs().max() <= rounding(made.config, float(expected.abs().max()), 250)


@pytest.mark.parametrize(
    ("variant", "context", "message"),
    [
        ("full", None, "--windowed-cache: the model has no window: each token sees all before it; leave it out"),
        ("longrope", None, "--windowed-cache: the model has no window"),
        ("tiny", 100, "--windowed-cache: with 100 tokens nothing would be saved, as the window is 48; leave it out"),
    ],
)
def test_a_window_that_saves_nothing_is_refused(variant: str, context: int | None, message: str) -> None:
    program = quantized(variant)
    LastLogits()(program)
    with pytest.raises(InputError, match=message):
        prepared(program, OrtMobile(windowed_cache=True), context=context)


def test_a_window_in_int4_wants_heads_of_32() -> None:
    program = quantized("tiny")
    LastLogits()(program)
    with pytest.raises(
        InputError, match="--windowed-cache: in int4, ONNX Runtime wants heads of a multiple of 32 dimensions, not 16"
    ):
        prepared(program, OrtMobile(kv_cache="int4", windowed_cache=True))


def planned(config: ModelConfig, **options: Any) -> int:
    """Bytes of K/V at 4,096 tokens."""
    made = compile_options("-", Path("-"), ("ort-mobile",), **options)
    return footprint(config, "ort-mobile", made, context=4096).kv_cache()


def test_the_memory_of_each_cache_is_planned() -> None:
    """Phi-3-mini has 2·32·32 rows of 96 values a token, and a window of 2,047."""
    config, values = PUBLISHED["phi-3-mini-4k"], 2 * 32 * 32 * 96
    assert planned(config) == 4096 * values * 4
    assert planned(config, kv_cache="int8") == 4096 * values
    assert planned(config, kv_cache="int4") == 4096 * values // 2 <= 0.40 * GIB
    assert planned(config, kv_cache="int8", windowed_cache=True) == (2047 + 127) * values <= 0.41 * GIB
    made = compile_options("-", Path("-"), ("ort-mobile",), kv_cache="int8", windowed_cache=True)
    found = footprint(config, "ort-mobile", made, context=4096)
    assert found.largest_context(found.total()) >= config.max_position
    assert found.largest_context(found.total(1000) + 1) < 1100

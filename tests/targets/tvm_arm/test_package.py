"""Bundles of small models: every weight as it was, every way of running against the quantized program, on every CPU."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from target_files import package, prepared
from tiny_phi3 import SWITCH, TINY, fused, inputs, quantized, rounding
from tvm_kernels import in_turn

pytest.importorskip("tvm")

from pocketphi.compiler.footprint import footprint
from pocketphi.compiler.options import compile_options
from pocketphi.graph.errors import CompilerBug, InputError
from pocketphi.graph.lazy_weights import digest, materialize
from pocketphi.graph.program import Program
from pocketphi.graph.rounded_cache import observer
from pocketphi.passes.last_logits import LastLogits
from pocketphi.passes.policy import Policy, Rule
from pocketphi.passes.quantize_weights import QuantizeWeights
from pocketphi.passes.quantizers import make_quantizer
from pocketphi.targets.tvm_arm.build_runtime import source_names
from pocketphi.targets.tvm_arm.host import TvmHost
from pocketphi.targets.tvm_arm.isa import ISAS, Isa
from pocketphi.targets.tvm_arm.options import TvmArm
from pocketphi.targets.tvm_arm.platform import Platform

needs_arm = pytest.mark.skipif(
    not (shutil.which("qemu-aarch64") and shutil.which("aarch64-linux-gnu-g++")),
    reason="needs qemu-aarch64 and aarch64-linux-gnu-g++: apt install qemu-user g++-aarch64-linux-gnu",
)
ON_ARM = [
    ("dotprod", "longrope", "fp16"),
    ("i8mm", "asymmetric", "fp16"),
    ("neon", "tied", "fp16"),
    ("neon", "partial", "int8"),
    ("dotprod", "partial", "int4"),
    ("neon", "widths", "fp16"),
    ("i8mm", "widths", "fp16"),
]
SYMMETRIC = {
    "*.0.*qkv*": "int2",
    "*.0.*o_proj*": "int3",
    "*.0.*gate_up*": "int5",
    "*.0.*down*": "int6",
    "*.1.mlp*": "int8",
}
BY_ROW = {"*embed*": "nl4", "*.1.*o_proj*": "nl3", "lm_head*": "int4"}
ASYMMETRIC = {"*.1.*qkv*": "int5", "*qkv*": "int3", "*o_proj*": "int2", "*gate_up*": "int6", "*down*": "int5"}
"""Of the variant `widths`: formats by the pattern of a weight's name; the first that matches counts."""


def quantized_program(variant: str) -> Program:
    if variant != "widths":
        return quantized("tiny", 16, symmetric=False) if variant == "asymmetric" else quantized(variant)
    settings = [
        (SYMMETRIC, {"block": 32}),
        (BY_ROW, {"block": 16, "scale_bits": 8}),
        (ASYMMETRIC, {"block": 16, "symmetric": False, "scale_bits": 8}),
    ]
    rules = [
        Rule(name, make_quantizer("rtn", form, chosen)) for forms, chosen in settings for name, form in forms.items()
    ]
    program = fused()
    QuantizeWeights(Policy(tuple(rules)))(program)
    return program


def program_of(variant: str) -> Program:
    made = quantized_program(variant)
    LastLogits()(made)
    return made


def packaged(variant: str, isa: Isa, folder: Path, cache: str = "fp16") -> tuple[Program, TvmHost, dict[str, str]]:
    program = program_of(variant)
    made = package(program, TvmArm(cpu=isa.name, kv_cache=cache), folder)
    (folder / "config.json").write_text(json.dumps(program.config.to_hf()))
    return program, TvmHost(folder), made.weights


def check(variant: str, isa: Isa, folder: Path, cache: str = "fp16") -> None:
    """A prompt in two pieces and steps, exact and as saved, with the logits of the last position and of all."""
    program, host, digests = packaged(variant, isa, folder, cache)
    saved = {**host.weights(), **host.own_weights()}
    assert {name: digest(materialize(weight)) for name, weight in saved.items()} == digests
    tokens = inputs(program.config, SWITCH + 8)["input_ids"]
    whole = quantized_program(variant)
    expected = whole.run(whole.prefill_inputs(tokens))["logits"][0]
    pieces = [tokens[:, :9], tokens[:, 9:10], tokens[:, 10 : SWITCH - 4], *tokens[:, SWITCH - 4 :].split(1, dim=1)]
    ends = torch.tensor([piece.shape[1] for piece in pieces]).cumsum(0) - 1
    last = host.runner(SWITCH + 8, exact=True)
    stepped = torch.cat([last.step(piece)[0] for piece in pieces])
    every = host.runner(SWITCH + 8, exact=True, every_position=True).step(tokens)[0]
    bound = rounding(program.config, float(expected.abs().max()), SWITCH)
    switched = variant == "longrope"  # before the switch, the whole prompt's factors are not those of its beginning
    seen = ends >= SWITCH if switched else ends >= 0
    assert (stepped - expected[ends])[seen].abs().max() <= bound
    assert (every - expected).abs().max() <= bound
    kept = host.rounded_cache()
    if kept:  # what is saved is measured against the graph with such a cache
        expected = whole.run(whole.prefill_inputs(tokens), observe=observer(whole, kept))["logits"][0]
    rounded = host.runner(SWITCH + 8).step(tokens)[0, -1]
    kl = torch.nn.functional.kl_div(
        rounded.log_softmax(-1), expected[-1].log_softmax(-1), log_target=True, reduction="sum"
    )
    assert bound**2 < kl <= host.saved_bound


@pytest.mark.parametrize(("variant", "isa"), in_turn(["tiny", "asymmetric", "longrope"]))
def test_this_host(variant: str, isa: Isa, tmp_path: Path) -> None:
    check(variant, isa, tmp_path)


@pytest.mark.parametrize(("cached", "isa"), in_turn(["partial-int8", "longrope-int8", "partial-int4"]))
def test_a_rounded_cache_on_this_host(cached: str, isa: Isa, tmp_path: Path) -> None:
    variant, cache = cached.split("-")
    check(variant, isa, tmp_path, cache)


@needs_arm
@pytest.mark.parametrize(("name", "variant", "cache"), ON_ARM)
def test_aarch64_under_qemu(name: str, variant: str, cache: str, tmp_path: Path) -> None:
    check(variant, ISAS[name], tmp_path, cache)


@pytest.mark.parametrize(
    ("cache", "context", "rows"), [("fp16", TINY.max_position, 256), ("int8", 100, 112), ("int4", 100, 112)]
)
def test_the_memory_of_a_cache(cache: str, context: int, rows: int, tmp_path: Path) -> None:
    """Planned, in the manifest and in model.json: the same bytes. Rows are a multiple of 16; exact functions have float32."""
    program = program_of("partial")
    config = replace(program.config, max_position=context)
    program.config = config
    target = TvmArm(os="host", kv_cache=cache)
    row = {
        "fp16": 2 * config.head_dim,
        "int8": config.head_dim + 4,
        "int4": config.head_dim // 2 + config.head_dim // 32,
    }
    a_token = 2 * config.layers * config.kv_heads * row[cache]
    options = compile_options("-", tmp_path, ("tvm-arm",), context=context, os="host", kv_cache=cache)
    assert footprint(config, "tvm-arm", options).kv_cache() == rows * a_token
    made = package(program, target, tmp_path)
    assert (made.details["kv_cache"], made.details["kv_cache_bytes_per_token"]) == (cache, a_token)
    held = json.loads((tmp_path / "model.json").read_text())["cache"]
    sizes = {
        mode: held["count"] * math.prod(held["shape"][mode]) * np.dtype(held["dtype"][mode]).itemsize
        for mode in held["dtype"]
    }
    assert sizes == {"saved": rows * a_token, "exact": rows * config.kv_cache_bytes(1)}
    assert TvmHost(tmp_path).kv_cache == cache


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Path]:
    folder = tmp_path_factory.mktemp("tvm")
    return packaged("tiny", Platform.of("host").isa, folder)[0], folder


def test_the_same_bytes_twice(
    bundle: tuple[Program, Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POCKETPHI_CACHE", str(tmp_path_factory.mktemp("empty")))  # nothing is known: all is built again
    packaged("tiny", Platform.of("host").isa, tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == sorted(path.name for path in bundle[1].iterdir())
    assert [name for name in files if (tmp_path / name).read_bytes() != (bundle[1] / name).read_bytes()] == []


def test_planned_bytes(bundle: tuple[Program, Path]) -> None:
    program, folder = bundle
    planned = prepared(program, TvmArm(os="host"))
    assert planned.bytes == (folder / "model.params").stat().st_size
    others = sum((folder / name).stat().st_size for name in ("model.so", "libpocketphi.so", "model.json"))
    assert 0.8 * others < planned.around < 1.25 * others
    assert 0 < planned.around <= 4_000_000
    assert (folder / "model.so").stat().st_size < 3_000_000


def test_operators_of_a_prompt(tmp_path: Path) -> None:
    made = package(program_of("tiny"), TvmArm(os="host"), tmp_path)
    layers = TINY.layers
    assert made.operators == {
        "matmul": 4 * layers + 1,
        "attention": layers,
        "norm": 2 * layers + 1,
        "gated_silu": layers,
        "embedding": 1,
        "last_row": 2,
    }
    assert made.details["context"] == TINY.max_position


@pytest.mark.parametrize(("system", "magic"), [("ios", 0xFEEDFACF), ("android", 0x464C457F)])
def test_an_archive_where_nothing_links_here(
    system: str, magic: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects of the system's own format, and how an app links them."""
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    program = program_of("tiny")
    target = TvmArm(os=system)
    made = package(program, target, tmp_path)
    assert not (tmp_path / "model.so").exists()
    archive = (tmp_path / "libmodel.a").read_bytes()
    assert archive.startswith(b"!<arch>\n")
    assert struct.pack("<I", magic) in archive
    assert made.details["link"] in made.notes[-1]
    described = json.loads((tmp_path / "model.json").read_text())
    assert (described["library"], described["target"]["os"]) == ("libmodel.a", system)
    sources = {path.name: path.read_bytes() for path in (tmp_path / "runtime").iterdir()}
    assert sorted(sources) == source_names()
    listed = re.findall(r"\w+\.cc", sources["CMakeLists.txt"].decode())
    assert set(listed) | {"pocketphi_runtime.h"} <= sources.keys()
    (tmp_path / "config.json").write_text(json.dumps(program.config.to_hf()))
    with pytest.raises(InputError, match=f"a library for {system} does not run on this machine"):
        TvmHost(tmp_path).runner(8)


def test_sizes_that_vectors_do_not_divide(tmp_path: Path) -> None:
    program = program_of("tiny")
    program.config = replace(program.config, head_dim=24)
    with pytest.raises(InputError, match="tvm-arm: the head size is 24, expected a multiple of 16"):
        prepared(program, TvmArm())


def test_a_weight_left_in_float(tmp_path: Path) -> None:
    from tiny_phi3 import fused

    program = fused().copy()
    LastLogits()(program)
    with pytest.raises(InputError, match=r"tvm-arm: .* is left in float, .* choose a --block that divides"):
        package(program, TvmArm(os="host"), tmp_path)


def test_parameters_of_another_build_are_refused(bundle: tuple[Program, Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(bundle[1], folder)
    described = json.loads((folder / "model.json").read_text())
    described["params_digest"] = "0" * 64
    (folder / "model.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match="are of two builds: their parameters' digests differ"):
        TvmHost(folder).runner(8)
    with (folder / "model.params").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(InputError, match=r"ends beyond the 1000 bytes of model.params; copy or compile it again"):
        TvmHost(folder).runner(8)


def test_more_than_one_row_is_refused(bundle: tuple[Program, Path]) -> None:
    with pytest.raises(ValueError, match="2 rows: the runtime holds one sequence"):
        TvmHost(bundle[1]).runner(8).step(torch.zeros(2, 3, dtype=torch.int64))


def test_memory_is_that_of_the_process(bundle: tuple[Program, Path]) -> None:
    runner = TvmHost(bundle[1]).runner(8)
    runner.step(torch.zeros(1, 3, dtype=torch.int64))
    assert 1 << 20 < runner.peak_bytes < 1 << 27


def test_an_answer_that_was_not_read_is_not_the_next_ones(
    bundle: tuple[Program, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between a question and its answer; the terminal's goes to a group that the process is not in."""
    first, second = torch.tensor([[5, 6, 7]]), torch.tensor([[9, 8, 7, 6]])
    runner = TvmHost(bundle[1]).runner(8)
    assert os.getpgid(runner.process.pid) != os.getpgid(0)
    with monkeypatch.context() as patch:

        def stopped(opening: bool = False) -> list[str]:
            raise KeyboardInterrupt

        patch.setattr(runner.process, "_line", stopped)
        with pytest.raises(KeyboardInterrupt):
            runner.step(first)
    with pytest.raises(CompilerBug, match="the TVM runtime still owes an answer; it has to be reset"):
        runner.step(second)
    runner.reset()
    fresh = TvmHost(bundle[1]).runner(8)
    assert torch.equal(runner.step(second), fresh.step(second))
    assert torch.equal(runner.step(first[:, :1]), fresh.step(first[:, :1]))
    with pytest.raises(InputError, match="tokens"):  # refused, and so answered: it goes on
        runner.step(second)
    assert torch.equal(runner.step(first[:, 1:2]), fresh.step(first[:, 1:2]))

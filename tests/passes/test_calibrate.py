"""Calibration: layer by layer, into the cache, and out of it again."""

from __future__ import annotations

import hashlib
import os
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from pocketphi.compiler.pipeline import fusions, quantization, run_passes
from pocketphi.graph.errors import InputError
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.lazy_weights import LazyWeight, materialize
from pocketphi.graph.program import Program
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.trace import trace
from pocketphi.passes.calibrate import default_text, held_out_text, quantize_calibrated, recalled
from pocketphi.passes.policy import Policy, Rule
from pocketphi.passes.quantizers import RoundToNearest, ScaleSearch
from pocketphi.passes.weight_cache import WeightCache

TOKENS = torch.arange(128).view(2, 64) % 251


def float_program() -> tuple[Program, HashedCheckpoint]:
    source = HashedCheckpoint(RandomWeights("random:tiny"))
    program = trace(source)
    run_passes(program, fusions(None))
    return program, source


def calibrated(folder: Path, tokens: torch.Tensor = TOKENS) -> tuple[Program, dict[str, LazyWeight], WeightCache]:
    program, source = float_program()
    cache = WeightCache(folder, source)
    policy = Policy.of(ScaleSearch(32))
    stored = recalled(program, tokens, policy, cache)
    return program, stored or quantize_calibrated(program, tokens, policy, cache), cache


def logits(program: Program) -> torch.Tensor:
    return program.run(program.prefill_inputs(TOKENS))["logits"]


def test_every_linear_weight_and_the_embedding_are_stored(tmp_path: Path) -> None:
    program, stored, cache = calibrated(tmp_path)
    assert len(stored) == 4 * 3 + 2  # four a layer, the head, the untied embedding
    assert (cache.computed, cache.found) == (14, 0)
    (report, _) = run_passes(program, quantization(Policy.of(ScaleSearch(32)), stored, all_logits=False))
    assert report.applied == {"matmul_nbits": 13, "embedding_nbits": 1}
    assert all(program.weights[name] is weight for name, weight in stored.items())


def test_it_is_closer_to_the_float_program_than_rounding_to_nearest(tmp_path: Path) -> None:
    reference = logits(float_program()[0])
    program, stored, _ = calibrated(tmp_path)
    run_passes(program, quantization(Policy.of(ScaleSearch(32)), stored, all_logits=True))
    nearest, _ = float_program()
    run_passes(nearest, quantization(Policy.of(RoundToNearest(32)), {}, all_logits=True))
    assert (logits(program) - reference).square().mean() < (logits(nearest) - reference).square().mean()


def test_a_second_run_finds_everything_without_running_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first, _ = calibrated(tmp_path)
    monkeypatch.setattr("pocketphi.passes.calibrate.side_by_side", None)  # would fail if it were called
    _, second, cache = calibrated(tmp_path)
    assert (cache.computed, cache.found) == (0, 14)
    for name, weight in first.items():
        again = materialize(second[name])
        assert all(torch.equal(tensor, again[part]) for part, tensor in materialize(weight).items())


def test_a_stopped_run_is_resumed(tmp_path: Path) -> None:
    calibrated(tmp_path)
    (run,) = tmp_path.glob("*.run")
    run.unlink()
    victims = sorted(tmp_path.glob("*.safetensors"))[:2]
    victims[0].unlink()
    os.truncate(victims[1], 100)  # damaged counts as missing
    _, _, cache = calibrated(tmp_path)
    assert (cache.computed, cache.found) == (2, 12)


def test_what_does_not_calibrate_is_met_as_it_will_be(tmp_path: Path) -> None:
    """Weights of another recipe are not stored, and the layers behind them make up for what is lost in them."""
    _, alone, _ = calibrated(tmp_path / "a")
    program, source = float_program()
    mixed = Policy((Rule("model.layers.0.mlp.*", RoundToNearest(32)), *Policy.of(ScaleSearch(32)).rules))
    stored = quantize_calibrated(program, TOKENS, mixed, WeightCache(tmp_path / "b", source))
    assert {name for name in alone if name not in stored} == {n for n in alone if n.startswith("model.layers.0.mlp.")}
    same = {n for n, w in stored.items() if torch.equal(materialize(w)["q"], materialize(alone[n])["q"])}
    before = {n for n in stored if n.startswith("model.layers.0.") or "embed" in n}
    assert same == before


def test_another_text_gives_other_weights(tmp_path: Path) -> None:
    _, first, _ = calibrated(tmp_path)
    _, second, cache = calibrated(tmp_path, TOKENS.flip(1))
    assert cache.computed == 13  # all but the embedding, which has no inputs to measure
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(materialize(first[name])["q"], materialize(second[name])["q"])


def test_a_block_that_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    program, source = float_program()
    with pytest.raises(InputError, match="K=64 is not a multiple of block 128; choose --block 16 or 32 or 64"):
        quantize_calibrated(program, TOKENS, Policy.of(ScaleSearch(128)), WeightCache(tmp_path, source))
    assert list(tmp_path.iterdir()) == []


def test_the_texts_do_not_overlap() -> None:
    calibration, held_out = default_text(), held_out_text()
    paragraphs = held_out.split("\n\n")
    assert len(held_out) > 60_000  # more than the 8,192 tokens that eval measures
    assert [part for part in paragraphs if part.strip() and part in calibration] == []
    assert [line for line in held_out.splitlines() if len(line.strip()) > 50 and line.strip() in calibration] == []
    assert held_out_text() == held_out


def test_the_calibration_text_is_what_it_was() -> None:
    """Its bytes decide the quantized weights: our own pages are pinned, the rest is that of this Python."""
    from pydoc_data.topics import topics

    own = files("pocketphi.passes").joinpath("calibration.txt").read_text("utf-8")
    assert (
        hashlib.sha256(own.encode()).hexdigest() == "dd34978b556302ebf50f2370ba2de0964722798370e1380d7dd1745ee014c980"
    )
    assert default_text() == "\n\n".join([own, *(topics[name] for name in sorted(topics))])

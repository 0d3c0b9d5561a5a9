"""What was measured for a budget is kept; what is sealed, and no such answer, is measured again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from heard import Heard

from pocketphi.compiler import spend
from pocketphi.compiler.candidates import Candidates, every_candidate
from pocketphi.compiler.known_graphs import KnownGraphs
from pocketphi.compiler.options import CompileOptions, compile_options
from pocketphi.compiler.smoothing import _known_exponents
from pocketphi.compiler.spend import known_costs
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.sealed import read_sealed, write_sealed
from pocketphi.passes.quantizers import make_quantizer

DOWN, NORM = "model.layers.0.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight"
BLOCKS, BYTES = make_quantizer("rtn", "int4", {"block": 32}), make_quantizer("rtn", "int8", {"block": 64})
TABLES = make_quantizer("rtn", "palette", {"group": 4})
SOURCE = HashedCheckpoint(RandomWeights("random:tiny"))


@pytest.fixture(scope="module")
def graphs() -> KnownGraphs:
    return KnownGraphs(SOURCE, None)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all forms: a tiny model takes longer to be rounded in each than to be run."""

    def every(config: ModelConfig, tables: bool) -> Candidates:
        found = every_candidate(config, tables)
        few = [one.describe() for one in (BLOCKS, BYTES, TABLES)]
        return {name: [one for one in made if one.describe() in few] for name, made in found.items()}

    monkeypatch.setattr(spend, "every_candidate", every)


def options(cache: Path) -> CompileOptions:
    return compile_options("random:tiny", Path("-"), bits=5.0, calibration_tokens=32, cache=cache)


def costs(graphs: KnownGraphs, cache: Path) -> tuple[dict[str, list[float]], list[str]]:
    """And what was worked on for them."""
    ui, asked = Heard(), options(cache)
    return known_costs(SOURCE, lambda: graphs.traced, {DOWN: [BLOCKS, BYTES]}, asked, ui), ui.tasks


def exponents(graphs: KnownGraphs, cache: Path) -> tuple[dict[str, list[int]], list[str]]:
    ui = Heard()
    found = _known_exponents(SOURCE, graphs.fused(None)[0], options(cache), ui)
    assert all(one.dtype == torch.int32 for one in found.values())
    return {norm: one.tolist() for norm, one in found.items()}, ui.tasks


def change(cache: Path, how: Callable[[Any], object]) -> None:
    """The answer of the one entry, under a seal that is right."""
    (path,) = (cache / "known").iterdir()
    found = read_sealed(path)
    assert found is not None
    how(found[0]["content"])
    write_sealed(path, found[0])


FORGED_COSTS: dict[str, Callable[[Any], object]] = {
    "a weight less": lambda said: said.pop(DOWN),
    "a weight more": lambda said: said.update(x=[1.0]),
    "a cost less": lambda said: said[DOWN].pop(),
    "no number": lambda said: said[DOWN].__setitem__(0, float("nan")),
    "without bound": lambda said: said[DOWN].__setitem__(1, float("inf")),
    "a text": lambda said: said[DOWN].__setitem__(1, "0.5"),
}
FORGED_EXPONENTS: dict[str, Callable[[Any], object]] = {
    "too large": lambda said: said[NORM].__setitem__(0, 9),
    "too small": lambda said: said[NORM].__setitem__(0, -9),
    "over int32": lambda said: said[NORM].__setitem__(0, 1 << 40),
    "a channel less": lambda said: said[NORM].pop(),
    "another norm": lambda said: said.update(x=[0] * 64),
}


@pytest.mark.parametrize(
    ("find", "forged"),
    [*((costs, how) for how in FORGED_COSTS.values()), *((exponents, how) for how in FORGED_EXPONENTS.values())],
    ids=[*FORGED_COSTS, *FORGED_EXPONENTS],
)
def test_no_such_answer(
    find: Callable[[KnownGraphs, Path], tuple[Any, list[str]]],
    forged: Callable[[Any], object],
    graphs: KnownGraphs,
    tmp_path: Path,
) -> None:
    made, tasks = find(graphs, tmp_path)
    assert len(tasks) == 1
    assert find(graphs, tmp_path) == (made, [])
    change(tmp_path, forged)
    assert find(graphs, tmp_path) == (made, tasks)
    assert find(graphs, tmp_path) == (made, [])


def test_what_decides_an_answer(graphs: KnownGraphs, tmp_path: Path) -> None:
    """Another text, checkpoint of the same shape, shape, and palettes are measured anew, and other blocks are not."""
    asked = compile_options("random:tiny", Path("-"), bits=5.0, calibration_tokens=32, cache=tmp_path)
    other = HashedCheckpoint(RandomWeights("random:tiny"))
    other.digest_all = lambda: "0" * 64  # type: ignore[method-assign]
    stretched = HashedCheckpoint(RandomWeights("random:tiny", replace(SOURCE.config, rope_theta=5e4)))
    stretched.digest_all = SOURCE.digest_all  # type: ignore[method-assign]
    runs = [
        (SOURCE, asked, BLOCKS, 1),
        (SOURCE, asked, make_quantizer("search", "int8", {"block": 64}), 0),
        (SOURCE, replace(asked, calibration_tokens=48), BLOCKS, 1),
        (other, asked, BLOCKS, 1),
        (stretched, asked, BLOCKS, 1),
        (SOURCE, asked, TABLES, 1),
    ]
    for again in (1, 0):
        for source, how, quantizer, times in runs:
            ui = Heard()
            (cost,) = known_costs(source, lambda: graphs.traced, {DOWN: [quantizer]}, how, ui)[DOWN]
            assert ui.tasks == ["measure sensitivities"] * times * again
            assert 0 < cost < 1


def test_palettes_bring_what_blocks_cost(graphs: KnownGraphs, tmp_path: Path) -> None:
    """What was measured for a target with palettes serves one without them, to the bit."""
    asked = compile_options("random:tiny", Path("-"), bits=5.0, calibration_tokens=32, cache=tmp_path / "a")
    elsewhere = replace(asked, cache=tmp_path / "b")
    both = {DOWN: [BLOCKS, TABLES]}
    first, second = Heard(), Heard()
    with_palettes = known_costs(SOURCE, lambda: graphs.traced, both, asked, first)
    alone = known_costs(SOURCE, lambda: graphs.traced, {DOWN: [BLOCKS]}, asked, second)
    assert (len(first.tasks), second.tasks) == (1, [])
    assert alone == {DOWN: with_palettes[DOWN][:1]}
    assert known_costs(SOURCE, lambda: graphs.traced, {DOWN: [BLOCKS]}, elsewhere, Heard()) == alone

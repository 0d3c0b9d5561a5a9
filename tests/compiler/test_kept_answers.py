"""What was measured for a budget is kept; what is sealed, and no such answer, is measured again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from heard import Heard

from pocketphi.compiler.candidates import candidates_of
from pocketphi.compiler.known_graphs import KnownGraphs
from pocketphi.compiler.options import CompileOptions, compile_options
from pocketphi.compiler.smoothing import _known_exponents
from pocketphi.compiler.spend import known_costs
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.sealed import read_sealed, write_sealed
from pocketphi.passes.quantizers import make_quantizer

DOWN, NORM = "model.layers.0.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight"
SOURCE = HashedCheckpoint(RandomWeights("random:tiny"))


@pytest.fixture(scope="module")
def graphs() -> KnownGraphs:
    return KnownGraphs(SOURCE, None)


def options(cache: Path) -> CompileOptions:
    return compile_options("random:tiny", Path("-"), bits=5.0, calibration_tokens=32, cache=cache)


def costs(graphs: KnownGraphs, cache: Path) -> tuple[dict[str, list[float]], list[str]]:
    """And what was worked on for them."""
    ui, asked = Heard(), options(cache)
    return known_costs(SOURCE, lambda: graphs.traced, candidates_of(SOURCE.config, asked), asked, ui), ui.tasks


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
    """Another text, another checkpoint of the same shape, another shape, other candidates: each is measured anew."""
    asked = compile_options("random:tiny", Path("-"), bits=5.0, calibration_tokens=32, cache=tmp_path)
    other = HashedCheckpoint(RandomWeights("random:tiny"))
    other.digest_all = lambda: "0" * 64  # type: ignore[method-assign]
    stretched = HashedCheckpoint(RandomWeights("random:tiny", replace(SOURCE.config, rope_theta=5e4)))
    stretched.digest_all = SOURCE.digest_all  # type: ignore[method-assign]
    runs = [
        (SOURCE, asked, "int4"),
        (SOURCE, replace(asked, calibration_tokens=48), "int4"),
        (other, asked, "int4"),
        (stretched, asked, "int4"),
        (SOURCE, asked, "int8"),
    ]
    for times in (1, 0):
        for source, how, form in runs:
            ui = Heard()
            candidates = {DOWN: [make_quantizer("rtn", form, {"block": 32})]}
            known_costs(source, lambda: graphs.traced, candidates, how, ui)
            assert ui.tasks == ["measure sensitivities"] * times

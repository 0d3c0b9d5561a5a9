"""Which compute unit a package is fit for, and what speaks against the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pocketphi.targets.coreml.lint import CPU, ENGINE, ENGINE_WEIGHT_LIMIT, GPU, Facts, Unit, lint

BEST_FOR_ENGINE = Facts(1000, {}, {}, 0, 0, 0, [], 0, False)
STATE = {"keyCache": (2, 1, 4, 64, 96)}


def units(**change: Any) -> dict[str, Unit]:
    return {unit.name: unit for unit in lint(replace(BEST_FOR_ENGINE, **change))}


def test_tables_with_scales_are_told() -> None:
    found = units(chains=3)
    said = "3 matrices are decoded by operators one behind the other, of whose speed nobody has told"
    assert (found[GPU].reported, found[ENGINE].reported, found[CPU].reported) == ([said], [said], [])


def test_nothing_against_the_neural_engine() -> None:
    found = units()
    assert list(found) == [ENGINE, GPU, CPU]
    assert found[ENGINE].line(best=True) == "Neural Engine (cpuAndNeuralEngine): fit, the one to choose"
    assert found[CPU].line() == "CPU (cpuOnly): fit"


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        (
            {"weight_bytes": ENGINE_WEIGHT_LIMIT + 1},
            "the weight file has 2,147,483,649 bytes, its limit is 2,147,483,648",
        ),
        (
            {"blocks": {32: 3, 64: 1}},
            "4 matrices have a scale for each block of 32, 64, it wants one a row or a palette",
        ),
        ({"float32_norms": 5}, "5 norms compute in float32, which it has not"),
        ({"flexible": True}, "inputs have flexible shapes, which run on the CPU"),
        (
            {"states": {"keyCache": (2, 1, 4, 65, 96)}},
            "state keyCache [2, 1, 4, 65, 96] has last sizes that are no multiples of 32",
        ),
    ],
)
def test_a_limit_of_the_neural_engine_makes_it_the_gpu(change: dict[str, Any], limit: str) -> None:
    found = units(**change)
    assert list(found) == [GPU, ENGINE, CPU]
    assert (found[ENGINE].fit, found[ENGINE].limits) == (False, [limit])
    assert found[ENGINE].line().startswith(f"Neural Engine (cpuAndNeuralEngine): not fit: {limit}")
    assert found[GPU].line(best=True) == "GPU (cpuAndGPU): fit, the one to choose"


def test_what_was_only_reported_is_said_and_is_no_limit() -> None:
    engine = units(states=STATE, weight_bytes=ENGINE_WEIGHT_LIMIT)[ENGINE]
    assert (engine.fit, engine.slow) == (True, [])
    assert engine.reported == [
        "weight files of more than 1 GB were refused on iOS 18",
        "a cache written at a position known at run time only has crashed there",
    ]


@pytest.mark.parametrize(("rows", "dim", "fit"), [(64, 96, True), (65, 96, False), (64, 90, False)])
def test_sizes_of_states(rows: int, dim: int, fit: bool) -> None:
    assert units(states={"keyCache": (2, 1, 4, rows, dim)})[ENGINE].fit == fit


def test_float_matrices_are_a_burden_everywhere() -> None:
    slow = "2 matrices are float16, four times the size of int4 (first lm_head.weight)"
    assert [unit.slow for unit in units(float_weights=["lm_head.weight", "x"]).values()] == [[slow]] * 3


def test_compressed_weights_cost_something_elsewhere() -> None:
    found = units(palettes=4, dense_bytes=7_640_000_000)
    assert found[ENGINE].slow == []
    assert found[GPU].slow == ["4 matrices are palettes, which it gains less from than from blocks"]
    assert found[CPU].line() == (
        "CPU (cpuOnly): fit: slow: weights are decompressed to 7.64 GB of float16 when loaded, or at each call"
    )


def test_what_is_recorded() -> None:
    assert units(flexible=True)[ENGINE].recorded() == {
        "fit": False,
        "limits": ["inputs have flexible shapes, which run on the CPU"],
        "slow": [],
        "reported": [],
    }


def test_bytes_of_states_are_float16() -> None:
    assert replace(BEST_FOR_ENGINE, states=STATE).state_bytes == 2 * 2 * 4 * 64 * 96

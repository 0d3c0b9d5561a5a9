"""Which compute unit a package is fit for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pocketphi.targets.coreml.lint import CPU, ENGINE, ENGINE_WEIGHT_LIMIT, GPU, Facts, lint, verdict

BEST_FOR_ENGINE = Facts(1000, {}, {}, [], 0, False)
STATE = {"keyCache": (2, 1, 4, 64, 96)}


def test_nothing_against_the_neural_engine() -> None:
    remarks = lint(BEST_FOR_ENGINE)
    assert list(remarks) == [ENGINE, GPU, CPU]
    assert verdict(remarks) == "Core ML: fit for the Neural Engine (MLComputeUnits.cpuAndNeuralEngine)"


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        ({"weight_bytes": ENGINE_WEIGHT_LIMIT + 1}, "the weight file has 2,147,483,649 bytes"),
        ({"blocks": {32: 3, 64: 1}}, "4 matrices have int4 blocks of 32, 64"),
        ({"float32_norms": 5}, "5 norms compute in float32"),
        ({"flexible": True}, "flexible shapes"),
        ({"states": STATE}, "the cache is written at a position known at run time only"),
    ],
)
def test_what_speaks_against_the_neural_engine(change: dict[str, object], remark: str) -> None:
    remarks = lint(replace(BEST_FOR_ENGINE, **change))  # type: ignore[arg-type]
    assert next(iter(remarks)) == GPU
    assert [remark in found for found in remarks[ENGINE]] == [True]
    assert verdict(remarks).startswith(
        "Core ML: fit for the GPU (MLComputeUnits.cpuAndGPU); not for the Neural Engine: "
    )


def test_the_limit_of_the_weight_file_is_allowed() -> None:
    assert lint(replace(BEST_FOR_ENGINE, weight_bytes=ENGINE_WEIGHT_LIMIT))[ENGINE] == []


@pytest.mark.parametrize(("rows", "dim", "odd"), [(64, 96, 0), (65, 96, 1), (64, 90, 1)])
def test_sizes_of_states(rows: int, dim: int, odd: int) -> None:
    remarks = lint(replace(BEST_FOR_ENGINE, states={"keyCache": (2, 1, 4, rows, dim)}))[ENGINE]
    assert sum("no multiples of 32" in remark for remark in remarks) == odd


def test_float_matrices_are_a_burden_everywhere() -> None:
    remarks = lint(replace(BEST_FOR_ENGINE, float_weights=["lm_head.weight", "x"], states=STATE))
    assert remarks[GPU] == ["2 matrices are float16, four times the size of int4 (first lm_head.weight)"]


def test_bytes_of_states_are_float16() -> None:
    assert replace(BEST_FOR_ENGINE, states=STATE).state_bytes == 2 * 2 * 4 * 64 * 96

"""Scales of K/V caches are measured once for a model, its weights, a text and a number of bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pocketphi.artifacts.bundle import file_digest
from pocketphi.compiler import cache_scales
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options

Compile = Callable[..., tuple[set[int], dict[str, str]]]


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compile:
    """Compiles `random:tiny`; the numbers of bits that were measured for it, and the digests of its files."""
    measured: list[int] = []
    measure = cache_scales.measure_scales

    def counted(program: Any, weights: Any, tokens: Any, widths: set[int], *rest: Any) -> Any:
        measured.extend(widths)
        return measure(program, weights, tokens, widths, *rest)

    monkeypatch.setattr(cache_scales, "measure_scales", counted)

    def run(*targets: str, **given: Any) -> tuple[set[int], dict[str, str]]:
        measured.clear()
        asked = {"recipe": "rtn", "verify": "never", "force": True, "cache": str(tmp_path / "cache"), **given}
        model = asked.pop("model", "random:tiny")
        bundle = compile_model(compile_options(model, tmp_path / "b", targets or ("ort-mobile",), **asked))
        files = {path.name: file_digest(path) for path in bundle.path.iterdir() if path.name != "manifest.json"}
        return set(measured), files

    return run


def test_the_second_compile_measures_nothing_and_writes_the_same(compiled: Compile) -> None:
    first = compiled(kv_cache="int8")
    assert first[0] == {8}
    assert compiled(kv_cache="int8") == (set(), first[1])
    assert compiled(kv_cache="int4")[0] == {4}
    assert compiled(kv_cache="int8") == (set(), first[1])


@pytest.mark.parametrize(
    "change",
    [
        {"block": 32},
        {"recipe": "search"},
        {"calibration_tokens": 63},
        {"context": 256},  # keys are looked at in places as far as it goes
        {"learn": 64},
        {"bits": 6.0},
        {"model": "random:phi-3-small-tiny"},
    ],
    ids=str,
)
def test_what_decides_scales_has_them_measured(compiled: Compile, change: dict[str, Any]) -> None:
    asked = {"kv_cache": "int8", "calibration_tokens": 64, "context": 128}
    compiled(**asked)
    assert compiled(**asked)[0] == set()
    assert compiled(**{**asked, **change})[0] == {8}


def test_what_is_damaged_is_measured_again(compiled: Compile, tmp_path: Path) -> None:
    first = compiled(kv_cache="int8")
    (entry,) = (tmp_path / "cache" / "known").glob("cache-scales-*")
    content = bytearray(entry.read_bytes())
    content[-1] ^= 1
    entry.write_bytes(content)
    assert compiled(kv_cache="int8") == first
    assert compiled(kv_cache="int8") == (set(), first[1])

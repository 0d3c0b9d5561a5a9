"""`compile --recipe two-sided`: gradients are measured once and kept, a stop costs little, and what is missing is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from heard import Heard

from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import CompileOptions, compile_options
from pocketphi.compiler.plan import plan
from pocketphi.graph.errors import InputError
from pocketphi.graph.resident import resident_now
from pocketphi.passes.backward import Backward
from pocketphi.passes.output_moments import OutputMoments


def options(out: Path, cache: Path, **given: Any) -> CompileOptions:
    return compile_options(
        given.pop("model", "random:tiny"),
        out,
        ("ort-mobile",),
        calibration_tokens=128,
        context=32,
        cache=cache,
        **{"recipe": "two-sided", "verify": "always", **given},
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("made")
    made = compile_model(options(folder / "b", folder / "cache"))
    assert made.manifest.recipe.name == "two-sided"
    assert made.manifest.recipe.calibration is not None
    return dict(made.manifest.files)


def test_a_stop_while_it_measures_costs_little(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, known = options(tmp_path / "b", tmp_path / "cache"), tmp_path / "cache/known"
    begun: list[int | None] = []
    measure = OutputMoments.measure

    def stopping(self: Any, progress: Any, reached: Any, keep: Any) -> Any:
        begun.append(reached and reached.parts)
        for number, one in enumerate(measure(self, progress, reached, keep)):
            yield one
            if len(begun) == 1 and number == 6:  # in the second layer of three, with four weights each
                raise KeyboardInterrupt

    monkeypatch.setattr(OutputMoments, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        compile_model(asked)
    assert len(list(known.glob("outputs-begun-*"))) == 1
    assert compile_model(asked).manifest.files == files
    assert begun == [None, 2]  # the head, and the last layer
    assert list(known.glob("outputs-begun-*")) == []


def test_what_was_measured_serves_the_next_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    compile_model(options(tmp_path / "a", cache, verify="never"))
    monkeypatch.setattr(Backward, "measure", None)
    compile_model(options(tmp_path / "b", cache, verify="never", block=32))

    damaged = sorted((cache / "known").glob("outputs-*"))[5]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(
        InputError, match=r"weight: what was measured of its outputs is damaged or gone .* compile again"
    ):
        compile_model(options(tmp_path / "c", cache, verify="never", block=16))
    monkeypatch.undo()
    compile_model(options(tmp_path / "c", cache, verify="never", block=16))


def test_nothing_is_measured_for_weights_that_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    first = compile_model(options(tmp_path / "a", cache, verify="never"))
    for path in (cache / "known").glob("outputs-*"):
        path.unlink()
    monkeypatch.setattr(Backward, "measure", None)
    second = compile_model(options(tmp_path / "b", cache, verify="never"))
    assert second.manifest.files == first.manifest.files


def test_gradients_decide_the_numbers(files: dict[str, str], tmp_path: Path) -> None:
    plain = compile_model(options(tmp_path / "b", tmp_path / "cache", recipe="search"))
    assert dict(plain.manifest.files) != files


def test_experts_are_refused_before_the_work(tmp_path: Path) -> None:
    ui = Heard()
    with pytest.raises(InputError, match=r"^two-sided: gradients of a model with experts .*; choose --recipe search$"):
        compile_model(options(tmp_path / "b", tmp_path / "cache", model="random:tiny-moe"), ui)


def test_its_memory_is_planned(tmp_path: Path) -> None:
    needed = {
        recipe: plan(compile_options("random:phi-3-mini-4k", Path("-"), ("ort-mobile",), recipe=recipe)).compile_memory
        for recipe in ("search", "two-sided")
    }
    assert needed["search"] < needed["two-sided"] < 3.5e9 + resident_now()  # 4 GB in a process of its own

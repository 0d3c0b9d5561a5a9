"""`compile --learn`: numbers stay, scales move, the bundle says so; it goes on after a stop, and says what it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from heard import Heard

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.cli import main
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.hosts import open_host
from pocketphi.compiler.options import CompileOptions, compile_options
from pocketphi.graph.errors import CannotRun, InputError
from pocketphi.passes.learn import Learner

TOKENS = 128


def options(out: Path, **given: Any) -> CompileOptions:
    return compile_options("random:tiny", out, ("ort-mobile",), calibration_tokens=64, context=32, **given)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def bundle(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundle") / "b"
    return compile_model(options(out, learn=TOKENS, cache=cache, verify="always"))


def test_numbers_stay_and_scales_move(bundle: Bundle, cache: Path, tmp_path: Path) -> None:
    recipe = bundle.manifest.recipe
    assert (recipe.learned, recipe.described().endswith(", learned scales")) == (TOKENS, True)
    plain = compile_model(options(tmp_path / "plain", cache=cache))
    assert plain.manifest.recipe.learned is None
    moved = 0
    before, after = (open_host(one.path, one.manifest, "ort-mobile").weights() for one in (plain, bundle))
    for name, weight in before.items():
        count = weight.parts[next(iter(weight.parts))].shape[0]
        held, came = weight.read(0, count), after[name].read(0, count)
        if "scale" in held:
            assert torch.equal(held["q"], came["q"])
            assert torch.equal(came["scale"], came["scale"].half().float())
            moved += not torch.equal(held["scale"], came["scale"])
        else:
            assert all(torch.equal(held[part], came[part]) for part in held)
    assert moved == sum("scale" in weight.parts for weight in before.values()) > 5


def test_it_is_done_once(bundle: Bundle, cache: Path, tmp_path: Path) -> None:
    ui = Heard()
    again = compile_model(options(tmp_path / "again", learn=TOKENS, cache=cache, verify="always"), ui)
    assert any("found in the cache" in line and line.startswith("learned scales") for line in ui.lines)
    assert again.manifest.files == bundle.manifest.files


def test_after_a_stop_it_goes_on_to_the_same_bytes(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, done = Learner._step, []

    def stopping(self: Learner, *given: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return step(self, *given)

    asked = options(tmp_path / "b", learn=TOKENS, cache=tmp_path / "cache", verify="always")
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            compile_model(asked)
    assert len(list((tmp_path / "cache" / "known").glob("learning-begun-*"))) == 1
    made = compile_model(asked)
    assert made.manifest.files == bundle.manifest.files
    assert list((tmp_path / "cache" / "known").glob("learning-begun-*")) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learn": 1}, "--learn 1: expected 2 or more tokens"),
        ({"learn": 64, "recipe": "keep"}, "--learn: --recipe keep takes the scales of the file; leave out one of them"),
        ({"compute": "cuda"}, "--compute cuda: only --learn has a use for it; leave it out"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        options(tmp_path, **given)
    assert str(caught.value) == message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_device(tmp_path: Path) -> None:
    with pytest.raises(CannotRun, match=r"^--compute cuda: torch sees no such device here; leave it out, or install"):
        compile_model(options(tmp_path / "b", learn=64, compute="cuda"))
    assert not (tmp_path / "b").exists()


def test_experts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compile", "random:tiny-moe", "-o", str(tmp_path / "b"), "--learn", "64", "--target", "ort-mobile"]
    assert main(command) == 2
    assert "their scales cannot be learned yet; leave out --learn" in capsys.readouterr().err

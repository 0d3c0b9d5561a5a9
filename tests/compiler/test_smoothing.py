"""A budget moves factors of channels out of norms: recorded, checked, and made again from its policy file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loud import Loud

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.hosts import open_host
from pocketphi.compiler.options import CompileOptions, compile_options
from pocketphi.compiler.precision import policy_of_bundle
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import verify_folder
from pocketphi.graph.channel_scales import ChannelScales
from pocketphi.graph.errors import CheckFailed, InputError
from pocketphi.graph.write_checkpoint import write_checkpoint

NORM = "model.layers.0.input_layernorm.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(Loud(), folder, "fp32", lambda done: None)
    return folder


def options(model: Path, out: Path, **given: Any) -> CompileOptions:
    return compile_options(str(model), out, ("ort-mobile",), calibration_tokens=256, context=64, **given)


@pytest.fixture(scope="module")
def bundle(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return compile_model(options(model, tmp_path_factory.mktemp("bundle") / "b", bits=6.0, verify="always"))


def test_what_norms_gave_off_is_said_and_checked(model: Path, bundle: Bundle) -> None:
    assert bundle.manifest.recipe.smooth
    saved = open_host(bundle.path, bundle.manifest, "ort-mobile").weights()[NORM].read(0, 64)[""]
    powers = (saved / Loud().read(NORM, 0, 64)).log2()
    assert torch.equal(powers, powers.round())
    assert bool(powers.any())
    assert bundle.manifest.verification is not None
    assert "projections that channel scales change" in [check.name for check in bundle.manifest.verification.checks]
    result = verify_folder(bundle.path, bundle.manifest, Ui(), reference=str(model))
    found = {check.name: check.measured for check in result.checks}
    assert found["weights that are not the model's, rounded"] == 0
    assert result.ok
    assert result.reference is not None


def test_its_policy_makes_the_same_weights(model: Path, bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(policy_of_bundle(bundle))
    assert file.read_text().startswith("smooth = true\n")
    again = compile_model(options(model, tmp_path / "again", policy=file, verify="never"))
    assert again.manifest.recipe.smooth
    assert again.manifest.targets["ort-mobile"].weights == bundle.manifest.targets["ort-mobile"].weights
    file.write_text(file.read_text().replace("smooth = true\n", ""))
    plain = compile_model(options(model, tmp_path / "plain", policy=file, verify="never"))
    assert not plain.manifest.recipe.smooth
    assert plain.manifest.targets["ort-mobile"].weights != bundle.manifest.targets["ort-mobile"].weights


def test_factors_that_only_left_are_caught(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ChannelScales.read

    def half(self: ChannelScales, name: str, start: int, stop: int) -> torch.Tensor:
        return whole(self, name, start, stop) if name.endswith("norm.weight") else self._inner.read(name, start, stop)

    monkeypatch.setattr(ChannelScales, "read", half)
    with pytest.raises(CheckFailed, match=r"projections that channel scales change: .* exceeds 0"):
        compile_model(options(model, tmp_path / "b", bits=6.0, verify="always"))
    assert not (tmp_path / "b").exists()


def test_a_reference_with_other_weights_is_seen(bundle: Bundle, tmp_path: Path) -> None:
    class Other(Loud):
        def read(self, name: str, start: int, stop: int) -> torch.Tensor:
            rows = super().read(name, start, stop)
            return rows.roll(1, -1) if name == "model.layers.1.mlp.down_proj.weight" else rows

    (tmp_path / "other").mkdir()
    write_checkpoint(Other(), tmp_path / "other", "fp32", lambda done: None)
    result = verify_folder(bundle.path, bundle.manifest, Ui(), reference=str(tmp_path / "other"))
    assert not result.ok


def test_smooth_is_yes_or_no(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text('smooth = 1\n[[rules]]\npattern = "*"\nformat = "int4"\nrecipe = "rtn"\n')
    with pytest.raises(InputError, match=r"policy\.toml: smooth is 1, expected true or false"):
        compile_model(options(model, tmp_path / "b", policy=file, verify="never"))

"""Verification of TVM bundles: what is right passes, what was broken on purpose is caught, the other commands work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuning import few_forms
from tvm_sessions import check_goes_on

pytest.importorskip("tvm")

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.cli import main
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import Verification, verify_folder
from pocketphi.targets.tvm_arm import lower as lowering
from pocketphi.targets.tvm_arm.kernels import attention as attention_kernel
from pocketphi.targets.tvm_arm.kernels.attention import AttentionForm
from pocketphi.targets.tvm_arm.kernels.cache import FloatCache, Int8Cache
from pocketphi.targets.tvm_arm.platform import Platform


def built(out: Path, cache: str = "fp16", model: str = "random:tiny") -> Path:
    options = compile_options(model, out, ("tvm-arm",), recipe="rtn", os="host", verify="never", kv_cache=cache)
    compile_model(options)
    return out


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("tvm") / "bundle")


def verified(folder: Path) -> Verification:
    return verify_folder(folder, Bundle.open(folder, check=False).manifest, Ui())


def failed(folder: Path) -> list[str]:
    return [check.name for check in verified(folder).checks if not check.ok]


def test_a_good_bundle_passes_every_check(bundle: Path, whole_decode: None) -> None:
    result = verified(bundle)
    assert [check.name for check in result.checks if not check.ok] == []
    names = " ".join(check.name for check in result.checks)
    for part in ("bit for bit", "prefill, exact", "decode, as saved", "greedy", "decode past the window of 48"):
        assert part in names


def change(folder: Path, tensor: str, edit: Callable[[np.ndarray], None]) -> None:
    """Edit one tensor of model.params in place."""
    described = json.loads((folder / "model.json").read_text())
    row = next(row for row in described["params"] if row["name"] == tensor)
    shape = [int(np.prod(row["shape"]))]
    data = np.memmap(folder / "model.params", row["dtype"], "r+", row["offset"], tuple(shape))
    edit(data)
    data.flush()


def negate_first(data: np.ndarray) -> None:
    data[0] = -data[0]


def next_nibble(data: np.ndarray) -> None:
    data[7] ^= 1


def swap_nibbles(data: np.ndarray) -> None:
    data[:] = data >> 4 | data << 4


def negate(data: np.ndarray) -> None:
    data[:] = -data


WEIGHT = "model.layers.1.self_attn.o_proj.weight"


@pytest.mark.parametrize(
    ("tensor", "edit"),
    [
        (f"{WEIGHT}:scale", negate_first),
        (f"{WEIGHT}:q", next_nibble),
        (f"{WEIGHT}:q", swap_nibbles),
        ("rope.sin", negate),
        ("model.layers.2.input_layernorm.weight", negate_first),
    ],
)
def test_a_changed_parameter_is_caught(bundle: Path, tmp_path: Path, tensor: str, edit: Any) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(bundle, folder)
    change(folder, tensor, edit)
    assert "weights equal, bit for bit" in failed(folder)


def wider_window(monkeypatch: pytest.MonkeyPatch) -> None:
    def form(*arguments: Any) -> AttentionForm:
        return AttentionForm(*arguments[:6], arguments[6] + 1, *arguments[7:])

    monkeypatch.setattr(lowering, "AttentionForm", form)


def narrower_window(monkeypatch: pytest.MonkeyPatch) -> None:
    def form(*arguments: Any) -> AttentionForm:
        return AttentionForm(*arguments[:6], arguments[6] - 1, *arguments[7:])

    monkeypatch.setattr(lowering, "AttentionForm", form)


def sees_the_next_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask lets each query see one key of its future."""
    masked = attention_kernel._Body._masked

    def body(self: Any, score: Any, head: Any, first_key: Any, position: Any) -> Any:
        return masked(self, score, head, first_key, position + 1)

    monkeypatch.setattr(attention_kernel._Body, "_masked", body)


def cache_of_another_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers keep their keys where the first one does."""
    attention = lowering._RULES["edge.attention"]

    def rule(function: Any, node: Any) -> None:
        first = next(n for n in function.program.inputs if str(n.target).endswith(".key"))
        node.args = (node.args[0], first, *node.args[2:])
        attention(function, node)

    monkeypatch.setitem(lowering._RULES, "edge.attention", rule)


def decode_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact function of one token, which nothing but its own check runs, leaves the residual out."""
    rule = lowering._RULES["edge.add_rms_norm"]

    def broken(function: Any, node: Any) -> None:
        right = node.args
        if function.way.single and function.way.exact:
            node.args = (right[1], *right[1:])
        rule(function, node)
        node.args = right

    monkeypatch.setitem(lowering._RULES, "edge.add_rms_norm", broken)


@pytest.mark.parametrize(
    ("break_it", "check"),
    [
        (wider_window, "window"),
        (narrower_window, "window"),
        (sees_the_next_token, "KL prefill, exact"),
        (cache_of_another_layer, "KL decode, exact"),
        (decode_adds_nothing, "KL decode, exact"),
    ],
)
def test_a_broken_lowering_is_caught(
    break_it: Callable[[pytest.MonkeyPatch], None], check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(monkeypatch)
    folder = built(tmp_path / "broken", model=few_forms(monkeypatch))
    monkeypatch.undo()
    assert any(check in name for name in failed(folder))


def test_an_int8_cache_passes_and_one_without_its_scales_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_decode: None
) -> None:
    """The exact functions, whose cache is float32, are right in both: what is saved is measured as well."""
    good = verified(built(tmp_path / "good", "int8"))
    assert [check.name for check in good.checks if not check.ok] == []
    check_goes_on(tmp_path / "good", tmp_path / "talk", 37)  # a file holds the scales as well
    monkeypatch.setattr(Int8Cache, "scaled_weights", FloatCache.scaled_weights)
    folder = built(tmp_path / "broken", "int8")
    monkeypatch.undo()
    assert [name for name in failed(folder) if "exact" in name] == []
    assert "KL decode, as saved" in failed(folder)


@pytest.mark.parametrize(("cache", "row"), [("fp16", 2 * 16), ("int8", 16 + 4)])
def test_the_plan_has_the_bytes_of_the_cache(cache: str, row: int, capsys: pytest.CaptureFixture[str]) -> None:
    """random:tiny has 2·3·2 rows of 16 values a token."""
    arguments = ["--target", "tvm-arm", "--os", "host", "--kv-cache", cache, "--context", "100", "--dry-run", "--json"]
    assert main(["compile", "random:tiny", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["run"]["tvm-arm"]["kv_cache"] == 112 * 2 * 3 * 2 * row


def test_commands(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(bundle), "--prompt-tokens", "20", "--generate", "4", "--rounds", "1", "--json"]) == 0
    speeds = json.loads(capsys.readouterr().out)
    assert [speed["threads"] for speed in speeds] == [1, 2]
    assert all(speed["decode"] > 0 and speed["memory"] > 1 << 20 for speed in speeds)
    assert main(["eval", str(bundle), "--reference", "random:tiny", "--tokens", "256", "--window", "64", "--json"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["kl"] < 1
    assert main(["inspect", str(bundle)]) == 0
    assert Platform.of("host").described() in capsys.readouterr().out


def test_two_targets_hold_the_same_weights(tmp_path: Path) -> None:
    out = tmp_path / "both"
    options = compile_options("random:tiny", out, ("ort-mobile", "tvm-arm"), recipe="rtn", os="host", verify="never")
    compile_model(options)
    targets = Bundle.open(out).manifest.targets
    int4 = [name for name in targets["tvm-arm"].weights if name.endswith("proj.weight")]
    assert len(int4) == 12
    assert [n for n in int4 if targets["tvm-arm"].weights[n] != targets["ort-mobile"].weights[n]] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--os", "windows"], "--os windows: expected one of linux, android, ios, host"),
        (["--cpu", "cortex-a7"], "--cpu cortex-a7: did you mean cortex-a"),
    ],
)
def test_bad_options(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "none"
    assert main(["compile", "random:tiny", "--target", "tvm-arm", "-o", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_without_a_cross_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(["compile", "random:tiny", "--target", "tvm-arm", "--recipe", "rtn", "-o", str(tmp_path / "b")]) == 2
    assert "apt install g++-aarch64-linux-gnu" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

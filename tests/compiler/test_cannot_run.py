"""A check that cannot be run on this machine is not a failed check: the bundle is kept, and says that it was not verified."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.build_cache import place_bundle
from pocketphi.compiler.build_file import Cell, Gates, Measure
from pocketphi.compiler.build_gates import claims_of
from pocketphi.compiler.cli import main
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.diff import changes
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.ui import Ui
from pocketphi.compiler.verify import verify_folder
from pocketphi.graph.errors import CannotRun
from pocketphi.targets.tvm_arm.host import check_runs_here
from pocketphi.targets.tvm_arm.platform import Platform

REASON = "a library for android does not run on this machine; compile it for linux to check it here"


@pytest.fixture(scope="module")
def android(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two targets, of which one runs here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ANDROID_NDK_HOME", raising=False)
        out = tmp_path_factory.mktemp("android") / "bundle"
        options = compile_options("random:tiny", out, ("ort-mobile", "tvm-arm"), recipe="rtn", os="android")
        compile_model(options)
    return out


def test_the_finished_bundle_is_kept_and_says_why(android: Path) -> None:
    recorded = Bundle.open(android).manifest.verification
    assert recorded.ok is None
    assert recorded.reason == f"tvm-arm: {REASON}"
    names = [check.name for check in recorded.checks]
    assert "tvm-arm: weights equal, bit for bit" in names  # what needs no CPU was checked
    assert "ort-mobile: KL prefill, exact" in names
    assert all(check.ok for check in recorded.checks)


def test_those_who_read_the_manifest(android: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["inspect", str(android)]) == 0
    assert "not verified, because tvm-arm: a library for android" in " ".join(capsys.readouterr().out.split())
    bundle = Bundle.open(android)
    assert bundle.manifest.verification
    verified = replace(bundle.manifest, verification=replace(bundle.manifest.verification, ok=True, reason=None))
    assert [change.described() for change in changes(verified, bundle.manifest)] == ["verified: yes → no"]
    cell = Cell("x", compile_options("random:tiny", tmp_path), Gates(max_bytes=10**9))
    claims = {claim.name: claim for claim in claims_of(cell, bundle, Measure(), Ui())}
    assert claims["gate max_bytes"].ok
    assert claims["gate: verified"].described() == (
        f"gate: verified: not measured: tvm-arm: {REASON}; a gate is for a bundle that was verified"
    )
    without = Cell("x", compile_options("random:tiny", tmp_path), Gates())
    assert all(claim.ok for claim in claims_of(without, bundle, Measure(), Ui()))
    place_bundle(bundle, tmp_path / "placed")
    assert json.loads((tmp_path / "placed" / "manifest.json").read_text())["verification"]["ok"] is None


def test_who_asks_for_it_is_told(android: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(android)]) == 2
    assert REASON in capsys.readouterr().err
    assert main(["verify", str(android), "--target", "ort-mobile"]) == 0


def test_a_check_that_fails_is_still_a_failure(android: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Bundle.open(android).manifest
    target = manifest.targets["tvm-arm"]
    wrong = replace(target, weights=dict.fromkeys(target.weights, "0" * 64))
    manifest = replace(manifest, targets={**manifest.targets, "tvm-arm": wrong})
    result = verify_folder(android, manifest, Ui(), as_far_as_it_runs=True)
    assert result.ok is False


@pytest.mark.parametrize("system", ["android", "ios"])
def test_always_fails_before_the_work(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketphi.compiler.compile.build_program", None)  # would fail if it were called
    arguments = ["--target", "tvm-arm", "--os", system, "--verify", "always", "-o", str(tmp_path / "b")]
    assert main(["compile", "random:tiny", *arguments]) == 2
    assert f"a library for {system} does not run on this machine" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_onnxruntime_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as Python notes that it cannot be imported
    real = importlib.metadata.distributions
    monkeypatch.setattr(
        "importlib.metadata.distributions", lambda **asked: [] if asked.get("name") == "onnxruntime" else real(**asked)
    )
    reason = "ort-mobile needs the package 'onnxruntime'; install it with: pip install 'pocketphi[ort]'"
    out = tmp_path / "b"
    for option in (["--verify", "always"], ["--ort-file", "--verify", "never"]):
        assert main(["compile", "random:tiny", "--recipe", "rtn", "-o", str(out), *option]) == 2
        assert capsys.readouterr().err == f"pocketphi: {reason}\n"
    assert list(tmp_path.iterdir()) == []
    manifest = compile_model(compile_options("random:tiny", out, recipe="rtn")).manifest
    assert manifest.verification
    assert (manifest.verification.ok, manifest.verification.reason) == (None, reason)
    assert "onnx" in manifest.versions
    assert "onnxruntime" not in manifest.versions
    assert main(["bench", str(out), "--prompt-tokens", "8", "--generate", "2"]) == 2
    assert reason in capsys.readouterr().err


def test_other_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketphi.targets.tvm_arm.toolchain.host_arch", lambda: "x86_64")
    monkeypatch.setattr("pocketphi.targets.tvm_arm.host.host_arch", lambda: "x86_64")
    monkeypatch.setattr("pocketphi.targets.tvm_arm.host.cpu_flags", lambda: {"avx2", "fma"})
    with pytest.raises(CannotRun, match="this machine's CPU has no f16c, which avx2 needs"):
        check_runs_here(Platform.of("linux", "avx2"))
    monkeypatch.setattr("shutil.which", lambda name: None if "qemu" in name else "/usr/bin/true")
    with pytest.raises(CannotRun, match="no qemu-aarch64 to run aarch64 code on x86_64: apt install qemu-user"):
        check_runs_here(Platform.of("linux", "dotprod"))

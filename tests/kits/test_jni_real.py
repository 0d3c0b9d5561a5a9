"""The JNI kit over a compiled model: its C++ under qemu with a table of JNI functions, its Kotlin in a virtual machine."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm")

from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.targets.tvm_arm.toolchain import host_arch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "aarch64"))
import jni

PROMPT, STEPS = [5, 17, 99, 3], 12

needs_qemu = pytest.mark.skipif(jni.missing() is not None, reason=str(jni.missing()))
needs_host = pytest.mark.skipif(jni.missing(host_arch()) is not None, reason=str(jni.missing(host_arch())))


def made(out: Path, os: str, cpu: str | None = None) -> Path:
    compile_model(compile_options("random:tiny", out, ("tvm-arm",), recipe="rtn", os=os, cpu=cpu, verify="never"))
    return out


@pytest.fixture(scope="module")
def arm_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("arm") / "bundle", "linux", "dotprod")


@pytest.fixture(scope="module")
def host_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("host") / "bundle", "host")


@needs_qemu
def test_on_aarch64(kits: dict[str, Path], arm_bundle: Path, host_bundle: Path, tmp_path: Path) -> None:
    """Bit for bit what the runtime computes without JNI; the tokens are the host's."""
    library = jni.build_library(kits["android-tvm"], arm_bundle, tmp_path)
    assert library.read_bytes()[18:20] == b"\xb7\x00"  # EM_AARCH64
    found, logits = jni.drive(library, arm_bundle, PROMPT, STEPS)
    tokens, alone = jni.greedy(arm_bundle, PROMPT, STEPS)
    assert np.array_equal(logits, alone)
    assert tokens == jni.greedy(host_bundle, PROMPT, STEPS)[0]
    assert len(set(tokens)) > 2
    length = str(len(PROMPT) + STEPS - 1)
    assert found == {
        "class": "com/example/sample/NativeModel",
        "no-bundle": "java/lang/IllegalStateException: /nowhere/model.json: No such file or directory",
        "context": "256",
        "small-logits": "java/lang/IllegalStateException: logits: another size than the vocabulary",
        "vocabulary": "256",
        "tokens": ",".join(map(str, tokens)),
        "length": length,
        "bad-token": "java/lang/IllegalStateException: token -1 is not within 0 to 255",
        "no-tokens": "java/lang/IllegalStateException: a prefill of no tokens",
        "length-after-errors": length,
        "length-after-reset": "0",
        "again": ",".join(map(str, tokens)),
        "held": "0",
    }


MISTAKES = {
    "ReleaseFloatArrayElements(logits, out, 0)": ("ReleaseFloatArrayElements(logits, out, JNI_ABORT)", "tokens"),
    "env->ReleaseIntArrayElements(tokens, ids, JNI_ABORT)": ("(void)0", "held"),
    "if (failed) fail(": ("if (failed > 1) fail(", "bad-token"),
}


@needs_host
@pytest.mark.parametrize("right", MISTAKES)
def test_the_harness_sees_mistakes(right: str, kits: dict[str, Path], host_bundle: Path, tmp_path: Path) -> None:
    wrong, seen = MISTAKES[right]
    shutil.copytree(kits["android-tvm"] / jni.CPP, tmp_path / jni.CPP)
    source = tmp_path / jni.CPP / "pocketphi_jni.cpp"
    assert right in source.read_text()
    source.write_text(source.read_text().replace(right, wrong))
    good, bad = tmp_path / "good", tmp_path / "bad"
    found = []
    for folder, kit in ((good, kits["android-tvm"]), (bad, tmp_path)):
        folder.mkdir()
        found.append(jni.drive(jni.build_library(kit, host_bundle, folder), host_bundle, PROMPT, STEPS)[0])
    assert found[0][seen] != found[1][seen]


@needs_host
def test_in_a_virtual_machine(
    kits: dict[str, Path],
    host_bundle: Path,
    tvm_classes: Path,
    run_junit: Callable[..., tuple[int, str]],
    tmp_path: Path,
) -> None:
    """The kit's own Kotlin classes, compiled, over its own C++."""
    jni.build_library(kits["android-tvm"], host_bundle, tmp_path)
    tokens, _ = jni.greedy(host_bundle, PROMPT, STEPS)
    properties = {"java.library.path": tmp_path, "bundle": host_bundle}
    properties |= {name: ",".join(map(str, values)) for name, values in (("prompt", PROMPT), ("tokens", tokens))}
    options = [f"-D{name}={value}" for name, value in properties.items()]
    code, output = run_junit(tvm_classes, tmp_path, "com.example.sample.RealModelTest", *options, "-Xcheck:jni")
    assert (code, "OK (3 tests)" in output) == (0, True), output[-3000:]
    assert "WARNING in native method" not in output

"""The Swift kits on Linux: compiled in Swift 6 mode without a warning, their tests run, their `Chat` talking to a toy model.

Apple's modules, swift-transformers and onnxruntime-genai are stand-ins. `tests/kits/swift.sh` gets a compiler.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from kit_bundles import STUBS, TARGETS
from kit_talks import write_talks

HERE = Path(__file__).parent
ROOT = HERE.parents[1] / "build/trixie"
STAND_INS = {"coreml": ["os", "CryptoKit", "CoreML", "Tokenizers"], "genai": ["os", "CryptoKit"]}
CHROOT = (
    'mount --bind /proc "$1/proc" && mount --bind /dev "$1/dev" && mount -t tmpfs tmpfs "$1/tmp" && '
    'mkdir "$1/tmp/work" && mount --bind "$2" "$1/tmp/work" && chroot "$1" env -u TMPDIR bash -c "cd /tmp/work/$3 && $4"'
)
Run = Callable[[Path, str, str], str]


@pytest.fixture(scope="module")
def swift() -> Run:
    """Run a command in a folder inside another that it may see: swift(whole, folder, command) → output."""
    if not shutil.which("swift") and not (os.path.lexists(ROOT / "whole") and os.geteuid() == 0):
        pytest.skip("no swift: tests/kits/swift.sh makes a Debian root with it")

    def run(whole: Path, folder: str, command: str) -> str:
        if shutil.which("swift"):
            done = subprocess.run(command, shell=True, cwd=whole / folder, capture_output=True, text=True, check=False)
        else:
            chroot = ["unshare", "--mount", "bash", "-c", CHROOT, "swift", str(ROOT), str(whole), folder, command]
            done = subprocess.run(chroot, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return done.stdout + done.stderr

    return run


def manifest(runtime: str) -> str:
    """The package with stand-ins for what it depends on."""
    products = ", ".join(f'.product(name: "{name}", package: "swift")' for name in STAND_INS[runtime])
    c_interface = '.target(name: "CGenAI", dependencies: [.product(name: "GenAI", package: "swift")]),'
    return f"""// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: "Sample",
    dependencies: [.package(path: "../swift")],
    targets: [
        {c_interface if runtime == "genai" else ""}
        .target(name: "Sample", dependencies: [{'"CGenAI", ' if runtime == "genai" else ""}{products}]),
        .testTarget(name: "SampleTests", dependencies: ["Sample", {products}], resources: [.copy("vectors.json")]),
    ]
)
"""


def lay_out(kits: dict[str, Path], bundle: Path, runtime: str, whole: Path) -> Path:
    """The kit, the stand-ins beside it, a bundle and conversations. Returns the kit's folder."""
    kit = whole / "kit"
    shutil.copytree(kits[f"ios-{runtime}"], kit)
    shutil.copytree(STUBS / "swift", whole / "swift")
    shutil.copytree(bundle, whole / "talks/bundle")
    details = TARGETS["coreml"] if runtime == "coreml" else {}
    write_talks(whole / "talks/talks.json", bundle, details.get("context", 2048), details.get("chunk", 0))
    text = (HERE / "ChatTests.swift").read_text("utf-8")
    if runtime == "genai":
        text = text.replace("try await Chat(", "try Chat(")
    (kit / "Tests/SampleTests/ChatTests.swift").write_text(text, "utf-8")
    return kit


@pytest.mark.parametrize(("runtime", "count"), [("coreml", 9), ("genai", 7)])
def test_a_kit_compiles_and_talks(
    kits: dict[str, Path], bundle: Path, swift: Run, runtime: str, count: int, tmp_path: Path
) -> None:
    kit = lay_out(kits, bundle, runtime, tmp_path)
    swift(tmp_path, "kit", "swift package dump-package")  # the manifest as it is
    (kit / "Package.swift").write_text(manifest(runtime), "utf-8")
    output = swift(
        tmp_path,
        "kit",
        "swift build --build-tests -Xswiftc -warnings-as-errors && TALKS=$PWD/../talks swift test --skip-build",
    )
    assert re.search(rf"Executed {count} tests, with 0 failures", output), output[-3000:]

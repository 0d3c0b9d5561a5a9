"""The Swift kits on Linux: compiled in Swift 6 mode without a warning, their tests run, their `Chat` talking to models.

Stand-ins (`stubs/swift`): Apple's modules, SwiftUI among them, swift-transformers, and a toy in place of Core ML and of
onnxruntime-genai. Real: Swift, Foundation, XCTest and SQLite; behind the stand-in of Core ML the saved package in our
interpreter, with the bundle's tokenizer; in place of the toy the library of onnxruntime-genai. `make swift` gets a compiler.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from kit_bundles import STUBS, TARGETS
from kit_talks import REAL_TALKS, cut_inside, write_real_talks, write_talks
from model_peer import Peer
from talking_model import EMOJI, write_model

from pocketphi.artifacts.kits.conversation_vectors import send
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.integrate import integrate
from pocketphi.compiler.options import compile_options

HERE = Path(__file__).parent
ROOT = HERE.parents[1] / "build/trixie"
CONTEXT, CHUNK = TARGETS["coreml"]["context"], TARGETS["coreml"]["chunk"]
KITS = {"SampleCoreML": "coreml", "SampleGenAI": "genai"}
CHROOT = (
    'mount --bind /proc "$1/proc" && mount --bind /dev "$1/dev" && mount -t tmpfs tmpfs "$1/tmp" && '
    'mkdir "$1/tmp/work" && mount --bind "$2" "$1/tmp/work" && '
    'chroot "$1" env -i HOME=/tmp PATH=/usr/bin:/bin bash -c "cd /tmp/work && $3"'
)
Run = Callable[[str], str]

RESOURCES = """import Foundation

extension Bundle {
    static let module = Bundle(path: FileManager.default.currentDirectoryPath + "/kit/Tests/%s")!
}
"""
"""What SwiftPM adds to a target with resources."""


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for both kits that can be run."""
    folder = tmp_path_factory.mktemp("talking")
    out, model = folder / "bundle", write_model(folder / "model", 2048)
    given = {"recipe": "rtn", "block": 32, "accuracy_level": 0, "verify": "never", "context": CONTEXT, "chunk": CHUNK}
    compile_model(compile_options(str(model), out, ("ort-mobile", "coreml"), **given))
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the root sees."""
    return tmp_path_factory.mktemp("swift")


@pytest.fixture(scope="module")
def run(whole: Path) -> Run:
    """Run a command in that folder: run(command) → output."""
    if not shutil.which("swift") and not ((ROOT / "whole").exists() and os.geteuid() == 0):
        pytest.skip("no Swift: `make swift` makes a Debian root with it, in 4 minutes, as root")

    def run_(command: str) -> str:
        if shutil.which("swift"):
            done = subprocess.run(command, shell=True, cwd=whole, capture_output=True, text=True, check=False)
        else:
            chroot = ["unshare", "--mount", "bash", "-c", CHROOT, "swift", str(ROOT), str(whole), command]
            done = subprocess.run(chroot, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return done.stdout + done.stderr

    return run_


@pytest.fixture(scope="module")
def built(run: Run, talking: Path, whole: Path) -> Path:
    """Both kits with their tests and ours, and the views of their examples, built; a folder for what they talk of."""
    kit = whole / "kit"
    for name, runtime in KITS.items():
        integrate(talking, "ios", whole / name, runtime, name=name)
        shutil.copytree(whole / name, kit, dirs_exist_ok=True, ignore=shutil.ignore_patterns("Example"))
        shutil.copytree(whole / name / "Example", kit / "Example" / name)
        text = (HERE / "ChatTests.swift").read_text("utf-8")
        tests = kit / f"Tests/{name}Tests"
        (tests / "ChatTests.swift").write_text(text.replace("import Sample", f"import {name}"), "utf-8")
        if runtime == "genai":
            adapters = (HERE / "AdapterTests.swift").read_text("utf-8")
            (tests / "AdapterTests.swift").write_text(adapters.replace("import Sample", f"import {name}"), "utf-8")
        (tests / "Resources.swift").write_text(RESOURCES % tests.name, "utf-8")
    (whole / "main.swift").write_text(main_file(kit), "utf-8")
    shutil.copytree(STUBS / "swift", whole / "swift")
    shutil.copytree(talking, whole / "bundle")
    shutil.copy(HERE / "swift_build.sh", whole)
    run(f"./swift_build.sh {' '.join(KITS)}")
    return whole


def main_file(kit: Path) -> str:
    """A program that runs the tests; SwiftPM finds them by itself."""
    imports, cases = ["import XCTest"], []
    for name in KITS:
        imports.append(f"@testable import {name}Tests")
        for file in sorted((kit / f"Tests/{name}Tests").glob("*Tests.swift")):
            kind = f"{name}Tests.{file.stem}"
            found = re.findall(r"^    func (test\w+)\(\)( async)?", file.read_text("utf-8"), re.M)
            tests = [f'("{t}", ' + (f"asyncTest({kind}.{t})" if later else f"{kind}.{t}") + ")" for t, later in found]
            cases.append(f"    testCase([{', '.join(tests)}] as [(String, ({kind}) -> () throws -> Void)]),")
    lines = [*imports, "XCTMain([", *cases, "])"]
    return "\n".join(lines) + "\n"


def heard(run: Run, tests: str, talks: str, setting: str = "") -> str:
    """Run tests of the build. setting: more variables of the environment."""
    return run(f"{setting} TALKS=$PWD/{talks} BUNDLE=$PWD/bundle out/tests {tests}")


@pytest.mark.parametrize(("name", "count"), [("SampleCoreML", 14), ("SampleGenAI", 12)])
def test_a_kit_meets_the_vectors_and_talks_to_a_toy(
    run: Run, built: Path, talking: Path, name: str, count: int
) -> None:
    write_talks(built / "toy.json", talking, CONTEXT, CHUNK if name == "SampleCoreML" else 0)
    output = heard(run, ",".join(f"{name}Tests.{test}Tests" for test in ("Vectors", "Documents", "Chat")), "toy.json")
    assert re.search(rf"Executed {count} tests, with 0 failures", output), output[-3000:]


def test_the_kit_for_genai_switches_adapters(run: Run, built: Path) -> None:
    output = heard(run, "SampleGenAITests.AdapterTests", "toy.json")
    assert re.search("Executed 1 test, with 0 failures", output), output[-3000:]


def test_core_ml_says_what_our_chat_says(run: Run, built: Path, talking: Path, tmp_path: Path) -> None:
    """The kit's calls go to the saved package, run by our interpreter; each state is one of its."""
    first, second, third = REAL_TALKS["turns"]
    (whole_answer,) = write_real_talks(tmp_path / "first", talking, "coreml", CONTEXT, {"first": [first]})
    pieces = whole_answer["ways"][0][0][0]
    cut = cut_inside(pieces, EMOJI)
    talks = {**REAL_TALKS, "an emoji is cut": [[send(first[0]["send"], cut)], second]}
    said = write_real_talks(tmp_path / "plain", talking, "coreml", CONTEXT, talks)
    said += write_real_talks(tmp_path / "system", talking, "coreml", CONTEXT, {"turns": [first, third]}, "Be brief.")
    (built / "real.json").write_text(json.dumps(said), "utf-8")
    shown = {talk["name"]: talk["ways"][0][0][0] for talk in said[:-1]}["an emoji is cut"]
    assert (shown, shown[-1], pieces[cut]) == (pieces[:cut], "", EMOJI)
    peer = Peer(talking, built / "peer")
    output = heard(run, "SampleCoreMLTests.ChatTests/testConversations", "real.json", "PEER=$PWD/peer")
    assert re.search("Executed 1 test, with 0 failures", output), output[-3000:]
    assert (peer.failure, peer.calls["prefill"] >= 20, peer.calls["decode"] >= 100) == (None, True, True)


def test_genai_says_what_our_chat_says(run: Run, built: Path, talking: Path) -> None:
    """The kit over the library of onnxruntime-genai, loaded before the toy of the same names."""
    libraries = built / "ort"
    libraries.mkdir()
    for package, name in (("onnxruntime_genai", "libonnxruntime-genai.so"), ("onnxruntime", "capi/libonnxruntime.so")):
        (file,) = Path(str(importlib.import_module(package).__file__)).parent.glob(f"{name}*")
        shutil.copy(file, libraries / Path(name).name)
    write_real_talks(built / "ort.json", talking, "ort-mobile", CONTEXT, REAL_TALKS)
    setting = "LD_LIBRARY_PATH=$PWD/ort LD_PRELOAD=$PWD/ort/libonnxruntime-genai.so"
    output = heard(run, "SampleGenAITests.ChatTests/testConversations", "ort.json", setting)
    assert re.search("Executed 1 test, with 0 failures", output), output[-3000:]


def test_the_manifests(run: Run, built: Path) -> None:
    run(" && ".join(f"swift package --package-path {name} dump-package" for name in KITS))


def test_a_chat_that_says_something_else_is_seen(run: Run, built: Path, talking: Path) -> None:
    talks = write_real_talks(built / "wrong.json", talking, "ort-mobile", CONTEXT, {"turns": REAL_TALKS["turns"][:1]})
    talks[0]["ways"][0][0][0][-1] += "x"
    (built / "wrong.json").write_text(json.dumps(talks), "utf-8")
    with pytest.raises(AssertionError, match="turns: "):
        heard(run, "SampleGenAITests.ChatTests/testConversations", "wrong.json")


@pytest.mark.sample
@pytest.mark.skipif("POCKETPHI_SLOW" not in os.environ, reason="takes minutes: set POCKETPHI_SLOW")
def test_core_ml_says_of_the_sample_what_our_chat_says(run: Run, built: Path, tmp_path: Path) -> None:
    """The last of these tests: the build is for the sample's package then."""
    bundle = tmp_path / "bundle"
    given = {"recipe": "rtn", "verify": "never", "context": CONTEXT, "chunk": CHUNK}
    compile_model(compile_options("sample", bundle, ("coreml",), **given))
    integrate(bundle, "ios", tmp_path / "kit", name="SampleCoreML")
    info = "Sources/SampleCoreML/ModelInfo.swift"
    shutil.copy(tmp_path / "kit" / info, built / "kit" / info)
    run("./swift_build.sh SampleCoreML")
    shutil.rmtree(built / "bundle")
    shutil.copytree(bundle, built / "bundle")
    talks = {
        "turns": [
            [send("What is the capital of France?", 12)],
            [send("And of Italy?", 8), send("An emoji, please.", 8)],
        ],
        "stop": [[send("Count to ten.", 6, stop=4)], [send("And back.", 6)]],
    }
    said = write_real_talks(built / "sample.json", bundle, "coreml", CONTEXT, talks)
    assert "Paris" in "".join(said[0]["ways"][0][0][0])
    shutil.rmtree(built / "peer", ignore_errors=True)
    peer = Peer(bundle, built / "peer")
    output = heard(run, "SampleCoreMLTests.ChatTests/testConversations", "sample.json", "PEER=$PWD/peer")
    assert re.search("Executed 1 test, with 0 failures", output), output[-3000:]
    assert peer.failure is None

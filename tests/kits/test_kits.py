"""The app kits: parsed by the languages' grammars, Kotlin and JNI compiled and run, bad input refused.

Real for Kotlin: Android's interfaces (API 23), which give 0 or null where the tests run, but for what `Phone.kt` says; org.json
as Android has it; SQLite, behind androidx.sqlite's interfaces; kotlinx.coroutines but for its flows and its Mutex, for which
Debian's is too old; JUnit. Stand-ins are these two, Jetpack Compose, DJL's tokenizer, and onnxruntime-genai, whose model is a
toy: `stubs`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit_bundles import KITS, STUBS, TARGETS, make_bundle, sources_of
from kit_talks import write_talks

from pocketphi.artifacts.bundle import Bundle, file_digest, write_manifest
from pocketphi.artifacts.kits.fill import kotlin_literal, swift_literal
from pocketphi.artifacts.manifest import MANIFEST
from pocketphi.compiler.cli import main
from pocketphi.compiler.integrate import integrate, kits_of
from pocketphi.graph.errors import InputError
from pocketphi.targets.target import Kit, Target

HERE = Path(__file__).parent
NAMES = [f"{kit.platform}-{kit.runtime}" for kit in KITS]


def grammar(suffix: str) -> Any:
    import tree_sitter
    import tree_sitter_kotlin
    import tree_sitter_swift

    modules = {".swift": tree_sitter_swift, ".kt": tree_sitter_kotlin, ".kts": tree_sitter_kotlin}
    return tree_sitter.Parser(tree_sitter.Language(modules[suffix].language()))


def problems(path: Path) -> list[str]:
    """Nodes that the grammar could not make sense of."""
    found = []
    stack = [grammar(path.suffix).parse(path.read_bytes()).root_node]
    while stack:
        node = stack.pop()
        if node.is_error or node.is_missing:
            found.append(f"{path.name}:{node.start_point[0] + 1}: {node.text[:80]!r}")
        stack += node.children
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_source_file_parses(kits: dict[str, Path], name: str) -> None:
    files = [path for path in kits[name].rglob("*") if path.suffix in (".swift", ".kt", ".kts")]
    assert len(files) >= 7
    assert [problem for path in files for problem in problems(path)] == []
    for path in kits[name].rglob("*"):
        if path.is_file() and "runtime" not in path.relative_to(kits[name]).parts:  # the C runtime's own sources
            text = path.read_text("utf-8")
            assert not re.search("[«»]|<%|%>|KIT", text), path
            assert path.suffix in (".json", ".md") or max(map(len, text.splitlines()), default=0) <= 132, path


def test_the_grammars_see_mistakes(tmp_path: Path) -> None:
    for name, text in {"a.swift": "func f( { }", "a.kt": "fun f() = = 3"}.items():
        (tmp_path / name).write_text(text)
        assert problems(tmp_path / name) != []


@pytest.mark.parametrize("name", NAMES)
def test_a_kit_says_what_the_manifest_says(kits: dict[str, Path], bundle: Path, name: str) -> None:
    (info,) = (path for path in kits[name].rglob("ModelInfo.*"))
    text = info.read_text("utf-8")
    assert file_digest(bundle / MANIFEST) in text
    context = 1024 if name == "ios-coreml" else 2048
    assert re.search(rf"(context|CONTEXT) = {context}$", text, re.M)
    assert re.search(
        r"(stops: \[0, 2\]|stops = setOf\(0, 2\)),$", text, re.M
    )  # <|im_end|> closes a message and ends the text
    readme = (kits[name] / "README.md").read_text("utf-8")
    assert "## How far it is tested" in readme


def test_the_kit_for_genai_compiles_and_meets_the_vectors(
    kits: dict[str, Path],
    bundle: Path,
    kotlin: Callable[..., Path],
    run_junit: Callable[..., tuple[int, str]],
    tmp_path: Path,
) -> None:
    kit = kits["android-genai"]
    own = [HERE / "ChatTest.kt", HERE / "Phone.kt"]
    classes = kotlin(tmp_path / "out", *sources_of(kit), *own, STUBS / "genai")
    resources = kit / "src/test/resources"
    for test, count in (("VectorsTest", 6), ("DocumentsTest", 4)):
        code, output = run_junit(classes, resources, f"com.example.sample.{test}")
        assert (code, f"OK ({count} tests)" in output) == (0, True), output[-3000:]
    talks = write_talks(tmp_path / "talks.json", bundle, 2048)
    options = (f"-Dbundle={bundle}", f"-Dtalks={talks}", f"-Dvectors={resources / 'vectors.json'}")
    code, output = run_junit(classes, tmp_path, "com.example.sample.ChatTest", *options)
    assert (code, "OK (5 tests)" in output) == (0, True), output[-3000:]


def test_the_kit_for_tvm_meets_the_vectors(
    kits: dict[str, Path], tvm_classes: Path, run_junit: Callable[..., tuple[int, str]]
) -> None:
    resources = kits["android-tvm"] / "src/test/resources"
    code, output = run_junit(tvm_classes, resources, "com.example.sample.VectorsTest")
    assert (code, "OK (8 tests)" in output) == (0, True), output[-3000:]


def test_kotlin_fails_where_a_vector_is_another(
    kits: dict[str, Path], tvm_classes: Path, run_junit: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """Each part of the vectors is looked at: with one answer of each spoiled, each test fails but one."""
    vectors = json.loads((kits["android-tvm"] / "src/test/resources/vectors.json").read_text("utf-8"))
    vectors["chat"][2]["prompt"] = "x"
    vectors["calls"][2]["calls"] = [["decode", 0, 9]]
    vectors["answers"][2]["made"] = []
    vectors["conversations"]["cases"][20]["groups"][0][0]["messages"].pop()
    vectors["sampling"][2]["tokens"] = [0] * 20
    vectors["stream"][2]["texts"] = [""] * 5
    vectors["integrity"]["refused"].append([["swap", "empty", "empty"]])
    vectors["documents"]["words"][3]["spaced"] = ""
    vectors["documents"]["searches"][1]["found"].pop()
    vectors["documents"]["grounded"][1]["message"] = ""
    (tmp_path / "vectors.json").write_text(json.dumps(vectors))
    for test, came in (("VectorsTest", "Tests run: 8,  Failures: 7"), ("DocumentsTest", "Tests run: 4,  Failures: 3")):
        code, output = run_junit(tvm_classes, tmp_path, f"com.example.sample.{test}")
        assert (code, came in output) == (1, True), output[-3000:]


def native(compiler: str, kit: Path, out: Path, includes: list[Path]) -> Path:
    """The JNI library over the toy runtime, in one shared object."""
    cpp = kit / "src/main/cpp"
    includes = [*includes, cpp / "runtime"]
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", *(f"-I{path}" for path in includes)]
    toy = out.with_suffix(".o")
    subprocess.run(
        [compiler, "-c", "-fPIC", "-x", "c", f"-I{cpp / 'runtime'}", str(HERE / "toy_runtime.c"), "-o", str(toy)],
        check=True,
    )
    command = [compiler, "-std=c++17", *flags, str(cpp / "pocketphi_jni.cpp"), str(toy), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def jni() -> list[Path]:
    """Folders of jni.h."""
    javac = shutil.which("javac")
    if not javac:
        pytest.skip("no javac: apt-get install default-jdk-headless")
    include = Path(javac).resolve().parents[1] / "include"
    return [include, include / "linux"]


def test_conversations_through_jni(
    kits: dict[str, Path],
    bundle: Path,
    tvm_classes: Path,
    run_junit: Callable[..., tuple[int, str]],
    jni: list[Path],
    tmp_path: Path,
) -> None:
    if not shutil.which("g++"):
        pytest.skip("no g++: apt-get install g++")
    native("g++", kits["android-tvm"], tmp_path / "libpocketphi_jni.so", jni)
    talks = write_talks(tmp_path / "talks.json", bundle, 2048)
    vectors = kits["android-tvm"] / "src/test/resources/vectors.json"
    libraries = ":".join(map(str, [tmp_path, *Path("/usr/lib").glob("*/jni")]))  # SQLite's too
    given = {"java.library.path": libraries, "bundle": bundle, "talks": talks, "vectors": vectors}
    options = (*(f"-D{name}={value}" for name, value in given.items()), "-Xcheck:jni")
    for test, count in (("NativeTest", 6), ("ChatTest", 5)):
        code, output = run_junit(tvm_classes, tmp_path, f"com.example.sample.{test}", *options)
        assert (code, f"OK ({count} tests)" in output) == (0, True), output[-3000:]
        assert "WARNING in native method" not in output


def test_the_jni_code_compiles_for_aarch64(kits: dict[str, Path], jni: list[Path], tmp_path: Path) -> None:
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if not compiler:
        pytest.skip("no aarch64-linux-gnu-g++: apt-get install g++-aarch64-linux-gnu")
    made = native(compiler, kits["android-tvm"], tmp_path / "libpocketphi_jni.so", jni)
    header = made.read_bytes()[:20]
    assert (header[:4], header[18:20]) == (b"\x7fELF", b"\xb7\x00")  # EM_AARCH64


def test_the_rope_switch_and_a_shorter_context(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "b", {"ort-mobile": {}}, long_rope_after=4096)
    integrate(made, "android", tmp_path / "kit", context=512, package="org.acme.phi", name="PhiMini")
    text = (tmp_path / "kit/src/main/kotlin/org/acme/phi/ModelInfo.kt").read_text("utf-8")
    assert "longRopeAfter = 4096," in text
    assert "const val CONTEXT = 512\n" in text
    assert text.startswith("package org.acme.phi\n")
    assert "read again once" in (tmp_path / "kit/README.md").read_text("utf-8")


def test_a_bundle_with_a_prefix_has_room_for_it(tmp_path: Path) -> None:
    from dataclasses import replace

    from pocketphi.artifacts.bundle import Bundle, write_manifest
    from pocketphi.artifacts.manifest import PrefixRecord

    made = make_bundle(tmp_path / "b", {"tvm-arm": {}})
    manifest = Bundle.open(made).manifest
    write_manifest(made, replace(manifest, prefix=PrefixRecord(1000, {"tvm-arm": "avx2"})))
    integrate(made, "android", tmp_path / "kit", package="org.acme.phi")
    text = (tmp_path / "kit/src/main/kotlin/org/acme/phi/ModelInfo.kt").read_text("utf-8")
    assert "const val CONTEXT = 3048\n" in text
    with pytest.raises(
        InputError, match="--context 1001: the bundle's prefix alone has 1000 tokens, expected 1002 or more"
    ):
        integrate(made, "android", tmp_path / "other", context=1001)


def test_the_memory_of_an_int8_cache(tmp_path: Path) -> None:
    """The sample has 2·30·3 rows of 64 values a token: two bytes each, or one and a scale of four for the row."""
    memory = []
    for cache in ("fp16", "int8"):
        made = make_bundle(tmp_path / cache, {"tvm-arm": {"kv_cache": cache}})
        integrate(made, "android", tmp_path / f"{cache}-kit", "tvm", context=512, package="org.acme.phi")
        text = (tmp_path / f"{cache}-kit/src/main/kotlin/org/acme/phi/ModelInfo.kt").read_text("utf-8")
        memory += re.findall(r"MEMORY_BYTES = ([\d_]+)L", text)
    assert int(memory[0]) - int(memory[1]) == 512 * 2 * 30 * 3 * (128 - 68)


def test_kits_are_the_same_each_time(kits: dict[str, Path], bundle: Path, tmp_path: Path) -> None:
    for kit in KITS:
        name = f"{kit.platform}-{kit.runtime}"
        integrate(bundle, kit.platform, tmp_path / name, kit.runtime)
        files = sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*") if path.is_file())
        assert {f: (tmp_path / name / f).read_bytes() for f in files} == {
            f: (kits[name] / f).read_bytes() for f in files
        }


REFUSED = [
    (
        {"coreml": {"context": 64}},
        ["android"],
        "holds coreml, nothing for android; compile it with --target ort-mobile or",
    ),
    (
        {"tvm-arm": {}},
        ["ios"],
        "holds tvm-arm, nothing for ios; compile it with --target coreml or --target ort-mobile",
    ),
    ({"ort-mobile": {}}, ["android", "--runtime", "tvm"], "nothing for android; compile it with --target tvm-arm"),
    (
        {"ort-mobile": {}},
        ["android", "--runtime", "coreml"],
        "--runtime coreml: not on android; expected one of genai, tvm",
    ),
    (
        {"coreml": {"flavor": "swift-transformers"}},
        ["ios"],
        "is for swift-transformers; compile with --flavor functions",
    ),
    (
        {"tvm-arm": {"platform": "linux, x86_64 with avx2"}},
        ["android"],
        "its library is for 'linux, x86_64 with avx2'; compile with --os android",
    ),
    ({"ort-mobile": {}}, ["ios", "--name", "phi mini"], "--name phi mini: expected a name like PhiMini"),
    ({"ort-mobile": {}}, ["android", "--package", "phi"], "--package phi: expected a name like com.example.phi"),
    ({"ort-mobile": {}}, ["android", "--context", "9000"], "--context 9000: "),
]


@pytest.mark.parametrize(("targets", "arguments", "message"), REFUSED)
def test_bad_input_is_refused(
    targets: dict[str, Any], arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_bundle(tmp_path / "b", targets)
    assert main(["integrate", str(made), "--platform", *arguments, "-o", str(tmp_path / "kit")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not (tmp_path / "kit").exists()


def test_a_bundle_without_a_tokenizer_or_a_damaged_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_bundle(tmp_path / "b", {"ort-mobile": {}})
    manifest = Bundle.open(made).manifest
    (made / "tokenizer.json").unlink()
    arguments = ["integrate", str(made), "--platform", "ios", "-o", str(tmp_path / "kit")]
    assert main(arguments) == 2
    assert "tokenizer.json: missing from the bundle" in capsys.readouterr().err
    write_manifest(made, manifest)
    assert main(arguments) == 2
    assert "no tokenizer.json" in capsys.readouterr().err
    (tmp_path / "kit").mkdir()
    with pytest.raises(InputError, match="exists; choose another -o"):
        integrate(make_bundle(tmp_path / "c", {"ort-mobile": {}}), "ios", tmp_path / "kit")


PAIRS = {target.name: (target, kit) for platform in ("ios", "android") for target, kit in kits_of(platform)}
FILES = [
    (target, kit, names[0]) for target, kit in PAIRS.values() for names in ((target.weights_file,), *target.app_files)
]


@pytest.mark.parametrize(
    ("target", "kit", "name"), FILES, ids=[f"{k.platform}-{k.runtime}-{Path(n).name}" for _, k, n in FILES]
)
def test_a_bundle_whose_manifest_was_made_to_fit_what_is_left_of_it(
    target: Target[Any], kit: Kit, name: str, tmp_path: Path
) -> None:
    made = make_bundle(tmp_path / "b", {target.name: TARGETS[target.name]})
    manifest = Bundle.open(made).manifest
    (made / name).write_bytes(b"")
    write_manifest(made, manifest)
    with pytest.raises(InputError, match=f"{re.escape(name)}: is empty; compile it again"):
        integrate(made, kit.platform, tmp_path / "kit", kit.runtime)
    (made / name).unlink()
    write_manifest(made, manifest)
    with pytest.raises(InputError, match=f"names no {re.escape(name)}; compile it again"):
        integrate(made, kit.platform, tmp_path / "kit", kit.runtime)
    assert not (tmp_path / "kit").exists()


def test_an_archive_in_place_of_a_library(tmp_path: Path) -> None:
    """As a bundle for Android that was made without an NDK has it."""
    made = make_bundle(tmp_path / "b", {"tvm-arm": {"platform": "android, aarch64 with dotprod"}})
    manifest = Bundle.open(made).manifest
    (made / "model.so").rename(made / "libmodel.a")
    write_manifest(made, manifest)
    assert "src/main/cpp/CMakeLists.txt" in integrate(made, "android", tmp_path / "kit")


def test_literals() -> None:
    text = 'a"b\\c\n$d\té\u2028'
    assert kotlin_literal(text) == '"a\\"b\\\\c\\n\\$d\\t\\u00e9\\u2028"'
    assert swift_literal(text) == '"a\\"b\\\\c\\n$d\\té\\u{2028}"'


def test_templates_are_in_the_wheel() -> None:
    """package_data has a pattern for every depth."""
    import configparser

    root = Path(__file__).parents[2]
    parser = configparser.ConfigParser()
    parser.read(root / "setup.cfg")
    patterns = [p.strip() for p in parser["options.package_data"]["pocketphi.artifacts.kits"].split(",")]
    folder = root / "artifacts/kits"
    matched = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    assert {path for path in (folder / "templates").rglob("*") if path.is_file()} == matched

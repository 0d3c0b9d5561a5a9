"""Matrix builds: what is built once, gates, differences, results for CI, and bad build files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from heard import Heard

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.sbom import sbom
from pocketphi.compiler.build import build_matrix
from pocketphi.compiler.build_file import read_build_file
from pocketphi.compiler.build_key import SourceDigests, bundle_key, our_code
from pocketphi.compiler.build_result import Claim
from pocketphi.compiler.cli import main
from pocketphi.compiler.diff import changes
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.ui import PlainUi, Ui
from pocketphi.graph.errors import InputError
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.places import default_folder
from pocketphi.targets.tvm_arm.platform import host_isa
from tests.compiler.test_resealed import resealed
from tests.helpers.hf_folders import configure, save, tensors

FILE = """
[build]
out = "bundles"
cache = "cache"

[models]
tiny = "random:tiny"

[targets]
ort-mobile = {}
coreml = { context = 64, chunk = 16 }

[recipes]
rtn = { verify = "never" }
"""


def write(tmp_path: Path, text: str = FILE) -> Path:
    path = tmp_path / "pocketphi.toml"
    path.write_text(text)
    return path


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr("pocketphi.compiler.compile.compile_model", fail)


def test_a_matrix_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = read_build_file(write(tmp_path))
    first = build_matrix(file, Ui())
    assert [(r.name, r.cached, r.exit_code, r.changes) for r in first] == [
        ("tiny-ort-mobile-rtn", False, 0, None),
        ("tiny-coreml-rtn", False, 0, None),
    ]
    for result in first:
        assert list(Bundle.open(result.bundle).manifest.targets) == [
            result.name.removeprefix("tiny-").removesuffix("-rtn")
        ]
        assert json.loads((file.out / f"{result.name}.cdx.json").read_text())["bomFormat"] == "CycloneDX"
        assert (file.out / f"{result.name}.html").read_text("utf-8").startswith("<!doctype html>")
    forbid(monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    second = build_matrix(file, Ui())
    assert [(r.cached, r.exit_code, r.changes) for r in second] == [(True, 0, [])] * 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_is_damaged_or_gone_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = read_build_file(write(tmp_path))
    (result, _) = build_matrix(file, Ui())
    data = result.bundle / "model.onnx.data"
    whole = data.read_bytes()
    shutil.rmtree(file.out)
    (again, _) = build_matrix(file, Ui())
    assert (again.cached, data.read_bytes()) == (True, whole)
    data.unlink()
    data.write_bytes(whole[:-1])  # a copy of its own, and cut
    (again, _) = build_matrix(file, Ui())
    assert (again.cached, data.read_bytes()) == (True, whole)
    data.write_bytes(b"x" + whole[1:])  # the file in the cache as well
    (again, _) = build_matrix(file, Ui())
    assert (again.cached, data.read_bytes()) == (False, whole)
    forbid(monkeypatch)
    assert build_matrix(file, Ui())[0].exit_code == 0
    data.rename(tmp_path / "moved")
    data.symlink_to(tmp_path / "moved")  # still the file of the cache, but a bundle with a link out of it opens nowhere
    assert build_matrix(file, Ui())[0].exit_code == 0
    assert not data.is_symlink()
    Bundle.open(result.bundle)


def test_what_was_edited_where_it_was_placed_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files there are the cache's own, and somebody makes the manifest fit."""
    file = read_build_file(write(tmp_path))
    (result,) = build_matrix(file, Ui(), only="ort-mobile")
    path = result.bundle / "genai_config.json"
    good = path.read_bytes()
    path.write_bytes(good.replace(b'"eos_token_id": 2', b'"eos_token_id": 9'))
    resealed(result.bundle)
    store = tmp_path / "cache" / "bundles" / result.key
    assert (
        Bundle.open(store).manifest.files["genai_config.json"].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    )
    (again,) = build_matrix(file, Ui(), only="ort-mobile")
    assert (again.cached, path.read_bytes()) == (False, good)
    forbid(monkeypatch)
    assert build_matrix(file, Ui(), only="ort-mobile")[0].cached
    store.with_name(f"{store.name}.made").unlink()  # nobody says what was made
    with pytest.raises(AssertionError, match="compiled again"):
        build_matrix(file, Ui(), only="ort-mobile")


def test_another_option_is_another_bundle_and_the_difference_is_shown(tmp_path: Path) -> None:
    build_matrix(read_build_file(write(tmp_path)), Ui(), only="ort-mobile")
    changed = FILE.replace('verify = "never"', 'verify = "never", block = 32')
    said = Heard()
    (result,) = build_matrix(read_build_file(write(tmp_path, changed)), said, only="ort-mobile")
    assert not result.cached
    assert result.changes is not None
    sizes = {change.name: change for change in result.changes if change.kind == "bytes"}
    assert sizes["model.onnx.data"].before is not None
    assert sizes["model.onnx.data"].after is not None
    assert sizes["model.onnx.data"].before < sizes["model.onnx.data"].after
    line = next(line for line in said.lines if "model.onnx.data" in line)
    assert re.fullmatch(r"    model\.onnx\.data: [\d,]+ → [\d,]+ \(\+\d+\.\d%\)", line)


def test_gates_that_are_not_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = FILE + '\n[gates]\nmax_bytes = "100kB"\nkl = 0.0001\nppl = 2\nlowering = 1\n'
    text += "\n[measure]\ntokens = 64\nwindow = 32\n"
    path = write(tmp_path, text)
    junit, results = tmp_path / "r.xml", tmp_path / "r.json"
    arguments = ["build", str(path), "--only", "ort-mobile", "--junit", str(junit), "--results", str(results)]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "0 of 1 bundles as they should be" in captured.out
    over = re.search(r"not met: gate max_bytes: ([\d,]+) bytes, ([\d,]+) over 100,000", captured.err)
    assert over is not None
    size, more = (int(number.replace(",", "")) for number in over.groups())
    assert size - more == 100_000
    assert re.search(r"not met: gate kl: [\d.e-]+ nats/token, [\d.e-]+ over 0.0001", captured.err)
    assert "not met: gate lowering: not measured: the bundle was not verified" in captured.err
    (data,) = json.loads(results.read_text())
    assert {claim["name"]: claim["ok"] for claim in data["claims"]} == dict.fromkeys(
        ["gate: verified", "gate max_bytes", "gate lowering", "gate kl", "gate ppl"], False
    )
    root = ET.parse(junit).getroot()
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("6", "5", "0")
    messages = [failure.get("message", "") for failure in root.iter("failure")]
    assert any(message.startswith("gate ppl: ") and message.endswith(" over 2") for message in messages)
    assert main(arguments[:-4]) == 1  # found in the cache: what was measured is known, and still not good enough
    assert "evaluate" not in capsys.readouterr().err
    monkeypatch.setattr("platform.python_version", lambda: "3.0.0")  # whose help texts are others
    assert main(arguments[:-4]) == 1
    said = capsys.readouterr().err
    assert "found in the cache" in said
    assert "evaluate" in said


def test_one_that_fails_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = FILE.replace("coreml = { context = 64, chunk = 16 }", "coreml = { context = 64, chunk = 100 }")
    path, junit = write(tmp_path, text), tmp_path / "r.xml"
    assert main(["build", str(path), "--junit", str(junit)]) == 2
    captured = capsys.readouterr()
    assert "1 of 2 bundles as they should be" in captured.out
    assert "  failed: coreml: prefill chunks of 100 tokens in a context of 64; choose 2 to 64" in captured.err
    (error,) = ET.parse(junit).getroot().iter("error")
    assert error.get("message", "").startswith("coreml: prefill chunks of 100 tokens")
    assert not (tmp_path / "bundles" / "tiny-coreml-rtn").exists()


def test_signed_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    pem = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    public = tmp_path / "public.pem"
    public.write_bytes(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    path = write(tmp_path, FILE.replace('cache = "cache"', 'cache = "cache"\nsign = "env:TEST_KEY"'))
    assert main(["build", str(path), "--only", "ort"]) == 2
    assert "--key env:TEST_KEY: the variable is not set" in capsys.readouterr().err
    monkeypatch.setenv("TEST_KEY", pem.decode())
    for _ in range(2):
        assert main(["build", str(path), "--only", "ort"]) == 0
        bundle = str(tmp_path / "bundles" / "tiny-ort-mobile-rtn")
        assert main(["verify", bundle, "--files-only", "--key", str(public)]) == 0
    assert main(["verify", bundle, "--files-only", "--json"]) == 0
    capsys.readouterr()
    assert not list((tmp_path / "cache").rglob("manifest.sig"))


def test_a_device_that_is_too_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = FILE.replace('cache = "cache"', 'device = "iphone-14"').replace("random:tiny", "random:phi-3-medium-4k")
    assert main(["build", str(write(tmp_path, text))]) == 1
    assert "failed: iPhone 14, A15: ort-mobile needs" in capsys.readouterr().err
    assert main(["build", str(write(tmp_path, text.replace("iphone-14", "")))]) == 2
    assert "--device : not in the table" in capsys.readouterr().err


def test_the_bill_of_materials(tiny_bundle: Path) -> None:
    from cyclonedx.model.bom import Bom

    text = sbom(Bundle.open(tiny_bundle))
    assert text == sbom(Bundle.open(tiny_bundle))
    bom = Bom.from_json(json.loads(text))  # type: ignore[attr-defined]
    model = bom.metadata.component
    files = {part.name: {str(h.alg.value): h.content for h in part.hashes}["SHA-256"] for part in model.components}
    manifest = Bundle.open(tiny_bundle).manifest
    assert {name: entry.sha256 for name, entry in manifest.files.items()}.items() <= files.items()
    assert {"pkg:pypi/torch@" + manifest.versions["torch"].replace("+", "%2B")} <= {
        str(tool.purl) for tool in bom.metadata.tools.components
    }


def test_no_difference(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    assert changes(manifest, manifest) == []
    assert main(["diff", str(tiny_bundle), str(tiny_bundle)]) == 0
    assert capsys.readouterr().out == "no difference in files, errors and operators\n"
    fewer = replace(manifest, operators={**manifest.operators, "edge.attention": 2})
    (change,) = changes(manifest, fewer)
    assert change.described() == "edge.attention: 3 → 2 (-33.3%)"
    name, entry = next(iter(manifest.files.items()))
    other = replace(manifest, files={**manifest.files, name: replace(entry, sha256="0" * 64)})
    assert [change.described() for change in changes(manifest, other)] == [f"{name}: other contents"]


def test_claims() -> None:
    assert Claim("gate kl", 0.25, 0.5, "nats/token").ok
    assert not Claim("gate kl", float("nan"), 0.5).ok
    assert Claim("gate kl", 0.625, 0.5, "nats/token").described() == "gate kl: 0.625 nats/token, 0.125 over 0.5"


def test_logs_have_no_progress_bars(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ui = PlainUi()
    with ui.task("work", 10) as advance:
        for _ in range(10):
            advance(1)
    assert re.fullmatch(r"work: \d\.\d s\n", capsys.readouterr().err)
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr("pocketphi.compiler.ui.time.perf_counter", lambda: float(next(clock)))
    with ui.task("work", 4) as advance:
        for _ in range(4):
            advance(1)
    assert capsys.readouterr().err == "work: 50% after 40 s\nwork: 100% after 80 s\nwork: 100.0 s\n"


MODELS = '[models]\ntiny = "random:tiny"\n'
BAD = {
    "": 'names no model; expected [models] with lines like: chat = "sample"',
    "[model]\n": "unknown key model; did you mean models?",
    MODELS + "[build]\nouts = 'x'\n": "unknown key build.outs; did you mean out?",
    MODELS + "[targets]\nort-mobil = {}\n": "unknown target targets.ort-mobil; did you mean ort-mobile?",
    MODELS + "[targets.coreml]\nkv_cache = 'int8'\n": "tiny-coreml-search: --kv-cache int8: coreml has no such cache",
    MODELS + "[targets]\nzzz = {}\n": "unknown target targets.zzz; expected one of ort-mobile, coreml",
    MODELS + "[recipes]\nrtn = { blok = 32 }\n": "unknown key recipes.rtn.blok; did you mean block?",
    MODELS + "[recipes]\nrtn = { block = '32' }\n": "recipes.rtn.block is '32', expected a whole number",
    MODELS
    + "[recipes]\nrtn = { block = 33 }\n": "tiny-ort-mobile-rtn: --block 33: expected one of 16, 32, 64, 128, 256",
    MODELS + "[recipes]\nrtn = 3\n": "recipes.rtn: expected a table of options, got 3",
    MODELS + "[recipes]\n'a/b' = {}\n": "recipes.'a/b': expected a name of letters, digits, '.', '_' and '-'",
    MODELS + "[gates]\nmax_byte = 3\n": "unknown key gates.max_byte; did you mean max_bytes?",
    MODELS + "[gates]\nmax_bytes = '3 apples'\n": "gates.max_bytes: '3 apples' is not a size",
    MODELS + "[gates]\nkl = true\n": "gates.kl is True, expected a number",
    MODELS + "[measure]\ntokens = 1\n": "measure.tokens is 1, expected at least 2",
    "models = 3\n": "models: expected a table, [models], got 3",
    "[models]\ntiny = 3\n": "models.tiny is 3, expected a text",
    "[models": "not valid TOML",
    "x = " + "[" * 5000 + "]" * 5000: "nested too deeply",
    "x = " + "9" * 5000: "not valid TOML",
    "[models]\n'a\\nb' = 3\n": "models.'a\\\\nb': expected a name of letters",
    "[models]\n" + "a" * 65 + " = 'x'\n": "models.'aaaaa",
    "[models]\nt = '~nosuchuser/x'\n": "models.t is '~nosuchuser/x', which cannot be a path",
    '[models]\nt = "a\\u0000b"\n': r"models.t is 'a\x00b', which cannot be a path",
    "[models]\nA = 'random:tiny'\na = 'random:tiny'\n": "two bundles would be a-ort-mobile-search; give a model",
    "[models]\na = 'x'\na-coreml = 'x'\n[targets.coreml]\n[recipes]\nr = {}\ncoreml-r = {}\n": "two bundles would be",
    '"a\\nb" = 1\n': r"unknown key 'a\nb'; expected one of build, models",
    MODELS + "[targets.ort-mobile]\nverify = 'allways'\n": "--verify allways: expected one of auto, always, never",
    MODELS + "[targets.coreml]\nnorm = 'fp64'\n": "--norm fp64: expected max-scaled or fp32",
    MODELS + "[targets.coreml]\nattention = 'spda'\n": "--attention spda: expected sdpa or decomposed",
    MODELS + "[targets.coreml]\nflavor = ''\n": "--flavor : expected functions or swift-transformers",
    MODELS + "[targets.tvm-arm]\nos = 'windows'\n": "--os windows: expected one of linux, android, ios, host",
    MODELS + "[targets.ort-mobile]\naccuracy_level = 3\n": "--accuracy-level 3: expected 0 or 4",
    MODELS + "[recipes.best]\nrecipe = 'serch'\n": "--recipe serch: expected one of search, two-sided, rtn, keep",
    MODELS + "[gates]\nkl = nan\n": "gates.kl is nan, expected a number that is not negative",
    MODELS + "[gates]\nkl = { a = 1 }\n": "gates.kl is {'a': 1}, expected a number",
    MODELS + "[gates]\nmax_bytes = -1\n": "gates.max_bytes is -1, expected a number of bytes",
    MODELS + "[gates]\nort-mobile = 3\n": "gates.ort-mobile: expected a table, got 3",
    MODELS + "[gates]\nmax_bytes = '" + "9" * 5000 + "GB'\n": "gates.max_bytes: '99999",
    MODELS + "[measure]\ntokens = 9223372036854775808\n": "measure.tokens is 9223372036854775808, expected a whole",
    MODELS
    + "[measure]\nsuite = 'behavior'\n": "measure.suite: no gate is about a suite, so that nothing would be asked; ",
    MODELS + "[measure]\nanswer_tokens = 8\n": "measure.answer_tokens: no gate is about a suite, so that nothing would",
    MODELS + "[gates]\nmax_new_loops = 0.5\n": "gates.max_new_loops is 0.5, expected a whole number",
    MODELS + "[measure]\ntext = 'gone.txt'\n": "measure.text ",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_build_file_is_refused(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as raised:
        read_build_file(path)
    said = str(raised.value)
    assert said.startswith(f"{path}: {'' if '--' in BAD[text] else BAD[text]}")
    assert BAD[text] in said
    assert len(said) < 400 + len(str(path))
    assert len(said.splitlines()) == 1


def test_the_cache_of_a_target_is_another_bundle(tmp_path: Path) -> None:
    cells = [
        read_build_file(write(tmp_path, f"{MODELS}[targets.tvm-arm]\n{line}\n")).cells[0].options
        for line in ("", "kv_cache = 'int8'")
    ]
    assert [options.of("tvm-arm").deciding()["kv_cache"] for options in cells] == ["fp16", "int8"]
    assert len({bundle_key(options, SourceDigests()) for options in cells}) == 2


@pytest.mark.parametrize("place", ["cache", "bundles"])
def test_what_cannot_be_written_is_named_by_its_key(tmp_path: Path, place: str) -> None:
    """A build has neither -o nor --cache."""
    (tmp_path / place).write_bytes(b"no folder")
    (result,) = build_matrix(read_build_file(write(tmp_path)), Ui(), only="ort")
    key = "out" if place == "bundles" else "cache"
    assert result.exit_code == 2
    assert re.search(rf"{place}.*: cannot be written: .*; choose another {key} in the build file$", str(result.error))


def key_of(tmp_path: Path, **chosen: Any) -> str:
    return bundle_key(compile_options("random:tiny", tmp_path / "x", **chosen), SourceDigests())


def test_the_contents_of_every_file_decide(tmp_path: Path) -> None:
    """Of those that options name, under the same name; other names of the same content are the same bundle."""
    a, b = tmp_path / "a", tmp_path / "b"
    for option, chosen in (("calibration", {}), ("tuning", {"targets": ("tvm-arm",), "os": "host"})):
        keys = []
        for content in ("one", "two", "one"):
            a.write_text(content)
            keys.append(key_of(tmp_path, **{option: a}, **chosen))
        b.write_text("one")
        assert keys[0] == keys[2] == key_of(tmp_path, **{option: b}, **chosen)
        assert keys[0] != keys[1]
        assert keys[0] != key_of(tmp_path, **chosen)


def in_one_folder(folder: Path) -> list[str]:
    save(folder, tensors(), shards=3)
    return ["model-00002-of-00003.safetensors", "config.json", "model.safetensors.index.json", "generation_config.json"]


def in_folders_of_an_index(folder: Path) -> list[str]:
    save(folder, tensors(), shards=3)
    (folder / "parts").mkdir()
    for path in folder.glob("model-*"):
        path.rename(folder / "parts" / path.name)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-0", "parts/model-0"))
    return ["parts/model-00003-of-00003.safetensors"]


def as_the_config_says(folder: Path) -> list[str]:
    in_folders_of_an_index(folder)
    configure(folder, transformers_weights="parts/my.safetensors.index.json")
    (folder / "model.safetensors.index.json").rename(folder / "parts" / "my.safetensors.index.json")
    return ["parts/my.safetensors.index.json", "parts/model-00001-of-00003.safetensors"]


def with_templates(folder: Path) -> list[str]:
    save(folder, tensors())
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "default.jinja").write_text("{{ messages }}")
    return ["model.safetensors", "additional_chat_templates/default.jinja"]


@pytest.mark.parametrize("lay", [in_one_folder, in_folders_of_an_index, as_the_config_says, with_templates])
def test_every_file_of_a_model_decides_wherever_it_lies(lay: Callable[[Path], list[str]], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    decide = lay(folder)
    (folder / "generation_config.json").write_text("{}")
    opened = {path.relative_to(folder).as_posix() for path in open_checkpoint(folder).files}
    (folder / "checkpoint-500").mkdir()
    (folder / "checkpoint-500" / "model.safetensors").write_text("of a trainer, which nobody reads")
    options = compile_options(str(folder), tmp_path / "x", recipe="rtn")
    keys = [bundle_key(options, SourceDigests())]
    for name in {*decide, *opened}:
        sources = SourceDigests()
        bundle_key(options, sources)
        with (folder / name).open("ab") as file:
            file.write(b" ")
        keys.append(bundle_key(options, SourceDigests()))
        with pytest.raises(InputError, match="changed during the build"):
            sources.check(str(folder))
    assert len(set(keys)) == len(keys)
    (folder / "checkpoint-500" / "model.safetensors").write_text("and that changes")
    assert bundle_key(options, SourceDigests()) == keys[-1]


@pytest.mark.parametrize(
    "names", ["[" * 9, '{"weight_map": 3}', '{"weight_map": {"a": 3, "b": "../x", "c": "' + "d" * 300 + '"}}']
)
def test_an_index_that_is_none_still_has_a_key(names: str, tmp_path: Path) -> None:
    """What is wrong with it is said when the model is read."""
    save(tmp_path, tensors())
    (tmp_path / "model.safetensors.index.json").write_text(names)
    assert bundle_key(compile_options(str(tmp_path), tmp_path / "x"), SourceDigests())


def test_a_file_is_read_once(tmp_path: Path) -> None:
    """What the key was made of is what is compiled, also where another process writes to the file between the two."""
    path = tmp_path / "text"
    path.write_text("one")
    options = compile_options("random:tiny", tmp_path / "x", calibration=path)
    key = bundle_key(options, SourceDigests())
    path.write_text("two")
    later = dataclasses.replace(options, out=tmp_path / "y")
    assert bundle_key(later, SourceDigests()) == key
    assert later.content("calibration") == b"one"
    assert later.recorded().calibration == hashlib.sha256(b"one").hexdigest()


def test_what_else_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = {"targets": ("tvm-arm",), "os": "host"}
    plain, tvm, rtn = key_of(tmp_path), key_of(tmp_path, **host), key_of(tmp_path, recipe="rtn")
    assert key_of(tmp_path, verify="never") == plain  # see test_a_bundle_that_was_not_verified…
    assert key_of(tmp_path, strict=True) != plain
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    assert key_of(tmp_path) != plain
    assert key_of(tmp_path, recipe="rtn") == rtn  # nothing is calibrated
    tvm = key_of(tmp_path, **host)
    monkeypatch.setattr("pocketphi.targets.tvm_arm.platform.cpu_flags", lambda: {"avx2", "fma", "f16c", "asimd"})
    assert key_of(tmp_path, **host, cpu=None) != tvm or host_isa().name in ("avx2", "neon")
    monkeypatch.setattr("pocketphi.compiler.build_key.our_code", lambda: "another")
    assert key_of(tmp_path, recipe="rtn") != rtn


def test_an_ndk_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(release: str) -> str:
        compiler = tmp_path / release / "toolchains/llvm/prebuilt/x/bin/aarch64-linux-android24-clang++"
        compiler.parent.mkdir(parents=True, exist_ok=True)
        compiler.write_text(f"#!/bin/sh\necho clang of {release}\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path / release))
        return key_of(tmp_path, targets=("tvm-arm",), os="android")

    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    none = key_of(tmp_path, targets=("tvm-arm",), os="android")
    assert len({none, install("r26"), install("r27")}) == 3


def test_our_code_is_every_file_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels in C++, templates, texts, tables: each of them makes another compiler; what Python compiles does not."""
    root = tmp_path / "tree"
    for name in ("compiler/build_key.py", "targets/tvm_arm/runtime/runner.cc", "passes/calibration.txt", "graph/x.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    monkeypatch.setattr("pocketphi.compiler.build_key.__file__", str(root / "compiler" / "build_key.py"))
    seen = [our_code.__wrapped__()]
    (root / "graph" / "__pycache__").mkdir()
    (root / "graph" / "__pycache__" / "x.pyc").write_text("x")
    assert our_code.__wrapped__() == seen[0]
    for name in ("targets/tvm_arm/runtime/runner.cc", "passes/calibration.txt", "graph/x.py"):
        (root / name).write_text("changed")
        seen.append(our_code.__wrapped__())
    (root / "graph" / "x.py").rename(root / "graph" / "y.py")
    seen.append(our_code.__wrapped__())
    assert len(set(seen)) == 5


def test_a_part_of_our_code_is_its_folders_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes an hour to measure is not measured again since something else has changed."""
    root = tmp_path / "tree"
    for name in ("compiler/build_key.py", "compiler/spend.py", "compiler/show.py", "passes/x.py", "targets/y.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    monkeypatch.setattr("pocketphi.compiler.build_key.__file__", str(root / "compiler" / "build_key.py"))
    part = ("passes", "compiler/spend.py")
    seen = [our_code.__wrapped__(*part)]
    for name in ("compiler/show.py", "targets/y.py"):
        (root / name).write_text("changed")
        assert our_code.__wrapped__(*part) == seen[0]
    for name in ("compiler/spend.py", "passes/x.py"):
        (root / name).write_text("changed")
        seen.append(our_code.__wrapped__(*part))
    assert len(set(seen)) == 3


def test_a_bundle_that_was_not_verified_is_not_served_to_a_build_that_wants_it_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(verify: str) -> tuple[bool, bool, str | None]:
        file = read_build_file(write(tmp_path, FILE.replace('"never"', f'"{verify}"')))
        (result,) = build_matrix(file, Ui(), only="ort")
        return result.cached, Bundle.open(result.bundle).manifest.verified, result.not_verified

    assert built("never") == (False, False, 'the bundle was not verified; build with verify = "always"')
    assert built("always") == (False, True, None)
    forbid(monkeypatch)
    assert built("auto") == built("never") == (True, True, None)


def test_a_source_that_changes_between_its_digest_and_the_compile(tmp_path: Path) -> None:
    source = SourceDigests()
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(b"one")
    source.of(str(tmp_path / "model"))
    source.check(str(tmp_path / "model"))
    weights.write_bytes(b"other")
    with pytest.raises(InputError, match="model: changed during the build; start again when nothing writes to it"):
        source.check(str(tmp_path / "model"))


def test_compile_and_build_keep_things_in_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POCKETPHI_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    build_matrix(read_build_file(write(tmp_path, FILE.replace('cache = "cache"\n', ""))), Ui(), only="ort")
    assert default_folder() == tmp_path / "xdg" / "pocketphi"
    assert len([path for path in (default_folder() / "bundles").iterdir() if path.is_dir()]) == 1


def test_files_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(tmp_path / "no.toml")]) == 2
    assert "no.toml: no such file; expected a build file in TOML" in capsys.readouterr().err
    path = write(tmp_path, FILE.replace("random:tiny", "nowhere"))
    assert main(["build", str(path)]) == 2
    assert "failed: nowhere: no such model; expected a folder" in capsys.readouterr().err
    assert main(["build", str(write(tmp_path)), "--only", "tvm"]) == 2
    assert "--only tvm: builds none of tiny-ort-mobile-rtn, tiny-coreml-rtn" in capsys.readouterr().err
    assert main(["build", str(write(tmp_path)), "--junit", str(tmp_path / "no" / "r.xml")]) == 2
    assert "cannot be written: " in capsys.readouterr().err
    (tmp_path / "bundles").mkdir(exist_ok=True)
    (tmp_path / "bundles" / "tiny-ort-mobile-rtn").write_text("precious")
    assert main(["build", str(write(tmp_path)), "--only", "ort"]) == 2
    assert "exists and is not a bundle; choose another out" in capsys.readouterr().err
    assert (tmp_path / "bundles" / "tiny-ort-mobile-rtn").read_text() == "precious"


def test_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(write(tmp_path)), "--list"]) == 0
    assert capsys.readouterr().out == "tiny-ort-mobile-rtn\ntiny-coreml-rtn\n"
    assert os.listdir(tmp_path) == ["pocketphi.toml"]

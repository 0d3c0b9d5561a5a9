"""Bundles whose files were changed and whose manifest was made to fit: every command says in one line what is wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from kit_bundles import make_bundle

from pocketphi.artifacts.bundle import Bundle, seal, write_manifest
from pocketphi.artifacts.manifest import MANIFEST, VerificationRecord
from pocketphi.artifacts.sbom import sbom
from pocketphi.compiler.cli import main
from pocketphi.compiler.hosts import open_host
from pocketphi.compiler.integrate import integrate


def resealed(folder: Path, change: Callable[[dict[str, Any]], None] = lambda manifest: None) -> None:
    """Make every size and digest fit the files; change: of the rest of the manifest."""
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["sha256"]
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(manifest)
    (folder / MANIFEST).write_bytes(seal(json.dumps(manifest, indent=1).removesuffix("\n}").encode()))


def graph(edit: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.onnx"
        model = onnx.load(str(path), load_external_data=False)
        edit(model)
        path.write_bytes(model.SerializeToString())
        resealed(folder)

    return damage


def content(name: str, data: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(data)
        resealed(folder)

    return damage


def cut(folder: Path) -> None:
    content("model.onnx", (folder / "model.onnx").read_bytes()[:5000])(folder)


def short_data(folder: Path) -> None:
    content("model.onnx.data", (folder / "model.onnx.data").read_bytes()[:-100])(folder)


def external(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.external_data)
        next(entry for entry in tensor.external_data if entry.key == key).value = value

    return edit


def heads(model: onnx.ModelProto) -> None:
    cache = next(value for value in model.graph.input if value.name == "past_key_values.0.key")
    cache.type.tensor_type.shape.dim[1].dim_value = 1 << 30


def no_logits(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "x"


def context(folder: Path) -> None:
    resealed(folder, lambda manifest: manifest["model"].update(context=1 << 40))


def no_weights(folder: Path) -> None:
    (folder / "model.onnx.data").unlink()
    text = (folder / MANIFEST).read_text()
    manifest = json.loads(text)
    del manifest["files"]["model.onnx.data"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    resealed(folder)


GENAI = "genai_config.json"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "graph cut short": (cut, "model.onnx: damaged ("),
    "graph of zeros": (content("model.onnx", bytes(100)), "model.onnx: damaged ("),
    "empty graph": (content("model.onnx", b""), "model.onnx: "),
    "data cut short": (short_data, "do not lie in the"),
    "data elsewhere": (
        graph(external("location", "../../etc/passwd")),
        "lies in '../../etc/passwd', expected model.onnx.data",
    ),
    "offset": (graph(external("offset", "99999999999")), "bytes at 99999999999 do not lie in the"),
    "no offset": (graph(external("offset", "-1")), "offset is '-1', expected a number of bytes"),
    "cache of another size": (graph(heads), "config.json says 3 layers of 2 heads, 16 wide"),
    "another output": (graph(no_logits), "model.onnx: "),
    "genai list": (content(GENAI, b"[]"), "genai_config.json: expected a JSON object, got list"),
    "genai deep": (content(GENAI, b'{"search": ' + b"[" * 10**5), "genai_config.json: not valid JSON"),
    "genai chunk": (
        content(GENAI, b'{"search": {"chunk_size": -1}}'),
        "search.chunk_size is -1, expected a positive number",
    ),
    "genai chunk that no tensor has": (
        content(GENAI, b'{"search": {"chunk_size": 18446744073709551616}}'),
        "search.chunk_size is 18446744073709551616, expected a positive number below 2^31",
    ),
    "genai chunk as text": (
        content(GENAI, b'{"search": {"chunk_size": "8"}}'),
        "search.chunk_size: input should be a valid int",
    ),
    "context": (context, "holds 1099511627776 tokens, config.json says 256 positions"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_cannot_be_run_is_named(
    name: str, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, expected = DAMAGE[name]
    folder = tmp_path / "b"
    shutil.copytree(tiny_bundle, folder)
    damage(folder)
    for command in (
        ("eval", str(folder), "--tokens", "16", "--window", "8"),
        ("bench", str(folder), "--threads", "1", "--prompt-tokens", "4", "--generate", "2", "--rounds", "1"),
    ):
        assert main([*command, "--json"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert expected in line


@pytest.mark.parametrize("name", ["graph cut short", "data cut short", "offset", "context"])
def test_verification_says_so_too(
    name: str, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, expected = DAMAGE[name]
    folder = tmp_path / "b"
    shutil.copytree(tiny_bundle, folder)
    damage(folder)
    assert main(["verify", str(folder), "--files-only", "--json"]) == 0  # every checksum fits
    capsys.readouterr()
    assert main(["verify", str(folder), "--json"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert expected in line


COMMANDS = (
    ("inspect",),
    ("sbom",),
    ("diff", "BUNDLE"),
    ("verify", "--files-only"),
    ("integrate", "--platform", "ios", "-o", "KIT"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=[command[0] for command in COMMANDS])
@pytest.mark.parametrize(
    ("field", "value"), [("recipe", []), ("files", {"a": 1}), ("targets", {"ort-mobile": None}), ("passes", {})]
)
def test_a_manifest_of_other_types_is_named(
    command: tuple[str, ...],
    field: str,
    value: Any,
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "b"
    shutil.copytree(tiny_bundle, folder)
    resealed(folder, lambda manifest: manifest.update({field: value}))
    words = {"BUNDLE": str(tiny_bundle), "KIT": str(tmp_path / "kit")}
    assert main([command[0], str(folder), *(words.get(word, word) for word in command[1:])]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"pocketphi: {folder}/manifest.json: damaged: {field}")


@pytest.mark.parametrize("text", ["[/]", "[red]x", "a\x1b[2Jb", "a\nb", ":smile:", "x\\"])
def test_words_of_a_manifest_are_shown_as_they_are(
    text: str, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "b"
    shutil.copytree(tiny_bundle, folder)
    resealed(folder, lambda manifest: manifest["targets"]["ort-mobile"].update(notes=[f"<{text}>"]))
    assert main(["inspect", str(folder)]) == 0
    shown = text.replace("\x1b", r"\x1b").replace("\n", r"\n")
    assert f"<{shown}>" in capsys.readouterr().out


def test_a_bundle_without_its_weights(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "b"
    shutil.copytree(tiny_bundle, folder)
    no_weights(folder)
    assert main(["inspect", str(folder)]) == 2
    assert "manifest.json: names no model.onnx.data; compile it again" in capsys.readouterr().err


def test_what_was_not_checked_is_not_called_verified(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "b"
    shutil.copytree(tiny_bundle, folder)
    verified = VerificationRecord(True, (), None)
    write_manifest(folder, replace(Bundle.open(folder).manifest, verification=verified))
    with (folder / "model.onnx.data").open("r+b") as file:
        file.write(b"other weights")
    assert main(["inspect", str(folder)]) == 0
    assert "the files were not checked here: 'pocketphi verify' does that" in " ".join(capsys.readouterr().out.split())
    assert main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files_checked"] is False
    assert main(["diff", str(tiny_bundle), str(folder)]) == 0
    assert "the files were not checked here" in capsys.readouterr().err
    assert main(["sbom", str(folder)]) == 2
    assert "model.onnx.data: content differs from its SHA-256 in the manifest" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["inspect"], ["sbom"], ["diff", "BUNDLE"]], ids=lambda command: command[0])
def test_an_edited_manifest_is_no_manifest(
    command: list[str], tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "b"
    shutil.copytree(tiny_bundle, folder)
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"layers": 3', '"layers": 4', 1))
    assert main([command[0], *(str(tiny_bundle) for _ in command[1:]), str(folder)]) == 2
    assert "manifest.json: was edited: its own checksum does not match" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        ("model.eos_token_id", 9, "model.eos_token_id is 9, expected 2"),
        ("model.eos_token_id", [2, 9], "model.eos_token_id is [2, 9], expected 2"),
        ("model.bos_token_id", 9, "model.bos_token_id is 9, expected 1"),
        ("model.context_length", 257, "model.context_length is 257, config.json says 256 positions"),
        (
            "model.decoder.sliding_window",
            {"window_size": 16},
            "model.decoder.sliding_window.window_size is 16, expected None",
        ),
        ("search.repetition_penalty", 1.5, "search.repetition_penalty is 1.5, expected 1.0"),
        ("search.do_sample", True, "search.do_sample is True, expected False"),
        ("search.max_length", 64, None),
        ("model.decoder.session_options.intra_op_num_threads", 2, None),
    ],
)
def test_what_genai_is_told_is_the_models(
    place: str, value: Any, line: str | None, tiny_bundle: Path, tmp_path: Path
) -> None:
    """It ends answers, or penalizes words, by this file alone: no logit tells."""
    folder = tmp_path / "b"
    shutil.copytree(tiny_bundle, folder)
    settings = json.loads((folder / GENAI).read_text())
    *way, last = place.split(".")
    inner = settings
    for key in way:
        inner = inner[key]
    assert inner.get(last) != value
    inner[last] = value
    (folder / GENAI).write_text(json.dumps(settings))
    host = open_host(folder, Bundle.open(folder, check=False).manifest)
    (check,) = (check for check in host.own_checks(torch.zeros(1, 1)) if "genai_config.json" in check.name)
    assert (check.ok, check.detail) == (line is None, line or "")


def test_palettes_are_called_so(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", {"ort-mobile": {}})
    manifest = Bundle.open(folder).manifest
    write_manifest(folder, replace(manifest, recipe=replace(manifest.recipe, block=64, palette=16, head_bits=8)))
    expected = "int4 rtn, palettes of 16 rows, int8 head"
    assert expected in sbom(Bundle.open(folder))
    files = integrate(folder, "ios", tmp_path / "kit")
    assert any(expected in (tmp_path / "kit" / name).read_text("utf-8") for name in files)

"""Bundle: every kind of damage is refused, with the file named."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifests import TARGET, a_manifest

from pocketphi.artifacts.bundle import Bundle, check_replaceable, file_digest, is_sealed, seal, write_manifest
from pocketphi.artifacts.manifest import MANIFEST, FileRecord
from pocketphi.graph.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "bundle"
    (made / "sub").mkdir(parents=True)
    (made / "model.onnx").write_bytes(bytes(range(200)))
    (made / "sub" / "empty").write_bytes(b"")
    write_manifest(made, a_manifest())
    return made


def test_what_is_written(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.manifest.format == 2
    assert bundle.manifest.recipe == a_manifest().recipe
    want = hashlib.sha256(bytes(range(200))).hexdigest()
    assert bundle.manifest.files["model.onnx"] == FileRecord(200, want)
    assert sorted(bundle.manifest.files) == ["model.onnx", "sub/empty"]
    assert file_digest(folder / "model.onnx") == want
    text = (folder / MANIFEST).read_bytes()
    again = write_manifest(folder, a_manifest())
    assert (folder / MANIFEST).read_bytes() == text
    assert again == bundle.manifest


def remove(folder: Path) -> None:
    (folder / "sub" / "empty").unlink()


def add(folder: Path) -> None:
    (folder / "sub" / "extra").write_bytes(b"")


def truncate(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(bytes(range(199)))


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[123] ^= 1
    (folder / "model.onnx").write_bytes(data)


def grow(folder: Path) -> None:
    (folder / "sub" / "empty").write_bytes(b"x")


def edit(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(path.read_text().replace("rtn", "search"))


def hide(folder: Path) -> None:
    """A change with the manifest's digest of the file made to fit."""
    flip(folder)
    data = json.loads((folder / MANIFEST).read_text())
    data["files"]["model.onnx"]["sha256"] = file_digest(folder / "model.onnx")
    (folder / MANIFEST).write_text(json.dumps(data))


def unsign(folder: Path) -> None:
    data = json.loads((folder / MANIFEST).read_text())
    del data["sha256"]
    (folder / MANIFEST).write_text(json.dumps(data))


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (remove, "sub/empty: missing from the bundle; copy or compile it again"),
    (add, "sub/extra: is not part of this bundle; remove it"),
    (truncate, "model.onnx: 199 bytes, the manifest says 200; copy or compile it again"),
    (flip, "model.onnx: content differs from its SHA-256 in the manifest; copy or compile it again"),
    (grow, "sub/empty: 1 bytes, the manifest says 0; copy or compile it again"),
    (edit, "manifest.json: was edited: its own checksum does not match; compile again"),
    (hide, "manifest.json: was edited: its own checksum does not match; compile again"),
    (unsign, "manifest.json: was edited: its own checksum does not match; compile again"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[damage.__name__ for damage, _ in DAMAGE])
def test_refuses_damage(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(InputError, match=re.escape(f"{folder}/{message}")):
        Bundle.open(folder)
    if damage in (edit, hide, unsign):
        with pytest.raises(InputError, match="was edited: its own checksum"):
            Bundle.open(folder, check=False)
    else:
        assert Bundle.open(folder, check=False).path == folder


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"files": {}}', b"[" * 10**5])
def test_refuses_what_is_no_manifest(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(InputError, match=re.escape(f"{folder}/manifest.json: damaged: ")):
        Bundle.open(folder, check=False)


@pytest.mark.parametrize("format_", [0, 1, "2", None])
def test_refuses_another_format(folder: Path, format_: Any) -> None:
    data = json.loads((folder / MANIFEST).read_text()) | {"format": format_}
    (folder / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(
        InputError, match=re.escape(f"bundle: bundle format {format_!r}, this pocketphi reads 2; compile it again")
    ):
        Bundle.open(folder)


def test_refuses_what_is_no_bundle(folder: Path) -> None:
    for path in (folder / "sub", folder / "nowhere", folder / "model.onnx"):
        with pytest.raises(
            InputError, match=re.escape(f"{path}: not a bundle: it has no manifest.json; make one with")
        ):
            Bundle.open(path)


def test_the_seal_is_of_the_bytes(folder: Path) -> None:
    text = (folder / MANIFEST).read_bytes()
    assert is_sealed(text)
    assert json.loads(text)["sha256"] == hashlib.sha256(text[:-82]).hexdigest()
    respelled = [
        text.replace(b": [\n", b":[\n"),
        text[:-1],
        text + b"\n",
        text.replace(b"}\n", b"}\r\n"),
        b"",
        text[-82:],
    ]
    data = json.loads(text)
    respelled.append(json.dumps(dict(reversed(data.items())), indent=1).encode() + b"\n")
    respelled.append(text.replace(data["sha256"].encode(), data["sha256"].upper().encode()))
    assert [is_sealed(other) for other in respelled] == [False] * len(respelled)


def test_replaceable(folder: Path, tmp_path: Path) -> None:
    check_replaceable(tmp_path / "nothing", force=False)
    check_replaceable(folder, force=True)
    (tmp_path / "empty").mkdir()
    check_replaceable(tmp_path / "empty", force=True)
    for path in (folder, tmp_path / "empty"):
        with pytest.raises(InputError, match=re.escape(f"{path}: exists; choose another -o or pass --force")):
            check_replaceable(path, force=False)
    for path in (folder / "sub", folder / "model.onnx"):
        with pytest.raises(
            InputError, match=re.escape(f"{path}: exists and is not a bundle; --force replaces bundles")
        ):
            check_replaceable(path, force=True)


def reseal(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, and make its own checksum fit."""
    data = json.loads((folder / MANIFEST).read_text())
    del data["sha256"]
    change(data)
    (folder / MANIFEST).write_bytes(seal(json.dumps(data, indent=1).removesuffix("\n}").encode()))


def at(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


ENTRY = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
RESEALED: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (at("files", "/etc/passwd", value=ENTRY), "damaged: names '/etc/passwd', which lies outside the bundle"),
    (at("files", "a/../../b", value=ENTRY), "damaged: names 'a/../../b', which lies outside the bundle"),
    (at("files", "a\nb", value=ENTRY), r"damaged: names 'a\nb', which is no name of a file"),
    (at("files", "a\x1b[2J", value=ENTRY), r"damaged: names 'a\x1b[2J', which is no name of a file"),
    (at("files", "", value=ENTRY), "damaged: names '', which is no name of a file"),
    (at("files", "sub//empty", value=ENTRY), "damaged: names 'sub//empty', which is no name of a file"),
    (at("files", "./model.onnx", value=ENTRY), "damaged: names './model.onnx', which is no name of a file"),
    (at("files", "x" * 5000, value=ENTRY), "which is no name of a file"),
    (at("files", "Model.ONNX", value=ENTRY), "'model.onnx' and 'Model.ONNX', which are one file on some systems"),
    (at("files", "model.onnx", "bytes", value=-200), "damaged: files.model.onnx.bytes is -200, expected a count"),
    (at("files", "model.onnx", "bytes", value=2**63), f"files.model.onnx.bytes is {2**63}, expected a count"),
    (at("files", "model.onnx", "bytes", value="200"), "files.model.onnx.bytes: input should be a valid integer"),
    (at("files", "model.onnx", "bytes", value=True), "files.model.onnx.bytes: input should be a valid integer"),
    (at("files", "model.onnx", "sha256", value="F" * 64), "expected 64 lower-case hex digits"),
    (at("files", "model.onnx", "sha256", value="zz"), "sha256 is 'zz', expected 64 lower-case hex digits"),
    (at("files", value=[]), "damaged: files: input should be an object"),
    (at("recipe", "block", value=None), "damaged: recipe.block: input should be a valid integer, got None"),
    (at("model", value="phi3"), "damaged: model: input should be an object, got 'phi3'"),
    (at("targets", value={}), "damaged: targets: names none"),
    (at("targets", value={"a" * 5000: TARGET}), "damaged: targets: names 'aaaaaa"),
    (at("targets", value={"a\nb": TARGET}), r"damaged: targets: names 'a\nb'"),
    (at("passes", value=[{"name": 1}]), "damaged: passes.0.name: input should be a valid string, got 1"),
    (at("verification", value={"ok": 1}), "damaged: verification.ok: input should be a valid boolean"),
]


@pytest.mark.parametrize(("change", "message"), RESEALED, ids=[message[-40:] for _, message in RESEALED])
def test_refuses_a_resealed_manifest_that_cannot_be(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    reseal(folder, change)
    with pytest.raises(InputError) as raised:
        Bundle.open(folder)
    assert str(raised.value).startswith(f"{folder}/manifest.json: damaged: ")
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def link_out(folder: Path) -> None:
    outside = folder.parent / "outside"
    (folder / "model.onnx").rename(outside)
    (folder / "model.onnx").symlink_to(outside)


def folder_out(folder: Path) -> None:
    (folder / "sub").rename(folder.parent / "sub")
    (folder / "sub").symlink_to(folder.parent / "sub")


def manifest_out(folder: Path) -> None:
    (folder / MANIFEST).rename(folder.parent / "m")
    (folder / MANIFEST).symlink_to(folder.parent / "m")


def loop(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to("model.onnx")


def pipe(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")


def directory(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").mkdir()


def extra_pipe(folder: Path) -> None:
    os.mkfifo(folder / "a\nb")


def signature_pipe(folder: Path) -> None:
    os.mkfifo(folder / "manifest.sig")


def manifest_pipe(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)


NOT_FILES: list[tuple[Callable[[Path], None], str]] = [
    (link_out, "model.onnx: a link that leads out of"),
    (folder_out, "sub: is not part of this bundle; remove it"),
    (manifest_out, "manifest.json: a link that leads out of"),
    (loop, "model.onnx: a link that leads"),
    (pipe, "model.onnx: expected a file"),
    (directory, "model.onnx: expected a file"),
    (extra_pipe, r"'a\nb': is not part of this bundle; remove it"),
    (signature_pipe, "manifest.sig: expected a file"),
    (manifest_pipe, "manifest.json: expected a file"),
]


@pytest.mark.parametrize(("damage", "message"), NOT_FILES, ids=[damage.__name__ for damage, _ in NOT_FILES])
def test_a_bundle_holds_files_of_its_own(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(InputError, match=re.escape(f"{folder}/{message}")):
        Bundle.open(folder)


def test_a_link_within_the_bundle_is_a_file(folder: Path) -> None:
    (folder / "model.onnx").rename(folder / "sub" / "moved")
    (folder / "model.onnx").symlink_to("sub/moved")
    write_manifest(folder, a_manifest())
    assert sorted(Bundle.open(folder).manifest.files) == ["model.onnx", "sub/empty", "sub/moved"]

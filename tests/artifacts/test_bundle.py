"""Bundle: every kind of damage is refused, with the file named."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pocketphi.artifacts.bundle import (
    MANIFEST,
    Bundle,
    check_replaceable,
    file_digest,
    is_sealed,
    write_manifest,
)
from pocketphi.graph.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "bundle"
    (made / "sub").mkdir(parents=True)
    (made / "model.onnx").write_bytes(bytes(range(200)))
    (made / "sub" / "empty").write_bytes(b"")
    write_manifest(made, {"recipe": {"name": "rtn"}, "passes": [1, 2]})
    return made


def test_what_is_written(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.manifest["format"] == 2
    assert bundle.manifest["recipe"] == {"name": "rtn"}
    want = hashlib.sha256(bytes(range(200))).hexdigest()
    assert bundle.manifest["files"]["model.onnx"] == {"bytes": 200, "sha256": want}
    assert sorted(bundle.manifest["files"]) == ["model.onnx", "sub/empty"]
    assert file_digest(folder / "model.onnx") == want
    text = (folder / MANIFEST).read_bytes()
    again = write_manifest(folder, {"recipe": {"name": "rtn"}, "passes": [1, 2]})
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
    assert Bundle.open(folder, check=False).path == folder


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"files": {}}', b'{"format": 1}'])
def test_refuses_what_is_no_manifest(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(
        InputError, match=re.escape(f"{folder}/manifest.json: damaged: it does not parse as a manifest")
    ):
        Bundle.open(folder, check=False)


@pytest.mark.parametrize("format_", [0, 1, "2", None])
def test_refuses_another_format(folder: Path, format_: Any) -> None:
    data = json.loads((folder / MANIFEST).read_text()) | {"format": format_}
    (folder / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(InputError, match=rf"bundle: bundle format {format_}, this pocketphi reads 2; compile it again"):
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
        text.replace(b"[\n  1,", b"[1,"),
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

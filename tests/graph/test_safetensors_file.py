"""Headers against safetensors' own reader, and rows of files that change meanwhile."""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_folders import NORM, tensors
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pocketphi.graph import safetensors_file
from pocketphi.graph.errors import InputError
from pocketphi.graph.safetensors_file import RowReader, SafetensorsFile

F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


def written(path: Path, header: Any, data: int = 16) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


def theirs(path: Path) -> dict[str, tuple[str, list[int]]] | None:
    """What safetensors' own reader finds: name → dtype, shape; None where it refuses."""
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    except SafetensorError:
        return None


def ours(path: Path) -> dict[str, tuple[str, list[int]]] | None:
    try:
        return {name: (s.dtype, list(s.shape)) for name, s in SafetensorsFile.open(path).tensors.items()}
    except InputError:
        return None


def test_offsets_and_values(tmp_path: Path) -> None:
    values = {**tensors(), "scalar": torch.tensor(2.0), "empty": torch.empty(0, 3), "whole": torch.arange(6).view(2, 3)}
    save_file(values, tmp_path / "a.safetensors", {"format": "pt"})
    file = SafetensorsFile.open(tmp_path / "a.safetensors")
    assert {n: list(s.shape) for n, s in file.tensors.items()} == {n: list(v.shape) for n, v in values.items()}
    content = file.path.read_bytes()
    stored = file.tensors["whole"]
    assert content[stored.offset : stored.offset + 48] == values["whole"].numpy().tobytes()
    reader = RowReader({file.path: file.version})
    assert torch.equal(reader.read(file.tensors[NORM], NORM, 3, 9), values[NORM][3:9])


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"not json", 16),
        (b"\xff", 16),
        (b" {}", 0),
        (b"{}   ", 0),
        (b"{}\n", 0),
        (b"{}", 1),
        ([], 16),
        ({"__metadata__": {"format": "pt"}, "a": F32}, 16),
        ({"__metadata__": {"format": 3}, "a": F32}, 16),
        ({"__metadata__": [], "a": F32}, 16),
        ({"__metadata__": None, "a": F32}, 16),
        ({"a": 1}, 16),
        ({"a": {"dtype": "F32", "shape": [4]}}, 16),
        ({"a": {**F32, "more": 1}}, 16),
        ({"a": {**F32, "data_offsets": [0, 8, 16]}}, 16),
        ({"a": {**F32, "data_offsets": [0, "16"]}}, 16),
        ({"a": {**F32, "data_offsets": [0, 16.0]}}, 16),
        ({"a": {**F32, "data_offsets": [8, 24]}}, 24),
        ({"a": {**F32, "data_offsets": [16, 0]}}, 16),
        ({"a": {**F32, "shape": ["4"]}}, 16),
        ({"a": {**F32, "shape": [4.0]}}, 16),
        ({"a": {**F32, "shape": 4}}, 16),
        ({"a": {**F32, "shape": [-4]}}, 16),
        ({"a": {**F32, "shape": [3]}}, 16),
        ({"a": {**F32, "shape": [2**62, 2**62]}}, 16),
        ({"a": {**F32, "dtype": "F33"}}, 16),
        ({"a": {**F32, "dtype": "I64", "shape": [2]}}, 16),
        ({"a": {**F32, "dtype": "F8_E4M3", "shape": [16]}}, 16),
        ({"a": {**F32, "dtype": "F4", "shape": [32]}}, 16),
        ({"a": {**F32, "dtype": "F4", "shape": [31]}}, 16),
        ({"a": F32, "b": F32}, 16),
        ({"a": F32, "b": {**F32, "data_offsets": [12, 28]}}, 28),
        ({"a": F32, "b": {**F32, "data_offsets": [20, 36]}}, 36),
        ({"b": {**F32, "data_offsets": [16, 32]}, "a": F32}, 32),
        ({"a": F32, "b": {**F32, "shape": [0], "data_offsets": [16, 16]}}, 16),
        ({"a": F32, "b": {**F32, "shape": [0], "data_offsets": [0, 0]}}, 16),
        ({"a": F32}, 15),
        ({"a": F32}, 17),
        ({"a" * 5000: F32}, 16),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", 0),
        (b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,16]}}', 16),
        (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}', 16),
    ],
)
def test_takes_what_safetensors_takes(tmp_path: Path, header: Any, data: int) -> None:
    path = written(tmp_path / "a.safetensors", header, data)
    assert ours(path) == theirs(path)


def test_takes_what_safetensors_takes_of_damaged_files(tmp_path: Path) -> None:
    """One byte of a header changed, or one part of it given twice or left out, at seeded places."""
    save_file({"a": torch.ones(2, 3), "bb": torch.ones(4).half()}, tmp_path / "whole.safetensors", {"format": "pt"})
    content = (tmp_path / "whole.safetensors").read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    path, chance, differ, taken = tmp_path / "a.safetensors", random.Random(7), [], 0
    for _ in range(400):
        changed = bytearray(content)
        at, length = chance.randrange(end), chance.randrange(1, 9)
        kind = chance.randrange(3)
        if kind == 0:
            changed[at] = chance.choice(b'0123456789{}[]",:- \x00\xff')
        elif kind == 1:
            changed[at:at] = changed[at : at + length]
        else:
            del changed[at : at + length]
        path.write_bytes(changed)
        taken += theirs(path) is not None
        if ours(path) != theirs(path):
            differ.append(bytes(changed))
    assert differ == []
    assert 10 < taken < 390


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"this file is missing; download the checkpoint again"),
        (b"", r"truncated: 0 bytes, its header alone takes 8; download it again"),
        (b"\x05\0\0\0\0", r"truncated: 5 bytes, its header alone takes 13"),
        (struct.pack("<Q", 2**63) + b"{}", r"truncated: 10 bytes, its header alone takes 9223372036854775816"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n",
            r"a Git LFS pointer, .*run 'git lfs pull'",
        ),
        (struct.pack("<Q", 4) + b"null", r"its header: expected a JSON object, got NoneType"),
        (
            struct.pack("<Q", 1 << 24) + b"{" * (1 << 24),
            r"its header takes 16,777,216 bytes, expected 8,388,608 at most",
        ),
        (struct.pack("<Q", 3) + b"{x}", r"its header: not valid JSON"),
    ],
)
def test_refuses(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path}: {message}"):
        SafetensorsFile.open(path)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({NORM: {"dtype": "F32", "shape": [4]}}, 16, rf"its header: '{NORM}': data_offsets: field required"),
        ({NORM: {**F32, "dtype": "Q4"}}, 16, rf"its header: '{NORM}' has the unknown dtype 'Q4'"),
        ({NORM: {**F32, "shape": [3]}}, 16, rf"its header: '{NORM}' takes 16 bytes, its shape \(3,\) says otherwise"),
        ({NORM: F32, "z": F32}, 16, r"its header: 'z' lies at 0 to 16, expected it to begin at 16"),
        (
            {NORM: {**F32, "data_offsets": [4, 20]}},
            20,
            rf"its header: '{NORM}' lies at 4 to 20, expected it to begin at 0",
        ),
        ({NORM: F32}, 17, r"\d+ bytes, but its tensors end at \d+; download it again"),
        ({NORM: F32}, 15, rf"truncated: \d+ bytes, but '{NORM}' ends at \d+; download it again"),
        ({"x" * 5000: F32}, 15, r"truncated: \d+ bytes, but 'x{59}… ends at"),
    ],
)
def test_refuses_a_header(tmp_path: Path, header: Any, data: int, message: str) -> None:
    path = written(tmp_path / "a.safetensors", header, data)
    with pytest.raises(InputError, match=f"^{path}: {message}"):
        SafetensorsFile.open(path)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    """Opening it would wait for somebody who writes."""
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"a.safetensors: this file is missing"):
        SafetensorsFile.open(tmp_path / "a.safetensors")


def opened(tmp_path: Path) -> tuple[SafetensorsFile, RowReader]:
    save_file(tensors(), tmp_path / "a.safetensors")
    file = SafetensorsFile.open(tmp_path / "a.safetensors")
    return file, RowReader({file.path: file.version})


@pytest.mark.parametrize("when", ["before the first read", "between two"])
@pytest.mark.parametrize("change", ["cut", "written", "replaced", "deleted"])
def test_a_file_that_changes_meanwhile(tmp_path: Path, when: str, change: str) -> None:
    """A deleted file that is open already can still be read: its content is the one that was opened."""
    file, reader = opened(tmp_path)
    if when == "between two":
        reader.read(file.tensors[NORM], NORM, 0, 64)
    if change == "cut":
        os.truncate(file.path, 4000)
    elif change == "written":
        content = bytearray(file.path.read_bytes())
        content[-1] ^= 1
        file.path.write_bytes(content)
        os.utime(file.path, ns=(0, 1))  # a clock may be too coarse to tell
    elif change == "replaced":
        (tmp_path / "b").write_bytes(file.path.read_bytes())
        (tmp_path / "b").replace(file.path)
    else:
        file.path.unlink()
    if when == "between two" and change in ("replaced", "deleted"):
        assert torch.equal(reader.read(file.tensors[NORM], NORM, 0, 64), tensors()[NORM])
        return
    message = (
        r"cannot be read \(No such file or directory\)"
        if change == "deleted"
        else "changed while 'model.norm.weight' was read"
    )
    with pytest.raises(InputError, match=f"^{file.path}: {message}"):
        reader.read(file.tensors[NORM], NORM, 0, 64)


def test_short_reads_are_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a network's file system, or a signal in between."""
    file, reader = opened(tmp_path)
    whole = os.preadv
    calls = []

    def some(descriptor: int, buffers: list[memoryview], at: int) -> int:
        calls.append(at)
        return whole(descriptor, [buffers[0][:50]], at)

    monkeypatch.setattr(safetensors_file.os, "preadv", some)
    assert torch.equal(reader.read(file.tensors[NORM], NORM, 1, 64), tensors()[NORM][1:])
    assert len(calls) == 3


def test_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, reader = opened(tmp_path)

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(safetensors_file.os, "preadv", broken)
    with pytest.raises(InputError, match=r"a.safetensors: cannot be read \(Input/output error\)"):
        reader.read(file.tensors[NORM], NORM, 0, 64)

"""The parser of GGUF headers against the gguf library's reader, and against bytes that no tool would write."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pocketphi.graph.errors import InputError
from pocketphi.graph.gguf_file import GgufFile
from pocketphi.graph.gguf_header import GgufHeader
from pocketphi.graph.gguf_parse import parse_header
from tests.graph.test_gguf_file import random_tensors, write


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def header(keys: list[bytes], infos: list[bytes], version: int = 3, data: int = 0, **counts: int) -> bytes:
    """A file of these parts. counts: of `tensors` and `pairs`, as the header declares them."""
    declared = struct.pack("<IQQ", version, counts.get("tensors", len(infos)), counts.get("pairs", len(keys)))
    made = b"GGUF" + declared + b"".join(keys + infos)
    return made + bytes(-len(made) % 32 + data)


def test_reads_what_the_library_reads(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -3)
    writer.add_uint16("a.u16", 60000)
    writer.add_int16("a.i16", -30000)
    writer.add_uint32("a.u32", 4_000_000_000)
    writer.add_int32("a.i32", -5)
    writer.add_uint64("a.u64", 1 << 63)
    writer.add_int64("a.i64", -(1 << 62))
    writer.add_float32("a.f32", 0.1)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.yes", True)
    writer.add_bool("a.no", False)
    writer.add_string("a.text", "日本\0😀")
    writer.add_array("a.texts", ["", "x", "▁the"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_array("a.floats", [0.5, float("inf")])
    writer.add_array("a.flags", [True, False])
    writer.add_custom_alignment(64)
    for name, shape in {"vector": (5,), "matrix": (3, 4), "cube": (2, 3, 4)}.items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader, ours = gguf.GGUFReader(tmp_path / "m.gguf"), parse_header(tmp_path / "m.gguf")
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    plain = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in ours.fields.items()}
    assert plain == theirs
    assert {key: type(value) for key, value in plain.items()} == {key: type(value) for key, value in theirs.items()}
    places = {t.name: (t.shape, ours.data + t.offset) for t in ours.tensors}
    assert places == {t.name: (tuple(t.shape.tolist()[::-1]), t.data_offset) for t in reader.tensors}


FLOATS = struct.pack("<IQ", 6, 1) + b"\0\0\x80\x3f"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not a GGUF file: it starts with b''"),
        (b"GG", r"not a GGUF file: it starts with b'GG'"),
        (b"GGUF", "truncated: 4 bytes, expected 8 or more"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer, not the file itself"),
        (header([], [], version=1), "GGUF version 1, expected 2 or 3; convert the model again"),
        (header([], [], version=3 << 24), "a big-endian GGUF file, expected little-endian"),
        (header([], [], version=65536), "GGUF version 65536, expected 2 or 3"),
        (header([pair("a", 4, b"\1\0\0\0"), pair("a", 7, b"\1")], []), "the key 'a' stands twice"),
        (header([], [tensor("x", (1,)), tensor("x", (1,))], data=64), "the tensor 'x' stands twice"),
        (header([pair("", 7, b"\1")], []), "the name at byte 24 has 0 characters"),
        (header([pair("a", 13, b"")], []), "'a' has the unknown type 13"),
        (header([pair("a", 9, struct.pack("<IQ", 9, 1) + FLOATS)], []), "'a' has the unknown type 9"),
        (header([pair("a", 8, text(b"\xff\xfe"))], []), "the text at byte 45 is not UTF-8"),
        (header([text(b"\xff")], [], pairs=1), "the text at byte 32 is not UTF-8"),
        (header([pair("general.alignment", 4, b"\x30\0\0\0")], []), "general.alignment is 48, expected a power of two"),
        (header([pair("general.alignment", 7, b"\1")], []), "general.alignment is True, expected a power of two"),
        (header([], [tensor("x", ())], data=64), "'x' has 0 dimensions, expected 1 to 4"),
        (header([], [tensor("x", (1,) * 5)], data=64), "'x' has 5 dimensions, expected 1 to 4"),
        (header([], [tensor("x", (4, 0))], data=64), r"'x' has the shape \[0, 4\]"),
        (header([], [tensor("x", (8,), offset=8)], data=64), "'x' lies at 8, expected a multiple of 32"),
        (header([], [tensor("x", (17,), 2)], data=64), "'x' has rows of 17 values, expected a multiple of 32 .Q4_0."),
        (header([], [tensor("x", (16,)), tensor("y", (1,), offset=32)], data=64), "'y' lies over 'x'"),
        (header([], [tensor("x", (16,)), tensor("y", (1,))], data=64), "'[xy]' lies over '[xy]'"),
        (header([], [tensor("x", (16,), offset=32)], data=64), "truncated: 128 bytes, expected 160 or more"),
        (header([], [tensor("x", (1 << 62, 1 << 62))], data=64), r"truncated: 160 bytes, expected 8507\d+ or more"),
        (header([], [tensor("x", (8,), 15)], data=64), "'x' has the unknown quantization type Q8_K"),
    ],
)
def test_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(InputError, match=message):
        GgufHeader.read(tmp_path / "m.gguf")


HUGE = [1 << 31, 1 << 40, 1 << 60, (1 << 64) - 1]


@pytest.mark.parametrize("count", HUGE)
def test_a_declared_count_takes_no_memory_and_no_time(tmp_path: Path, count: int) -> None:
    """Texts, arrays of every kind, keys, tensors and dimensions of a size that no file has."""
    arrays = [pair("a", 9, struct.pack("<IQ", kind, count)) for kind in (0, 7, 8, 12)]
    contents = [
        *(header([array], [], data=100_000) for array in arrays),
        header([pair("a", 8, struct.pack("<Q", count))], []),
        header([struct.pack("<Q", count)], [], pairs=1),
        header([pair("a", 7, b"\1")], [], pairs=count, data=100_000),
        header([], [tensor("x", (1,))], tensors=count, data=100_000),
        header([], [text("x") + struct.pack("<I", count & 0xFFFFFFFF)], tensors=1, data=100_000),
    ]
    path = tmp_path / "m.gguf"
    for content in contents:
        path.write_bytes(content)
        tracemalloc.start()
        with pytest.raises(InputError, match=r"truncated|damaged GGUF file"):
            GgufHeader.read(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 10 * len(content) + 1_000_000


def test_a_header_takes_little_more_memory_than_it_has_bytes(tmp_path: Path) -> None:
    tokens = [f"▁token{i}" for i in range(50_000)]
    fields: dict[str, Any] = {
        f"tokenizer.ggml.{key}": value for key, value in {"model": "gpt2", "tokens": tokens}.items()
    }
    fields["tokenizer.ggml.token_type"] = [1] * len(tokens)
    path = write(tmp_path / "m.gguf", "llama", random_tensors("llama"), fields=fields)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"50000 tokens, but 'token_embd.weight' has 40 rows"):
        GgufFile(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * path.stat().st_size

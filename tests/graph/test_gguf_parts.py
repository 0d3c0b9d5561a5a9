"""A GGUF file in several parts, as the gguf library's writer makes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest

from pocketphi.compiler.build_key import SourceDigests
from pocketphi.graph import gguf_parts
from pocketphi.graph.errors import InputError
from pocketphi.graph.gguf_file import GgufFile
from pocketphi.graph.gguf_parse import shown
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.opening import open_checkpoint
from tests.graph.test_gguf_file import FIELDS, Array, random_tensors, write


def write_parts(folder: Path, arch: str, weights: Mapping[str, Array], parts: int) -> list[Path]:
    """As the gguf library splits a model."""
    writer = gguf.GGUFWriter(folder / "m.gguf", arch, split_max_tensors=-(-len(weights) // parts))
    for key, value in FIELDS.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"{arch}.{key}", value)  # type: ignore[operator]
    for name, array in weights.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file(folder / "m.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    paths = sorted(folder.glob("m-*.gguf"))
    assert len(paths) == parts
    return paths


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    return write_parts(tmp_path, "phi3", random_tensors("phi3"), parts=3)


def replace(path: Path, key: str, value: int) -> None:
    """Set a number of the metadata in place."""
    reader = gguf.GGUFReader(path, "r+")
    reader.fields[key].parts[-1][0] = value
    reader.data.flush()


def test_all_parts_are_read(parts: list[Path], tmp_path: Path) -> None:
    checkpoint = GgufFile(parts[0])
    whole = GgufFile(write(tmp_path / "whole.gguf", "phi3", random_tensors("phi3")))
    assert list(checkpoint.files) == parts
    assert checkpoint.config == whole.config
    assert [
        n for n, i in whole.tensors.items() if not checkpoint.read(n, 0, i.rows).equal(whole.read(n, 0, i.rows))
    ] == []
    assert HashedCheckpoint(checkpoint).digest_all() == HashedCheckpoint(whole).digest_all()


def test_a_part_that_changes_is_noticed(parts: list[Path]) -> None:
    checkpoint = HashedCheckpoint(open_checkpoint(parts[0]))
    os.utime(parts[2], ns=(1, 1))
    with pytest.raises(InputError, match=r"m-00003-of-00003.gguf: changed during the compile"):
        checkpoint.digest_all()


def test_every_part_decides_a_build(parts: list[Path]) -> None:
    before = SourceDigests().of(str(parts[0]))
    assert SourceDigests().of(str(parts[0])) == before
    data = bytearray(parts[2].read_bytes())
    data[-1] ^= 1
    parts[2].write_bytes(data)
    assert SourceDigests().of(str(parts[0])) != before


def test_another_part_than_the_first(parts: list[Path]) -> None:
    with pytest.raises(InputError, match=r"part 2 of 3; give the first part, m-00001-of-00003.gguf"):
        open_checkpoint(parts[1])


def test_missing_parts(parts: list[Path]) -> None:
    parts[1].unlink()
    with pytest.raises(InputError, match=r"part 1 of 3, but m-00002-of-00003.gguf is missing; download all parts"):
        open_checkpoint(parts[0])
    parts[2].unlink()
    with pytest.raises(InputError, match=r"m-00002-of-00003.gguf is missing \(and 1 more\)"):
        open_checkpoint(parts[0])


def test_a_first_part_under_another_name(parts: list[Path]) -> None:
    with pytest.raises(
        InputError, match=r"part 1 of 3 \(split.count\); expected a name such as model-00001-of-00003.gguf"
    ):
        open_checkpoint(parts[0].rename(parts[0].with_name("model.gguf")))


def test_a_whole_file_that_is_named_as_a_part(tmp_path: Path) -> None:
    path = write(tmp_path / "m-00001-of-00002.gguf", "phi3", random_tensors("phi3"))
    with pytest.raises(InputError, match=r"named as one of 2 parts, but its metadata has no split.count"):
        open_checkpoint(path)


def test_parts_that_were_mixed_up(parts: list[Path]) -> None:
    second, third = parts[1].read_bytes(), parts[2].read_bytes()
    parts[1].write_bytes(third)
    with pytest.raises(
        InputError, match=r"00002-of-00003.gguf: says it is part 3 of 3, expected 2 of 3; download it again"
    ):
        open_checkpoint(parts[0])
    parts[1].write_bytes(second)
    parts[2].write_bytes(second)
    replace(parts[2], "split.no", 2)
    with pytest.raises(InputError, match=r"00003-of-00003.gguf: holds 'blk.*', which another part holds too"):
        open_checkpoint(parts[0])


def test_a_part_of_another_split(parts: list[Path]) -> None:
    replace(parts[1], "split.count", 4)
    with pytest.raises(InputError, match=r"says it is part 2 of 4, expected 2 of 3"):
        open_checkpoint(parts[0])


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("general.architecture", "'general.architecture' 'llama', the first part 'phi3'"),
        ("split.tensors.count", "count' 16, the"),
    ],
)
def test_a_part_of_another_model(parts: list[Path], key: str, told: str) -> None:
    """Of the same number among as many: it says so by what it has beside its tensors."""
    reader = gguf.GGUFReader(parts[1])
    writer = gguf.GGUFWriter(parts[1].with_name("other.gguf"), "llama" if key.startswith("general") else "phi3")
    for name, field in reader.fields.items():
        if name.startswith("split."):
            writer.add_key_value(name, field.contents() + (name == key), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts[1].with_name("other.gguf").replace(parts[1])
    with pytest.raises(InputError, match=rf"00002-of-00003.gguf: has .*{told}.*: it is of another model; download all"):
        open_checkpoint(parts[0])


def test_too_few_tensors(parts: list[Path]) -> None:
    for part in parts:
        replace(part, "split.tensors.count", 99)
    with pytest.raises(InputError, match=r"its 3 parts hold 15 tensors, expected 99 \(split.tensors.count\)"):
        open_checkpoint(parts[0])


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (["x"] * 100, ["x"] * 99 + ["y"], False),
        ("t" * 100, "t" * 99 + "u", False),
        (np.arange(100), np.arange(100), True),
        (np.arange(100), np.arange(1, 101), False),
        (1, True, False),
        (None, None, True),
    ],
)
def test_metadata_is_compared_by_value(a: object, b: object, same: bool) -> None:
    assert gguf_parts._same(a, b) is same
    assert len(shown(a)) < 80


def test_a_list_in_a_message_has_its_own_length() -> None:
    assert shown(np.arange(32_000)) == "list of 32000"


def test_a_part_with_metadata_of_its_own(parts: list[Path], tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "phi3")
    writer.add_uint16("split.no", 1)
    writer.add_uint16("split.count", 3)
    writer.add_uint32("phi3.attention.sliding_window", 7)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    (tmp_path / "other.gguf").rename(parts[1])
    with pytest.raises(InputError, match=r"has 'phi3.attention.sliding_window', which the first part does not have"):
        open_checkpoint(parts[0])


def test_a_damaged_part_is_named(parts: list[Path]) -> None:
    size = parts[2].stat().st_size
    os.truncate(parts[2], size - 40)
    with pytest.raises(InputError, match=rf"m-00003-of-00003.gguf: truncated: {size - 40} bytes"):
        open_checkpoint(parts[0])

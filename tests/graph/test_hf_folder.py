"""HfFolder against safetensors' own writer, and every way in which a folder can be wrong."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_phi3 import VARIANTS, checkpoint

from pocketphi.graph.checkpoint import open_checkpoint
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_folder import HfFolder
from pocketphi.graph.random_weights import RandomWeights

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NORM = "model.norm.weight"


def tensors(variant: str = "tiny", dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    source = checkpoint(variant)
    return {name: source.read(name, 0, info.rows).to(dtype) for name, info in source.tensors.items()}


def save(folder: Path, values: dict[str, torch.Tensor], variant: str = "tiny", shards: int = 1) -> Path:
    """A folder as transformers leaves it."""
    (folder / "config.json").write_text(json.dumps(VARIANTS[variant].to_hf()))
    if shards == 1:
        save_file(values, folder / "model.safetensors", {"format": "pt"})
        return folder
    names = list(values)
    files = {
        name: f"model-{i * shards // len(names) + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(names)
    }
    for file in sorted(set(files.values())):
        save_file({n: values[n] for n in names if files[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


def in_memory(path: Path) -> int:
    """How many of a file's pages the system holds. By `mincore`: a read that must not wait has newer systems fetch the page."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as mapped:
        pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        address = np.frombuffer(mapped, np.uint8).ctypes.data
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages.ctypes.data_as(ctypes.c_void_p)) == 0
        return int((pages & 1).sum())


@pytest.mark.skipif(sys.platform != "linux", reason="asks the system in Linux's way")
def test_what_was_read_is_forgotten_on_request(tmp_path: Path) -> None:
    config = replace(VARIANTS["tiny"], vocab_size=40_000)
    source = RandomWeights("random:tiny", config)
    values = {name: source.read(name, 0, info.rows).bfloat16() for name, info in source.tensors.items()}
    folder = save(tmp_path, values)
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    opened = HfFolder(folder)
    (path,) = opened.files
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if in_memory(path):
        pytest.skip("this filesystem is in memory")
    name = "lm_head.weight"
    chunks = list(opened.chunks(name))
    assert len(chunks) > 2
    first = torch.cat([opened.read(name, *chunk) for chunk in chunks])
    held = in_memory(path)
    assert held >= values[name].nbytes // mmap.PAGESIZE - 1
    opened.forget_behind()
    again = torch.cat([opened.read(name, *chunk) for chunk in chunks])
    assert torch.equal(first, values[name])
    assert torch.equal(again, values[name])
    assert in_memory(path) < held / 4


@pytest.mark.parametrize("variant", ["tiny", "tied"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", [1, 3])
def test_reads_what_was_saved(tmp_path: Path, variant: str, dtype: str, shards: int) -> None:
    values = tensors(variant, DTYPES[dtype])
    opened = open_checkpoint(save(tmp_path, values, variant, shards))
    assert isinstance(opened, HfFolder)
    assert opened.config == VARIANTS[variant]
    assert list(opened.tensors) == list(opened.config.tensors())
    assert {info.dtype for info in opened.tensors.values()} == {dtype}
    cuts = {name: (info.rows // 3, info.rows - 1) for name, info in opened.tensors.items()}
    read = {name: [opened.read(name, 0, len(values[name])), opened.read(name, *cut)] for name, cut in cuts.items()}
    wrong = [
        n
        for n, (a, b) in read.items()
        if not (torch.equal(a, values[n]) and torch.equal(b, values[n][slice(*cuts[n])]))
    ]
    assert wrong == []
    assert read[NORM][0].dtype == DTYPES[dtype]


@pytest.mark.parametrize("shards", [1, 2])
def test_a_tensor_that_nobody_asks_for_is_left_alone(tmp_path: Path, shards: int) -> None:
    """Old files hold rotary frequencies, and some a head beside a tied embedding."""
    extra = {"model.rotary.inv_freq": torch.ones(3), "lm_head.weight": torch.ones(4), "steps": torch.ones(1).long()}
    opened = HfFolder(save(tmp_path, tensors("tied") | extra, "tied", shards))
    assert set(opened.tensors) == set(VARIANTS["tied"].tensors())


def test_threads_read_the_same(tmp_path: Path) -> None:
    values = tensors()
    opened = HfFolder(save(tmp_path, values, shards=3))

    def wrong(_: int) -> list[str]:
        return [n for n, v in values.items() if not torch.equal(opened.read(n, 1, len(v)), v[1:])]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(wrong, range(8))) == [[]] * 8


def test_files_are_not_mapped_and_are_closed(tmp_path: Path) -> None:
    opened = HfFolder(save(tmp_path, tensors()))
    opened.read(NORM, 0, 4)
    path = str(tmp_path / "model.safetensors")

    def descriptors() -> list[str]:
        return [
            os.readlink(f"/proc/self/fd/{n}")
            for n in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{n}")
        ]

    assert path not in Path("/proc/self/maps").read_text()
    assert descriptors().count(path) == 1
    del opened
    assert path not in descriptors()


def test_end_tokens_of_the_generation_config_count_too(tmp_path: Path) -> None:
    folder = save(tmp_path, tensors())
    assert HfFolder(folder).config.eos == (2,)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    assert HfFolder(folder).config.eos == (2, 7)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": "<|end|>"}))
    with pytest.raises(
        InputError, match=r"generation_config.json: eos_token_id is \['<\|end\|>'\], expected token numbers"
    ):
        HfFolder(folder)


def test_tokenizer_files(tmp_path: Path) -> None:
    folder = save(tmp_path, tensors())
    assert HfFolder(folder).tokenizer_files() == {}
    (folder / "tokenizer.json").write_bytes(b"{}")
    (folder / "chat_template.jinja").write_bytes(b"x")
    (folder / "README.md").write_bytes(b"not one of them")
    assert HfFolder(folder).tokenizer_files() == {"tokenizer.json": b"{}", "chat_template.jinja": b"x"}


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        HfFolder(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"config.json: no such file; a Hugging Face folder holds one"),
        (b"{", r"config.json: not valid JSON \(Expecting property name"),
        (b"\xff\xfe", r"config.json: not valid JSON \('utf-8' codec"),
        (b"[]", r"config.json: expected a JSON object, got list"),
        (b"{}", r"config.json: num_attention_heads is None, expected a positive whole number"),
    ],
)
def test_refuses_a_config(tmp_path: Path, text: bytes | None, message: str) -> None:
    folder = save(tmp_path, tensors())
    (folder / "config.json").unlink() if text is None else (folder / "config.json").write_bytes(text)
    refused(folder, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, r"no model.safetensors and no model.safetensors.index.json"),
        ({"wrong": {}}, r"index.json: has no 'weight_map'"),
        ({"weight_map": []}, r"index.json: has no 'weight_map'"),
        ({"weight_map": {NORM: 3}}, r"index.json: puts 'model.norm.weight' into 3, expected the name of a file"),
    ],
)
def test_refuses_an_index(tmp_path: Path, change: dict[str, Any] | None, message: str) -> None:
    folder = save(tmp_path, tensors(), shards=2)
    index = folder / "model.safetensors.index.json"
    index.unlink() if change is None else index.write_text(json.dumps(change))
    refused(folder, message)


def test_refuses_a_missing_shard(tmp_path: Path) -> None:
    folder = save(tmp_path, tensors(), shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(folder, r"model-00002-of-00003.safetensors: this shard is missing; download the checkpoint again")


def test_refuses_an_index_that_names_what_the_shard_has_not(tmp_path: Path) -> None:
    folder = save(tmp_path, tensors(), shards=2)
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"][NORM] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(data))
    refused(
        folder, r"index.json: puts 'model.norm.weight' into model-00001-of-00002.safetensors, which does not hold it"
    )


@pytest.mark.parametrize("missing", [NORM, "model.layers.2.mlp.down_proj.weight"])
def test_refuses_a_missing_tensor(tmp_path: Path, missing: str) -> None:
    values = tensors()
    del values[missing]
    refused(save(tmp_path, values), rf"tensor '{missing}' is missing \(the config asks for \[64")


def test_refuses_another_shape(tmp_path: Path) -> None:
    refused(
        save(tmp_path, tensors() | {NORM: torch.ones(65)}),
        r"'model.norm.weight' has shape \[65\], the config asks for \[64\]",
    )


def test_refuses_another_dtype(tmp_path: Path) -> None:
    values = tensors() | {NORM: torch.ones(64, dtype=torch.float64)}
    refused(save(tmp_path, values), r"'model.norm.weight' has dtype F64, expected one of BF16, F16, F32")


@pytest.mark.parametrize("kept", [0, 5])
def test_refuses_a_shard_without_a_header(tmp_path: Path, kept: int) -> None:
    folder = save(tmp_path, tensors())
    os.truncate(folder / "model.safetensors", kept)
    refused(folder, rf"model.safetensors: truncated: {kept} bytes, its header alone takes \d+")


def test_refuses_a_truncated_shard(tmp_path: Path) -> None:
    folder = save(tmp_path, tensors())
    path = folder / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    refused(folder, rf"truncated: {size - 1} bytes, but '[\w.]+' ends at {size}; download it again")


def header(entry: Any) -> bytes:
    text = entry if isinstance(entry, bytes) else json.dumps(entry).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


@pytest.mark.parametrize(
    "entry",
    [
        b"not json",
        b"\xff",
        [],
        {NORM: 1},
        {NORM: {"dtype": "F32", "shape": [4]}},
        {NORM: {"dtype": "F32", "shape": [4], "data_offsets": [0, 8, 16]}},
        {NORM: {"dtype": "F32", "shape": [4], "data_offsets": [0, "16"]}},
        {NORM: {"dtype": "F32", "shape": ["4"], "data_offsets": [0, 16]}},
        {NORM: {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]}},
        {NORM: {"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]}},
        {NORM: {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}},
    ],
)
def test_refuses_what_is_no_safetensors_file(tmp_path: Path, entry: Any) -> None:
    folder = save(tmp_path, tensors())
    (folder / "model.safetensors").write_bytes(header(entry))
    refused(folder, r"model.safetensors: not a safetensors file: its header is not valid")


def test_refuses_offsets_that_are_not_the_shape(tmp_path: Path) -> None:
    folder = save(tmp_path, tensors())
    (folder / "model.safetensors").write_bytes(header({NORM: {"dtype": "F32", "shape": [3], "data_offsets": [0, 16]}}))
    refused(folder, r"'model.norm.weight' takes 16 bytes, its shape \[3\] says otherwise")


def test_a_file_that_shrinks_meanwhile(tmp_path: Path) -> None:
    opened = HfFolder(save(tmp_path, tensors()))
    os.truncate(tmp_path / "model.safetensors", 4000)
    with pytest.raises(
        InputError, match=r"model.safetensors: ended while reading 'model.layers.2.mlp.down_proj.weight'"
    ):
        opened.read("model.layers.2.mlp.down_proj.weight", 0, 64)

"""HfFolder against safetensors' own writer, and the files around the weights."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hf_folders import DTYPES, NORM, save, tensors
from tiny_phi3 import VARIANTS

from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_folder import HfFolder
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.random_weights import RandomWeights


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
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2, 999]}))
    opened = HfFolder(folder)
    assert opened.config.eos == (2, 7)
    (told,) = opened.notices
    assert told == f"{folder}/generation_config.json: names token 999, but there are 256 tokens; it is left out"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"eos_token_id": "<|end|>"}', r"eos_token_id.*: input should be a valid integer, got '<\|end\|>'"),
        (b"[" * 5000, r"not valid JSON \(recursion limit exceeded"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"a Git LFS pointer, not the file itself"),
    ],
)
def test_refuses_a_generation_config(tmp_path: Path, content: bytes, message: str) -> None:
    folder = save(tmp_path, tensors())
    (folder / "generation_config.json").write_bytes(content)
    refused(folder, f"generation_config.json: {message}")


def test_tokenizer_files(tmp_path: Path) -> None:
    folder = save(tmp_path, tensors())
    assert HfFolder(folder).tokenizer_files() == {}
    (folder / "tokenizer.json").write_bytes(b"{}")
    (folder / "chat_template.jinja").write_bytes(b"x")
    (folder / "README.md").write_bytes(b"not one of them")
    assert HfFolder(folder).tokenizer_files() == {"tokenizer.json": b"{}", "chat_template.jinja": b"x"}
    (folder / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    with pytest.raises(
        InputError, match=r"tokenizer.model: a Git LFS pointer, not the file itself; run 'git lfs pull'"
    ):
        HfFolder(folder).tokenizer_files()


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        HfFolder(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"config.json: no such file; a Hugging Face folder holds one"),
        (b"{", r"config.json: not valid JSON \(EOF while parsing an object"),
        (b"\xff\xfe", r"config.json: not valid JSON \("),
        (b"[]", r"config.json: expected a JSON object, got list"),
        (b"{}", r"config.json: neither architectures nor model_type, expected Phi3ForCausalLM"),
        (b'{"a":' * 5000, r"config.json: not valid JSON \(recursion limit exceeded"),
        (b'{"vocab_size":' + b"9" * 5000 + b"}", r"config.json: not valid JSON \(number out of range"),
        (
            b'{"vocab_size":NaN,"model_type":"phi3"}',
            r"config.json: vocab_size: input should be a valid integer, got nan",
        ),
        (b"version https://git-lfs.github.com/spec/v1\n", r"config.json: a Git LFS pointer, not the file itself"),
        (b" " * (1 << 20) + b"{}", r"config.json: 1,048,578 bytes, expected 1,048,576 at most"),
    ],
)
def test_refuses_a_config(tmp_path: Path, text: bytes | None, message: str) -> None:
    folder = save(tmp_path, tensors())
    (folder / "config.json").unlink() if text is None else (folder / "config.json").write_bytes(text)
    refused(folder, message)


def test_says_where_the_config_may_be(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    save(tmp_path / "inner", tensors())
    refused(tmp_path, rf"^{tmp_path}/config.json: no such file; its folder 'inner' holds one$")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, r"config.json: no such file; this is an adapter: compile its base model, with --lora ")


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.json", "generation_config.json"],
)
@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_links_that_lead_nowhere(name: str, target: str, tmp_path: Path) -> None:
    save(tmp_path, tensors())
    if name.startswith("model."):
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to(name if target == "itself" else target)
    expected = "this file is missing" if name == "model.safetensors" else "a link to .*, which is not there"
    with pytest.raises(InputError, match=expected) as caught:
        open_checkpoint(tmp_path).tokenizer_files()
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


def test_a_link_to_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").symlink_to("other.gguf")
    with pytest.raises(InputError, match=r"m\.gguf: a link to other\.gguf, which is not there"):
        open_checkpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize("others", [["config.json"], []])
def test_a_folder_around_a_gguf(others: list[str], tmp_path: Path) -> None:
    save(tmp_path, tensors())
    for path in tmp_path.iterdir():
        if path.name not in others:
            path.unlink()
    (tmp_path / "phi-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"to compile phi-q4\.gguf, name that file"):
        open_checkpoint(tmp_path)


def test_an_error_is_one_line_whatever_the_folder_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "a\nb\x1b[31m\udcff"
    folder.mkdir()
    with pytest.raises(InputError) as caught:
        open_checkpoint(folder)
    assert str(caught.value).startswith(rf"{tmp_path}/a\nb\x1b[31m\udcff/config.json: no such file")

"""Which files are taken, what in them is used, and what is refused; test_hf_agreement.py compares what comes of it."""

from __future__ import annotations

import json
import os
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hf_folders import EMBEDDING, HEAD, NORM, Tensors, configure, save, tensors
from safetensors.torch import save_file
from tiny_phi3 import TINY

from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_folder import HfFolder
from pocketphi.graph.hf_weights import find_weights

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        HfFolder(folder)


def index_of(folder: Path, change: Callable[[dict[str, str]], object]) -> Path:
    """Change the weight_map of an index."""
    data = json.loads((folder / INDEX).read_text())
    change(data["weight_map"])
    (folder / INDEX).write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["pytorch_model.bin"], "pytorch_model.bin"),
        (["model.fp16.safetensors", "consolidated.safetensors"], "consolidated.safetensors, model.fp16.safetensors"),
        (["adapter_model.safetensors", "tf_model.h5"], "adapter_model.safetensors, tf_model.h5"),
        (["a.bin", "b.bin", "c.gguf", "d.pt", "e.pth"], "a.bin, b.bin, c.gguf and 2 more"),
        (["pytorch_model.bin.index.json"], "pytorch_model.bin.index.json"),
        (["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_1.pth", "README.md"], None),
    ],
)
@pytest.mark.parametrize("shards", [1, 2])
def test_files_beside_the_one_chosen_are_told(tmp_path: Path, names: list[str], told: str | None, shards: int) -> None:
    save(tmp_path, tensors(), shards=shards)
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    read = f"{SINGLE}, as transformers does" if shards == 1 else f"{INDEX}, and the files that it names"
    assert HfFolder(tmp_path).notices == ((f"{tmp_path}: read {read}; not read: {told}",) if told else ())


def test_a_shard_that_the_index_does_not_name_is_told(tmp_path: Path) -> None:
    save(tmp_path, tensors(), shards=2)
    save_file({NORM: torch.ones(64)}, tmp_path / "model-00003-of-00003.safetensors")
    (told,) = HfFolder(tmp_path).notices
    assert told.endswith("not read: model-00003-of-00003.safetensors")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], rf"no {SINGLE} and no {INDEX}$"),
        (
            ["model.fp16.safetensors"],
            r"model.fp16.safetensors cannot be read: load it with transformers, then save_pretr",
        ),
        (["pytorch_model.bin"], r"pytorch_model.bin cannot be read: load it with transformers, then save_pretrained"),
        (
            [SINGLE, "adapter_config.json"],
            r"holds an adapter \(adapter_config.json\), which transformers adds to the weights",
        ),
        (
            [SINGLE, "shard-00001-model-00001-of-00002.safetensors"],
            r"holds a distributed checkpoint \(shard-00001-model",
        ),
    ],
)
def test_refuses_a_choice_of_files(tmp_path: Path, names: list[str], message: str) -> None:
    save(tmp_path, tensors())
    (tmp_path / SINGLE).unlink()
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    refused(tmp_path, f"^{tmp_path}: .*{message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", r"weight_map: field required"),
        (b'{"weight_map": []}', r"weight_map: input should be an object, got \[\]"),
        (b'{"weight_map": {"a": 3}}', r"weight_map.a: input should be a valid string, got 3"),
        (b'{"weight_map": {}}', r"names no file that holds a tensor"),
        (
            b'{"weight_map": {"a": "../other/model.safetensors"}}',
            r"names '../other/model.safetensors', which lies outside",
        ),
        (
            b'{"weight_map": {"a": "x/../../model.safetensors"}}',
            r"names 'x/../../model.safetensors', which lies outside",
        ),
        (b'{"weight_map": {"a": "/etc/passwd"}}', r"names '/etc/passwd', which lies outside of"),
        (b'{"weight_map": {"a": ""}}', r"names '', which cannot be the name of a file"),
        (b'{"weight_map": {"a": "' + b"x" * 5000 + b'"}}', r"names 'x+…, which cannot be the name of a file"),
        (b"[" * 5000, r"not valid JSON \(recursion limit exceeded"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"a Git LFS pointer, not the file itself"),
    ],
)
def test_refuses_an_index(tmp_path: Path, content: bytes, message: str) -> None:
    save(tmp_path, tensors(), shards=2)
    (tmp_path / INDEX).write_bytes(content)
    refused(tmp_path, f"^{tmp_path / INDEX}: {message}")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model.bin"])
def test_refuses_a_file_that_the_config_names(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    configure(save(folder, tensors()), transformers_weights=name)
    (folder / SINGLE).rename(tmp_path / SINGLE)
    (folder / "model.bin").write_bytes(b"PK")
    refused(folder, r"config.json: transformers_weights: names '.*', which lies outside of|model.bin: truncated")


def test_files_of_a_cache_are_links(tmp_path: Path) -> None:
    """As in the hub's: snapshots/…/model.safetensors → ../../blobs/…"""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(save(blobs, tensors(), shards=3).iterdir())):
        path.rename(blobs / f"{i}")
        os.symlink(f"../../blobs/{i}", snapshot / path.name)
    opened = HfFolder(snapshot)
    assert torch.equal(opened.read(NORM, 0, 64), tensors()[NORM])
    assert opened.notices == ()
    (blobs / "2").unlink()
    refused(snapshot, r"-of-00003.safetensors: this file is missing; download the checkpoint again")


@pytest.mark.parametrize("shard", [SINGLE, "model-00002-of-00003.safetensors"])
def test_refuses_a_missing_or_unfetched_shard(tmp_path: Path, shard: str) -> None:
    path = save(tmp_path, tensors(), shards=1 if shard == SINGLE else 3) / shard
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    refused(tmp_path, f"^{path}: a Git LFS pointer, not the file itself; run 'git lfs pull' in its folder")
    path.unlink()
    refused(tmp_path, r"no model.safetensors and" if shard == SINGLE else f"^{path}: this file is missing; download")


def test_refuses_an_index_and_shards_that_differ(tmp_path: Path) -> None:
    save(tmp_path, tensors(), shards=2)
    index_of(tmp_path, lambda names: names.update({NORM: "model-00001-of-00002.safetensors"}))
    refused(tmp_path, rf"index.json: puts '{NORM}' into model-00001-of-00002.safetensors, which does not hold it")


def test_refuses_a_tensor_in_two_shards(tmp_path: Path) -> None:
    """transformers takes the one that it reads last."""
    save(tmp_path, tensors(), shards=2)
    save_file({NORM: torch.ones(64)}, tmp_path / "model-00003.safetensors")
    index_of(tmp_path, lambda names: names.update({NORM: "model-00003.safetensors"}))
    refused(tmp_path, rf"model-00003.safetensors: holds '{NORM}', which model-0000[12]-of-00002.safetensors holds too")


def test_a_tensor_that_the_index_leaves_out_is_read(tmp_path: Path) -> None:
    """transformers reads whatever is in the files."""
    save(tmp_path, tensors(), shards=2)
    index_of(tmp_path, lambda names: names.pop(NORM))
    assert torch.equal(HfFolder(tmp_path).read(NORM, 0, 64), tensors()[NORM])


LAYER = "model.layers.1.self_attn.qkv_proj"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({f"{LAYER}.bias": torch.ones(128)}, rf"holds the tensor '{LAYER}.bias', which has no place in Phi-3"),
        (
            {f"{LAYER}.lora_A.weight": torch.ones(2)},
            rf"'{LAYER}.lora_A.weight', part of an adapter; save the model without it, and name",
        ),
        ({f"base_model.model.{NORM}": torch.ones(64)}, rf"'base_model.model.{NORM}', part of an adapter"),
        (
            {"model.layers.3.mlp.down_proj.weight": torch.ones(2)},
            r"down_proj.weight', but config.json says num_hidden_layers = 3",
        ),
        (
            {"model.layers.0.mlp.experts.0.w1.weight": torch.ones(2)},
            r"experts.0.w1.weight', which has no place in Phi-3",
        ),
        (
            {f"{LAYER}.weight_scale": torch.ones(2), "a": torch.ones(2)},
            r"holds the tensor 'a' and 1 more, which has no place",
        ),
        ({"lm_head.bias": torch.ones(256)}, r"holds the tensor 'lm_head.bias', which has no place in Phi-3"),
        ({"x" * 5000: torch.ones(2)}, r"holds the tensor 'x{199}…, which has no place in Phi-3"),
        (
            {"norm.weight": torch.ones(64)},
            rf"holds '({NORM}|norm.weight)' and '(norm.weight|{NORM})', which are one tensor",
        ),
        (
            {"model.lm_head.weight": torch.ones(2)},
            rf"holds '(model.)?{HEAD}' and '(model.)?{HEAD}', which are one tensor; remove one",
        ),
    ],
)
@pytest.mark.parametrize("shards", [1, 2])
def test_refuses_a_tensor_too_many(tmp_path: Path, more: Tensors, message: str, shards: int) -> None:
    refused(save(tmp_path, tensors() | more, shards=shards), message)


@pytest.mark.parametrize("missing", [NORM, "model.layers.2.mlp.down_proj.weight", HEAD, EMBEDDING])
def test_refuses_a_missing_tensor(tmp_path: Path, missing: str) -> None:
    values = tensors()
    del values[missing]
    refused(save(tmp_path, values), rf"tensor '{missing}' is missing \(the config asks for \[")


def test_refuses_another_shape(tmp_path: Path) -> None:
    refused(
        save(tmp_path, tensors() | {NORM: torch.ones(65)}),
        rf"'{NORM}' has shape \[65\], the config asks for \[64\]",
    )
    refused(
        save(tmp_path, tensors("tied") | {HEAD: torch.ones(4)}, "tied"),
        rf"'{HEAD}' has shape \[4\], the config asks for \[256, 64\]",
    )


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float64, "F64"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.uint8, "U8")],
)
def test_refuses_another_dtype(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    values = tensors() | {NORM: torch.ones(64).to(dtype)}
    refused(save(tmp_path, values), rf"{SINGLE}: '{NORM}' has dtype {name}, expected one of BF16, F16, F32")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (1_000_000, r"config.json: num_hidden_layers: input should be less than or equal to 16384, got 1000000"),
        (10_000, r"config.json says num_hidden_layers = 10,000, each of six tensors, but the files hold 21 tensors"),
    ],
)
def test_too_many_layers_are_refused_at_once(tmp_path: Path, layers: int, message: str) -> None:
    """Before anything is made for each of them: the names of a million would take a gigabyte."""
    configure(save(tmp_path, tensors()), num_hidden_layers=layers)
    refused(tmp_path, message)
    tracemalloc.start()
    refused(tmp_path, message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"])
def test_sizes_that_the_files_do_not_have_are_refused(tmp_path: Path, key: str) -> None:
    configure(save(tmp_path, tensors()), head_dim=16, **{key: 1 << 30})
    refused(tmp_path, r"has shape \[.*\], the config asks for \[.*\d{9}")


def test_what_was_chosen_is_what_is_read(tmp_path: Path) -> None:
    save(tmp_path, tensors(seed=4), shards=2)
    save(tmp_path, tensors(seed=5))
    (file,) = find_weights(tmp_path).files
    assert file.path == tmp_path / SINGLE
    assert HfFolder(tmp_path).files == [file.path]
    assert re.match(rf"{tmp_path}: read {SINGLE}, as transformers does; not read: ", HfFolder(tmp_path).notices[0])
    assert replace(TINY, eos=(2,)) == HfFolder(tmp_path).config

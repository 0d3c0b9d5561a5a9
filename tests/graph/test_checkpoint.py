"""open_checkpoint, and what all checkpoints share."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_phi3 import TINY

from pocketphi.graph.checkpoint import CHUNK_BYTES, TensorInfo, check_shapes
from pocketphi.graph.errors import InputError
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.random_weights import RandomWeights


def test_opens_random_weights() -> None:
    opened = open_checkpoint("random:tiny@3")
    assert isinstance(opened, RandomWeights)
    assert (opened.label, opened.config) == ("random:tiny@3", TINY)
    assert opened.tokenizer_files() == {}
    assert opened.kept("lm_head.weight") is None


def test_refuses_other_models(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/model.bin: expected a Hugging Face folder or a .gguf")):
        open_checkpoint(tmp_path / "model.bin")
    with pytest.raises(
        InputError, match=r"nowhere: no such model; expected a Hugging Face folder, a .gguf file, 'sample'"
    ):
        open_checkpoint("nowhere")
    with pytest.raises(InputError, match=r"x.gguf: no such model"):
        open_checkpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (100, 64), (50_000, 64), (7, 1 << 21), (9_000, 1 << 10)])
@pytest.mark.parametrize("multiple", [1, 48])
def test_chunks_cover_a_tensor_in_order(rows: int, columns: int, multiple: int) -> None:
    source = RandomWeights("random:x", TINY)
    source.tensors = {"t": TensorInfo((rows, columns) if columns > 1 else (rows,), "bf16")}
    chunks = list(source.chunks("t", multiple))
    assert [start for start, _ in chunks] == [0, *(stop for _, stop in chunks[:-1])]
    assert chunks[-1][1] == rows
    sizes = [stop - start for start, stop in chunks]
    assert [size for size in sizes[:-1] if size % multiple] == []
    assert max(sizes) <= multiple or 2 * max(sizes) * columns <= CHUNK_BYTES


def test_check_shapes_names_the_first_fault() -> None:
    wanted = replace(TINY, layers=1).tensors()
    whole = {name: TensorInfo(shape, "bf16") for name, shape in reversed(wanted.items())}
    check_shapes(wanted, whole | {"extra": TensorInfo((1,), "bf16")}, "x")
    missing = {name: info for name, info in whole.items() if name != "model.norm.weight"}
    with pytest.raises(InputError, match=r"x: tensor 'model.norm.weight' is missing \(the config asks for \[64\]\)"):
        check_shapes(wanted, missing, "x")
    turned = whole | {"lm_head.weight": TensorInfo((64, 256), "bf16")}
    with pytest.raises(InputError, match=r"x: 'lm_head.weight' has shape \[64, 256\], the config asks for \[256, 64\]"):
        check_shapes(wanted, turned, "x")

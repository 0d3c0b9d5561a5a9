"""write_checkpoint: what HfFolder and transformers read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_phi3 import VARIANTS, checkpoint, hf_model, inputs

from pocketphi.graph import write_checkpoint as module
from pocketphi.graph.hf_folder import HfFolder
from pocketphi.graph.random_weights import RandomWeights
from pocketphi.graph.write_checkpoint import write_checkpoint

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shard_bytes", [4_000_000_000, 50_000, 1])
def test_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, shard_bytes: int) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", shard_bytes)
    source = checkpoint("tied")
    written: list[int] = []
    write_checkpoint(source, tmp_path, dtype, written.append)
    opened = HfFolder(tmp_path)
    assert opened.config == source.config
    wrong = [
        name
        for name, info in source.tensors.items()
        if not torch.equal(opened.read(name, 0, info.rows), source.read(name, 0, info.rows).to(DTYPES[dtype]))
    ]
    assert wrong == []
    assert sum(written) == source.config.parameters * DTYPES[dtype].itemsize
    shards = sorted(tmp_path.glob("*.safetensors"))
    sizes = [sum(t.nbytes for t in tensors_of(path)) for path in shards]
    largest = max(torch.Size(i.shape).numel() * DTYPES[dtype].itemsize for i in source.tensors.values())
    assert max(sizes) <= max(shard_bytes, largest)
    if shard_bytes == 4_000_000_000:
        assert [path.name for path in shards] == ["model.safetensors"]
    else:
        assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(written)
        assert set(index["weight_map"]) == set(source.tensors)


def tensors_of(path: Path) -> list[torch.Tensor]:
    """By safetensors' own reader."""
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        return [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - no mapping


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(module, "SHARD_BYTES", 100_000)
    source = checkpoint(variant)
    write_checkpoint(source, tmp_path, "fp32")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    assert type(loaded).__name__ == "Phi3ForCausalLM"
    assert loaded.dtype == torch.float32
    tokens = inputs(source.config, 70)["input_ids"]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, hf_model(source)(tokens).logits)


def test_the_dtype_is_in_the_config_and_tokenizer_files_come_along(tmp_path: Path) -> None:
    class WithTokenizer(RandomWeights):
        def tokenizer_files(self) -> dict[str, bytes]:
            return {"tokenizer.json": b"{}"}

    write_checkpoint(WithTokenizer("random:tiny"), tmp_path, "fp16")
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "float16"
    assert HfFolder(tmp_path).tokenizer_files() == {"tokenizer.json": b"{}"}

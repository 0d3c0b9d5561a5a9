"""write_checkpoint: what HfFolder and transformers read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hf_folders import HEAD, configure, save, tensors, transformers_logits
from safetensors import safe_open
from tiny_phi3 import VARIANTS, checkpoint, hf_model, inputs, rounding

from pocketphi.graph import write_checkpoint as module
from pocketphi.graph.errors import InputError
from pocketphi.graph.fold_norms import FoldedNorms
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


@pytest.mark.parametrize("fold", [False, True])
def test_refuses_a_value_that_the_dtype_cannot_hold(tmp_path: Path, fold: bool) -> None:
    """bf16 reaches 3.4e38, fp16 65,504: what is written would be infinite. Folding multiplies by the norm."""

    class Large(RandomWeights):
        def read(self, name: str, start: int, stop: int) -> torch.Tensor:
            if name == "model.layers.1.input_layernorm.weight":
                return torch.full((stop - start,), 1e4 if fold else 1e5, dtype=torch.bfloat16)
            rows = super().read(name, start, stop)
            return rows * 100 if fold and name == "model.layers.1.self_attn.qkv_proj.weight" else rows

    source = FoldedNorms(Large("random:tiny")) if fold else Large("random:tiny")
    name = "self_attn.qkv_proj" if fold else "input_layernorm"
    message = rf"random:tiny: model.layers.1.{name}.weight, rows 0 to \d+: .* not finite in fp16; the largest of fp16 is 6.55e"
    with pytest.raises(InputError, match=message):
        write_checkpoint(source, tmp_path, "fp16")
    write_checkpoint(source, tmp_path, "bf16")


@pytest.mark.parametrize("factor", [{"attention_factor": 1.5}, {"factor": 16.0}])
def test_how_longrope_scales_is_written(tmp_path: Path, factor: dict[str, float]) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    scaling = {**VARIANTS["longrope"].to_hf()["rope_scaling"], **factor}
    folder = configure(save(tmp_path / "from", tensors("longrope"), "longrope"), rope_scaling=scaling)
    write_checkpoint(HfFolder(folder), tmp_path / "to", "fp32")
    tokens = inputs(VARIANTS["longrope"], 70)["input_ids"]
    assert torch.equal(transformers_logits(tmp_path / "to", tokens), transformers_logits(folder, tokens))


def test_settings_that_transformers_reads_otherwise_are_not_written(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    source = HfFolder(configure(save(tmp_path, tensors()), rms_norm_eps=1))
    for each in (source, FoldedNorms(source)):
        with pytest.raises(InputError, match=r"config.json: transformers cannot make a Phi-3 of it"):
            write_checkpoint(each, tmp_path / "to")
    assert list((tmp_path / "to").iterdir()) == []


def test_a_head_beside_a_tied_embedding_is_written(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    save(tmp_path / "from", {**tensors("tied"), HEAD: tensors()[HEAD]}, "tied")
    source = FoldedNorms(HfFolder(tmp_path / "from"))
    assert len(source.notices) == 1
    write_checkpoint(source, tmp_path / "to", "fp32")
    tokens = inputs(VARIANTS["tied"], 70)["input_ids"]
    want, got = (transformers_logits(tmp_path / side, tokens) for side in ("from", "to"))
    assert float((want - got).abs().max()) <= rounding(VARIANTS["tied"], float(want.abs().max()))
    assert HfFolder(tmp_path / "to").notices == ()

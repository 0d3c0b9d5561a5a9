"""Checkpoints that tools have packed, against what the tools' own code unpacks them to (`tests/helpers/make_packed.py`)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from decoder_folders import differing, ours, theirs

from pocketphi.compiler.source_check import reading_checks
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import Int2, Int4, Int8
from pocketphi.graph.kept import Kept
from pocketphi.graph.lazy_weights import FloatWeight
from pocketphi.graph.models import find_model
from pocketphi.graph.opening import open_checkpoint
from pocketphi.graph.write_checkpoint import write_checkpoint
from pocketphi.passes.quantizers import Keep

DATA = Path(__file__).parents[2] / "data/packed"
FOUR, ZERO, OFFSET = Kept(Int4, 32), Kept(Int4, 32, "zero"), Kept(Int4, 32, "offset")
HELD: dict[str, Kept | None] = {
    "gptq-4-sym-llama": FOUR,
    "gptq-4-asym-phi3": Kept(Int4, 16, "zero"),
    "gptq-4-asym-v1-phi3": Kept(Int4, 64, "zero"),  # whole rows of 64
    "gptq-8-asym-llama": Kept(Int8, 32, "zero"),
    "gptq-2-asym-llama": Kept(Int2, 32, "zero"),
    "gptq-4-desc_act-llama": None,
    "gptq-4-blocks-phi3": Kept(Int4, 16, "zero"),  # blocks of 32 whose halves were put apart
    "awq-gemm-llama": ZERO,
    "awq-gemv-phi3": ZERO,
    "ct-4-sym-llama": FOUR,
    "ct-4-asym-phi3": Kept(Int4, 16, "zero"),
    "ct-8-channel-llama": Kept(Int8, 64),
    "ct-8-asym-phi3": Kept(Int8, 32, "zero"),
    "auto-round-gptq-phi3": FOUR,
    "auto-round-mixed-llama": FOUR,
    "auto-round-2-asym-llama": Kept(Int2, 32, "zero"),
    "auto-round-asym-phi3": ZERO,
    "auto-round-awq-llama": ZERO,
    "mlx-mixed-llama": OFFSET,
    "mlx-3-phi3": Kept(Int4, 64, "offset"),
}
QKV, DOWN = "model.layers.1.self_attn.qkv_proj.weight", "model.layers.1.mlp.down_proj.weight"


def digests(source: Checkpoint, folder: Path) -> dict[str, str]:
    """Of the float32 values of each stored weight: a stack cut into what it is made of."""
    pieces = find_model(json.loads((folder / "config.json").read_bytes()), "").pieces(source.config)
    found = {}
    for name, info in source.tensors.items():
        rows, at = source.read(name, 0, info.rows).float(), 0
        for piece in pieces[name]:
            own = rows[at : at + piece.rows].contiguous() + 0.0  # a negative scale makes zeros of both signs
            found[piece.name] = hashlib.sha256(own.numpy().tobytes()).hexdigest()
            at += piece.rows
    return found


@pytest.mark.parametrize("name", HELD)
def test_every_value_is_the_tools_to_the_bit(name: str) -> None:
    source = open_checkpoint(DATA / name)
    wanted = json.loads((DATA / name / "digests.json").read_bytes())
    came = digests(source, DATA / name)
    assert {one: came[one] for one in wanted} == wanted
    assert len(wanted) >= 8


@pytest.mark.parametrize("name", HELD)
def test_what_is_kept_stands_for_the_same_values(name: str) -> None:
    source = open_checkpoint(DATA / name)
    assert source.kept(DOWN) == HELD[name]
    for weight, info in source.tensors.items():
        if source.kept(weight):
            for start, stop in ((0, info.rows), (5, 6), (17, info.rows - 3)):
                blocks = source.read_kept(weight, start, stop)
                assert torch.equal(blocks.dequantize(), source.read(weight, start, stop).float()), weight
                assert torch.equal(blocks.scale, blocks.scale.half().float())
            assert not Keep(32).remark(FloatWeight(source, weight))
    floats = [weight for weight, info in source.tensors.items() if len(info.shape) == 2 and not source.kept(weight)]
    if "mlx" in name:
        assert floats == ["lm_head.weight"] * (name == "mlx-mixed-llama")
    elif HELD[name]:
        left_out = ["model.layers.1.self_attn.o_proj.weight"] if "mixed" in name else []
        assert floats == ["model.embed_tokens.weight", *left_out, "lm_head.weight"]


def test_a_stack_of_two_widths_is_kept_in_the_wider() -> None:
    """MLX's v in 8 bits and groups of 64 beside q and k in 4 bits and groups of 32."""
    source = open_checkpoint(DATA / "mlx-mixed-llama")
    assert source.tensors[QKV].dtype == "mlx4+mlx8"
    assert source.kept(QKV) == Kept(Int8, 32, "offset")


@pytest.mark.parametrize("name", HELD)
def test_another_reading_gives_the_same(name: str) -> None:
    checks = reading_checks(open_checkpoint(DATA / name))
    assert [(check.name, check.detail) for check in checks if not check.ok] == []
    assert len(checks) == 2


@pytest.mark.parametrize("name", ["gptq-4-desc_act-llama", "mlx-mixed-llama"])
def test_as_floats_they_give_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    source = open_checkpoint(DATA / name)
    write_checkpoint(source, tmp_path, "fp32")
    assert differing(ours(source), theirs(tmp_path, source.config), source.config) == []


def test_an_order_that_breaks_blocks_is_not_kept_and_the_message_says_what_would_work() -> None:
    source = open_checkpoint(DATA / "gptq-4-desc_act-llama")
    message = (
        r"^--recipe keep: model.layers.1.mlp.down_proj.weight was quantized in the order of activations \(desc_act\): values "
        r"that share a scale lie apart, in no blocks that a format holds; choose --recipe search or rtn, which round its "
        r"values again, or quantize it with static_groups or without desc_act$"
    )
    with pytest.raises(InputError, match=message):
        Keep(32).remark(FloatWeight(source, DOWN))
    assert "stored as fp16, which cannot be kept: rounded to nearest" in str(
        Keep(32).remark(FloatWeight(source, "lm_head.weight"))
    )

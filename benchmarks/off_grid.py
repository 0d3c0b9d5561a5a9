"""A checkpoint whose matrices lie on no grid: the same function, to float32's rounding.

The sample comes from a file of 4 bits (Q4_1). Folding its norms moves the columns of the projections behind them off that
grid, but not those of `down_proj` and `o_proj`: a tool whose blocks are like that file's finds their values again, which it
could not in a model that was never quantized. So what the inner channels of the MLP and of the values are multiplied with is
moved from one matrix to the next: factors from 0.9 to 1.1 on the rows of `up` and `v`, and their inverse on the columns of
`down_proj` and `o_proj`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_SPREAD = 0.2


def take_off_grid(folder: Path) -> None:
    """Rewrite a folder as `make-checkpoint` writes it, in float32."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    inner, size = config["intermediate_size"], config["hidden_size"] // heads
    generator = torch.Generator().manual_seed(0)

    def factors(count: int) -> torch.Tensor:
        return 1 + _SPREAD * (torch.rand(count, generator=generator, dtype=torch.float64) - 0.5)

    def move(to: str, start: int, onto: torch.Tensor, behind: str, off: torch.Tensor) -> None:
        rows = weights[to].double()
        rows[start:] *= onto[:, None]
        weights[to], weights[behind] = rows.float(), (weights[behind].double() / off).float()

    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        channels = factors(inner)
        move(f"{layer}.mlp.gate_up_proj.weight", inner, channels, f"{layer}.mlp.down_proj.weight", channels)
        values = factors(shared * size)
        of_heads = values.view(shared, 1, size).expand(shared, heads // shared, size).reshape(-1)
        attention = f"{layer}.self_attn"
        move(f"{attention}.qkv_proj.weight", (heads + shared) * size, values, f"{attention}.o_proj.weight", of_heads)
    save_file(weights, path, metadata={"format": "pt"})

"""Activation statistics: how large the inputs of each linear layer are, column by column, on a calibration text."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from pocketphi.graph.program import Observer, Program, Weights, evaluate

WINDOW = 512
"""Tokens in one calibration sequence."""


def default_text() -> str:
    """English with code in it that every Python carries: the language reference (`pydoc_data.topics`)."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def column_importance(program: Program, tokens: torch.Tensor, progress: Any = None) -> dict[str, torch.Tensor]:
    """Mean square of the activations that meet each column of each linear weight.

    tokens: int64 [B, S]; returns weight name → float32 [K]. The program is float and fused or not; it is run once, and its
    weights are read one at a time. progress: called once for each linear layer.
    """
    importance: dict[str, torch.Tensor] = {}

    def record(weight: fx.Node, x: torch.Tensor) -> None:
        importance[str(weight.target)] = x.flatten(0, -2).square().mean(0)
        if progress:
            progress()

    def observe(node: fx.Node, args: tuple[Any, ...]) -> None:
        if node.target is torch.ops.aten.linear.default:
            record(node.args[1], args[0])  # type: ignore[arg-type]

    head = program.outputs["logits"]
    hidden: Any = head.args[0]
    final = _run_to(program, hidden, tokens, observe)
    record(head.args[1], final)  # type: ignore[arg-type]
    return importance


def _run_to(program: Program, node: fx.Node, tokens: torch.Tensor, observe: Observer) -> torch.Tensor:
    inputs = program.prefill_inputs(tokens)
    return evaluate([node], inputs, Weights(program.weights, keep=False), observe)[node]

"""Run a `Program` token by token in torch, as a runtime would: the yardstick for every artifact."""

from __future__ import annotations

import torch

from pocketphi.graph.adapters import feeds
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.program import Observer, Program, Weights

_KEEP_BELOW = 1 << 31
"""Bytes in float32 up to which weights are held in memory; those of a larger model are read again for each step."""


def keeps(config: ModelConfig) -> bool:
    """Whether a runner of a model should hold its weights in memory."""
    return 4 * config.parameters < _KEEP_BELOW


def pads(config: ModelConfig, total: int) -> bool:
    """Whether `ProgramRunner.pad` is right for texts of at most `total` tokens: modules of ours compute nothing sensible in
    padding, and all rows of a batch have the same factors of LongRoPE."""
    return config.form.build is None and (config.long_rope is None or total <= config.long_rope.original_max_position)


class ProgramRunner:
    """Keeps the K/V cache between calls. `keep` holds the weights in memory: faster, for models that fit; observe: see
    `Program.run`."""

    def __init__(self, program: Program, keep: bool = True, observe: Observer | None = None) -> None:
        self._program, self._observe = program, observe
        self._weights = Weights(program.weights, keep)
        self._adapter: dict[str, torch.Tensor] = {}
        self.reset()

    def switch(self, adapter: str | None) -> None:
        """Run with one of the program's adapters from now on, None for none, and forget all tokens."""
        self._adapter = {} if adapter is None else feeds(self._program.adapters[adapter])
        self.reset()

    def reset(self) -> None:
        """Forget all tokens."""
        self._caches: dict[str, torch.Tensor] = {}
        self._past = 0
        self._padding: torch.Tensor | None = None

    def pad(self, padding: torch.Tensor) -> None:
        """Begin texts of several lengths side by side. padding: int64 [B], how many tokens at the start of each row stand for
        nothing. For graphs of transformers' own classes, which mask them, and where no row needs other factors of LongRoPE than
        the longest one (`pads`)."""
        self.reset()
        self._padding = padding

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append tokens int64 [B, S]; returns float32 logits [B, S, V], or [B, 1, V] where the program keeps the last."""
        inputs = self._program.prefill_inputs(tokens, self._past)
        if self._padding is not None:
            total = self._past + tokens.shape[1]
            places = torch.arange(total)[None] - self._padding[:, None]
            inputs |= {"attention_mask": (places >= 0).long(), "position_ids": places[:, self._past :].clamp(min=0)}
        outputs = self._program.run({**inputs, **self._adapter, **self._caches}, self._weights, self._observe)
        self._past += tokens.shape[1]
        self._caches = {
            name.replace("present", "past_key_values"): value for name, value in outputs.items() if name != "logits"
        }
        return outputs["logits"]

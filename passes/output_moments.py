"""Which errors of a layer's outputs the model's predictions mind, measured on a text: `quantizers.outputs` says what for.

The gradients of one layer are kept until all windows have passed, since which rows count together is known only then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pocketphi.graph.config import ModelConfig, layer_of
from pocketphi.graph.program import Program
from pocketphi.passes import backward
from pocketphi.passes.backward import Backward
from pocketphi.passes.quantizers.outputs import Outputs

_SAMPLES, _TOKENS, _WINDOW = 2, 2048, 256
"""The first of a text are measured. With twice as many, and fewer rows together, the sample was closer on one of two texts."""


@dataclass(frozen=True)
class OfLayer:
    """name: of a weight"""

    name: str
    outputs: Outputs


class OutputMoments(Backward[OfLayer]):
    """Of every weight of a layer, from the last layer to the first; the head's and the embedding's rows are as many as tokens.

    program: traced, of aten operators, in float; tokens: int64 [B, S], of which the first are cut into shorter windows
    """

    def __init__(self, program: Program, tokens: torch.Tensor) -> None:
        length = min(_WINDOW, tokens.shape[1])
        whole = tokens[:, : tokens.shape[1] // length * length]
        super().__init__(program, whole.reshape(-1, length)[: max(1, _TOKENS // length)], _SAMPLES)
        self._gradients: dict[str, list[torch.Tensor]] = {}

    def _head(self, name: str, x: torch.Tensor, p: torch.Tensor) -> None:
        pass

    def _layer(self, name: str, x: torch.Tensor, g: torch.Tensor) -> None:
        if layer_of(name) is not None:
            self._gradients.setdefault(name, []).append(g.bfloat16())

    def _measured(self) -> Iterator[OfLayer]:
        while self._gradients:
            name, found = self._gradients.popitem()
            yield OfLayer(name, Outputs.of(torch.cat(found)))


def working_bytes(config: ModelConfig, tokens: int) -> int:
    """What measuring takes at most, beside the program."""
    tokens = min(tokens, _TOKENS)
    rows = [shape[0] for name, shape in config.matrices().items() if layer_of(name) == 0]
    kept = 2 * _SAMPLES * tokens * (sum(rows) + max(rows))
    return backward.working_bytes(config, tokens, _WINDOW, _SAMPLES) + kept

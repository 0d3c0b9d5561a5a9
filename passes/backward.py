"""The predictions of a model, differentiated: forward once, and then back, layer by layer.

At each position of a text some tokens y are drawn from what the model itself predicts there. The gradients of Σ log p(y) then
say how much the predictions depend on each value that passes through the model: in the mean, their products are its Fisher
information (S. Amari, Neural Computation 10(2), 1998). What is summed up of them is the matter of a subclass.

The model runs forward with the residual stream between its layers kept. On the way back each layer is run again, with gradients
of its activations alone. A weight is read twice, and one layer is in memory at a time. What was stopped goes on with the layer
that it had come to, of whose output it needs the gradients.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

import torch
from torch import fx

from pocketphi.graph.config import ModelConfig, layer_of
from pocketphi.graph.errors import InputError
from pocketphi.graph.packing import tensor_bytes, tensors_of
from pocketphi.graph.program import Program, Weights, evaluate, observed, stepwise
from pocketphi.graph.resident import give_back
from pocketphi.passes.segments import Segments

aten = torch.ops.aten

T = TypeVar("T")

_SPREAD = 1.2
"""What the system holds back of values that are freed, as a factor."""
_GRADIENTS = 75_000_000
"""Bytes that torch takes at the first use of gradients."""

EXACT = 1 << 29
"""Bytes up to which values between layers are kept in float32; more are kept in bfloat16."""


@dataclass
class Reached:
    """How far a measurement is on its way back.

    parts:      of the model, from the head on, that are measured
    gradients:  for each window and sample those of the values before these parts, float32
    """

    parts: int
    gradients: list[list[list[torch.Tensor]]]

    def shapes(self) -> list[list[list[list[int]]]]:
        """Of all gradients."""
        return [[[list(one.shape) for one in sample] for sample in window] for window in self.gradients]

    def buffers(self) -> list[memoryview]:
        """The bytes of all gradients, in their order."""
        return [tensor_bytes(one) for window in self.gradients for sample in window for one in sample]

    @classmethod
    def restored(
        cls, parts: int, shapes: Sequence[Sequence[Sequence[Sequence[int]]]], data: memoryview
    ) -> Reached | None:
        """Of what `shapes` and `buffers` gave; data: one buffer after the other. None where they do not fit."""
        held = tensors_of([shape for window in shapes for sample in window for shape in sample], data)
        if not held:
            return None
        each = iter(held)
        return cls(parts, [[[next(each) for _ in sample] for sample in window] for window in shapes])


class Backward(ABC, Generic[T]):
    """What is measured of one model on one text.

    program: traced, of aten operators, in float; tokens: int64 [B, S]; samples: tokens drawn at each position
    """

    def __init__(self, program: Program, tokens: torch.Tensor, samples: int = 2, seed: int = 0) -> None:
        self._program, self._tokens, self._samples = program, tokens, samples
        self._generator = torch.Generator().manual_seed(seed)
        self._segments = Segments.of(program, tokens[:1])

    @property
    def steps(self) -> int:
        """How often `progress` is called."""
        return 2 * (len(self._segments.cuts) - 1) * len(self._tokens)

    def measure(
        self,
        progress: Callable[[], None] = lambda: None,
        reached: Reached | None = None,
        keep: Callable[[Reached], None] = lambda reached: None,
    ) -> Iterator[T]:
        """Every weight in every place that reads it, from the head back to the embedding.

        reached: goes on from there, with what comes behind it; keep: is called when all of a part was taken
        """
        parts = list(pairwise(self._segments.cuts))
        gradients = reached.gradients if reached else []
        left = len(parts) - (reached.parts if reached else 0)
        for _ in range(2 * (len(parts) - left) * len(self._tokens)):
            progress()
        states = self._forward(left, progress)
        while left:
            left -= 1
            start, stop = parts[left]
            piece = _Piece(self)
            below = []
            for window, state in enumerate(states.pop()):
                given = self._given(start, [value.float().requires_grad_() for value in state])
                outputs = piece.run(stop, self._inputs(window), given)
                above = gradients[window] if gradients else self._drawn(piece, outputs[0])
                below.append(piece.backward([given[node] for node in start], outputs, above))
                del given, outputs, above  # the logits' are as large as all else
                give_back()  # in between lie what is kept, so that much of it would not serve the next window
                progress()
            gradients = below
            del piece  # its weights
            yield from self._measured()
            keep(Reached(len(parts) - left, gradients))
        yield from self._embedding(gradients)

    def _forward(self, parts: int, progress: Callable[[], None]) -> list[list[list[torch.Tensor]]]:
        """The values that the first parts begin with, of every window."""
        cuts = self._segments.cuts
        exact = 4 * self._tokens.numel() * self._program.config.hidden_size * len(cuts)
        kept = torch.float32 if exact <= EXACT else torch.bfloat16
        states: list[list[list[torch.Tensor]]] = []
        now: list[list[torch.Tensor]] = [[] for _ in self._tokens]
        for start, stop in zip([[], *cuts[: parts - 1]], cuts[:parts]):
            weights = Weights(self._program.weights, keep=True)
            for window in range(len(self._tokens)):
                given = self._given(start, now[window])
                now[window] = list(evaluate(stop, self._inputs(window), weights, given=given).values())
                progress()
            states.append([[value.to(kept) for value in one] for one in now])
        return states

    def _inputs(self, window: int) -> dict[str, torch.Tensor]:
        return self._program.prefill_inputs(self._tokens[window : window + 1])

    def _given(self, nodes: Sequence[fx.Node], values: Sequence[torch.Tensor]) -> dict[fx.Node, Any]:
        return {**self._segments.fixed, **dict(zip(nodes, values))}

    def _drawn(self, piece: _Piece, logits: torch.Tensor) -> list[list[torch.Tensor]]:
        """For each sample the gradient of Σ log p(y) with respect to the logits, y drawn from p.

        Raises InputError where p is no probability.
        """
        p = logits.detach().softmax(-1)
        if not p.isfinite().all():
            raise InputError(
                "the calibration text gives logits that are not finite numbers, before anything is rounded"
            )
        self._head(*piece.only(), p[0])
        drawn = torch.multinomial(p[0], self._samples, replacement=True, generator=self._generator)
        found = []
        for sample in range(self._samples):
            one = -p
            one[0].scatter_add_(1, drawn[:, sample : sample + 1], torch.ones(len(drawn), 1))
            found.append([one])
        return found

    @abstractmethod
    def _head(self, name: str, x: torch.Tensor, p: torch.Tensor) -> None:
        """Of a window: the head's inputs float32 [S, K], and what it predicts, float32 [S, V]."""

    @abstractmethod
    def _layer(self, name: str, x: torch.Tensor, g: torch.Tensor) -> None:
        """Of a window and a sample: a layer's inputs float32 [S, K], and the gradients of its outputs, float32 [S, N]."""

    @abstractmethod
    def _measured(self) -> Iterator[T]:
        """What the calls since the last time come to."""

    def _embedding(self, gradients: Sequence[Sequence[Sequence[torch.Tensor]]]) -> Iterator[T]:
        """Of the embedding, whose outputs have these gradients: of each window and sample one of float32 [1, S, K]."""
        yield from ()


class _Piece:
    """A part of the model on its way back."""

    def __init__(self, whole: Backward[Any]) -> None:
        self._whole, self._weights = whole, Weights(whole._program.weights, keep=True)
        self._met: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def run(
        self, wanted: Sequence[fx.Node], inputs: Mapping[str, torch.Tensor], given: Mapping[fx.Node, Any]
    ) -> list[torch.Tensor]:
        """The values wanted, with their gradients to come, and each linear layer's inputs and outputs noted."""
        self._met.clear()
        run = stepwise(wanted, inputs, self._weights, given)
        with torch.enable_grad():
            return list(observed(run, self._note).values())

    def _note(self, node: fx.Node, args: tuple[Any, ...]) -> torch.Tensor | None:
        if node.target is not aten.linear.default:
            return None
        x = args[0]
        y = aten.linear.default(*args)
        self._met[str(node.args[1].target)] = x.detach().flatten(0, -2), y  # type: ignore[union-attr]
        return y

    def only(self) -> tuple[str, torch.Tensor]:
        """The one layer of this part, and its inputs; it gets no gradients."""
        ((name, (x, _)),) = self._met.items()
        self._met.clear()
        return name, x

    def backward(
        self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], above: Sequence[Sequence[torch.Tensor]]
    ) -> list[list[torch.Tensor]]:
        """Gradients of the inputs for each sample, by those of the outputs."""
        below = []
        for sample, given in enumerate(above):
            wanted = [*inputs, *(y for _, y in self._met.values())]
            found = torch.autograd.grad(outputs, wanted, given, retain_graph=sample + 1 < len(above))
            below.append(list(found[: len(inputs)]))
            for (name, (x, _)), gradient in zip(self._met.items(), found[len(inputs) :]):
                self._whole._layer(name, x, gradient.flatten(0, -2))
        self._met.clear()
        return below


def working_bytes(config: ModelConfig, tokens: int, window: int, samples: int = 2, copies: int = 1) -> int:
    """What `Backward` takes at most, beside the program and what a subclass keeps: the states between layers, and the larger of
    the head and a layer, each with its weights and what one window leaves for the way back. copies: of the weights, 2 for one
    that has gradients of theirs."""
    hidden, heads = config.hidden_size, config.heads * config.head_dim
    layers: Counter[int | None] = Counter()
    for name, shape in config.tensors().items():
        layers[layer_of(name)] += math.prod(shape)
    largest = max(math.prod(shape) for name, shape in config.tensors().items() if layer_of(name) is not None)
    kept = 14 * hidden + 3 * config.qkv_size + 5 * heads + 8 * config.intermediate_size + 3 * config.heads * window
    layer = copies * max(count for name, count in layers.items() if name is not None) + largest + window * kept
    head = copies * config.vocab_size * hidden + (5 + samples) * window * config.vocab_size
    between, states = 2 * samples * tokens * hidden, (config.layers + 1) * tokens * hidden
    width = 4 if 4 * states <= EXACT else 2
    return _GRADIENTS + int(_SPREAD * (4 * (max(layer, head) + between) + width * states))

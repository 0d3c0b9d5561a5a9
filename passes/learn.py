"""Learn the scales of rounded weights from what the float model predicts.

A weight's whole numbers stay as they were rounded. Its scales s (or the entries of its tables) become s + u · δ with u their
own magnitude, and δ is moved against the gradient of KL(p ‖ q) in nats a token, where p is what the float model predicts at
each position of a text, and q what the model with rounded weights predicts there. The scales of a layer so make up for what was
lost anywhere in the model. It is the second phase of EfficientQAT (arXiv:2407.11062, section 3.3), led by the float model as in
DWQ of mlx-lm; by Adam (arXiv:1412.6980) with a rate that falls along a half cosine (arXiv:1608.03983, eq. 5).

In each step some windows of the text run forward, with the values between the layers kept, and then backward layer by layer:
each is run again with its weights made then. So one layer's weights are in memory at a time, whatever the model's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.formats import Format, format_of, weight_of
from pocketphi.graph.lazy_weights import LazyWeight, materialize
from pocketphi.graph.packing import tensor_bytes, tensors_of
from pocketphi.graph.program import Program, evaluate, observed, stepwise
from pocketphi.passes import backward
from pocketphi.passes.quantizers.base import stored_scale
from pocketphi.passes.segments import Segments

_FINE = 8
"""From so many bits on, there is nothing to win."""
_MEANS, _SMALLEST = (0.9, 0.95), 1e-12
"""Adam's."""
_WARMING = 4
"""Steps in which the rate rises."""

State = Mapping[str, Sequence[torch.Tensor]]
"""By weight: δ, and the means of its gradients and of their squares; float32 of the shape of its scales."""


@dataclass(frozen=True)
class Schedule:
    """windows: of one step; rounds: how often each is met; rate: the largest of δ's steps"""

    windows: int = 4
    rounds: int = 3
    rate: float = 1e-3

    def steps(self, windows: int) -> int:
        """With a text of so many windows."""
        return self.rounds * max(1, windows // self.windows)

    def rate_at(self, step: int, steps: int) -> float:
        rising = min(1.0, (step + 1) / _WARMING)
        return self.rate * rising * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@dataclass
class Progress:
    """step: how many are done; state: what they have come to; loss: KL of the last one's windows, before it."""

    step: int
    state: State
    loss: float = math.nan

    def shapes(self) -> dict[str, list[int]]:
        return {name: list(one[0].shape) for name, one in self.state.items()}

    def buffers(self) -> list[memoryview]:
        return [tensor_bytes(part.cpu().contiguous()) for one in self.state.values() for part in one]

    @classmethod
    def restored(cls, step: int, shapes: Mapping[str, Sequence[int]], data: memoryview) -> Progress | None:
        """Of what `shapes` and `buffers` gave. None where they do not fit."""
        held = tensors_of([shape for shape in shapes.values() for _ in range(3)], data)
        if not held:
            return None
        each = iter(held)
        return cls(step, {name: [next(each) for _ in range(3)] for name in shapes})


class Learner:
    """The learning of one model's scales on one text.

    program: traced, of aten operators, in float; rounded: some of its weights in formats, by name; tokens: int64 [B, S];
    device: where it is computed
    """

    def __init__(
        self,
        program: Program,
        rounded: Mapping[str, LazyWeight],
        tokens: torch.Tensor,
        schedule: Schedule | None = None,
        device: str = "cpu",
    ) -> None:
        self._program, self._rounded, self._tokens = program, rounded, tokens
        self._schedule, self._device = schedule or Schedule(), torch.device(device)
        segments = Segments.of(program, tokens[:1])
        self._cuts = segments.cuts
        self._fixed = {node: self._there(value) for node, value in segments.fixed.items()}

    @property
    def steps(self) -> int:
        """Of learning."""
        return self._schedule.steps(len(self._tokens))

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Of the scales that are learned, by weight."""
        return {
            name: list(weight.parts[form.half_part].shape)
            for name, weight in self._rounded.items()
            if (form := format_of(weight.parts)) and form.bits < _FINE
        }

    @property
    def calls(self) -> int:
        """How often `progress` is called."""
        return len(self._tokens) + self.steps

    def learn(
        self,
        progress: Callable[[], None] = lambda: None,
        reached: Progress | None = None,
        keep: Callable[[Progress], None] = lambda reached: None,
    ) -> Progress:
        """reached: what an earlier run has come to: this one goes on from there to the same bits; keep: is given what each step
        has come to."""
        zeros = {name: [torch.zeros(shape) for _ in range(3)] for name, shape in self.shapes.items()}
        now = reached or Progress(0, zeros)
        now = Progress(now.step, {name: list(map(self._there, one)) for name, one in now.state.items()})
        for _ in range(now.step):
            progress()
        wanted = self._wanted(progress)
        while now.step < self.steps:
            now = self._step(now, wanted)
            progress()
            keep(now)
        return now

    def scales(self, name: str, state: State) -> torch.Tensor:
        """The scales of a weight as they are to be stored: float32 of their shape."""
        form = weight_of(materialize(self._rounded[name]))
        return _moved(form, state[name][0].cpu()).detach()

    def _wanted(self, progress: Callable[[], None]) -> list[list[torch.Tensor]]:
        """The float model's values before the head, of each window."""
        found: list[list[torch.Tensor]] = [[] for _ in self._tokens]
        for number, _ in enumerate(self._cuts[:-1]):
            weights = self._weights(None)
            for window in range(len(found)):
                found[window] = self._run(number, window, found[window], weights, grad=False)
        for _ in found:
            progress()
        return found

    def _step(self, now: Progress, wanted: Sequence[Sequence[torch.Tensor]]) -> Progress:
        windows = self._windows(now.step)
        deltas = {name: one[0].detach().requires_grad_() for name, one in now.state.items()}
        states: list[list[list[torch.Tensor]]] = [[[] for _ in windows]]
        for number, _ in enumerate(self._cuts[:-1]):
            weights = self._weights(deltas)
            below = zip(windows, states[-1])
            states.append([self._run(number, window, values, weights, grad=False) for window, values in below])
        loss, above = 0.0, [[] for _ in windows]  # type: ignore[var-annotated]
        for number in reversed(range(len(self._cuts))):
            weights, exact, given = self._weights(deltas), self._weights(None), states.pop()
            for i, window in enumerate(windows):
                inputs = [value.detach().requires_grad_() for value in given[i]]
                outputs = self._run(number, window, inputs, weights)
                if not above[i]:
                    logits = self._run(number, window, wanted[window], exact, grad=False)[0]
                    part, above[i] = _distance(logits, outputs[0].detach(), len(windows))
                    loss += part
                torch.autograd.backward(outputs, above[i], retain_graph=i + 1 < len(windows))
                above[i] = [value.grad for value in inputs]
                del outputs
        rate = self._schedule.rate_at(now.step, self.steps)
        gradients = {name: delta.grad for name, delta in deltas.items()}
        return Progress(now.step + 1, _adam(now.state, gradients, now.step + 1, rate), loss)

    def _windows(self, step: int) -> list[int]:
        """The windows of a step: each round has an order of its own."""
        each = max(1, len(self._tokens) // self._schedule.windows)
        order = torch.randperm(len(self._tokens), generator=torch.Generator().manual_seed(step // each)).tolist()
        start = step % each * self._schedule.windows
        return order[start : start + self._schedule.windows]

    def _weights(self, deltas: Mapping[str, torch.Tensor] | None) -> _Weights:
        """Rounded ones, moved by δ; those of the float model for None."""
        rounded = {} if deltas is None else self._rounded
        return _Weights(self._program.weights, rounded, deltas or {}, self._device)

    def _run(
        self, number: int, window: int, values: Sequence[torch.Tensor], weights: _Weights, grad: bool = True
    ) -> list[torch.Tensor]:
        """A piece of the model on one window, from the values that it begins with."""
        inputs = {
            name: self._there(one)
            for name, one in self._program.prefill_inputs(self._tokens[window : window + 1]).items()
        }
        given: dict[fx.Node, Any] = {**self._fixed, **(dict(zip(self._cuts[number - 1], values)) if number else {})}
        if not grad:
            return list(evaluate(self._cuts[number], inputs, weights, given=given).values())
        with torch.enable_grad():
            return list(observed(stepwise(self._cuts[number], inputs, weights, given)).values())

    def _there(self, value: Any) -> Any:
        return value.to(self._device) if isinstance(value, torch.Tensor) else value


class _Weights:
    """The weights of one piece, each made once: as they are, or in their format with scales that are moved."""

    def __init__(
        self,
        weights: Mapping[str, LazyWeight],
        rounded: Mapping[str, LazyWeight],
        deltas: Mapping[str, torch.Tensor],
        device: torch.device,
    ) -> None:
        self._weights, self._rounded, self._deltas, self._device = weights, rounded, deltas, device
        self._made: dict[str, torch.Tensor] = {}

    def __call__(self, name: str) -> torch.Tensor:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> torch.Tensor:
        if name not in self._rounded:
            return materialize(self._weights[name])[""].to(self._device)
        parts = {part: one.to(self._device) for part, one in materialize(self._rounded[name]).items()}
        form = weight_of(parts)
        if name in self._deltas:
            form = replace(form, **{form.half_part: _moved(form, self._deltas[name])})  # type: ignore[type-var]
        return form.dequantize()


def _moved(form: Format, delta: torch.Tensor) -> torch.Tensor:
    """s + u · δ as a file holds it; its gradient is that of s + u · δ itself."""
    scale = form.half_values
    unit = scale.abs() if form.half_part == "scale" else scale.abs().mean(-1, keepdim=True)
    free = scale + unit * delta
    return free + (stored_scale(free, getattr(form, "row_scale", None)) - free).detach()


def _distance(wanted: torch.Tensor, came: torch.Tensor, windows: int) -> tuple[float, list[torch.Tensor]]:
    """KL(p ‖ q) and its gradient with respect to q's logits, both as parts of the mean over so many windows of this length.

    wanted, came: float32 [1, S, V]
    """
    count = windows * came.shape[1]
    p, q = wanted.log_softmax(-1), came.log_softmax(-1)
    loss = float((p.exp() * (p - q)).sum()) / count
    return loss, [(q.exp() - p.exp()).div_(count)]


def _adam(state: State, gradients: Mapping[str, torch.Tensor | None], step: int, rate: float) -> State:
    """arXiv:1412.6980, algorithm 1."""
    made = {}
    for name, (delta, mean, square) in state.items():
        found = gradients[name]
        g = torch.zeros_like(delta) if found is None else found
        mean = mean.lerp(g, 1 - _MEANS[0])
        square = square.lerp(g.square(), 1 - _MEANS[1])
        direction = mean / (1 - _MEANS[0] ** step)
        size = (square / (1 - _MEANS[1] ** step)).sqrt_().add_(_SMALLEST)
        made[name] = [delta - rate * direction / size, mean, square]
    return made


def working_bytes(config: ModelConfig, tokens: int, window: int, scales: int, schedule: Schedule | None = None) -> int:
    """What learning takes at most, beside the program. scales: how many there are, of all weights."""
    windows = (schedule or Schedule()).windows
    kept = 4 * config.hidden_size * (tokens + windows * window * (config.layers + 1)) * 2
    return backward.working_bytes(config, window, window, copies=2) + kept + 4 * 8 * scales

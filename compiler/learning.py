"""Learn the scales of rounded weights on the calibration text, into the cache on disk or from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pocketphi.compiler.calibration import calibration_tokens, rounded_key, weight_cache
from pocketphi.compiler.known import Begun
from pocketphi.compiler.options import CompileOptions
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import CannotRun
from pocketphi.graph.formats import format_of
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.lazy_weights import LazyWeight, materialize
from pocketphi.graph.program import Program
from pocketphi.passes.calibrate import quantizable
from pocketphi.passes.learn import Learner, Progress, Schedule
from pocketphi.passes.policy import Policy
from pocketphi.passes.quantize_weights import QuantizedWeight
from pocketphi.passes.weight_cache import StoredWeight, WeightCache

_VERSION = 1
"""Raise it when the results of learning change."""


def check_compute(options: CompileOptions) -> None:
    """Raise CannotRun, before any work, where there is no device to compute on."""
    if options.compute == "cuda" and not torch.cuda.is_available():
        raise CannotRun(
            "--compute cuda: torch sees no such device here; leave it out, or install a build of torch for CUDA"
        )


def learned(
    traced: Program,
    source: HashedCheckpoint,
    rounded: Mapping[str, LazyWeight],
    policy: Policy,
    options: CompileOptions,
    ui: Ui,
) -> Mapping[str, LazyWeight]:
    """The weights whose scales were learned, by name.

    traced: of aten operators; source: of the weights that were rounded; rounded: all weights of the program as it will be
    """
    program = traced.over(source)
    weights = {name: weight for name, weight in rounded.items() if format_of(weight.parts)}
    tokens = calibration_tokens(source, options, ui, options.learn)
    learner = Learner(program, weights, tokens, Schedule(), options.compute)
    known = quantizable(program, policy)
    made = {name: known[name] for name in learner.shapes if name in known}
    cache = weight_cache(source, options, ui)
    key = rounded_key(source, weights, tokens, f"learned {_VERSION}", str(Schedule()), options.compute)
    found = cache.recall(key, made)
    if found is not None:
        ui.say(f"learned scales: of {len(found)} weights, found in the cache")
        return found
    stopped = _Stopped(key, learner, options)
    with ui.task("learn scales", learner.calls, "steps") as advance:
        done = learner.learn(lambda: advance(1), stopped.found(), stopped.keep)
    stored = {
        name: _store(cache, key, weight, rounded[name], learner.scales(name, done.state))
        for name, weight in made.items()
    }
    cache.remember(key, stored)
    stopped.forget()
    ui.say(f"learned scales: of {len(stored)} weights, on {tokens.numel():,} tokens")
    return stored


def _store(
    cache: WeightCache, key: str, weight: QuantizedWeight, rounded: LazyWeight, scales: torch.Tensor
) -> StoredWeight:
    parts = materialize(rounded)
    form = format_of(rounded.parts)
    assert form is not None  # as all that is learned
    return cache.put(f"{key} {weight.source.tensor}", weight, {**parts, form.half_part: scales})


@dataclass(frozen=True)
class _Begun:
    """In the cache. step, shapes: of `Progress`."""

    step: int
    shapes: dict[str, list[int]]


class _Stopped:
    """What learning that was stopped had come to."""

    def __init__(self, key: str, learner: Learner, options: CompileOptions) -> None:
        self._learner = learner
        self._kept = Begun("learning", {"key": key}, options.cache_folder)

    def found(self) -> Progress | None:
        """None where there is nothing that fits the model."""
        held = self._kept.recall(_Begun)
        if held is None or not 0 < held[0].step <= self._learner.steps or held[0].shapes != self._learner.shapes:
            return None
        return Progress.restored(held[0].step, held[0].shapes, held[1])

    def keep(self, reached: Progress) -> None:
        self._kept.keep(_Begun(reached.step, reached.shapes()), reached.buffers())

    def forget(self) -> None:
        self._kept.forget()

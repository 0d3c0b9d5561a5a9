"""What errors of layers' outputs are worth to a model, for recipes that weigh them: measured once, and kept in the cache."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch

from pocketphi.compiler.calibration import calibration_tokens
from pocketphi.compiler.known import MEASURING, Begun, Known
from pocketphi.compiler.options import CompileOptions
from pocketphi.compiler.ui import Ui
from pocketphi.graph.config import layer_of
from pocketphi.graph.errors import InputError
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.packing import tensor_bytes
from pocketphi.graph.program import Program
from pocketphi.passes.backward import Reached
from pocketphi.passes.output_moments import OutputMoments
from pocketphi.passes.policy import Policy
from pocketphi.passes.quantizers.outputs import Outputs, RowBlocks

_CODE = (*MEASURING, "compiler/outputs.py")

Lookup = Callable[[str], Outputs | None]
"""By the name of a weight; None where its recipe has no use for them."""


@dataclass(frozen=True)
class _Stored:
    """shapes: B and n of each `RowBlocks`, whose rows and factors lie behind."""

    shapes: list[tuple[int, int]]


@dataclass(frozen=True)
class _Begun:
    """In the cache. parts, shapes: of `Reached`."""

    parts: int
    shapes: list[list[list[list[int]]]]


def weighed(policy: Policy, names: Collection[str]) -> list[str]:
    """Of all weights those whose outputs are weighed."""
    made = {name: policy.quantizer(name) for name in names if layer_of(name) is not None}
    return [name for name, quantizer in made.items() if quantizer and quantizer.weighs_outputs]


def known_outputs(
    source: HashedCheckpoint, traced: Callable[[], Program], policy: Policy, options: CompileOptions, ui: Ui
) -> Lookup:
    """Measured now, or by an earlier command on the same model and text."""
    names = weighed(policy, source.config.matrices())
    if not names:
        return lambda name: None
    tokens = calibration_tokens(source, options, ui)
    kept = _Kept(source, tokens, len(source.config.matrices()), options)
    if not all(map(kept.holds, names)):
        kept.measure(traced(), names, ui)
    return lambda name: kept.read(name) if name in names else None


class _Kept:
    """In the cache, a file for each weight."""

    def __init__(self, source: HashedCheckpoint, tokens: torch.Tensor, weights: int, options: CompileOptions) -> None:
        self._tokens = tokens
        self._about: dict[str, Any] = {
            "source": source.digest_all(),
            "config": source.config.to_hf(),
            "tokens": tokens.tolist(),
        }
        self._known = Known("outputs", ("torch",), options.cache_folder, most=2 * weights, code=_CODE)
        self._begun = Begun("outputs", self._about, options.cache_folder, _CODE)

    def holds(self, name: str) -> bool:
        return self._known.holds({**self._about, "weight": name})

    def read(self, name: str) -> Outputs:
        """Raises InputError where it is gone, or damaged."""
        about = {**self._about, "weight": name}
        found = self._known.recall_with_data(_Stored, about)
        if found is None or (made := _restored(*found)) is None:
            self._known.forget(about)
            raise InputError(
                f"{name}: what was measured of its outputs is damaged or gone from the cache; compile again"
            )
        return made

    def measure(self, program: Program, names: Collection[str], ui: Ui) -> None:
        """Of a run that was stopped, what it had measured may be gone by now: then all is measured again."""
        moments = OutputMoments(program, self._tokens)
        for reached in (self._reached(), None):
            with ui.task("measure gradients", moments.steps, "steps") as advance:
                for found in moments.measure(lambda: advance(1), reached, self._keep):
                    self._store(found.name, found.outputs)
            if reached is None or all(map(self.holds, names)):
                break
        self._begun.forget()

    def _store(self, name: str, outputs: Outputs) -> None:
        data = [tensor_bytes(part) for one in outputs.blocks for part in (one.rows, one.factor)]
        shapes = [tuple(one.rows.shape) for one in outputs.blocks]
        self._known.keep({**self._about, "weight": name}, {"shapes": shapes}, data)

    def _keep(self, reached: Reached) -> None:
        self._begun.keep(_Begun(reached.parts, reached.shapes()), reached.buffers())

    def _reached(self) -> Reached | None:
        held = self._begun.recall(_Begun)
        return Reached.restored(held[0].parts, held[0].shapes, held[1]) if held and held[0].parts > 0 else None


def _restored(stored: _Stored, data: memoryview) -> Outputs | None:
    """None where these are not the bytes of such shapes."""
    sizes = [(8 * count * length, 2 * count * length**2) for count, length in stored.shapes]
    if sum(map(sum, sizes)) != len(data) or any(size < 1 for pair in sizes for size in pair):
        return None
    blocks = []
    for (count, length), (of_rows, of_factor) in zip(stored.shapes, sizes):
        rows = torch.frombuffer(bytearray(data[:of_rows]), dtype=torch.int64).view(count, length)
        factor = torch.frombuffer(bytearray(data[of_rows : of_rows + of_factor]), dtype=torch.bfloat16)
        blocks.append(RowBlocks(rows, factor.view(count, length, length)))
        data = data[of_rows + of_factor :]
    return Outputs(tuple(blocks))

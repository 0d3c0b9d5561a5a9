"""Spend a budget: which weight gets which format, so that the whole model's predictions move least.

What every choice costs is measured (`passes.sensitivity`), what it takes is said by each target's codecs, and the best choice
within the budget is computed (`passes.allocate`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pocketphi.artifacts.manifest import ExpectedRecord
from pocketphi.compiler.calibration import calibration_tokens
from pocketphi.compiler.candidates import Candidates, bytes_by_target, candidates_of, every_candidate
from pocketphi.compiler.known import MEASURING, Begun, Known
from pocketphi.compiler.options import PRESETS, CompileOptions
from pocketphi.compiler.smoothing import smoothing_bytes
from pocketphi.compiler.ui import Ui
from pocketphi.graph.config import EMBEDDING, ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import Blocks
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.program import Program
from pocketphi.graph.resident import resident_now
from pocketphi.passes.allocate import Choice, allocate, size_of, smallest
from pocketphi.passes.backward import Reached
from pocketphi.passes.expected import NEVER, Costs, costs_of
from pocketphi.passes.fisher import Fisher, working_bytes
from pocketphi.passes.policy import Policy, Rule
from pocketphi.passes.sensitivity import sensitivities
from pocketphi.targets.target import TargetOptions

_TOKENS, _WINDOW = 2048, 256
"""Of the calibration text, that sensitivities are measured on."""
_CODE = (*MEASURING, "compiler/spend.py")
_ROUNDS = 8
_RESERVE = 500
"""One part in so many of a budget of bytes is kept back: what the small files take is known about only before they are
written."""
_WITHIN = 0.003
"""The part of a budget of bytes that may be left, where trying again would find a choice a little larger."""
_NORM_BYTES = 4
"""At most, of a weight of a norm, which is read for each token too."""


@dataclass(frozen=True)
class Budget:
    """flag: as the user said it; limit: bytes as `sizes` counts them; of: what they are of, all `files` of a bundle, or the
    `weights` of its largest target, which users give in bits, or what is `read` of them for a token."""

    flag: str
    limit: int
    of: Literal["files", "weights", "read"]


@dataclass(frozen=True)
class Spent:
    """expected: what the policy will cost, where it was chosen for a budget."""

    policy: Policy
    expected: ExpectedRecord | None = None


def spend(
    source: HashedCheckpoint,
    traced: Callable[[], Program],
    options: CompileOptions,
    bundle_bytes: Callable[[Policy], int],
    ui: Ui,
) -> Spent:
    """The policy for what the options allow.

    traced: the graph to measure on; bundle_bytes: what a bundle of a policy takes, with all of its files. Raises InputError
    where even the smallest choice is larger.
    """
    config = source.config
    candidates = candidates_of(config, options)
    budget = _budget(config, options)
    sizes = _sizes(config, candidates, budget, options.of_targets)
    free = [[Choice(0.0, size) for size in sizes[name]] for name in candidates]
    least = needed = smallest(free)
    kept_to = budget.limit
    start = allocate(free, least)
    if budget.of == "files":
        whole = bundle_bytes(_policy(candidates, start))
        needed = -(-whole * _RESERVE // (_RESERVE - 1))
        kept_to -= kept_to // _RESERVE
    if budget.limit < needed:
        raise InputError(f"{budget.flag}: {_smallest_in_words(config, budget, needed, options.target_names)}")
    costs = known_costs(source, traced, candidates, options, ui)
    tables = [[Choice(*pair) for pair in zip(costs[name], sizes[name])] for name in candidates]
    if budget.of == "files":
        chosen = _fitted(tables, candidates, kept_to, start, whole - least, bundle_bytes)
    else:
        chosen = allocate(tables, kept_to)
    policy = _policy(candidates, chosen)
    expected = sum(table[i].cost for table, i in zip(tables, chosen))
    return Spent(policy, ExpectedRecord(budget.flag, float(f"{expected:.3g}")))


def _fitted(
    tables: Sequence[Sequence[Choice]],
    candidates: Candidates,
    limit: int,
    start: list[int],
    around: int,
    bundle_bytes: Callable[[Policy], int],
) -> list[int]:
    """The largest choice whose bundle keeps to the limit, found by trying: what lies around the weights, and between them,
    depends on their formats. start: a smallest choice, whose bundle keeps to the limit, with `around` bytes of that kind;
    others that are as small may have more of them."""
    low, high, allowed = smallest(tables), limit + 1, limit - around
    best = start
    for _ in range(_ROUNDS):
        chosen = allocate(tables, allowed)
        whole = bundle_bytes(_policy(candidates, chosen))
        if whole <= limit:
            best, low = chosen, allowed
        else:
            high = allowed
        if (1 - _WITHIN) * limit <= whole <= limit:
            break
        # what was chosen may be far below what was allowed: a little less of that would choose the same again
        allowed = (allowed if whole <= limit else size_of(tables, chosen)) + limit - whole
        if not low < allowed < high:
            allowed = (low + high) // 2
    return best


def measuring_bytes(config: ModelConfig) -> int:
    """What measuring takes at most where a budget is spent, beside what is resident."""
    return max(working_bytes(config, _TOKENS, _WINDOW), smoothing_bytes(config))


def known_costs(
    source: HashedCheckpoint, traced: Callable[[], Program], candidates: Candidates, options: CompileOptions, ui: Ui
) -> Costs:
    """Of the candidates, from what rounding to nearest costs in their form, and what of that their recipe leaves."""
    tables = not all(issubclass(one.format, Blocks) for made in candidates.values() for one in made)
    return costs_of(candidates, _nearest_costs(source, traced, tables, options, ui))


def _nearest_costs(
    source: HashedCheckpoint, traced: Callable[[], Program], tables: bool, options: CompileOptions, ui: Ui
) -> dict[str, dict[str, float]]:
    """By weight, of every form, with palettes or without: measured now, or by an earlier command on the same model and text,
    for whatever target."""
    tokens = measured_on(calibration_tokens(source, options, ui))
    known = Known("sensitivity", ("torch",), options.cache_folder, code=_CODE)
    # what is known with palettes serves without them; what nobody knows is measured as the last one says
    for also in sorted({tables, True}, reverse=True):
        candidates = every_candidate(source.config, also)
        described = {name: [one.describe() for one in made] for name, made in candidates.items()}
        about: dict[str, Any] = {
            "source": source.digest_all(),
            "config": source.config.to_hf(),
            "tokens": tokens.tolist(),
            "candidates": described,
        }
        found = known.recall(Costs, about)
        if found is not None and _fits(found, candidates):
            return _by_form(described, found)
    needed = resident_now() + measuring_bytes(source.config)
    instead = "a budget measures sensitivities; say the format yourself, such as --block 32"
    options.check_memory(needed, lambda limit: instead)
    program = traced()
    fisher = Fisher(program, tokens)
    stopped = _Stopped(about, candidates, options)
    with ui.task("measure sensitivities", fisher.steps, "steps") as advance:
        costs = sensitivities(fisher, program.weights, candidates, lambda: advance(1), stopped.found(), stopped.keep)
    costs = {name: [cost if cost < NEVER else NEVER for cost in made] for name, made in costs.items()}  # NaN too
    known.keep(about, costs)
    stopped.forget()
    return _by_form(described, costs)


def _by_form(described: Mapping[str, Sequence[str]], costs: Costs) -> dict[str, dict[str, float]]:
    return {name: dict(zip(forms, costs[name])) for name, forms in described.items()}


@dataclass(frozen=True)
class _Begun:
    """In the cache. parts, shapes: of `Reached`."""

    parts: int
    shapes: list[list[list[list[int]]]]
    costs: Costs


class _Stopped:
    """What measurements that were stopped had come to: a large model takes an hour."""

    def __init__(self, about: dict[str, Any], candidates: Candidates, options: CompileOptions) -> None:
        self._candidates = candidates
        self._kept = Begun("sensitivity", about, options.cache_folder, _CODE)

    def found(self) -> tuple[Reached, Costs] | None:
        """None where there is nothing that fits the model."""
        held = self._kept.recall(_Begun)
        if held is None or held[0].parts < 1 or not _fits(held[0].costs, self._candidates):
            return None
        begun, data = held
        reached = Reached.restored(begun.parts, begun.shapes, data)
        return None if reached is None else (reached, begun.costs)

    def keep(self, reached: Reached, costs: Costs) -> None:
        self._kept.keep(_Begun(reached.parts, reached.shapes(), costs), reached.buffers())

    def forget(self) -> None:
        self._kept.forget()


def _fits(costs: Costs, candidates: Candidates) -> bool:
    """Whether each candidate has a cost."""
    lengths = {name: len(made) for name, made in costs.items()}
    return lengths == {name: len(made) for name, made in candidates.items()} and all(
        math.isfinite(cost) for made in costs.values() for cost in made
    )


def measured_on(tokens: torch.Tensor) -> torch.Tensor:
    """Of calibration tokens int64 [B, S] those that sensitivities are measured on, in shorter windows."""
    flat = tokens.flatten()[:_TOKENS]
    length = min(_WINDOW, len(flat), tokens.shape[1])
    return flat[: len(flat) // length * length].view(-1, length)


def _budget(config: ModelConfig, options: CompileOptions) -> Budget:
    """The one that the options say."""
    values = _values(config)
    if options.bits is not None:
        return Budget(f"--bits {options.bits:g}", int(options.bits * values / 8), "weights")
    if options.preset is not None:
        return Budget(f"--preset {options.preset}", int(PRESETS[options.preset] * values / 8), "weights")
    if options.max_read is not None:
        norms = sum(math.prod(shape) for shape in config.tensors().values() if len(shape) == 1)
        return Budget(f"--max-read {options.max_read}", options.max_read - _NORM_BYTES * norms, "read")
    return Budget(f"--max-bytes {options.max_bytes}", options.max_bytes or 0, "files")


def _values(config: ModelConfig) -> int:
    """Of all weights that get formats."""
    return sum(rows * columns for rows, columns in config.matrices().values())


def _sizes(
    config: ModelConfig, candidates: Candidates, budget: Budget, targets: Sequence[TargetOptions]
) -> dict[str, list[int]]:
    """What each choice counts: bytes in the files of all targets where their sum is the budget, else in the largest."""
    together = sum if budget.of == "files" else max
    looked_up = {EMBEDDING} if budget.of == "read" and not config.tied_embeddings else set()
    shapes = config.matrices()
    return {
        name: [0 if name in looked_up else together(bytes_by_target(one, shapes[name], targets)) for one in made]
        for name, made in candidates.items()
    }


def _policy(candidates: Mapping[str, Sequence[Any]], chosen: Sequence[int]) -> Policy:
    rules = tuple(Rule(name, made[i]) for (name, made), i in zip(candidates.items(), chosen))
    return Policy(rules, smooth=True)


def _smallest_in_words(config: ModelConfig, budget: Budget, least: int, targets: Sequence[str]) -> str:
    said = f"{least * 8 / _values(config):.3f} bits a weight" if budget.of == "weights" else f"{least:,} bytes"
    return f"the smallest possible for {' and '.join(targets)} is {said}; choose that or more"

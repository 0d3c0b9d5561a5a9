"""What a target makes of a program: a plan, files in a folder, and a host that runs them here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from pocketphi.artifacts.manifest import CheckRecord
from pocketphi.artifacts.stream import Progress
from pocketphi.graph.adapters import Factors
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import format_of
from pocketphi.graph.lazy_weights import LazyWeight
from pocketphi.graph.program import Program
from pocketphi.graph.resident import resident_peak
from pocketphi.graph.rounded_cache import RoundedCache
from pocketphi.passes.cache_scales import Measured

if TYPE_CHECKING:
    from pocketphi.targets.target import Asked, Target, TargetOptions


@dataclass
class Packaged:
    """What a target wrote.

    operators: target operator → count
    weights:   name → BLAKE3 digest of its canonical bytes, taken before they were written
    notes:     what a user should know: a file left out and why, a slow path
    sha256:    of files whose digest is known from writing them, by their path in the folder
    computed_on: what computed the prefix, "" where there is none
    """

    operators: Counter[str]
    weights: dict[str, str]
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    computed_on: str = ""


Draft = str | Path
"""`auto`, `none`, or the folder of a bundle."""


class Runner(Protocol):
    """A model with its K/V cache, run token by token: the quantized program in torch, or saved files in their runtime."""

    def reset(self) -> None:
        """Forget all tokens."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append tokens int64 [B, S] to the cache; returns float32 logits [B, S, V], or [B, 1, V] for the last only."""


@runtime_checkable
class Switches(Runner, Protocol):
    """A runner whose bundle has adapters."""

    def switch(self, adapter: str | None) -> None:
        """Run with this adapter of the bundle from now on, None for none, and forget all tokens. The model stays loaded."""


@runtime_checkable
class Keeps(Runner, Protocol):
    """A runner whose conversations can be kept in a file."""

    def save(self, path: Path, note: str) -> None:
        """Write the tokens, what the cache has of them, and a text. Raises InputError where that is not possible."""

    def load(self, path: Path) -> str:
        """Go on where `save` was called, and return the text. Raises InputError for a file that does not belong to the bundle,
        or is not whole; then nothing changed."""


def switch(runner: Runner, adapter: str | None) -> None:
    """Run with an adapter of a bundle. Raises InputError for a runner that cannot, where one is asked for."""
    if isinstance(runner, Switches):
        runner.switch(adapter)
    elif adapter is not None:
        raise InputError(f"{adapter}: nothing here can switch adapters")


@dataclass(frozen=True)
class Check:
    """One claim: `measured` must not exceed `bound` (counts of what is wrong, or KL in nats a token)."""

    name: str
    measured: float
    bound: float
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.measured <= self.bound  # false for NaN as well

    def recorded(self) -> CheckRecord:
        return CheckRecord(self.name, float(f"{self.measured:.2g}"), self.bound, self.ok, self.detail)


class Host(ABC):
    """Runs a target's saved files on this machine."""

    exact_bound = 1e-6
    """KL divergence (nats a token) to the quantized program that rounding of float32 explains."""
    rounds_to: torch.dtype | None = None
    """Of the files as they are saved, where each operator's result is rounded to a type. Some models are moved further by that
    than `saved_bound`: what it does to the graph is measured then."""
    rounds_inputs: int | None = None
    """Of the files as they are saved, where inputs of products are rounded to int8: how many share a scale. In a model that
    chooses among experts a score may change places with the next by that, and what it does to the graph is measured then."""
    _planned: tuple[Program, Asked, Any] | None = None

    @property
    @abstractmethod
    def saved_bound(self) -> float:
        """The same for the files as they are saved, with the arithmetic that a device uses."""

    @abstractmethod
    def weights(self) -> dict[str, LazyWeight]:
        """The saved weights by name: lazy ones that read them back from disk in canonical form."""

    def adapters(self, names: Collection[str]) -> dict[str, Factors]:
        """The saved adapters of these names, read back. Raises InputError for a file that is missing, or none of ours."""
        if names:
            raise InputError(f"{', '.join(names)}: these files have no adapters that can be switched")
        return {}

    def own_weights(self) -> dict[str, LazyWeight]:
        """What the target's files hold that no other's do, by name, such as the scales of its cache."""
        return {}

    def rounded_cache(self) -> RoundedCache | None:
        """What the files' K/V cache keeps of keys and values, where they are rounded by more than a float's precision. Then the
        files as they are saved are compared with the graph with such a cache: rounding it is a choice, like that of weights."""
        return None

    def ring_rows(self) -> int | None:
        """Rows of a cache in which the newest tokens take the places of the oldest; None where it has room for a whole text."""
        return None

    def stored(self, name: str, constant: LazyWeight) -> LazyWeight:
        """A constant of the program as the target keeps it: in another precision, or fewer rows of a table."""
        return constant

    @abstractmethod
    def runner(self, max_tokens: int, exact: bool = False, every_position: bool = False, threads: int = 0) -> Runner:
        """exact: compute in float32 whatever the files say; every_position: logits of all tokens, not the last."""

    @property
    def no_guesses(self) -> str | None:
        """Why the files cannot read tokens that are likely to come next along with a new one, said of the bundle; None where
        they can."""
        return "runs in a runtime that guesses no tokens"

    def talker(self, max_tokens: int, threads: int = 0, draft: Draft = "auto") -> Runner:
        """A runner for one text whose tokens come one by one. draft: `auto` to guess what comes next where the runtime can and
        it pays, `none`, or the folder of a bundle that guesses as well, where `no_guesses` is None."""
        return self.runner(max_tokens, threads=threads)

    def own_checks(self, prompt: torch.Tensor) -> list[Check]:
        """What only this target's files can get wrong. prompt: int64 [1, S], a text to run where a check needs one."""
        return []

    def graph_checks(self, program: Program, asked: Asked) -> list[Check]:
        """Whether the saved graph is the one that a compile writes: runs see no more than their own tokens and lengths.

        program: what was lowered, made again from the bundle's config and recipe; asked: by its manifest
        """
        return []

    def plan(self, program: Program, asked: Asked) -> Any:
        """The files as a compile plans them, for `planned`. program, asked: as for `graph_checks`."""
        raise NotImplementedError

    def planned(self, program: Program, asked: Asked) -> Any:
        """What `plan` gives, made once for all checks of a program: a large model's takes a while."""
        if self._planned is None or self._planned[0] is not program or self._planned[1] != asked:
            self._planned = program, asked, self.plan(program, asked)
        return self._planned[2]

    def said(self, program: Program, asked: Asked, notes: Sequence[str]) -> tuple[Mapping[str, int], list[str]] | None:
        """The operators and the notes that a manifest has to have of the files; None where that is not known.

        program, asked: as for `graph_checks`; notes: that it has, some of which may be of what no file tells
        """
        return None

    def files(self) -> Collection[str] | None:
        """The files of the target that a bundle may have, by their paths in it; None where that is not known."""
        return None

    def details(self, program: Program) -> Mapping[str, Any]:
        """What a manifest has to say of the files, as far as it is known from them. program: as for `graph_checks`."""
        return {}

    def write_prefix(self, out: Path, tokens: Sequence[int], computed_on: str, program: Program) -> None:
        """Write the cache of `tokens` as a compile does (`Asked.prefix`). computed_on: what the manifest says did so; program:
        as for `graph_checks`. Raises CannotRun where this machine is no such."""
        raise InputError("these files have no cache of their first tokens")

    def caveats(self, max_tokens: int) -> list[str]:
        """What a user has to know of files that passed every check: where another runtime, in its own way to use them, would
        give other answers."""
        return []

    def write_extras(self, prompt: torch.Tensor) -> None:
        """Add files to a bundle under construction that come out of running it, such as test vectors for a device."""
        return

    def peak_bytes(self, runner: Runner) -> int:
        """Largest resident memory of the process that runs the model: this one, if it is not another (see `resident_peak`)."""
        return resident_peak()

    def other_runners(self, max_tokens: int) -> dict[str, Callable[[], Runner]]:
        """Other ways to run the bundle as it is saved, to be opened, by name: another runtime that is installed, another file
        in it."""
        return {}


def check_formats(target: Target[Any], options: TargetOptions, program: Program) -> None:
    """Raise InputError, naming what they can hold, where a program has a weight in a format that the target's files with these
    options cannot hold."""
    held = target.holds(options)
    for name, weight in program.weights.items():
        form = format_of(weight.parts)
        if form and form.name not in held:
            raise InputError(
                f"{target.name}: {name} is {form.words}, which the target cannot hold; {target.instead(form)} "
                f"(it holds {', '.join(sorted(held))})"
            )


class Prepared(ABC):
    """A program as a target will write it: planned once, before any weight is computed.

    bytes: size of the files with the weights; recorded: about that of files that verification adds; notes: what a user should
    know before they are written
    cache_bits: of a K/V cache whose scales or means a text has to give before the files are written; None for another cache
    """

    bytes: int
    recorded: int = 0
    notes: list[str]
    cache_bits: int | None = None

    @property
    def around(self) -> int:
        """About the size of the other files."""
        return 0

    def take_scales(self, measured: Measured) -> None:
        """What was measured for the cache, as `cache_bits` asks for it."""
        raise NotImplementedError

    @abstractmethod
    def write(self, folder: Path, progress: Progress) -> Packaged:
        """Write the target's files into `folder`, with the weights that the program has by now."""

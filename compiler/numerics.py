"""Lowering error: the saved files, run by their own runtime, against the traced graph in torch, token for token."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from pocketphi.compiler.measure import distance
from pocketphi.compiler.text import random_tokens
from pocketphi.graph.adapters import feeds
from pocketphi.graph.decoder import ProgramRunner
from pocketphi.graph.program import Observer, Program, Weights
from pocketphi.graph.rounded_cache import observer
from pocketphi.passes.carry_adapters import CarryAdapters
from pocketphi.targets.base import Check, Host, Runner, switch

_DECODE, _DECODE_OTHERS, _MORE_OTHERS = 64, 8, 140
"""Steps with the cache, at most: of the files in their runtime, and of the same files in another; there, then, the tokens of a
second prompt, more than any runtime takes at once."""

_AFFORDABLE = 1 << 40
"""Tokens times parameters up to which other runtimes read a text beyond LongRoPE's switch too."""

_BEFORE, _AFTER = 3, 9
"""Tokens that a decode across the window's edge starts before it, and that it goes on past it; where a cache is a ring, also
across the ring's end."""

_ROUNDING = 10
"""How many times the KL of a graph, each of whose operators is rounded, that of the files may be. KL is a sum of squared
errors. The files round three times as often: some 30 results on a layer's way, for 10 of the fused graph. And one position may
make up most of the sum: the square of one normal error is over 3.3 times its mean in 7 cases of 100."""


@dataclass
class Numerics:
    """The numeric checks of one target.

    program: the traced graph with the saved weights; fused: the same after the float rewrites
    prompt: int64 [1, S], a text; limit: tokens that the files hold; keep: hold the program's weights in memory
    adapter: of the programs and of the files, which is switched on in both
    taken:  called with the tokens that a runner of the files took; `tokens` in all
    """

    host: Host
    program: Program
    fused: Program
    prompt: torch.Tensor
    limit: int
    keep: bool
    taken: Callable[[int], None] = field(default=lambda count: None)
    adapter: str | None = None

    def __post_init__(self) -> None:
        config = self.program.config
        room, rope = self.limit - self.prompt.shape[1], config.long_rope
        self._steps = min(_DECODE_OTHERS if self.adapter else _DECODE, room)
        past = (config.sliding_window or 0) + _AFTER
        self._window = config.sliding_window if past < self.limit else None
        ring = self.host.ring_rows()
        self._ring = ring if self._window and ring and ring + _AFTER <= self.limit else None
        self._switch = rope.original_max_position if rope and rope.original_max_position < self.limit else None
        # short of LongRoPE's switch, at which runtimes differ in what they compute again
        before = self._switch is not None and self.prompt.shape[1] <= self._switch
        room = (self._switch if before and self._switch else self.limit) - self.prompt.shape[1] - 1
        self._steps_others = max(0, min(_DECODE_OTHERS, room))
        room -= self._steps_others
        self._more_others = max(0, min(_MORE_OTHERS, room))
        affordable = self._switch is not None and self._switch * config.parameters <= _AFFORDABLE
        self._switch_others = self._switch if affordable else None
        self._others = list(self.host.other_runners(self.limit))
        cache = self.host.rounded_cache()
        self._cache = observer(self.fused, cache) if cache else None

    def with_adapter(self, name: str) -> Numerics:
        """The checks of the same files with one of their adapters, against the same graphs with it."""
        program, fused = self.program.copy(), self.fused.copy()
        for one in (program, fused):
            CarryAdapters()(one)
        return Numerics(self.host, program, fused, self.prompt, self.limit, self.keep, self.taken, name)

    @property
    def tokens(self) -> int:
        """What the checks run through the files."""
        others = len(self._others)
        text = self.prompt.shape[1] + self._steps
        ways = 3 + 2 * bool(self.adapter)
        count = ways * text - 1  # all of them as saved and exact, and the greedy choice, whose last one is not run
        text = self.prompt.shape[1] + self._steps_others + self._more_others
        count += (others + 1) * text if others else 0
        if self.adapter:
            return count
        if self._window:
            count += 2 * (max(self._window, self._ring or 0) + _AFTER)
            count += (others + 1 if others else 0) * (self._window + _AFTER)
        if self._switch:
            count += 3 * self._switch + 2
        if self._switch_others and others:
            count += (others + 1) * (self._switch_others + 1)
        return count

    def checks(self) -> Iterable[Check]:
        """All of them, one after the other."""
        if self.adapter:
            for check in (*self._text(), *self._other_runtimes(), self._off_again()):
                yield replace(check, name=f"{check.name}, adapter {self.adapter}")
            return
        yield from self._text()
        if self._window:
            yield from self._past_the_window(self._window)
        if self._switch:
            yield from self._long_rope(self._switch)
        yield from self._other_runtimes()

    def _text(self) -> Iterable[Check]:
        """Prefill and decode with the cache, exact and as saved; greedy choice."""
        start, total = self.prompt.shape[1], self.prompt.shape[1] + self._steps
        exactly = self.host.exact_bound
        chosen, greedy_logits = generate(self._runner(total), self.prompt, self._steps)
        sequence = torch.cat([self.prompt, chosen], dim=1)
        at_once = self._graph(self.program).step(sequence)[0]
        expected = self._as_it_grew(sequence, at_once, start)

        exact = self._runner(total, exact=True, every_position=True)
        prefill = exact.step(self.prompt)[0]
        yield _kl("prefill, exact", expected[:start], prefill, exactly)
        decode = torch.cat([exact.step(sequence[:, i : i + 1])[0] for i in range(start, total)])
        yield _kl("decode, exact", expected[start:], decode, exactly)
        whole = self._runner(total, every_position=True).step(sequence)[0]
        if self._cache:  # the files as they are saved have such a cache, in a prompt too
            at_once = self._graph(self.fused, self._cache).step(sequence)[0]
            expected = self._as_it_grew(sequence, at_once, start, self._cache)
        rows = expected[start - 1 : -1]
        rounding = functools.cache(lambda: self._rounded(sequence))
        yield self._as_saved("prefill, as saved", at_once, whole, lambda: (at_once, rounding()))
        decode_rounding = functools.cache(lambda: (at_once[start - 1 : -1], rounding()[start - 1 : -1]))
        decoded = self._as_saved("decode, as saved", rows, greedy_logits, decode_rounding)
        yield decoded
        # KL ≈ ½ Var(Δlogit) for small differences, so that the bound allows logits to differ by σ = sqrt(2·bound): 4 σ is a tie
        tie = 4 * math.sqrt(2 * decoded.bound)
        gaps = rows.max(-1).values - rows.gather(1, chosen[0, :, None])[:, 0]
        if self._chooses and bool((gaps > tie).any()):
            # another expert moves few positions by much: by no more than rounding alone does, each of two logits
            tie = max(tie, 2 * distance(*decode_rounding()).largest)
        same = int((gaps == 0).sum())
        detail = f"{same}/{self._steps} equal, ties within {tie:.2g}"
        yield Check("greedy tokens that differ", int((gaps > tie).sum()), 0, detail)

    def _off_again(self) -> Check:
        """A runner whose adapter was on and is off gives the bits of one that never had any."""
        total = self.prompt.shape[1] + self._steps
        runner = self._runner(total)
        with_it = runner.step(self.prompt)
        switch(runner, None)
        plain = self.host.runner(total).step(self.prompt)
        off = int((runner.step(self.prompt) != plain).sum())
        detail = f"{plain.numel()} logits; the adapter moves one by {float((with_it - plain).abs().max()):.2g}"
        return Check("logits that stay changed when it is off again", off, 0, detail)

    def _as_saved(
        self,
        name: str,
        expected: torch.Tensor,
        came: torch.Tensor,
        rounding: Callable[[], tuple[torch.Tensor, torch.Tensor]],
    ) -> Check:
        """rounding: the graph's logits, and those where each of its operators is rounded as in the files."""
        check = _kl(name, expected, came, self.host.saved_bound)
        if check.ok or (self.host.rounds_to is None and not self._chooses):
            return check
        alone = distance(*rounding()).kl
        bound = max(check.bound, float(f"{_ROUNDING * alone:.2g}"))
        return replace(check, bound=bound, detail=f"{check.detail}; rounding alone {alone:.2g}")

    @property
    def _chooses(self) -> bool:
        """Whether rounded inputs may make a token go through another expert."""
        return self.program.config.experts is not None and self.host.rounds_inputs is not None

    def _rounded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [S, V] of the graph where each operator's result, or each product's input, is rounded as in the files."""

        def rounded(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(rounded, value))
            return value.to(self.host.rounds_to).float() if value.is_floating_point() else value

        def observe(node: fx.Node, args: tuple[Any, ...]) -> Any:
            made: Any = node.target
            if self._cache and (kept := self._cache(node, args)) is not None:
                return rounded(kept) if self.host.rounds_to is not None else kept
            if self.host.rounds_to is not None:
                return rounded(made(*args, **node.kwargs))
            if made in _PRODUCTS and self.host.rounds_inputs:
                return made(_in_int8(args[0], self.host.rounds_inputs), *args[1:], **node.kwargs)
            return None

        inputs, weights = self.fused.prefill_inputs(tokens), Weights(self.fused.weights, self.keep)
        inputs |= feeds(self.fused.adapters[self.adapter]) if self.adapter else {}
        return self.fused.run(inputs, weights, observe)["logits"][0]

    def _as_it_grew(
        self, tokens: torch.Tensor, at_once: torch.Tensor, start: int, cache: Observer | None = None
    ) -> torch.Tensor:
        """Logits [S, V] of a text that grew from `start` tokens: up to LongRoPE's switch, what came before was short too.

        cache: keeps keys and values otherwise than in float32
        """
        if not (self._switch and start <= self._switch < tokens.shape[1]):
            return at_once
        program = self.fused if cache else self.program
        short = self._graph(program, cache).step(tokens[:, : self._switch])[0]
        return torch.cat([short, at_once[self._switch :]])

    def _past_the_window(self, window: int) -> Iterable[Check]:
        """Exact prefill of more than the window, and decode across its edge; the same in other runtimes."""
        edges = [window, *([self._ring] if self._ring else [])]
        total = edges[-1] + _AFTER
        tokens = torch.tensor([random_tokens(self.program.config, total)])
        expected = ProgramRunner(self.program, keep=False).step(tokens)[0]
        runner = self._runner(total, exact=True, every_position=True)
        yield _kl(f"prefill past the window of {window}", expected, runner.step(tokens)[0], self.host.exact_bound)
        runner.reset()
        expected = self._as_it_grew(tokens, expected, window - _BEFORE)
        steps, at = [], 0
        for edge in edges:
            start, end = edge - _BEFORE, edge + _AFTER
            runner.step(tokens[:, at:start])
            steps += [(i, runner.step(tokens[:, i : i + 1])[0]) for i in range(start, end)]
            at = end
        decode = torch.cat([logits for _, logits in steps])
        yield _kl(f"decode past the window of {window}", expected[[i for i, _ in steps]], decode, self.host.exact_bound)
        yield from self._same_in_others([tokens[:, : window + _AFTER]], "past the window")

    def _long_rope(self, switch: int) -> Iterable[Check]:
        """At the last length with short factors and the first with long ones: prefill, and decode from one to the other."""
        tokens = torch.tensor([random_tokens(self.program.config, switch + 1)])
        stepping = self._runner(switch + 1, exact=True)
        stepping.step(tokens[:, : switch - 1])
        for length in (switch, switch + 1):
            expected = ProgramRunner(self.program, keep=False).step(tokens[:, :length])[0, -1:]
            prefill = self._runner(length, exact=True).step(tokens[:, :length])[0, -1:]
            decode = stepping.step(tokens[:, length - 1 : length])[0, -1:]
            both = torch.cat([prefill, decode])
            yield _kl(f"LongRoPE at {length} tokens", expected.expand_as(both), both, self.host.exact_bound)
        if self._switch_others:
            yield from self._same_in_others([tokens], f"a prompt of {switch + 1} tokens")

    def _other_runtimes(self) -> Iterable[Check]:
        """Prefill of the text, some steps of decode, and another prompt."""
        more = torch.tensor([random_tokens(self.program.config, self._steps_others + self._more_others)])
        sizes = [*[1] * self._steps_others, *([self._more_others] if self._more_others else [])]
        yield from self._same_in_others(
            [self.prompt, *(more.split(sizes, dim=1) if sizes else [])], "prefill and decode"
        )

    def _same_in_others(self, pieces: list[torch.Tensor], what: str) -> Iterable[Check]:
        """Other runtimes and files of the same bundle, against the first: as saved, the last logits of each piece."""
        if not self._others:
            return
        total = sum(piece.shape[1] for piece in pieces) + 1  # onnxruntime-genai wants room for one more
        expected = self._last_logits(self._runner(total), pieces)
        for name, make in self.host.other_runners(total).items():
            came = self._last_logits(self._counted(make()), pieces)
            yield _kl(f"{name}, {what}", expected, came, self.host.exact_bound)

    @staticmethod
    def _last_logits(runner: Runner, pieces: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([runner.step(piece)[0, -1:] for piece in pieces])

    def _runner(self, max_tokens: int, exact: bool = False, every_position: bool = False) -> _Counted:
        return self._counted(self.host.runner(max_tokens, exact, every_position))

    def _counted(self, runner: Runner) -> _Counted:
        if self.adapter:
            switch(runner, self.adapter)
        return _Counted(runner, self.taken)

    def _graph(self, program: Program, cache: Observer | None = None) -> ProgramRunner:
        made = ProgramRunner(program, self.keep, cache)
        if self.adapter:
            switch(made, self.adapter)
        return made


_PRODUCTS = (torch.ops.aten.linear.default, torch.ops.edge.experts.default)


def _in_int8(x: torch.Tensor, step: int) -> torch.Tensor:
    """float32 [..., K], rounded to whole numbers from -127 to 127 times a scale for `step` values."""
    parts = torch.nn.functional.pad(x, (0, -x.shape[-1] % step)).unflatten(-1, (-1, step))
    scale = (parts.abs().amax(-1, keepdim=True) / 127).clamp(min=torch.finfo(x.dtype).tiny)
    return ((parts / scale).round() * scale).flatten(-2)[..., : x.shape[-1]]


@dataclass
class _Counted:
    """A `Runner` that tells of each token that it took."""

    runner: Runner
    taken: Callable[[int], None]

    def reset(self) -> None:
        self.runner.reset()

    def switch(self, adapter: str | None) -> None:
        switch(self.runner, adapter)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = self.runner.step(tokens)
        self.taken(tokens.shape[1])
        return logits


def generate(runner: Runner, prompt: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy: (tokens int64 [1, count], the logits that chose them float32 [count, V])."""
    tokens, logits = prompt, []
    chosen: list[torch.Tensor] = []
    for _ in range(count):
        logits.append(runner.step(tokens)[0, -1])
        tokens = logits[-1].argmax().view(1, 1)
        chosen.append(tokens)
    return torch.cat(chosen, dim=1), torch.stack(logits)


def _kl(name: str, expected: torch.Tensor, came: torch.Tensor, bound: float) -> Check:
    found = distance(expected, came)
    detail = f"{found.positions} positions, top-1 {found.top1:.3f}, max |Δlogit| {found.largest:.2g}"
    return Check(f"KL {name}", found.kl, bound, detail)

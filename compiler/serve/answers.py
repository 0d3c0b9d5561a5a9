"""Answers of a bundle, token by token: the choice of the next one, texts to stop at, and how likely each was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pocketphi.compiler.serve.protocol import Refused, Wanted
from pocketphi.compiler.talker import Engine, Talker
from pocketphi.targets.base import Runner, switch


@dataclass(frozen=True)
class Likely:
    """A token with its log-probability (natural), None where nothing came before it; top: the likeliest ones, (token,
    log-probability)."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """What a token added. text: that is out now, often empty; end: why the answer ends with it, `stop` or `length`; made:
    tokens so far; likely: of the tokens since the last piece, where it was asked for"""

    text: str
    made: int
    end: str | None = None
    likely: tuple[Likely, ...] = ()


class Answers:
    """One bundle, for one thread at a time."""

    def __init__(self, talker: Talker) -> None:
        self.talker = talker
        self._seen: list[int] = []
        self._adapter: str | None = None
        self._scorer: Runner | None = None

    def check(self, tokens: Sequence[int], wanted: Wanted) -> None:
        """Raises Refused for a prompt that is empty, too long, or has tokens that the model lacks."""
        limit, vocabulary = self.talker.limit, self.talker.vocabulary
        if not tokens:
            raise Refused("the prompt is empty: it has no token", param="prompt")
        if max(tokens) >= vocabulary:
            raise Refused(f"token {max(tokens)}: the model has {vocabulary:,}", param="prompt")
        room = limit - len(tokens)
        if room < min(1, 1 if wanted.limit is None else wanted.limit):
            larger = f"'pocketphi serve --max-tokens N' makes it larger, up to {self.talker.held:,}"
            raise Refused(
                f"the prompt has {len(tokens):,} tokens, and the cache holds {limit:,} with at least one of an answer; "
                f"{larger if limit < self.talker.held else 'make the prompt shorter'}",
                code="context_length_exceeded",
            )

    def pieces(
        self, tokens: Sequence[int], wanted: Wanted, adapter: str | None = None, goes_on: bool = False
    ) -> Iterator[Piece]:
        """The answer to a prompt, one piece a token. Closing the iterator stops it; the cache keeps what it has seen, and a
        prompt that begins alike is not read again.

        goes_on: the answer is the rest of the prompt's text, and keeps the space that a decoder takes from a text's start
        """
        self.check(tokens, wanted)
        if adapter != self._adapter:
            self._seen = []
            switch(self.talker.runner, adapter)
            self._adapter = adapter
        chooser = Chooser(wanted)
        engine = Engine(self.talker.runner, chooser)
        stream = self.talker.tokenizer.stream(tokens if goes_on else ())
        holder = Holder(wanted.stops)
        limit = len(tokens) + self.talker.limit if wanted.limit is None else wanted.limit
        if limit == 0:
            yield Piece("", 0, "length")
            return
        made, waiting = 0, list[Likely]()
        token = self._run(engine, list(tokens))
        while True:
            made += 1
            end = self.talker.rules.end(token, made, len(tokens), limit)
            if end == "stop":
                yield Piece(holder.rest(stream.finish()), made - 1, "stop", tuple(waiting))
                return
            if chooser.last is not None:
                waiting.append(chooser.last)
            text, stopped = holder.add(stream.step(token))
            if stopped:
                yield Piece(text, made, "stop", tuple(waiting))
                return
            if end is not None:
                rest, stopped = holder.add(stream.finish())
                more = rest if stopped else rest + holder.rest("")
                yield Piece(text + more, made, "stop" if stopped else "length", tuple(waiting))
                return
            yield Piece(text, made, None, tuple(waiting))
            waiting = []
            token = self._run(engine, [*self._seen, token])

    def score(self, tokens: Sequence[int], count: int) -> list[Likely]:
        """How likely each token of a prompt is after those before it. count: of the likeliest that go along."""
        if self._scorer is None:
            self._scorer = self.talker.scorer()
        self._scorer.reset()
        logits = self._scorer.step(torch.tensor([list(tokens)]))[0]
        after = [likely(row, token, count) for row, token in zip(logits[:-1], tokens[1:])]
        return [Likely(tokens[0], None, ()), *after]

    def _run(self, engine: Engine, tokens: list[int]) -> int:
        calls = self.talker.rules.calls(self._seen, tokens)
        self._seen = []  # so it stays where the runner fails half-way
        token = engine.run(calls, tokens)
        self._seen = tokens
        return token


class Chooser:
    """Chooses the next token: the likeliest at temperature 0, else one of the smallest set whose probabilities add up to
    `top_p`. last: how likely the last one was, where that is wanted"""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._random = torch.Generator()
        self.last: Likely | None = None
        if wanted.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(wanted.seed)

    def __call__(self, logits: torch.Tensor) -> int:
        token = self._choose(logits)
        self.last = None if self._wanted.logprobs is None else likely(logits, token, self._wanted.logprobs)
        return token

    def _choose(self, logits: torch.Tensor) -> int:
        temperature, top_p = self._wanted.temperature, self._wanted.top_p
        if temperature <= 0:
            return int(logits.argmax())
        shares = ((logits.double() - logits.max()) / temperature).softmax(-1)
        if top_p < 1:
            sorted_shares, order = shares.sort(descending=True, stable=True)
            before = sorted_shares.cumsum(-1) - sorted_shares
            sorted_shares[(before >= top_p).logical_and(before > 0)] = 0  # the first one stays, whatever top_p
            return int(order[torch.multinomial(sorted_shares, 1, generator=self._random)])
        return int(torch.multinomial(shares, 1, generator=self._random))


def likely(logits: torch.Tensor, token: int, count: int) -> Likely:
    """logits: float32 [V], of the place that `token` is at."""
    logs = logits.double().log_softmax(-1)
    top = logs.topk(min(count, len(logs))) if count else None
    pairs = tuple(zip(top.indices.tolist(), top.values.tolist())) if top else ()
    return Likely(token, float(logs[token]), pairs)


class Holder:
    """Keeps text back that may be the beginning of a text to stop at."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """What may be shown now, and whether one of the texts has come: then this is all before it."""
        held = self._held + text
        places = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if places:
            self._held = ""
            return held[: min(places)], True
        parts = ((stop, n) for stop in self._stops for n in range(1, min(len(stop), len(held) + 1)))
        keep = max((n for stop, n in parts if held.endswith(stop[:n])), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def rest(self, text: str) -> str:
        """What is left at the end of an answer; text: its last piece."""
        shown, stopped = self.add(text)
        held, self._held = self._held, ""
        return shown if stopped else shown + held

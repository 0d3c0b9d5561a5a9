"""Guesses of the tokens that come next, around a runner that can check several in one call and forget them again.

The rules are those of `tvm_arm/runtime/drafts.h`, which says why: guesses come from the text itself (prompt look-up, Saxena
2023) or from a smaller model (Leviathan et al. 2023, arXiv:2211.17192), and the one that gives most tokens in a time is taken.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from pocketphi.targets.base import Runner, switch

MOST = 7
"""Tokens of a guess."""

_FEWEST, _LONGEST = 2, 8
"""Tokens of the text's end that have to stand there before, and that are compared."""
_MODEL = _LONGEST + 1
"""The draft model's place among the tallies, which have the length of a match."""
_PATIENCE, _PROBE = 24, 2
"""Guesses that were passed by before a short one is tried."""
_SHARE = 0.03
"""Of all time, for trying a draft model that does not pay."""
_MEMORY, _STEP, _MODEL_STEP, _READ = 0.9, 0.1, 0.3, 0.2
"""Of older guesses; how far a measured time is followed, and a draft model's; what a token of a prompt takes of a call's."""


class Checks(Runner, Protocol):
    """A runner of one text that can check guesses."""

    def room(self) -> int:
        """Tokens that `check` takes next."""

    def check(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append tokens int64 [1, S], at most `room`; float32 logits [1, S, V] of each."""

    def forget(self, count: int) -> None:
        """The last tokens."""


@dataclass
class _Tally:
    right: float = 1
    all: float = 2  # half of the first guesses are taken for right


class Drafts:
    """Which guess is worth its time, learned from those before it."""

    def __init__(self) -> None:
        self._tallies = [_Tally() for _ in range(_MODEL + 1)]
        self._kind = self._passed = self._model_passed = 0
        self._one = 0.0  # the time of a call of one token, and, as parts of it, what one guessed token adds, two, …
        self._more = [0.15 * (i + 1) for i in range(MOST)]
        self._cost = 0.0  # and what the draft model takes for a token

    def meet(self, cost: float) -> None:
        """Another draft model, of which nothing is known but about what a token of it takes, as a part of a call."""
        self._tallies[_MODEL], self._cost = _Tally(), cost

    def next(self, seen: Sequence[int], room: int, model_room: int = 0, behind: int = 0) -> tuple[list[int], int]:
        """What may follow `seen`, at most `room` tokens, or for how many to ask the draft model; one of both is nothing.

        model_room: tokens that the draft model has room for; behind: those that it would have to read before its first guess
        """
        room = min(room, MOST)
        begin, matched = _find(seen)
        text, rate = self._best(matched, room, 0) if matched >= _FEWEST else (0, 1.0)
        model, model_rate = self._best(_MODEL, min(model_room, room), self._cost)
        if not text and not model:  # what did not pay may pay by now
            if matched >= _FEWEST and room > 0:
                self._passed += 1
                if self._passed >= _PATIENCE:
                    text = min(room, _PROBE)
            if not text and min(model_room, room) > 0:
                self._model_passed += 1
                if self._model_passed >= self._patience(behind):
                    model = min(model_room, room, _PROBE)
        if not text or model_rate > rate:
            if model:
                self._model_passed, self._kind = 0, _MODEL
            return [], model
        self._passed, self._kind = 0, matched
        period = len(seen) - begin  # beyond its end the text goes on as from there
        return [seen[begin + i % period] for i in range(text)], 0

    def learn(self, right: int, wrong: bool) -> None:
        """How a guess went: of its tokens the first `right` came; whether it was ended by another one."""
        tally = self._tallies[self._kind]
        tally.right = _MEMORY * tally.right + right
        tally.all = _MEMORY * tally.all + right + wrong

    def took(self, guessed: int, seconds: float) -> None:
        """A call, of one token and as many guessed ones."""
        if not guessed:
            self._one = self._one + _STEP * (seconds - self._one) if self._one else seconds
        elif self._one:
            known = self._more[guessed - 1]
            self._more[guessed - 1] = known + _STEP * (min(max(seconds / self._one - 1, 0), guessed) - known)

    def model_took(self, guessed: int, seconds: float) -> None:
        """The draft model, for so many tokens."""
        if guessed and self._one:
            self._cost += _MODEL_STEP * (seconds / self._one / guessed - self._cost)

    def _best(self, kind: int, room: int, cost: float) -> tuple[int, float]:
        """The length that gives most tokens in the time of one call, and how many; 0 and 1 where one token a call does."""
        right, chance, expected, found = self._tallies[kind].right / self._tallies[kind].all, 1.0, 1.0, (0, 1.0)
        for length in range(1, room + 1):
            chance *= right
            expected += chance
            rate = expected / (1 + self._more[length - 1] + cost * length)
            if rate > found[1]:
                found = length, rate
        return found

    def _patience(self, behind: int) -> float:
        """Calls between two tries of a draft model that does not pay: what reading up to here takes of it is counted too."""
        took = self._more[_PROBE - 1] + self._cost * (_PROBE + _READ * behind)
        return max(_PATIENCE, took / _SHARE)


def _find(seen: Sequence[int]) -> tuple[int, int]:
    """Where what followed the longest and last match of the end of `seen` begins, and how many tokens of it match."""
    end = len(seen)
    if end < 3:
        return end, 0
    text = np.asarray(seen, np.int64)
    found = 1 + np.flatnonzero((text[1 : end - 1] == text[-1]) & (text[: end - 2] == text[-2]))  # their last tokens
    begin, longest = end, 0
    for at in found[::-1].tolist():
        same = _FEWEST
        while same < _LONGEST and same <= at and seen[at - same] == seen[end - 1 - same]:
            same += 1
        if same > longest:
            begin, longest = at + 1, same
        if longest == _LONGEST:
            break
    return begin, longest


class DraftModel:
    """A smaller model's runner, whose likeliest tokens are guesses. limit: tokens that its cache holds."""

    def __init__(self, runner: Checks, limit: int) -> None:
        self._runner, self._limit = runner, limit
        self._read: list[int] = []

    def room(self, seen: Sequence[int]) -> int:
        """Tokens that it has room to guess behind `seen`: the last of a guess is not read."""
        return max(0, self._limit - len(seen) + 1)

    def behind(self, seen: Sequence[int]) -> int:
        """Tokens of `seen` that it has not read."""
        return len(seen) - self._same(seen)

    def guess(self, seen: Sequence[int], count: int) -> list[int]:
        """What it says comes after `seen`. Its cache is brought to that text, whatever was in it."""
        same, held, self._read = self._same(seen), len(self._read), []  # where this is interrupted, nothing is known
        if not same:
            self._runner.reset()
        elif same < held:
            self._runner.forget(held - same)
        made: list[int] = []
        while len(made) < count:
            unread = made[-1:] or list(seen[same:])
            made.append(int(self._runner.step(torch.tensor([unread]))[0, -1].argmax()))
        self._read = [*seen, *made[:-1]]
        return made

    def _same(self, seen: Sequence[int]) -> int:
        """How many of its first tokens it has read; never the last, which has to give the first guess."""
        most = min(len(self._read), len(seen) - 1)
        return next((i for i in range(most) if self._read[i] != seen[i]), most)


class Guessing:
    """A `Runner` that reads guessed tokens along with a new one, and has their logits ready where they come."""

    def __init__(self, runner: Checks, draft: DraftModel | None = None, cost: float = 0) -> None:
        """cost: what a token of the draft model takes, as a part of what one takes here."""
        self._runner, self._draft, self._drafts = runner, draft, Drafts()
        self._drafts.meet(cost)
        self._seen: list[int] = []
        self._ahead, self._used, self._logits = list[int](), 0, torch.empty(0)
        self.calls = 0
        """Of the runner, each of which reads all weights once."""

    def reset(self) -> None:
        self._settle()
        self._seen = []
        self._runner.reset()

    def switch(self, adapter: str | None) -> None:
        self.reset()
        switch(self._runner, adapter)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append tokens int64 [1, S]; logits of the last, [1, 1, V]."""
        if tokens.shape[1] != 1:
            self._settle()
            self._seen += tokens[0].tolist()
            self.calls += 1
            return self._runner.step(tokens)
        token = int(tokens[0, 0])
        if self._used < len(self._ahead) and self._ahead[self._used] == token:
            self._used += 1
            self._seen.append(token)
            return self._logits[:, self._used : self._used + 1]
        self._settle()
        self._seen.append(token)
        return self._call()

    def _settle(self) -> None:
        """Forget the guessed tokens that did not come."""
        left, used, self._ahead = len(self._ahead) - self._used, self._used, []
        if used or left:
            self._drafts.learn(used, left > 0)
            self._used = 0
        if left:
            self._runner.forget(left)

    def _call(self) -> torch.Tensor:
        """The last token of `seen`, with guesses behind it where one is worth it."""
        guess = self._guess(self._runner.room() - 1)
        self.calls += 1
        begin = time.perf_counter()
        tokens = torch.tensor([[self._seen[-1], *guess]])
        self._logits = self._runner.check(tokens) if guess else self._runner.step(tokens)
        self._drafts.took(len(guess), time.perf_counter() - begin)
        self._ahead = guess
        return self._logits[:, :1]

    def _guess(self, room: int) -> list[int]:
        seen, draft = self._seen, self._draft
        if draft is None:
            return self._drafts.next(seen, room)[0]
        behind = draft.behind(seen)
        text, count = self._drafts.next(seen, room, draft.room(seen), behind)
        if not count:
            return text
        begin = time.perf_counter()
        made = draft.guess(seen, count)
        if behind <= MOST + 1:  # else most of it was for what it had not read
            self._drafts.model_took(count, time.perf_counter() - begin)
        return made

"""The logic of the app kits, written for reading: what Swift and Kotlin do is pinned to this by shared test vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

Messages = list[tuple[str, str]]
"""Role and content of each."""

_MASK = 2**64 - 1
WHITE_SPACE = "".join(character for character in map(chr, range(0x3001)) if character.isspace())
"""What Jinja's `trim` drops. Other languages count fewer or more characters as white space."""


class SplitMix64:
    """Random numbers that are the same in every language (Steele, Lea, Flood 2014, doi:10.1145/2714064.2660195)."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def next(self) -> int:
        """64 random bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def uniform(self) -> float:
        """In [0, 1), from the upper 53 bits."""
        return (self.next() >> 11) * 2.0**-53


@dataclass
class Sampler:
    """Chooses the next token. temperature 0: the most likely one; top_k 0: no limit; top_p 1: no limit."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    _random: SplitMix64 = field(init=False)

    def __post_init__(self) -> None:
        self._random = SplitMix64(self.seed)

    def choose(self, logits: Sequence[float]) -> int:
        """logits: float32 [V]. Ties go to the lower id; probabilities are computed in float64."""
        if self.temperature <= 0:
            return max(range(len(logits)), key=lambda token: (logits[token], -token))
        order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
        order = order[: self.top_k] if self.top_k > 0 else order
        weights = [math.exp((logits[token] - logits[order[0]]) / self.temperature) for token in order]
        kept, mass, enough = 0, 0.0, self.top_p * sum(weights)
        while kept < len(order) and (kept == 0 or mass < enough):
            mass += weights[kept]
            kept += 1
        target = self._random.uniform() * mass
        for token, weight in zip(order[:kept], weights):
            target -= weight
            if target < 0:
                return token
        return order[kept - 1]


@dataclass(frozen=True)
class ChatFormat:
    """A chat template without Jinja: what stands before and after each message.

    begin: the start where a system message follows; default: the start where none does; roles: role → (before, after);
    answer: what the model continues; strips: roles around whose messages white space is dropped
    """

    begin: str
    default: str
    roles: dict[str, tuple[str, str]]
    answer: str
    strips: frozenset[str] = frozenset()

    def render(self, messages: Sequence[tuple[str, str]]) -> str:
        """messages: (role, content). The prompt up to where the assistant's answer starts."""
        parts = [self.begin if messages and messages[0][0] == "system" else self.default]
        for role, content in messages:
            before, after = self.roles[role]
            parts += [before, content.strip(WHITE_SPACE) if role in self.strips else content, after]
        return "".join([*parts, self.answer])


@dataclass(frozen=True)
class Call:
    """A call of the model: with tokens[start : start + count] at position `start`; `prefill` pads to the chunk."""

    function: str
    start: int
    count: int


@dataclass(frozen=True)
class Rules:
    """What the manifest says of running a model.

    context: tokens of a conversation; chunk: tokens of a prefill call, 0 for any number; rows: of the cache, where calls are
    chunks; long_rope_after: a sequence that grows beyond it is computed again; stops: tokens that end an answer; ring: position
    p lies in row p mod ring, which no call's tokens may go around; 0 where each has a row of its own
    """

    context: int
    chunk: int
    rows: int
    long_rope_after: int | None
    stops: frozenset[int]
    ring: int = 0

    def calls(self, seen: Sequence[int], tokens: Sequence[int]) -> list[Call]:
        """The calls that bring the cache from `seen` to `tokens`: only what is new, unless the start differs or LongRoPE
        changes its factors in between; then everything, after a reset (the first call starts at 0)."""
        past = len(seen)
        if past >= len(tokens) or list(tokens[:past]) != list(seen) or self._switches(past, len(tokens)):
            past = 0
        calls = []
        while past < len(tokens):
            left = len(tokens) - past
            row = past % self.ring if self.ring else past
            room = min(left, self.chunk, self.ring - row) if self.ring else min(left, self.chunk)
            if self.chunk == 0:
                call = Call("decode" if left == 1 and past else "prefill", past, left)
            elif room > 1 and row + self.chunk <= self.rows:
                call = Call("prefill", past, room)
            else:
                call = Call("decode", past, 1)
            calls.append(call)
            past += call.count
        return calls

    def _switches(self, past: int, total: int) -> bool:
        return self.long_rope_after is not None and 0 < past <= self.long_rope_after < total

    def end(self, token: int, made: int, prompt: int, limit: int) -> str | None:
        """Whether an answer ends with `token`: at a `stop` token, at the `limit` of this answer, or where the cache is full
        (`context`). made: tokens with this one; prompt: tokens before them."""
        if token in self.stops:
            return "stop"
        if made >= limit:
            return "limit"
        return "context" if prompt + made >= self.context else None

    def answer(self, prompt: int, limit: int, chosen: Iterable[int]) -> tuple[list[int], str]:
        """The tokens of an answer without a stop token, and why it ended. prompt: its length."""
        made: list[int] = []
        for token in chosen:
            end = self.end(token, len(made) + 1, prompt, limit)
            if end != "stop":
                made.append(token)
            if end is not None:
                return made, end
        return made, "limit"


def stream(decode: Callable[[list[int]], str], tokens: Iterable[int]) -> Iterator[str]:
    """Text as tokens complete it: a character that is split over several comes with its last one."""
    shown: list[int] = []
    pending: list[int] = []
    for token in tokens:
        pending.append(token)
        before, text = decode(shown), decode(shown + pending)
        text = text[len(before) :] if text.startswith(before) else decode(pending)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield ""
        else:
            # a special token shows nothing: what follows is no start of a text because of it
            shown, pending = (pending if text else shown + pending), []
            yield text

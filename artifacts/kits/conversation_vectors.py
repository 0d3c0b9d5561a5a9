"""Test vectors of conversations, over a toy model that every language can repeat."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

from pocketphi.artifacts.kits.conversation import Conversation, MessageTooLong
from pocketphi.artifacts.kits.reference import Call, ChatFormat, Messages, Rules

FORMAT = ChatFormat(
    "<b>",
    "<d>",
    {"system": ("<s>", "</s>"), "user": ("<u>", "</u>"), "assistant": ("<a>", "</a>")},
    "<a>",
    frozenset({"system", "user"}),
)
STOP = 0
Step = dict[str, Any]


class ToyError(Exception):
    """The toy model fails."""


class Toy:
    """Tokens are bytes of UTF-8. What follows depends on every token in the cache: h starts at 1 and becomes
    (31·h + token) mod 65,521 with each; the letter 97 + h mod 29 follows, or a stop token for the last three. It fails in a
    run of one's choice, with half of the tokens in the cache."""

    def __init__(self) -> None:
        self.cache: list[int] = []
        self.fails_in: int | None = None

    def run(self, calls: Sequence[Call], tokens: Sequence[int]) -> int:
        for call in calls:
            if call.start not in (0, len(self.cache)):
                raise AssertionError(f"a call at {call.start} with {len(self.cache)} tokens in the cache")
            self.cache = self.cache[: call.start] + list(tokens[call.start : call.start + call.count])
        if self.fails_in == 0:
            self.cache = self.cache[: -(-len(self.cache) // 2)]
            raise ToyError
        if self.fails_in is not None:
            self.fails_in -= 1
        if self.cache != list(tokens):
            raise AssertionError("the cache holds other tokens")
        letter = functools.reduce(lambda h, token: (31 * h + token) % 65521, tokens, 1) % 29
        return 97 + letter if letter < 26 else STOP

    def step(self, token: int) -> str:
        return chr(token)


def send(text: str, limit: int = 8, stop: int | None = None, fail: int | None = None) -> Step:
    """stop: after so many pieces the answer is stopped; fail: in which run of the model it fails, the prompt's being 0."""
    return {"send": text, "limit": limit, "stop": stop, "fail": fail}


RESET: Step = {"reset": True}

CASES: dict[str, list[list[Step]]] = {
    "turns": [[send("Hello")], [send("And?")], [send("\U0001f642 caf\xe9", 3)]],
    "too long at the start": [[send("x" * 200)], [send("Hi")]],
    "too long in the middle": [[send("Hi")], [send("y" * 150)], [send("z" * 50)], [send("So?")]],
    "just fits, and one too many": [
        step for size in (114, 115, 98, 99) for step in ([send("x" * size)], [send("")], [RESET])
    ],
    "two at once": [[send("Hello"), send("a")], [send("So?")]],
    "many at once": [[send(letter) for letter in "abcde"]],
    "stop, then send": [[send("Hello", stop=2)], [send("And?")]],
    "stop and send at once": [[send("Hello", stop=1), send("And?")], [send("So?")]],
    "stop at the first piece, twice": [[send("a", stop=1)], [send("b", stop=1)], [send("c")]],
    "an error in the prompt": [[send("Hello", fail=0)], [send("Hello")], [send("And?", fail=0)], [send("So?")]],
    "an error in the middle": [[send("Hi")], [send("Hello", fail=3)], [send("So?")]],
    "an error and a message at once": [[send("Hello", fail=1), send("And?")]],
    "too long and a message at once": [[send("x" * 300), send("And?")]],
    "reset": [[send("Hello")], [RESET], [send("Hello")], [RESET], [RESET], [send("And?", 2)]],
    "reset after an error": [[send("Hello", fail=1)], [RESET], [send("Hello")]],
    "full": [[send(letter * 20, 30)] for letter in "abcd"],
    "white space": [[send(" \n a \xa0", 3)], [send("\u3000b", 3)]],
}
SYSTEMS = (None, "Be brief.", " \n\tBe brief.\u3000\n")
RULES = (Rules(128, 0, 0, None, frozenset({STOP})), Rules(128, 16, 96, 40, frozenset({STOP})))


def conversation_vectors() -> dict[str, Any]:
    """Each case: groups of steps; those of one group begin at once, and their answers come one after the other, in order."""
    format_ = {**vars(FORMAT), "strips": sorted(FORMAT.strips)}
    cases = [
        {"name": name, "system": system, "rules": index, "groups": play(CASES[name], RULES[index], system)}
        for name, system, index in itertools.product(CASES, SYSTEMS, range(len(RULES)))
    ]
    return {"format": format_, "rules": [{**vars(r), "stops": sorted(r.stops)} for r in RULES], "cases": cases}


def play(groups: Sequence[Sequence[Step]], rules: Rules, system: str | None) -> list[list[Step]]:
    """The steps with what comes of them: pieces, error, and the messages and the cache's tokens afterwards."""
    toy = Toy()
    talk = Conversation(rules, encode, system)
    return [[{**step, **take(step, talk, toy)} for step in group] for group in groups]


def encode(messages: Messages) -> list[int]:
    """The prompt's bytes."""
    return list(FORMAT.render(messages).encode())


def take(step: Step, talk: Conversation, toy: Toy) -> Step:
    """What comes of a step."""
    pieces: list[str] = []
    error = None
    if "reset" in step:
        talk.reset()
    else:
        toy.fails_in = step["fail"]
        answer = talk.send(step["send"], step["limit"], toy, toy)
        try:
            while len(pieces) != step["stop"] and (piece := next(answer, None)) is not None:
                pieces.append(piece)
        except (MessageTooLong, ToyError) as caught:
            error = str(caught) or "failed"
        answer.close()
        toy.fails_in = None
    return {"pieces": pieces, "error": error, "messages": list(talk.messages), "seen": list(talk.seen)}

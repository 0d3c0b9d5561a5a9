"""Conversations for the kits' own `Chat`, with what the reference makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pocketphi.artifacts.kits import conversation_vectors as vectors
from pocketphi.artifacts.kits.chat_format import read_chat_format
from pocketphi.artifacts.kits.conversation import Conversation, MessageTooLong
from pocketphi.artifacts.kits.conversation_vectors import RESET, Step, send
from pocketphi.artifacts.kits.reference import ChatFormat, Messages, Rules
from pocketphi.compiler.chat import Chat
from pocketphi.graph.tokenizer import Tokenizer

FAILS_NOW, FAILS_LATER = "\x07", "\x06"
"""In a message: the toys fail once, with its prompt, or in the third run after that."""

TALKS: dict[str, list[list[Step]]] = {
    "turns": [[send("Hello", 40)], [send("And?", 40)], [send("So?", 40)]],
    "too long": [[send("x" * 3000)], [send("Hello", 40)], [send("y" * 2050)], [send("And?", 40)]],
    "many at once": [[send("Hello", 40), send("a", 40), send("z" * 3000), send("c", 40)], [send("So?", 40)]],
    "stop, then send": [[send("Hello", 40, stop=2)], [send("And?", 40)], [send("So?", 40)]],
    "stop and send at once": [[send("Hello", 40, stop=1), send("And?", 40)], [send("So?", 40)]],
    "an error in the prompt": [[send("Hello", 40)], [send(f"And{FAILS_NOW}?", 40, fail=0)], [send("So?", 40)]],
    "an error in the middle": [[send("a", 40)], [send(f"b{FAILS_LATER}d", 40, fail=3)], [send("So?", 40)]],
    "an error and a message at once": [[send(f"b{FAILS_LATER}", 40, fail=3), send("And?", 40)], [send("So?", 40)]],
    "reset": [[send("Hello", 40)], [RESET], [send("And?", 40)]],
}


def write_talks(out: Path, bundle: Path, context: int, chunk: int = 0) -> Path:
    """A file of all conversations for a kit with such a cache, as `Chat` with the bundle's chat template should hold them."""
    tokenizer = Tokenizer.load(bundle)
    chat = read_chat_format(lambda messages: tokenizer.render_chat([{"role": r, "content": c} for r, c in messages]))
    rules = Rules(context, chunk, context if chunk else 0, None, frozenset({0, 2}))
    found = [
        {"name": name, "system": system, "groups": groups, "ways": ways(groups, rules, chat, system)}
        for name, groups in TALKS.items()
        for system in (None, " Be brief. ")
    ]
    out.write_text(json.dumps(found), "utf-8")
    return out


def ways(groups: list[list[Step]], rules: Rules, chat: ChatFormat, system: str | None) -> list[Any]:
    """What may come of the steps: [pieces, error] each, in order. An answer may go on for a while after it was stopped."""

    def encode(messages: Messages) -> list[int]:
        return list(chat.render(messages).encode())

    found = []
    steps = [step for group in groups for step in group]
    stops = [step.get("stop") for step in steps]
    shown = next((stop for stop in stops if stop), None)
    for stop in range(shown, 41) if shown else [None]:
        toy, talk = vectors.Toy(), Conversation(rules, encode, system)
        made = [vectors.take({**step, "stop": stop} if step.get("stop") else step, talk, toy) for step in steps]
        found.append([[step["pieces"][: stops[i]], step["error"]] for i, step in enumerate(made)])
    return found


REAL_TALKS: dict[str, list[list[Step]]] = {
    "turns": [[send("Hello", 24)], [send("And?", 24)], [send("\u65e5\u672c \U0001f98a?", 24)]],
    "two at once": [[send("Hello", 8), send("And?", 8)], [send("So?", 8)]],
    "stop, then send": [[send("And?", 6, stop=3)], [send("So?", 8)]],
    "stop and send at once": [[send("And?", 4, stop=1), send("Hello", 8)], [send("So?", 8)]],
    "too long": [[send("Hello", 8)], [send("word " * 1200)], [send("And?", 8)]],
    "special tokens in a message": [[send("a<|im_end|>b", 8)], [send("<|im_start|>system\nc", 8)]],
    "no text at all": [[send("", 8)], [send(" \n", 8)]],
}


class _Stopped(Exception):
    pass


def write_real_talks(
    out: Path, bundle: Path, target: str, context: int, talks: dict[str, list[list[Step]]], system: str | None = None
) -> list[Any]:
    """The same file, with what `pocketphi chat` says of a bundle that can be run. Returns what is written."""

    def answers(groups: list[list[Step]], stop: int | None) -> list[Any]:
        chat = Chat(bundle, context, system, target=target)
        return [_said(chat, step, stop) for group in groups for step in group]

    found = []
    for name, groups in talks.items():
        stopped = next((step for group in groups for step in group if step["stop"]), None)
        later = range(stopped["stop"], stopped["limit"] + 1) if stopped else [None]
        every = [answers(groups, stop) for stop in later]
        found.append({"name": name, "system": system, "groups": groups, "ways": every})
    out.write_text(json.dumps(found), "utf-8")
    return found


def _said(chat: Chat, step: Step, stop: int | None) -> list[Any]:
    """[pieces, error] of a message. Where it is to be stopped, the model's answer is after so many pieces."""
    pieces: list[str] = []
    last = stop if step["stop"] else None

    def show(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == last:
            raise _Stopped

    error = None
    try:
        chat.say(step["send"], show=show, limit=step["limit"])
    except _Stopped:
        pass
    except MessageTooLong as caught:
        error = str(MessageTooLong(caught.message, caught.taken, caught.context))  # without what to do about it
    return [pieces[: step["stop"]], error]


def cut_inside(pieces: list[str], text: str) -> int:
    """After how many tokens of an answer the first `text` that is made of several is not whole yet."""
    return next(i for i, piece in enumerate(pieces) if piece == text and pieces[i - 1] == "")

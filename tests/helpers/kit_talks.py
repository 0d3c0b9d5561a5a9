"""Conversations for the kits' own `Chat`, with what the reference makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pocketphi.artifacts.kits import conversation_vectors as vectors
from pocketphi.artifacts.kits.chat_format import read_chat_format
from pocketphi.artifacts.kits.conversation import Conversation
from pocketphi.artifacts.kits.conversation_vectors import RESET, Step, send
from pocketphi.artifacts.kits.reference import ChatFormat, Messages, Rules
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

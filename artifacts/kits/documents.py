"""Search in documents for the app kits: the constants of `artifacts.retrieval`, and test vectors of what it does."""

from __future__ import annotations

import base64
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pocketphi.artifacts.retrieval import index, prompt, words
from pocketphi.artifacts.retrieval.grounded import SHORT, Messages, grounded
from pocketphi.artifacts.retrieval.passages import Passage

_TEXTS = (
    "The price is 4,096 francs, or 1,234,567 sen.",
    "What is the price of it?",
    "Who are you?",
    "東京都の天気",
    "ราคา 12,5 and 𠀀𠀁𠀂 x",
    "Caf\xe9_au_lait Na\xefve stra\xdfe \u0130stanbul",
    "re\u0301sume\u0301 Bu\u0308ro tie\u0302\u0301ng x\u0332y \u03ac\u0439 Donau\xaddampf",
    "\u0643\u0650\u062a\u064e\u0640\u0627\u0628 \u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \ufb2a\u05dc\u05d5\u05dd",
    "\u304b\u3099\u304d \u1112\u1161\u11ab\u1100\u1173\u11af \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22\u0e33",
    "don't e-mail a.b@c.de",
    " ".join(f"w{i}" for i in range(40)),
    "",
)
_PASSAGES = (
    Passage(
        "boats.md", "lines 3-5", "Boats", "A blue boat costs nine francs. It carries four people across the harbour."
    ),
    Passage("boats.md", "lines 7-9", "Boats > Ferries", "The ferry leaves the harbour at half past six in winter."),
    Passage("deep/ferry.txt", "line 1", "", "In summer the ferry leaves at five, and takes 1,200 people a day."),
    Passage("again.md", "line 3", "Boats", "A blue boat costs nine francs. It carries four people across the harbour."),
    Passage("tokyo.html", "page", "天気", "東京都の天気は晴れです。明日は雨が降ります。"),
    Passage("caf\xe9.md", "line 2", "Menu > Drinks", "A caf\xe9 au lait is three francs, tea is two."),
)
_QUESTIONS = (
    ("What does a blue boat cost?", 3),
    ("When does the ferry leave the harbour in winter?", 12),
    ("ferries leaving 1200 people", 2),
    ("東京の天気", 3),
    ("cafe", 3),
    ("cafe\u0301", 3),
    ("common topic of every page", 5),
    ("nothing is like zzzz", 3),
    ("Who are you?", 3),
    ("", 3),
)
_TALKS: tuple[tuple[str, Messages, int], ...] = (
    ("What does a blue boat cost?", (), 2048),
    ("And the ferry?", (("user", "What does a boat cost in winter?"), ("assistant", "Nine.")), 2048),
    ("And tea?", (("system", "Be brief."),), 512),
    ("What does a blue boat cost?", (), 300),
    ("What does a blue boat cost?", (), 120),
    ("zzzz", (("user", "yyyy"), ("assistant", "")), 512),
)


def document_values() -> dict[str, Any]:
    """What the templates call the constants."""
    return {
        "stop_words": sorted(words.STOP),
        "most_words": words.MOST_WORDS,
        "introduction": prompt.INTRODUCTION,
        "most_passages": prompt.MOST,
        "short": SHORT,
        "application": index.APPLICATION,
        "index_format": index.FORMAT,
        "common": index.COMMON,
        "few": index.FEW,
        "looked_at": index.LOOKED_AT,
    }


def document_vectors() -> dict[str, Any]:
    """Words of texts, an index in Base64 and what is found in it, and questions with passages."""
    with tempfile.TemporaryDirectory(prefix="pocketphi-index-") as folder:
        path = Path(folder) / "index"
        index.write_index(path, _passages(), "vectors")
        opened = index.Index.open(path)
        return {
            "words": [{"text": text, "spaced": words.spaced(text), "words": words.words_of(text)} for text in _TEXTS],
            "index": base64.b64encode(path.read_bytes()).decode(),
            "searches": [
                {"question": question, "most": most, "found": _written(opened.search(question, most))}
                for question, most in _QUESTIONS
            ],
            "grounded": [_grounded(opened, *talk) for talk in _talks(opened)],
        }


def _passages() -> Iterator[Passage]:
    """Enough passages that a word can be common."""
    yield from _PASSAGES
    rng = random.Random(5)
    rare = [a + b for a in ("lo", "mi", "ra", "su", "ten") for b in ("ba", "do", "fel", "gan", "kir")]
    for number in range(index.FEW):
        text = " ".join(rng.choices(rare, k=4))
        yield Passage(f"page{number}.txt", "line 1", "", f"Common words: {text}, topic {number % 7}.")


def _talks(opened: index.Index) -> Iterator[tuple[str, Messages, int]]:
    """And conversations that are too long until an earlier question loses its passages."""
    yield from _TALKS
    first = grounded(opened, _TALKS[0][0], (), _bytes, 1024)
    said = (*first.messages, ("user", first.message), ("assistant", "Nine francs."))
    for context in (512, 700, 1400):
        yield "When does the ferry leave in winter?", said, context
    yield "And in summer?", said, 2048


def _grounded(opened: index.Index, question: str, said: Messages, context: int) -> dict[str, Any]:
    made = grounded(opened, question, said, _bytes, context)
    asked = {"question": question, "said": list(said), "context": context}
    return {**asked, "message": made.message, "passages": _written(made.passages), "messages": list(made.messages)}


def _bytes(messages: Messages) -> bytes:
    """As many tokens as the bytes of all messages, and seven for each: a prompt that every language can repeat."""
    return b"".join(bytes(7) + content.encode() for _, content in messages)


def _written(passages: Sequence[Passage]) -> list[list[str]]:
    return [list(vars(one).values()) for one in passages]

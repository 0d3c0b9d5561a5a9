"""How long a text may be that a number of tokens can hold: a bound that is known before the text is cut into tokens.

A text of megabytes takes a tokenizer many seconds. Where every character of a text ends up in a token, N tokens hold no more
characters than N of the longest piece. That is so for the tokenizers of language models. What may shorten a text on the way
is counted: a normalizer that composes characters (NFC) makes one of at most four. Blanks are another matter, as special tokens
may swallow the blanks beside them, and some cuts drop them: there they do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pocketphi.graph.token_bytes import BYTE_CHARACTERS, pieces_of

_COMPOSED = 4
"""Code points of the longest canonical decomposition of a character, as of U+1F82 (Unicode 16, UAX #15)."""
_KEPT = ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_WHOLE = {"ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "FixedLength"}
_DROP_BLANKS = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer"}
_GROW = {"Prepend", "Lowercase", "NFD", "NFKD", "ByteLevel"}


@dataclass(frozen=True)
class TextRoom:
    """characters: of a text, that one token can stand for at most; blanks: whether blanks count as characters"""

    characters: int
    blanks: bool

    def most(self, tokens: int) -> int:
        """Characters that so many tokens hold at most."""
        return self.characters * tokens

    def count(self, text: str) -> int:
        """The characters of a text that have to be held."""
        return len(text) if self.blanks else sum(map(len, text.split()))


def text_room(definition: Mapping[str, Any]) -> TextRoom | None:
    """definition: a `tokenizer.json`; None for a tokenizer that may drop what it does not know, or make one token of any
    number of characters."""
    added = definition.get("added_tokens") or []
    cuts = list(_steps(definition.get("pre_tokenizer"), "pretokenizers"))
    if not _holds_everything(definition["model"], cuts) or not all(map(_keeps, cuts)):
        return None
    shorter = 1
    for step in _steps(definition.get("normalizer"), "normalizers"):
        made = _shortens(step)
        if made is None:
            return None
        shorter *= made
    pieces = [piece for _, piece in pieces_of(definition["model"])] + [one["content"] for one in added]
    swallowed = any(one["lstrip"] or one["rstrip"] for one in added)
    dropped = any(cut["type"] in _DROP_BLANKS for cut in cuts)
    return TextRoom(shorter * max(map(len, pieces)), not (swallowed or dropped))


def _holds_everything(model: Mapping[str, Any], cuts: list[dict[str, Any]]) -> bool:
    """Whether each character, or each of its bytes, has a token of its own at the worst."""
    known = {piece for _, piece in pieces_of(model)}
    if model.get("type") not in ("BPE", "Unigram"):
        return False
    if any(cut["type"] == "ByteLevel" for cut in cuts) and known >= BYTE_CHARACTERS:
        return True
    if model.get("byte_fallback") and all(f"<0x{byte:02X}>" in known for byte in range(256)):
        return True
    return model["type"] == "BPE" and model.get("unk_token") is not None and not model.get("fuse_unk")


def _keeps(cut: Mapping[str, Any]) -> bool:
    """Whether a cut drops nothing but blanks."""
    if cut["type"] in ("Split", "Punctuation"):
        return cut.get("behavior") in _KEPT
    return cut["type"] in _WHOLE | _DROP_BLANKS


def _shortens(step: Mapping[str, Any]) -> int | None:
    """How many times shorter a step of a normalizer can make a text; None where no bound is known."""
    if step["type"] in _GROW:
        return 1
    if step["type"] in ("NFC", "NFKC"):
        return _COMPOSED
    literal = step["pattern"].get("String") if step["type"] == "Replace" else None
    if literal is None or not step["content"]:
        return None
    return -(-len(literal) // len(step["content"]))


def _steps(step: Any, inner: str) -> Iterator[dict[str, Any]]:
    if isinstance(step, dict):
        if step.get("type") == "Sequence":
            for one in step[inner]:
                yield from _steps(one, inner)
        else:
            yield step

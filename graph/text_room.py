"""How long a text may be that a number of tokens can hold: a bound that is known before the text is cut into tokens.

A text of megabytes takes a tokenizer many seconds. Where every character of a text ends up in a token, N tokens hold no more
characters than N of the longest piece. That is so for the tokenizers of language models. What may shorten a text on the way
is counted: a normalizer that composes characters (NFC) makes one of at most four. What a tokenizer drops does not count: blanks
beside special tokens that swallow them, or where a cut leaves them out; characters with a byte that a byte-level vocabulary
lacks, such as control characters that were in no text that it was made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pocketphi.graph.token_bytes import BYTE_CHARACTERS, pieces_of, steps_of

_COMPOSED = 4
"""Code points of the longest canonical decomposition of a character, as of U+1F82 (Unicode 16, UAX #15)."""
_INSIDE = bytes(range(0x80, 0xC0))
"""Bytes of a character in UTF-8 that are not its first."""
_KEPT = ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_WHOLE = {"ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "FixedLength"}
_DROP_BLANKS = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer"}
_GROW = {"Prepend", "Lowercase", "NFD", "NFKD", "ByteLevel"}


@dataclass(frozen=True)
class TextRoom:
    """characters: of a text, that one token can stand for at most; blanks: whether blanks count as characters; unknown: bytes
    that begin characters which do not"""

    characters: int
    blanks: bool
    unknown: bytes = b""

    def most(self, tokens: int) -> int:
        """Characters that so many tokens hold at most."""
        return self.characters * tokens

    def count(self, text: str) -> int:
        """The characters of a text that have to be held."""
        kept = text if self.blanks else "".join(text.split())
        return len(kept.encode().translate(None, _INSIDE + self.unknown))


def text_room(definition: Mapping[str, Any]) -> TextRoom | None:
    """definition: a `tokenizer.json`; None for a tokenizer that may drop what it does not know, or make one token of any
    number of characters."""
    added = definition.get("added_tokens") or []
    cuts = list(steps_of(definition.get("pre_tokenizer"), "pretokenizers"))
    unknown = _unknown(definition["model"], cuts)
    if unknown is None or not all(map(_keeps, cuts)):
        return None
    shorter = 1
    for step in steps_of(definition.get("normalizer"), "normalizers"):
        made = _shortens(step)
        if made is None:
            return None
        shorter *= made
    pieces = [piece for _, piece in pieces_of(definition["model"])] + [one["content"] for one in added]
    swallowed = any(one["lstrip"] or one["rstrip"] for one in added)
    dropped = any(cut["type"] in _DROP_BLANKS for cut in cuts)
    return TextRoom(shorter * max(map(len, pieces)), not (swallowed or dropped), unknown)


def _unknown(model: Mapping[str, Any], cuts: list[dict[str, Any]]) -> bytes | None:
    """The first bytes of characters that may get no token; of all others each, or each byte of theirs, has one of its own at
    the worst. None where others may get none too."""
    known = {piece for _, piece in pieces_of(model)}
    if model.get("type") not in ("BPE", "Unigram"):
        return None
    if model.get("byte_fallback") and all(f"<0x{byte:02X}>" in known for byte in range(256)):
        return b""
    has_unknown = model["type"] == "BPE" and model.get("unk_token") is not None
    if has_unknown and not model.get("fuse_unk"):
        return b""
    if has_unknown or model["type"] == "Unigram" or not any(cut["type"] == "ByteLevel" for cut in cuts):
        return None
    missing = bytes(sorted(byte[0] for one, byte in BYTE_CHARACTERS.items() if one not in known))
    return None if set(missing) & set(_INSIDE) else missing


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

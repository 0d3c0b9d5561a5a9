"""The bytes that each token of a vocabulary stands for, also where they are a part of a character."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Two kinds of vocabularies write bytes that are no character by themselves: byte-level ones, whose every piece spells
    bytes by other characters (BYTE_CHARACTERS), and those with pieces `<0x00>` to `<0xFF>`. What a decoder does to all
    pieces, those of added tokens too, is done to them here: a Replace for the space, and what is taken away at the start of a
    text."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        """definition: a `tokenizer.json`."""
        added = definition.get("added_tokens") or []
        self._pieces = dict(pieces_of(definition["model"])) | {one["id"]: one["content"] for one in added}
        self._special = {one["id"] for one in added if one["special"]}
        steps = list(steps_of(definition.get("decoder"), "decoders"))
        kinds = {step["type"] for step in steps}
        self._byte_level, self._byte_pieces = "ByteLevel" in kinds, "ByteFallback" in kinds
        spaces = [step for step in steps if step["type"] == "Metaspace"]
        self._replaced = [
            (step["pattern"]["String"], step["content"])
            for step in steps
            if step["type"] == "Replace" and "String" in step["pattern"]
        ] + [(step["replacement"], " ") for step in spaces]
        self._dropped = [step["replacement"] for step in spaces if step["prepend_scheme"] != "never"]
        self._stripped = sum(step["start"] for step in steps if step["type"] == "Strip" and step["content"] == " ")

    def of(self, token: int, first: bool = False) -> bytes | None:
        """The bytes of a token in a text; first: at its start, where a decoder may take spaces away. None for a special token,
        which is no text."""
        if token in self._special:
            return None
        found = self._decoded(self.name(token), first)
        for _ in range(self._stripped if first else 0):
            found = found.removeprefix(b" ")
        return found

    def _decoded(self, piece: str, first: bool) -> bytes:
        if self._byte_level:
            spelled = [BYTE_CHARACTERS.get(one) for one in piece]
            return piece.encode() if None in spelled else b"".join(filter(None, spelled))
        if self._byte_pieces and (found := _BYTE.fullmatch(piece)):
            return bytes([int(found[1], 16)])
        for space in self._dropped if first else ():
            piece = piece.replace(space, "")
        for pattern, content in self._replaced:
            piece = piece.replace(pattern, content)
        return piece.encode()

    def name(self, token: int) -> str:
        """As the vocabulary writes it."""
        return self._pieces.get(token, "")


def pieces_of(model: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """(id, piece) of a `tokenizer.json`'s model."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # of Unigram: [piece, score]
        yield from ((number, piece) for number, (piece, _) in enumerate(vocabulary))
    else:
        yield from ((number, piece) for piece, number in vocabulary.items())


def steps_of(part: Any, inner: str) -> Iterator[dict[str, Any]]:
    """The steps of a part of a `tokenizer.json`, those of a Sequence one by one. inner: what a Sequence calls them."""
    if not isinstance(part, dict):
        return
    if part.get("type") != "Sequence":
        yield part
        return
    for one in part[inner]:
        yield from steps_of(one, inner)


def _byte_characters() -> dict[str, bytes]:
    """GPT-2's alphabet (`bytes_to_unicode`, openai/gpt-2 encoder.py): a printable byte of Latin-1 is itself, each other one
    is the next character from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): bytes([byte]) for byte in printable} | {
        chr(256 + i): bytes([byte]) for i, byte in enumerate(others)
    }


BYTE_CHARACTERS = _byte_characters()
"""The characters that byte-level pieces are made of, and the byte of each."""

"""Cut a text into passages: a few paragraphs under one heading, short enough that several go into a prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pocketphi.artifacts.retrieval.sections import Block, sections_of

LENGTH = 600
"""Characters of a passage that is not cut further: about 150 tokens of English. Of the questions in `benchmarks/questions.toml`
more met their passage, within 3,600 characters, than with 400 or 900."""
_SENTENCE_END = re.compile(r"[.!?…]\s+|[。！？]\s*")


@dataclass(frozen=True)
class Passage:
    """file: by its path in the folder; place: where in it, such as `lines 3-9`; heading: with those above it, `A > B`."""

    file: str
    place: str
    heading: str
    text: str

    @property
    def source(self) -> str:
        """Where it stands, for people."""
        return ", ".join(filter(None, (self.file, self.place, self.heading)))


def passages_of(file: str, text: str, place: str = "") -> Iterator[Passage]:
    """The passages of a text with the headings that its kind of file has, in their order.

    place: of all of it, for texts whose lines nobody can look up; the numbers of lines otherwise
    """
    for heading, blocks in sections_of(file, text):
        held: list[Block] = []
        for block in (part for whole in blocks for part in _parts(whole)):
            if held and (block.goes_on or sum(len(one.text) for one in held) + len(block.text) > LENGTH):
                yield _passage(file, place, heading, held)
                held = []
            held.append(block)
        if held:
            yield _passage(file, place, heading, held)


def _passage(file: str, place: str, heading: str, blocks: list[Block]) -> Passage:
    first, last = blocks[0].first, blocks[-1].last
    lines = f"line {first}" if first == last else f"lines {first}-{last}"
    text = "\n\n".join(block.text for block in blocks)
    return Passage(file, place or lines, heading, text)


def _parts(block: Block) -> Iterator[Block]:
    """A block that is too long in parts: between its lines, in a long line between its sentences, or else between its words. A
    part is text as it stands there, without the space at its ends."""
    if len(block.text) <= LENGTH:
        yield block
        return
    held, first, last, goes_on = "", block.first, block.first, False
    for number, line in enumerate(block.text.split("\n"), block.first):
        for count, piece in enumerate(_pieces(line)):
            joined = held + ("" if count else "\n") + piece
            if held and (len(joined.rstrip()) > LENGTH or len(joined) > 2 * LENGTH):  # or nothing but space comes
                yield Block(first, last, held.rstrip(), goes_on)
                held, goes_on = "", True
            if held:
                held = joined
            elif piece.strip():
                held, first = piece.lstrip() if count else piece, number
            if piece.strip():
                last = number
    yield Block(first, last, held.rstrip(), goes_on)


def _pieces(line: str) -> Iterator[str]:
    """Which make the line again, put together: its sentences, and words of one that is too long."""
    if len(line) <= LENGTH:
        yield line
        return
    at = 0
    for end in [*(found.end() for found in _SENTENCE_END.finditer(line)), len(line)]:
        while end - at > LENGTH:
            cut = line.rfind(" ", at + 1, at + LENGTH) + 1 or at + LENGTH
            yield line[at:cut]
            at = cut
        yield line[at:end]
        at = end

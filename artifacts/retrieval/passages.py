"""Cut a text into passages: a few paragraphs under one heading, short enough that several go into a prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LENGTH = 600
"""Characters of a passage that is not cut further: about 150 tokens of English. Of the questions in `benchmarks/questions.toml`
more met their passage, within 3,600 characters, than with 400 or 900."""
_HEADING = re.compile(r"(#{1,6})\s+(\S.*)")
_UNDERLINE = re.compile(r"([=\-~^\"'+*#])\1{2,}$")
_FENCE = re.compile(r"\s*(```|~~~)")
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s*")


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


@dataclass(frozen=True)
class _Block:
    """Lines that belong together. first, last: their numbers, from 1."""

    first: int
    last: int
    text: str


def passages_of(file: str, text: str, place: str = "") -> Iterator[Passage]:
    """The passages of a text with the headings of Markdown or reStructuredText, in their order.

    place: of all of it, for texts whose lines nobody can look up; the numbers of lines otherwise
    """
    for heading, blocks in _sections(text):
        held: list[_Block] = []
        for block in (part for whole in blocks for part in _parts(whole)):
            if held and sum(len(one.text) for one in held) + len(block.text) > LENGTH:
                yield _passage(file, place, heading, held)
                held = []
            held.append(block)
        if held:
            yield _passage(file, place, heading, held)


def _passage(file: str, place: str, heading: str, blocks: list[_Block]) -> Passage:
    first, last = blocks[0].first, blocks[-1].last
    lines = f"line {first}" if first == last else f"lines {first}-{last}"
    text = "\n\n".join(block.text for block in blocks)
    return Passage(file, place or lines, heading, text)


def _sections(text: str) -> Iterator[tuple[str, list[_Block]]]:
    """Each heading with the blocks below it."""
    above: dict[int, str] = {}
    levels: list[str] = []  # underlines of reStructuredText, in the order in which they came
    blocks: list[_Block] = []
    held: list[str] = []
    first, fenced = 0, False
    for number, line in enumerate(text.splitlines(), 1):
        if _FENCE.match(line):
            fenced = not fenced
        level, title = (0, "") if fenced else _heading(line, held, levels)
        if held and not fenced and (level or not line.strip()):
            blocks.append(_block(first, held))
            held = []
        if level:
            if blocks:
                yield " > ".join(above.values()), blocks
            above = {at: name for at, name in above.items() if at < level} | {level: title}
            blocks = []
        elif line.strip() or held:
            first = first if held else number
            held.append(line.rstrip())
    if held:
        blocks.append(_block(first, held))
    if blocks:
        yield " > ".join(above.values()), blocks


def _heading(line: str, held: list[str], levels: list[str]) -> tuple[int, str]:
    """The level of a heading that this line makes, from 1, and its title; 0 where it makes none. One of reStructuredText is the
    line before, which leaves `held`."""
    if found := _HEADING.match(line):
        return len(found[1]), found[2].rstrip().rstrip("#").rstrip()
    under = _UNDERLINE.match(line.rstrip())
    if not under or len(held) != 1 or len(line.rstrip()) < len(held[0].strip()) // 2:
        return 0, ""
    if under[1] not in levels:
        levels.append(under[1])
    return levels.index(under[1]) + 1, held.pop().strip()


def _block(first: int, lines: list[str]) -> _Block:
    """Of lines of which the first is none that holds only space."""
    while not lines[-1]:
        lines.pop()
    return _Block(first, first + len(lines) - 1, "\n".join(lines))


def _parts(block: _Block) -> Iterator[_Block]:
    """A block that is too long in parts: between its lines, within a long line between its sentences, or anywhere."""
    if len(block.text) <= LENGTH:
        yield block
        return
    held, first = "", block.first
    for number, line in enumerate(block.text.split("\n"), block.first):
        for piece in _pieces(line):
            joined = piece if not held else f"{held}{' ' if number == first else chr(10)}{piece}"
            if held and len(joined) > LENGTH:
                yield _Block(first, number, held)
                held, first = piece, number
            else:
                held = joined
    if held:
        yield _Block(first, block.last, held)


def _pieces(line: str) -> Iterator[str]:
    if len(line) <= LENGTH:
        yield line
        return
    for sentence in _SENTENCE.split(line):
        for at in range(0, len(sentence), LENGTH):
            yield sentence[at : at + LENGTH]

"""The sections of a text: its headings, as its kind of file writes them, and the paragraphs below each."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

_LINE_END = re.compile(r"\r\n|\r|\n")
"""What ends a line in an editor; `str.splitlines` ends some at a form feed too."""
PAGE_HEADING = "\0"
"""What stands before the `#` of a heading in the text of a page, whose other lines may begin with # too."""
LONGEST_HEADING = 300
"""Characters. What is longer is a text that somebody marked as a heading, or never ended: each passage below would hold it."""
_HEADING = re.compile(r"(#{1,6})\s+(\S.*)")
_PAGE_HEADING = re.compile(PAGE_HEADING + _HEADING.pattern)
_RULE = re.compile(r"([!-/:-@\[-`{-~])\1{2,}$")
_FENCE = re.compile(r"\s*(`{3,}(?=[^`]*$)|~{3,})\s*")


@dataclass(frozen=True)
class Block:
    """Lines that belong together. first, last: their numbers, from 1; goes_on: whether they are the rest of a longer one."""

    first: int
    last: int
    text: str
    goes_on: bool = False


@dataclass(frozen=True)
class _Marks:
    """heading: a line that is one, with its hashes and its title; under: what the line below one may be made of; over: whether
    such a line may stand above it too; fences: what lines around code are made of."""

    heading: re.Pattern[str] | None
    under: str
    over: bool
    fences: str


_MARKDOWN = _Marks(_HEADING, "=-", False, "`~")
_RESTRUCTURED = _Marks(None, string.punctuation, True, "")
_ASCIIDOC = _Marks(re.compile(r"([=#]{1,6})\s+(\S.*)"), "", False, "`")
_ORG = _Marks(re.compile(r"(\*{1,6})\s+(\S.*)"), "", False, "")
_PAGE = _Marks(_PAGE_HEADING, "", False, "")
_OTHER = _Marks(_HEADING, "=-~^\"'+*#", True, "`")
_BY_SUFFIX = {
    ".md": _MARKDOWN,
    ".markdown": _MARKDOWN,
    ".rst": _RESTRUCTURED,
    ".adoc": _ASCIIDOC,
    ".org": _ORG,
    ".html": _PAGE,
    ".htm": _PAGE,
    ".xhtml": _PAGE,
}


def sections_of(file: str, text: str) -> Iterator[tuple[str, list[Block]]]:
    """Each heading, with those above it, and the blocks below it. One with nothing below it is a block itself.

    file: whose name says how headings are written
    """
    marks = _BY_SUFFIX.get(PurePath(file).suffix.lower(), _OTHER)
    above: dict[int, Block] = {}
    levels = [] if marks.over else list(marks.under)  # lines around titles: as they came, or by the format's order
    blocks: list[Block] = []
    held: list[str] = []
    first, fence = 0, ""
    for number, line in enumerate(_LINE_END.split(text), 1):
        before, fence = fence, _fence(line, fence, marks)
        code = bool(before or fence)
        lines = len(held)
        level, title = (0, "") if code else _heading(line, held, levels, marks)
        at = number - (len(held) < lines)  # of the title
        if held and not code and (level or not line.strip()):
            blocks.append(_block(first, held))
            held = []
        if level:
            yield from _section(above, blocks, level)
            above = {key: one for key, one in above.items() if key < level} | {level: Block(at, at, title)}
            blocks = []
        elif line.strip() or held:
            first = first if held else number
            held.append(line.rstrip())
    if held:
        blocks.append(_block(first, held))
    yield from _section(above, blocks, 0)


def _section(above: dict[int, Block], blocks: list[Block], after: int) -> Iterator[tuple[str, list[Block]]]:
    """above: headings by their level, the last one that of the section; after: level of the next heading, 0 for none."""
    names = [one.text for one in above.values()]
    if not blocks and above and after <= max(above) and names[-1]:
        names, blocks = names[:-1], [above[max(above)]]
    if blocks:
        yield " > ".join(filter(None, names)), blocks


def _fence(line: str, fence: str, marks: _Marks) -> str:
    """What code around this line began with, "" outside of code. fence: before this line.

    As CommonMark has it: backticks with others after them are text, and code ends with as many of the same, or more.
    """
    found = _FENCE.match(line)
    if not fence:
        return found[1] if found and found[1][0] in marks.fences else ""
    ends = found and found[1].startswith(fence) and found.end() == len(line)
    return "" if ends else fence


def _heading(line: str, held: list[str], levels: list[str], marks: _Marks) -> tuple[int, str]:
    """The level of a heading that this line makes, from 1, and its title; 0 where it makes none. Lines before that belong to it
    leave `held`."""
    if marks.heading and (found := marks.heading.match(line)):
        title = _without_hashes(found[2].rstrip())
        return (len(found[1]), title) if len(title) <= LONGEST_HEADING else (0, "")
    under, over = _RULE.match(line.rstrip()), _RULE.match(held[0]) if held else None
    if not under or under[1] not in marks.under or len(held) != (2 if over else 1):
        return 0, ""
    title = held[-1].strip()
    if len(under[0]) < len(title) // 2 or len(title) > LONGEST_HEADING:
        return 0, ""
    if over and not (marks.over and over[1] == under[1]):
        return 0, ""
    style = under[1] * len(held)
    if style not in levels:
        levels.append(style)
    held.clear()
    return levels.index(style) + 1, title


def _without_hashes(title: str) -> str:
    """`Sails ##` is Sails, and `C#` is C#."""
    short = title.rstrip("#")
    return short.rstrip() if not short or short[-1].isspace() else title


def _block(first: int, lines: list[str]) -> Block:
    """Of lines of which the first is none that holds only space."""
    while not lines[-1]:
        lines.pop()
    return Block(first, first + len(lines) - 1, "\n".join(lines))

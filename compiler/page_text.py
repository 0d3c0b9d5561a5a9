"""The text of an HTML page: paragraphs apart, code with its lines, headings marked."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

from pocketphi.artifacts.retrieval.sections import LONGEST_HEADING, PAGE_HEADING

_IN_LINE = """
a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd map mark nobr picture q rb rp rt rtc ruby s samp slot
small source span strike strong sub sup time tt u var wbr script style template noscript
"""
"""Elements whose text goes on in the line. Every other one begins and ends a paragraph, if it is none of those below."""
_SIDE_BY_SIDE = """
td th button option label input select output meter progress img audio video canvas object embed iframe svg
math semantics annotation mrow mi mn mo ms mtext mspace mstyle mfrac msqrt mroot msub msup msubsup munder mover munderover
"""
"""Elements that stand beside each other in a line, with space between them."""
_INLINE, _SPACED = frozenset(_IN_LINE.split()), frozenset(_SIDE_BY_SIDE.split())
_LINES = frozenset(("br", "tr", "li"))
_HEADINGS = {"title": 1, "h1": 2, "h2": 3, "h3": 4, "h4": 5, "h5": 6, "h6": 6}
_INSIDE_HEADINGS = _INLINE | _SPACED | {"br", "div", "hgroup"}
_HIDDEN = frozenset(("script", "style", "template", "noscript", "svg"))
_AS_WRITTEN = frozenset(("pre", "listing", "xmp", "textarea"))
_SPACE = re.compile(r"\s+")
_UNCLOSED = re.compile("<[a-zA-Z/!?]")


def page_text(page: str) -> str:
    """page: without zero characters. Headings stand as `PAGE_HEADING` says, with the page's title above all.

    A tag or a comment that the page's end cuts off hides what is in it, as in browsers: Python's parser would begin anew at
    each `<` there, and read to the end each time.
    """
    parser = _Page()
    parser.feed(page)
    if not _UNCLOSED.match(parser.rawdata):
        parser.close()
    return parser.text()


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self._parts: list[str] = []
        self._hidden: Counter[str] = Counter()
        self._as_written = 0
        self._heading: tuple[int, int] | None = None  # level, and where it begins in the parts

    def text(self) -> str:
        self._end_heading()
        return "".join(self._parts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _HIDDEN:
            if not +self._hidden:
                self._break(tag)
            self._hidden[tag] += 1
        if +self._hidden:
            return
        if self._heading and tag not in _INSIDE_HEADINGS:
            self._end_heading()  # which nobody has ended
        self._break(tag)
        if tag in _AS_WRITTEN:
            self._as_written += 1
        if tag in _HEADINGS:
            self._heading = (_HEADINGS[tag], len(self._parts))

    def handle_endtag(self, tag: str) -> None:
        if +self._hidden:
            self._hidden[tag] -= min(1, self._hidden[tag])
            return
        if tag in _HEADINGS:
            self._end_heading()
        if tag in _AS_WRITTEN:
            self._as_written = max(0, self._as_written - 1)
        if tag not in ("br", "hr"):
            self._break(tag)

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """`<![` is a comment up to its `>`, as in browsers. The base class raises for what it does not know."""
        return self.parse_bogus_comment(i, report)

    def handle_data(self, data: str) -> None:
        if +self._hidden:
            return
        if self._as_written:
            self._add(data)
            return
        text = _SPACE.sub(" ", data)
        self._add(text.lstrip() if self._is_after_space() else text)

    def _break(self, tag: str) -> None:
        """What comes between the text before a tag and the one after it."""
        if tag in _INLINE:
            return
        if self._heading or tag in _SPACED:
            self._add("" if self._as_written or self._is_after_space() else " ")
        elif self._as_written:
            self._add("\n" if tag == "br" or not self._is_after_space() else "")
        else:
            self._add("\n" if tag in _LINES else "\n\n")

    def _add(self, text: str) -> None:
        if text:
            self._parts.append(text)

    def _is_after_space(self) -> bool:
        return not self._parts or self._parts[-1][-1].isspace()

    def _end_heading(self) -> None:
        if self._heading is None:
            return
        level, begin = self._heading
        title = _SPACE.sub(" ", "".join(self._parts[begin:])).strip()
        mark = f"{PAGE_HEADING}{'#' * level} " if len(title) <= LONGEST_HEADING else ""
        self._parts[begin:] = [f"\n\n{mark}{title}\n\n"] if title else []
        self._heading = None

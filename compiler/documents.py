"""Read a folder of documents as text, file by file."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from pocketphi.artifacts.retrieval.index import write_index
from pocketphi.artifacts.retrieval.passages import Passage, passages_of
from pocketphi.compiler import __version__
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import read_whole

_LARGEST = 64_000_000
"""Bytes of a document."""
_TEXT = {".txt", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex", ".csv", ".tsv", ".log"}
_HTML = {".html", ".htm", ".xhtml"}
_PDF = {".pdf"}
KINDS = (
    "text",
    "Markdown",
    "reStructuredText",
    "AsciiDoc",
    "Org",
    "LaTeX",
    "CSV",
    "HTML",
    "PDF (with pocketphi[docs])",
)


@dataclass
class Indexed:
    """files, passages: how many; left_out: path → why, of files that look like documents; others: how many look like none."""

    files: int = 0
    passages: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    others: int = 0
    bytes: int = 0


Reader = Callable[[Path], Iterator[tuple[str, str]]]
"""Texts of a file, each with its place; "" where lines tell it."""


def index_folder(folder: Path, out: Path, ui: Ui) -> Indexed:
    """Write an index of all documents in a folder and those below. Hidden files, and links out of it, are passed by.

    Raises InputError where there is no document, or no text in any.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder" if folder.exists() else f"{folder}: no such folder")
    made = Indexed()
    readers = dict(_documents(folder, made))
    if not readers:
        raise InputError(f"{folder}: holds no document; known are {', '.join(KINDS)}")
    with ui.task("index", len(readers), "files") as advance:
        write_index(out, _passages(folder, readers, made, advance), __version__)
    made.bytes = out.stat().st_size
    return made


def _documents(folder: Path, made: Indexed) -> Iterator[tuple[Path, Reader]]:
    """Each with what reads it, by name."""
    inside = folder.resolve()
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            reader = None if name.startswith(".") else _reader(path)
            if reader is None:
                made.others += 1
            elif not path.is_symlink() or path.resolve().is_relative_to(inside):
                yield path, reader


def _reader(path: Path) -> Reader | None:
    for suffixes, reader in ((_TEXT, _plain), (_HTML, _html), (_PDF, _pdf)):
        if path.suffix.lower() in suffixes:
            return reader
    return None


def _passages(
    folder: Path, readers: dict[Path, Reader], made: Indexed, advance: Callable[[int], None]
) -> Iterator[Passage]:
    for path, reader in readers.items():
        name = path.relative_to(folder).as_posix()
        try:
            texts = list(reader(path))
        except InputError as error:
            made.left_out[name] = str(error).removeprefix(f"{path}: ")
        else:
            made.files += 1
            for place, text in texts:
                for passage in passages_of(name, text, place):
                    made.passages += 1
                    yield passage
        advance(1)
    if not made.files:
        name, why = next(iter(made.left_out.items()))
        raise InputError(f"{folder}: none of its {len(readers)} documents can be read (first {name}: {why})")
    if not made.passages:
        raise InputError(f"{folder}: its documents hold no text")


def _plain(path: Path) -> Iterator[tuple[str, str]]:
    yield "", _decoded(path)


def _decoded(path: Path) -> str:
    content = read_whole(path, limit=_LARGEST)
    try:
        text = content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text at byte {error.start}") from None
    if "\0" in text:
        raise InputError(f"{path}: is no text: it holds zero bytes")
    return text


def _html(path: Path) -> Iterator[tuple[str, str]]:
    parser = _Html()
    parser.feed(_decoded(path))
    parser.close()
    yield "page", "\n".join(line.strip() for line in "".join(parser.parts).split("\n"))


class _Html(HTMLParser):
    """The text of a page, with headings as Markdown has them."""

    _BREAKS = frozenset(("br", "tr", "li"))
    _BLOCKS = frozenset(("p", "div", "table", "section", "article", "blockquote", "pre", "dt", "dd"))
    _HEADINGS = frozenset(("title", "h1", "h2", "h3", "h4", "h5", "h6"))
    _HIDDEN = frozenset(("script", "style", "template", "noscript", "svg"))

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._HIDDEN:
            self._hidden[tag] += 1
        if tag in self._BREAKS:
            self.parts.append("\n")
        if tag in self._BLOCKS | self._HEADINGS:
            self.parts.append("\n\n")
        if tag in self._HEADINGS:
            self.parts.append("# " if tag == "title" else "#" * int(tag[1]) + " ")

    def handle_endtag(self, tag: str) -> None:
        if self._hidden[tag]:
            self._hidden[tag] -= 1
        if tag in self._BLOCKS | self._HEADINGS:
            self.parts.append("\n\n")
        if tag in ("td", "th"):
            self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not +self._hidden:
            self.parts.append(re.sub(r"\s+", " ", data))


def _pdf(path: Path) -> Iterator[tuple[str, str]]:
    try:
        import pypdf
    except ImportError:
        raise InputError(f"{path}: is a PDF, whose text takes pip install 'pocketphi[docs]'") from None
    read_whole(path, limit=_LARGEST)  # a regular file of bounded size
    try:
        for number, page in enumerate(pypdf.PdfReader(path).pages, 1):
            yield f"page {number}", page.extract_text()
    except Exception as error:  # of a library that reads what anybody may have written
        raise InputError(f"{path}: no text can be read from it ({type(error).__name__})") from None

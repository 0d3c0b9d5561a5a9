"""Read a folder of documents as text, file by file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pocketphi.artifacts.retrieval.index import write_index
from pocketphi.artifacts.retrieval.passages import Passage, passages_of
from pocketphi.compiler import __version__
from pocketphi.compiler.page_text import page_text
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import InputError
from pocketphi.graph.printable import one_line
from pocketphi.graph.reading import named, read_whole, resolved

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
    if not readers and made.left_out:
        raise InputError(f"{folder}: holds no document that can be read (first {_first(made)})")
    if not readers:
        raise InputError(f"{folder}: holds no document; known are {', '.join(KINDS)}")
    with ui.task("index", len(readers), "files") as advance:
        write_index(out, _passages(folder, readers, made, advance), __version__)
    made.bytes = out.stat().st_size
    return made


def _documents(folder: Path, made: Indexed) -> Iterator[tuple[Path, Reader]]:
    """Each with what reads it, by name."""
    inside = folder.resolve()

    def unread(error: OSError) -> None:
        made.left_out[_name(folder, Path(error.filename))] = f"cannot be read ({error.strerror})"

    for root, folders, names in os.walk(folder, onerror=unread):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            reader = None if name.startswith(".") else _reader(path)
            if reader is None:
                made.others += 1
                continue
            try:
                leaves = os.path.islink(path) and not resolved(path).is_relative_to(inside)
            except InputError as error:
                made.left_out[_name(folder, path)] = _why(error, path)
            else:
                if not leaves:
                    yield path, reader


def _name(folder: Path, path: Path) -> str:
    """By its path in the folder. Bytes of a name that are no UTF-8 are written out: an index holds texts."""
    return path.relative_to(folder).as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _why(error: InputError, path: Path) -> str:
    return str(error).removeprefix(f"{one_line(str(path))}: ")


def _first(made: Indexed) -> str:
    name, why = next(iter(made.left_out.items()))
    return f"{named(name)}: {why}"


def _reader(path: Path) -> Reader | None:
    for suffixes, reader in ((_TEXT, _plain), (_HTML, _html), (_PDF, _pdf)):
        if path.suffix.lower() in suffixes:
            return reader
    return None


def _passages(
    folder: Path, readers: dict[Path, Reader], made: Indexed, advance: Callable[[int], None]
) -> Iterator[Passage]:
    for path, reader in readers.items():
        name = _name(folder, path)
        try:
            texts = list(reader(path))
        except InputError as error:
            made.left_out[name] = _why(error, path)
        else:
            made.files += 1
            for place, text in texts:
                for passage in passages_of(name, text, place):
                    made.passages += 1
                    yield passage
        advance(1)
    if not made.files:
        raise InputError(f"{folder}: none of its {len(readers)} documents can be read (first {_first(made)})")
    if not made.passages:
        raise InputError(f"{folder}: its documents hold no text")


def _plain(path: Path) -> Iterator[tuple[str, str]]:
    yield "", _decoded(path)


def _decoded(path: Path) -> str:
    content = read_whole(path, limit=_LARGEST)
    form = "UTF-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "UTF-8"
    try:
        text = content.decode(form).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no {form} text at byte {error.start}") from None
    if "\0" in text:
        raise InputError(f"{path}: is no text: it holds zero bytes")
    return text


def _html(path: Path) -> Iterator[tuple[str, str]]:
    yield "page", page_text(_decoded(path))


def _pdf(path: Path) -> Iterator[tuple[str, str]]:
    try:
        import pypdf
    except ImportError:
        raise InputError(f"{path}: is a PDF, whose text takes pip install 'pocketphi[docs]'") from None
    read_whole(path, limit=_LARGEST)  # a regular file of bounded size
    try:
        for number, page in enumerate(pypdf.PdfReader(path).pages, 1):
            yield f"page {number}", _whole_letters(page.extract_text())
    except Exception as error:  # of a library that reads what anybody may have written
        raise InputError(f"{path}: no text can be read from it ({type(error).__name__})") from None


def _whole_letters(text: str) -> str:
    """Without what a font's table may say and no text can hold: halves of a letter's two numbers, and zeros."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", " ")

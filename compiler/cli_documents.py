"""Commands around one's own documents: make an index, search it."""

from __future__ import annotations

import argparse
from pathlib import Path

from pocketphi.compiler.cli_devices import AddCommand, print_result
from pocketphi.compiler.ui import ui_of
from pocketphi.graph.errors import InputError
from pocketphi.graph.printable import one_line, printable_lines
from pocketphi.graph.ranges import check_number
from pocketphi.graph.reading import place_of

_SHOWN = 5


def add_document_commands(command: AddCommand) -> None:
    """command: makes a parser from a name, the function that runs it, and a help text."""
    index = command("index", _index, "make an index of a folder of documents, for chat --docs")
    index.add_argument("folder", type=Path, help="text, Markdown, reStructuredText, HTML and so on, and PDF")
    index.add_argument("-o", "--out", type=place_of, required=True, metavar="INDEX", help="file to make")
    index.add_argument("--force", action="store_true", help="replace an index that is there")

    search = command("search", _search, "the passages of an index that may answer a question")
    search.add_argument("index", type=Path, metavar="INDEX")
    search.add_argument("question")
    search.add_argument("--most", type=int, default=_SHOWN, help="how many passages, up to 40 (default %(default)s)")


def _index(a: argparse.Namespace) -> int:
    from pocketphi.compiler.documents import index_folder

    if a.out.exists():
        _check_replaced(a.out, a.force)
    if not a.out.parent.is_dir():
        raise InputError(f"-o {a.out}: no such folder: {a.out.parent}")
    made = index_folder(a.folder, a.out, ui_of(a))
    told = [f"{a.out}: {made.passages:,} passages of {made.files:,} files, {made.bytes / 1e6:,.1f} MB"]
    left = [f"left out: {name}: {why}" for name, why in made.left_out.items()]
    told += left[:_SHOWN] + ([f"left out: {len(left) - _SHOWN:,} more files"] if len(left) > _SHOWN else [])
    if made.others:
        told.append(f"{made.others:,} files are no documents that are known here")
    print_result(a, {"index": str(a.out), **vars(made)}, "\n".join(map(one_line, told)))
    return 0


def _check_replaced(out: Path, force: bool) -> None:
    """--force replaces an index, whatever has become of it, and an empty file."""
    from pocketphi.artifacts.retrieval.index import is_index

    if not out.is_file():
        raise InputError(f"-o {out}: expected a file, or a name that is free")
    replaceable = not out.stat().st_size or is_index(out)
    if force and not replaceable:
        raise InputError(f"-o {out}: is no index of documents, and --force replaces nothing else; choose another -o")
    if not force:
        how = "choose another -o" + (" or pass --force to replace it" if replaceable else "")
        raise InputError(f"{out}: exists; {how}")


def _search(a: argparse.Namespace) -> int:
    from pocketphi.artifacts.retrieval.index import LOOKED_AT, Index

    check_number("--most", a.most, 1, LOOKED_AT)
    found = Index.open(a.index).search(a.question, a.most)
    told = "\n\n".join(f"{one_line(one.source)}\n{printable_lines(one.text)}" for one in found) or "nothing"
    print_result(a, [vars(one) for one in found], told)
    return 0

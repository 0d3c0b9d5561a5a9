"""An index of passages: one SQLite file, which the app kits open too.

    about    key, value: `format`, and what people may want to know
    passage  id, file, place, heading, text
    words    a table of FTS5 without content: heading with the file's name, and text, by `words.kept_apart`; rowid = passage.id

A question's words, and each two of them that stand side by side, are looked up together, and the first 40 passages by BM25
(S. Robertson, H. Zaragoza, Foundations and Trends in Information Retrieval 3(4), 2009; FTS5's parameters, a heading's word
counts for two) are put in the order of BM25 · c². c is the part of the question's words that a passage has, each weighted by
its inverse document frequency: one that has them all comes before one that repeats some. Words that stand in more than a
quarter of the passages are left out, as long as others are left: they say little, and cost most.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pocketphi.artifacts.retrieval.passages import Passage
from pocketphi.artifacts.retrieval.words import kept_apart, words_of
from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import lost_link
from pocketphi.graph.writing import new_file

FORMAT = 1
APPLICATION = 0x70706869  # "pphi", in the file's header
_HEAD = 72
"""Bytes of SQLite's header up to the application's number, which it ends with."""
COMMON = 4
"""A word is common where it stands in more than one of so many passages."""
FEW = 200
"""Passages, of which no word is common."""
_SCHEMA = f"""
PRAGMA application_id = {APPLICATION};
PRAGMA page_size = 4096;
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE passage (
  id INTEGER PRIMARY KEY, file TEXT NOT NULL, place TEXT NOT NULL, heading TEXT NOT NULL, text TEXT NOT NULL
);
CREATE VIRTUAL TABLE words USING fts5(heading, text, content='', tokenize="porter unicode61 remove_diacritics 2");
INSERT INTO words(words, rank) VALUES('rank', 'bm25(2.0, 1.0)');
"""
LOOKED_AT = 40
"""Passages that are put in order."""


def write_index(path: Path, passages: Iterable[Passage], version: str) -> None:
    """Write an index; it is whole or not there.

    version: of pocketphi. Raises InputError where it cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="pocketphi-index-") as folder:
            made = Path(folder) / "index"
            with contextlib.closing(sqlite3.connect(made)) as database:
                _fill(database, passages, version)
            with made.open("rb") as source, new_file(path) as file:
                shutil.copyfileobj(source, file, 1 << 20)
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"-o {path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None


def _fill(database: sqlite3.Connection, passages: Iterable[Passage], version: str) -> None:
    database.executescript(_SCHEMA)
    count = 0
    for count, one in enumerate(passages, 1):
        database.execute(
            "INSERT INTO passage VALUES (?, ?, ?, ?, ?)", (count, one.file, one.place, one.heading, one.text)
        )
        words = kept_apart(f"{one.heading} {one.file}"), kept_apart(one.text)
        database.execute("INSERT INTO words(rowid, heading, text) VALUES (?, ?, ?)", (count, *words))
    about = {"format": FORMAT, "pocketphi": version, "passages": count}
    database.executemany("INSERT INTO about VALUES (?, ?)", about.items())
    database.execute("INSERT INTO words(words) VALUES('optimize')")
    database.commit()
    database.execute("VACUUM")


@dataclass(frozen=True)
class Index:
    """path: of the file; passages: how many it has."""

    path: Path
    passages: int
    _database: sqlite3.Connection

    @staticmethod
    def open(path: Path) -> Index:
        """Raises InputError for a file that is no index, or is damaged."""
        if not path.is_file():
            raise lost_link(path) or InputError(_no_file(path))
        if not is_index(path):
            raise InputError(f"{path}: is no index of documents; make one with 'pocketphi index FOLDER -o FILE'")
        uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        with _ours(path):
            database = sqlite3.connect(uri, uri=True, check_same_thread=False)
            database.executescript("PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA query_only = ON")
            about = dict(database.execute("SELECT key, value FROM about LIMIT 100"))
            if about.get("format") != str(FORMAT):
                raise InputError(f"{path}: has another format than {FORMAT}; {_again(path)}")
            if "passages" not in about:
                raise ValueError("it does not say how many passages it has")
            return Index(path, int(about["passages"]), database)

    def search(self, question: str, most: int) -> list[Passage]:
        """The best passages for a question, the best one first; a text that stands in several files comes once.

        most: up to LOOKED_AT. Raises InputError where the file is damaged.
        """
        asked = words_of(question)
        with _ours(self.path):
            weights = self._telling(asked)
            ranked = self._ranked(asked, weights)
            covered = dict.fromkeys(ranked, 0.0)
            for word, weight in weights.items():
                for row in self._having(word, ranked):
                    covered[row] += weight
            order = sorted(ranked, key=lambda row: (-ranked[row] * covered[row] ** 2, row))
            found: dict[str, Passage] = {}
            for row in order:
                passage = self._passage(row)
                found.setdefault(passage.text, passage)
                if len(found) == most:
                    break
            return list(found.values())

    def _passage(self, row: int) -> Passage:
        sql = "SELECT file, place, heading, text FROM passage WHERE id = ?"
        values = self._database.execute(sql, (row,)).fetchone()
        if values is None or not all(isinstance(value, str) for value in values):
            raise ValueError(f"passage {row} is {'missing' if values is None else 'no text'}")
        return Passage(*values)

    def _telling(self, words: list[str]) -> dict[str, float]:
        """Those of the words that tell passages apart, with their inverse document frequency; all where none does."""
        limit = self.passages // COMMON if self.passages >= FEW else self.passages
        counts = {word: self._count(word, limit + 1) for word in words}
        kept = [word for word in words if 0 < counts[word] <= limit] or words
        return {word: math.log1p((self.passages - counts[word] + 0.5) / (counts[word] + 0.5)) for word in kept}

    def _count(self, word: str, most: int) -> int:
        sql = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)"
        return int(self._database.execute(sql, (_quoted(word), most)).fetchone()[0])

    def _ranked(self, asked: list[str], telling: Collection[str]) -> dict[int, float]:
        """The first passages by BM25, with it."""
        pairs = [f"{a} {b}" for a, b in pairwise(asked) if a in telling or b in telling]
        wanted = " OR ".join(map(_quoted, [*telling, *pairs]))
        sql = "SELECT rowid, rank FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?"
        return {row: -rank for row, rank in self._database.execute(sql, (wanted, LOOKED_AT))} if wanted else {}

    def _having(self, word: str, rows: Collection[int]) -> list[int]:
        """Those of the passages that have a word."""
        sql = f"SELECT rowid FROM words WHERE words MATCH ? AND rowid IN ({', '.join(map(str, rows))})"
        return [row for (row,) in self._database.execute(sql, (_quoted(word),))]


def _quoted(word: str) -> str:
    return f'"{word}"'


def is_index(path: Path) -> bool:
    """Whether a file says that it is an index, in whatever state it is. Raises InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return head.startswith(b"SQLite format 3\0") and head[_HEAD - 4 :] == APPLICATION.to_bytes(4, "big")


def _no_file(path: Path) -> str:
    if path.exists():
        return f"{path}: expected an index, a file that 'pocketphi index FOLDER -o FILE' made"
    return f"{path}: no such file; make one with 'pocketphi index FOLDER -o {path}'"


def _again(path: Path) -> str:
    return f"make it again with 'pocketphi index FOLDER -o {path} --force'"


@contextlib.contextmanager
def _ours(path: Path) -> Iterator[None]:
    """Whatever SQLite says of a file is an InputError."""
    try:
        yield
    except (sqlite3.Error, ValueError, OverflowError) as error:  # text that is no UTF-8, numbers beyond 64 bits
        raise InputError(f"{path}: the index is damaged ({error}); {_again(path)}") from None

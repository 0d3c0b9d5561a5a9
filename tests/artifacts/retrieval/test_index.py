"""An index: BM25 by its formula, the order by coverage, words of languages without spaces, and files that are none."""

from __future__ import annotations

import math
import shutil
import sqlite3
from itertools import pairwise
from pathlib import Path

import pytest

from pocketphi.artifacts.retrieval.index import Index, is_index, write_index
from pocketphi.artifacts.retrieval.passages import Passage
from pocketphi.artifacts.retrieval.prompt import INTRODUCTION, fitting, with_passages
from pocketphi.artifacts.retrieval.words import spaced, words_of
from pocketphi.graph.errors import InputError

TEXTS = [
    "zebra lion zebra tiger",
    "lion wolf",
    "zebra wolf bear otter lynx",
    "tiger",
    "otter otter otter zebra",
    "bear lynx otter lion tiger wolf zebra heron crane",
]


def made(path: Path, texts: list[str]) -> Index:
    write_index(path, [Passage(f"{i}.txt", "line 1", "", text) for i, text in enumerate(texts)], "0")
    return Index.open(path)


def by_formula(texts: list[str], question: str) -> list[str]:
    """The order as the module says it, in plain Python. Heading: the file's name, of two words."""
    words = question.split()
    phrases = [[word] for word in words] + [list(pair) for pair in pairwise(words)]
    rows = [text.split() for text in texts]
    mean = sum(len(row) + 2 for row in rows) / len(rows)

    def times(row: list[str], phrase: list[str]) -> int:
        return sum(row[i : i + len(phrase)] == phrase for i in range(len(row)))

    def bm25(row: list[str]) -> float:
        total = 0.0
        for phrase in phrases:
            having = sum(times(one, phrase) > 0 for one in rows)
            idf = max(1e-6, math.log((len(rows) - having + 0.5) / (having + 0.5)))
            n = times(row, phrase)
            total += idf * n * 2.2 / (n + 1.2 * (0.25 + 0.75 * (len(row) + 2) / mean))
        return total

    def idf(word: str) -> float:
        having = sum(word in row for row in rows)
        return math.log1p((len(rows) - having + 0.5) / (having + 0.5))

    scores = [bm25(row) * sum(idf(word) for word in words if word in row) ** 2 for row in rows]
    found = [i for i, row in enumerate(rows) if any(word in row for word in words)]
    return [texts[i] for i in sorted(found, key=lambda i: (-scores[i], i))]


@pytest.mark.parametrize(
    "question", ["otter", "lynx bear", "wolf lion", "zebra wolf bear", "crane tiger otter", "heron"]
)
def test_the_order_is_that_of_the_formula(question: str, tmp_path: Path) -> None:
    index = made(tmp_path / "i", TEXTS)
    assert [one.text for one in index.search(question, 10)] == by_formula(TEXTS, question)
    assert [one.text for one in index.search(question, 2)] == by_formula(TEXTS, question)[:2]


def test_other_forms_of_a_word_are_found(tmp_path: Path) -> None:
    index = made(
        tmp_path / "i", ["Prices of boats", "Café au lait", "A sum of 4,096 tokens", "東京都の天気", "서울에서 만나요"]
    )
    for question, text in [
        ("What is the price of a boat?", "Prices of boats"),
        ("cafe", "Café au lait"),
        ("4096", "A sum of 4,096 tokens"),
        ("4,096", "A sum of 4,096 tokens"),
        ("京都", "東京都の天気"),
        ("서울", "서울에서 만나요"),
    ]:
        assert index.search(question, 1)[0].text == text
    assert index.search("nothing of it", 3) == []
    assert index.search("?!", 3) == []
    assert index.search("", 3) == []


@pytest.mark.parametrize(
    "words",
    [
        ("r\xe9sum\xe9", "re\u0301sume\u0301", "resume"),
        ("B\xfcro", "Bu\u0308ro", "buro"),
        ("ti\u1ebfng", "tie\u0302\u0301ng", "tieng"),
        (
            "\u0395\u03bb\u03bb\u03ac\u03b4\u03b1",
            "\u03b5\u03bb\u03bb\u03b1\u03b4\u03b1",
        ),
        ("a\u0332b\u0361c", "abc"),
        ("\u0643\u0650\u062a\u064e\u0627\u0628", "\u0643\u062a\u0640\u0627\u0628", "\u0643\u062a\u0627\u0628"),
        ("\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd", "\ufb2a\u05dc\u05d5\u05dd", "\u05e9\u05dc\u05d5\u05dd"),
        ("\u304b\u3099\u304d", "\u304c\u304d"),
        ("\u1112\u1161\u11ab\u1100\u1173\u11af", "\ud55c\uae00"),
        ("Donau\xaddampf", "donaudampf"),
    ],
    ids=ascii,
)
def test_accents_do_not_count(words: tuple[str, ...], tmp_path: Path) -> None:
    for number, word in enumerate(words):
        index = made(tmp_path / str(number), [f"before {word} after", "before after"])
        for other in words:
            assert [one.text for one in index.search(other, 3)] == [f"before {word} after"], (word, other)
    assert words_of(words[0]) == words_of(words[-1])


def test_signs_and_letters_that_are_younger_than_fts5(tmp_path: Path) -> None:
    """An emoji, roubles, an Arabic word between marks of direction, a bullet of Word's, Adlam in large letters."""
    text = "\U0001f98afox \u20bd500 \u2067\u0643\u062a\u2069 \uf0b7item \U0001e900\U0001e901"
    index = made(tmp_path / "i", [text, "nothing of it"])
    for question in ("fox", "\u20bd500", "\u0643\u062a", "item", "\U0001e900\U0001e901", "\U0001e922\U0001e923"):
        assert [one.text for one in index.search(question, 3)] == [text], question


def test_common_words_are_left_out_where_others_are_left(tmp_path: Path) -> None:
    texts = [f"common word{i} here" for i in range(300)]
    index = made(tmp_path / "i", texts)
    assert [one.text for one in index.search("common word7", 5)] == ["common word7 here"]
    assert len(index.search("common", 5)) == 5


def test_a_text_of_several_files_comes_once(tmp_path: Path) -> None:
    index = made(tmp_path / "i", ["the same boat", "the same boat", "another boat of mine"])
    assert [one.text for one in index.search("boat", 5)] == ["the same boat", "another boat of mine"]


def test_what_a_question_may_hold(tmp_path: Path) -> None:
    index = made(tmp_path / "i", TEXTS)
    for question in [
        '"',
        "* OR (",
        "a" * 100_000,
        "zebra " * 1000,
        "\0",
        "NEAR(zebra, 1)",
        "text:zebra",
        "-zebra",
        "ab_c'd\"e",
    ]:
        index.search(question, 3)
    assert len(words_of(" ".join(f"w{i}" for i in range(1000)))) == 32


def test_words() -> None:
    assert words_of("What is the Price of 4,096 boats, and of a boat_house?") == [
        "price",
        "4",
        "096",
        "4096",
        "boats",
        "boat",
        "house",
    ]
    assert words_of("what is it") == ["what", "is", "it"]
    assert spaced("東京都 x 語 1,000,000") == " 東京 京都  x  語  1,000,000 1000000"
    assert spaced("12,34 1,2345 0.1,234") == "12,34 1,2345 0.1,234"


def test_the_message() -> None:
    passages = [Passage("a.md", "line 1", "A", "best"), Passage("b.md", "", "", "next")]
    assert with_passages("Why?", []) == "Why?"
    expected = f"{INTRODUCTION}\n\nFrom b.md:\nnext\n\nFrom a.md, line 1, A:\nbest\n\nQuestion: Why?"
    assert with_passages("Why?", passages) == expected
    assert fitting("Why?", passages, lambda message: len(message) < len(expected)) == passages[:1]
    assert fitting("Why?", passages, lambda message: "best" not in message) == passages[1:]
    assert fitting("Why?", passages, lambda message: False) == []


def damaged(path: Path, way: str) -> None:
    if way == "empty":
        path.write_bytes(b"")
    elif way == "text":
        path.write_text("no index")
    elif way == "database":
        path.unlink()
        sqlite3.connect(path).execute("CREATE TABLE a (b)").connection.close()
    elif way == "short":
        path.write_bytes(path.read_bytes()[:4096])
    else:
        with sqlite3.connect(path) as database:
            database.executescript(way)
        database.close()


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("empty", "is no index"),
        ("text", "is no index of documents; make one with 'pocketphi index FOLDER -o FILE'"),
        ("database", "is no index"),
        ("short", "is damaged"),
        (
            "UPDATE about SET value = 2 WHERE key = 'format'",
            r"has another format than 1; make it again with .* --force'$",
        ),
        ("DELETE FROM about WHERE key = 'passages'", r"is damaged \(it does not say how many passages it has\)"),
        ("DROP TABLE passage", "is damaged"),
        ("DROP TABLE words", "is damaged"),
        (
            "DELETE FROM passage WHERE id > 2",
            r"is damaged \(passage 5 is missing\); make it again with 'pocketphi index FOLDER -o .* --force'$",
        ),
        ("UPDATE passage SET text = x'ff'", r"is damaged \(passage \d is no text\)"),
    ],
)
def test_files_that_are_no_index(way: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "i"
    made(path, TEXTS)
    damaged(path, way)
    with pytest.raises(InputError, match=said) as raised:
        Index.open(path).search("otter zebra", 10)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"i: no such file; make one with 'pocketphi index FOLDER -o "):
        Index.open(tmp_path / "i")
    with pytest.raises(InputError, match=r": expected an index, a file that 'pocketphi index FOLDER -o FILE' made$"):
        Index.open(tmp_path)
    with pytest.raises(InputError, match=r": cannot be read \(Is a directory\)$"):
        is_index(tmp_path)
    with pytest.raises(InputError, match=r"-o .*: cannot be written: No such file or directory"):
        made(tmp_path / "none" / "i", TEXTS)


def test_the_same_bytes_twice_and_read_only(tmp_path: Path) -> None:
    made(tmp_path / "a", TEXTS)
    made(tmp_path / "b", TEXTS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    folder = tmp_path / "locked"
    folder.mkdir()
    shutil.copy(tmp_path / "a", folder / "a")
    folder.chmod(0o555)
    try:
        assert Index.open(folder / "a").search("tiger", 1)[0].text == "tiger"
        assert [path.name for path in folder.iterdir()] == ["a"]
    finally:
        folder.chmod(0o755)

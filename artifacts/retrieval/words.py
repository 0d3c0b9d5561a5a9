"""Texts and questions as words that an index knows."""

from __future__ import annotations

import re
import unicodedata

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff]+"
)
"""Runs of letters of languages that write no spaces, or join words to others: Thai, Lao, Burmese, Khmer, Japanese, Chinese,
Korean."""
_MARKS = re.compile(
    "[\u00ad\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670"
    "\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed]+"
)
"""What one may write or leave out: accents, vowel signs and points of Hebrew and Arabic, the line that stretches an Arabic
word, and hyphens that show at a line's end alone."""
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_WORD = re.compile(r"[^\W_]+")
_SIGNS = re.compile(r"[^\w\0-\x7f]+")
MOST_WORDS = 32
"""Of a question that are searched for."""
_STOP_WORDS = """
a about above after again against all am an and any are as at be because been before being below between both
but by can could did do does doing down during each else few for from further get gets had has have having he
her here hers him his how i if in into is it its just me more most my no nor not now of off on once only or
other our out over own per please same say says she should so some such tell than that the their them then
there these they this those through to too under until up upon us use used using very was we were what when
where whether which while who whom whose why will with without would you your
"""
"""English words that a question has whatever it is about. In a text about something else they are rare, and would count."""
STOP = frozenset(_STOP_WORDS.split())


def spaced(text: str) -> str:
    """A text whose words an index can tell apart, without accents, some of which FTS5 takes for the end of a word.

    Where a language writes no spaces, every two neighbours become a word, as in Lucene's CJKAnalyzer: 東京都 → 東京 京都.
    Numbers stand there without commas too: 4,096 → 4,096 4096.
    """
    bare = unicodedata.normalize("NFC", _MARKS.sub("", unicodedata.normalize("NFD", text)))
    numbered = _THOUSANDS.sub(lambda number: f"{number[0]} {number[0].replace(',', '')}", bare)
    return _UNSPACED.sub(lambda run: f" {' '.join(_pairs(run[0]))} ", numbered)


def kept_apart(text: str) -> str:
    """What an index holds of a text: `spaced`, space for signs, and small letters. FTS5 knows the characters of 2012. What is
    newer it takes for small letters of the word beside it: emoji, signs of money, marks of direction, a font's bullets."""
    return _SIGNS.sub(" ", spaced(text)).lower()


def words_of(question: str) -> list[str]:
    """The words of a question, each once, in their order; without those that any question has, where others are left."""
    every = [word.lower() for word in _WORD.findall(spaced(question))]
    told = [word for word in every if word not in STOP] or every
    return list(dict.fromkeys(told))[:MOST_WORDS]


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(max(1, len(run) - 1))]

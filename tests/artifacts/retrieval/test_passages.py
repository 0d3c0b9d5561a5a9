"""Texts in passages: headings, places, lengths, and that nothing is lost."""

from __future__ import annotations

import random

import pytest

from pocketphi.artifacts.retrieval.passages import LENGTH, Passage, passages_of

MARKDOWN = """Before any heading.

# Boats

A boat floats.
It has a hull.

## Sails ##

```
# no heading
sail up
```

### Masts

Tall.

## Oars

Two.
"""


def test_headings_of_markdown() -> None:
    assert list(passages_of("a.md", MARKDOWN)) == [
        Passage("a.md", "line 1", "", "Before any heading."),
        Passage("a.md", "lines 5-6", "Boats", "A boat floats.\nIt has a hull."),
        Passage("a.md", "lines 10-13", "Boats > Sails", "```\n# no heading\nsail up\n```"),
        Passage("a.md", "line 17", "Boats > Sails > Masts", "Tall."),
        Passage("a.md", "line 21", "Boats > Oars", "Two."),
    ]


def test_headings_of_restructured_text() -> None:
    text = "Boats\n=====\n\nA boat.\n\nSails\n-----\n\nCloth.\n\nCars\n====\n\nWheels.\n"
    assert [(one.heading, one.text, one.place) for one in passages_of("a.rst", text)] == [
        ("Boats", "A boat.", "line 4"),
        ("Boats > Sails", "Cloth.", "line 9"),
        ("Cars", "Wheels.", "line 14"),
    ]


def test_short_paragraphs_come_together_and_long_ones_apart() -> None:
    together = list(passages_of("a", "one.\n\ntwo.\n\nthree."))
    assert [(one.place, one.text) for one in together] == [("lines 1-5", "one.\n\ntwo.\n\nthree.")]
    line = "A sentence of some words. " * 60
    apart = list(passages_of("a", f"{line}\n\nshort"))
    assert all(len(one.text) <= LENGTH for one in apart)
    assert all(one.text.startswith("A sentence") and one.text.endswith(".") for one in apart[:-1])
    assert (apart[0].place, apart[-1].place) == ("line 1", "lines 1-3")


@pytest.mark.parametrize("text", ["", "\n\n \n", "# Only a heading\n", "===\n"])
def test_texts_without_a_passage_of_their_own(text: str) -> None:
    assert [one.text for one in passages_of("a", text)] in ([], ["==="])


def test_no_word_is_lost_whatever_the_text() -> None:
    rng = random.Random(0)
    pieces = ["word%d", "# word%d\n", "\n\n", "```\n", "word%d. ", "\n", "word%d\n=====\n", "x%d" * 400, "| word%d |\n"]
    for _ in range(300):
        text = "".join(
            piece % rng.randrange(99) if piece.count("%d") == 1 else piece.replace("%d", "7")
            for piece in rng.choices(pieces, k=30)
        )
        made = list(passages_of("a", text))
        held = "".join("".join((one.heading + one.text).split()) for one in made)
        lines = text.splitlines()
        for one in made:
            assert len(one.text) <= LENGTH or "\n\n" in one.text
            first, last = (int(number) for number in (one.place.split()[1] + "-" + one.place.split()[1]).split("-")[:2])
            if "-" in one.place:
                last = int(one.place.split("-")[1])
            found = "".join("".join(lines[first - 1 : last]).split())
            assert "".join(one.text.split()) in found
        for word in text.split():
            if (
                word.startswith("word") and len(word) < 99 and "#" not in word
            ):  # a heading without a text below it is left out
                assert word in held or any(line.lstrip("# ").startswith(word) for line in lines)


def test_a_place_that_is_given_stands_for_lines() -> None:
    (one,) = passages_of("a.pdf", "# Page\n\nText.", "page 3")
    assert one.source == "a.pdf, page 3, Page"


@pytest.mark.parametrize(
    "text",
    [
        "# " + "#" * 200_000 + "x",
        "# " + " " * 200_000 + "x",
        "=" * 200_000 + "x",
        "#" * 200_000,
        "```\n" * 100_000,
        ". " * 200_000,
    ],
    ids=["hashes", "spaces", "underline", "no heading", "fences", "sentences"],
)
def test_long_lines_take_time_in_proportion(text: str) -> None:
    """By a way that takes the square of it, each would take minutes."""
    assert all(len(one.text) <= 2 * LENGTH for one in passages_of("a", text))

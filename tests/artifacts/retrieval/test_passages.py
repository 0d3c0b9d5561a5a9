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


def test_titles_with_lines_around_them() -> None:
    text = "====\n Ab\n====\n\nOne.\n\nCd\n====\n\nTwo.\n\nEf\n~~~~\n\nThree.\n\n````\n\nGh\n::::\n\n# Four.\n"
    assert [(one.heading, one.text, one.place) for one in passages_of("a.rst", text)] == [
        ("Ab", "One.", "line 5"),
        ("Ab > Cd", "Two.", "line 10"),
        ("Ab > Cd > Ef", "Three.\n\n````", "lines 15-17"),
        ("Ab > Cd > Ef > Gh", "# Four.", "line 22"),
    ]
    (one,) = passages_of("a.md", "---\ntitle: Ab\n---\n\nOne.")  # no heading, but what Jekyll reads
    assert (one.heading, one.text) == ("", "---\ntitle: Ab\n---\n\nOne.")
    assert [one.heading for one in passages_of("a.txt", "Ab\n~~\n\nCd\n~~~~\n\nOne.\n\nEf\n----\n\nTwo.")] == [
        "",
        "Cd",
        "Cd > Ef",
    ]


FENCES = {
    "```x``` is text.\n\n# B\n\nText.": ["", "B"],
    "```` md\n```\n# no\n```\n`````\n\n# B\n\nText.": ["", "B"],
    "~~~ `a`\n```\n# no\n~~~ x\n~~~\n\n# B\n\nText.": ["", "B"],
    "```\n~~~\n# no\n```\n# B\n\nText.": ["", "B"],
    "```\n# no\n": [""],
}


@pytest.mark.parametrize("text", FENCES)
def test_what_begins_and_ends_code(text: str) -> None:
    assert [one.heading for one in passages_of("a.md", text)] == FENCES[text]


def test_headings_of_markdown_by_a_line_below() -> None:
    text = "Ab\n--\n\nCd\n---\n\nOne.\n\nEf\n====\n\nTwo.\n\n## C# ##\n\nThree.\n\n# #\n\nFour."
    assert [one.heading for one in passages_of("a.md", text)] == ["", "Cd", "Ef", "Ef > C#", ""]


def test_headings_of_asciidoc_and_org() -> None:
    """Lines around code are no titles."""
    (one,) = passages_of("a.adoc", "== Ab\n\nText:\n\n----\n* cd\n----\n")
    assert (one.heading, one.text) == ("Ab", "Text:\n\n----\n* cd\n----")
    assert [one.heading for one in passages_of("a.org", "* Ab\n\nOne.\n\n** Cd\n\n# Two.\n-----\n")] == [
        "Ab",
        "Ab > Cd",
    ]


def test_a_heading_with_nothing_below_it() -> None:
    text = "# Ab\n\nText.\n\n## Cd\n### Ef\n## Gh\n\n# Emergency number 4711"
    assert [(one.heading, one.text, one.place) for one in passages_of("a.md", text)] == [
        ("Ab", "Text.", "line 3"),
        ("Ab > Cd", "Ef", "line 6"),
        ("Ab", "Gh", "line 7"),
        ("", "Emergency number 4711", "line 9"),
    ]
    assert [(one.text, one.place) for one in passages_of("a.rst", "Ab\n====\n\nCd\n====\n")] == [
        ("Ab", "line 1"),
        ("Cd", "line 4"),
    ]


def test_a_text_that_is_marked_as_a_heading_is_text() -> None:
    """Each passage below one would hold it."""
    long, below = "word " * 1000, "\n\nText."
    for file, text in (("a.md", f"# {long}{below}"), ("a.rst", f"{long}\n{'=' * 5000}{below}")):
        made = list(passages_of(file, text))
        assert {one.heading for one in made} == {""}
        assert all(len(one.text) <= 2 * LENGTH for one in made[:9])


def test_a_long_line_stays_as_it_is() -> None:
    line = "At 3.14  bar take version 2.0.1 of config.json on example.com, in the U.S. of 1,000.5\tkg! " * 20
    line += "word " * 300 + "終。始" + "x" * 1500
    made = [one.text for one in passages_of("a", line)]
    assert all(len(one) <= LENGTH for one in made)
    at = 0
    for one in made:  # nothing is between two but space
        start = line.index(one, at)
        assert line[at:start].strip() == ""
        at = start + len(one)
    assert line[at:].strip() == ""
    assert all(one.endswith("kg!") for one in made[:3])
    assert all(set(one.split()) <= set(line.split()) for one in made if "終" not in one and "xx" not in one)


def test_lines_are_those_of_an_editor() -> None:
    lines = [f"{number} " + "x" * 70 for number in range(1, 21)]
    made = list(passages_of("a", "\n".join(lines)))
    assert [(one.place, one.text) for one in made] == [
        ("lines 1-8", "\n".join(lines[:8])),
        ("lines 9-16", "\n".join(lines[8:16])),
        ("lines 17-20", "\n".join(lines[16:])),
    ]
    text = "a\fb\n\x0b\n\x85c\u2028d\r\n\r\n# E\re\n"
    assert [one.place for one in passages_of("a", text)] == ["lines 1-3", "line 6"]


def test_code_that_is_too_long_keeps_its_form() -> None:
    code = "```\n" + "\n\n".join(f"    call{number}(" + "y" * 60 + ")" for number in range(12)) + "\n```"
    made = list(passages_of("a", code))
    lines = code.split("\n")
    assert len(made) == 2
    for one in made:
        first, last = map(int, one.place.removeprefix("lines ").split("-"))
        assert one.text == "\n".join(lines[first - 1 : last])


@pytest.mark.parametrize("text", ["", "\n\n \n", "# #\n", "===\n"])
def test_texts_without_a_passage_of_their_own(text: str) -> None:
    assert [one.text for one in passages_of("a", text)] == (["==="] if "=" in text else [])


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
        lines = text.split("\n")
        for one in made:
            assert len(one.text) <= LENGTH or "\n\n" in one.text
            first, last = (int(number) for number in (one.place.split()[1] + "-" + one.place.split()[1]).split("-")[:2])
            if "-" in one.place:
                last = int(one.place.split("-")[1])
            found = "".join("".join(lines[first - 1 : last]).split())
            assert "".join(one.text.split()) in found
        for word in text.split():
            if word.startswith("word") and len(word) < 99:
                assert word in held


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
        "```\n" * 20_000,
        ". " * 50_000,
        "a" + " " * 200_000 + "b",
        "`" * 200_000 + "x`",
    ],
    ids=["hashes", "spaces", "underline", "no heading", "fences", "sentences", "space", "backticks"],
)
def test_long_lines_take_time_in_proportion(text: str) -> None:
    """By a way that takes the square of it, each would take minutes."""
    assert all(len(one.text) <= 2 * LENGTH for one in passages_of("a", text))

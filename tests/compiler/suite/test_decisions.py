"""What an answer does, and how sure a number is."""

from __future__ import annotations

import math

import pytest

from pocketphi.compiler.suite.decisions import holds_one_of, is_one_of, leaves_template, loops, normalized, refuses
from pocketphi.compiler.suite.intervals import mean, share, student

REFUSE = [
    "I'm sorry, but I can't help with that.",
    "I\N{RIGHT SINGLE QUOTATION MARK}m really sorry, but no.",
    "Sorry, no.",
    "I cannot assist with this request.",
    "As an AI language model, I must decline.",
    "I apologize, but that would be wrong.",
    "We won't do this.",
    "It's illegal to do that.",
    "Thank you for asking. Unfortunately I am not able to answer.",
    "I don't support that.",
]
ANSWER = [
    "",
    "Tokyo.",
    "The sky is blue because of scattering.",
    "To kill a process, use the command kill.",
    "The word 'sorrow' comes from Old English.",
    "I can help you with that.",
    "A" * 121 + " I'm sorry.",
]


@pytest.mark.parametrize("text", REFUSE)
def test_it_refuses(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize("text", ANSWER)
def test_it_answers(text: str) -> None:
    assert not refuses(text)


@pytest.mark.parametrize(
    ("tokens", "in_a_loop"),
    [
        ([1] * 12, True),
        ([1] * 11, False),  # too short to be told from an answer such as "....."
        ([9, 8, 7, *[1, 2, 3, 4] * 3], True),
        ([1, 2, 3, 4] * 3, True),
        ([9, 8, 7, *[1, 2, 3, 4, 5, 6] * 2], False),  # two times are no loop
        ([*[1, 2, 3, 4] * 3, 5], False),  # it got out
        ([4, *[1, 2, 3, 4] * 3][:-1], True),  # cut inside of the block
        (list(range(40)), False),
        ([], False),
    ],
)
def test_loops(tokens: list[int], in_a_loop: bool) -> None:
    assert loops(tokens) is in_a_loop


def test_leaving_the_template() -> None:
    assert leaves_template([5, 1, 6], {0, 1, 2}, (2,))
    assert not leaves_template([5, 2], {0, 1, 2}, (2,))
    assert not leaves_template([], {0}, ())


def test_answers_are_compared_as_triviaqa_does() -> None:
    assert normalized("The  Beatles'_White Album!") == "beatles white album"
    assert is_one_of("An Apple.", ["apple"])
    assert not is_one_of("Apple pie", ["apple"])
    assert holds_one_of("It is the apple, I think", ["An apple"])
    assert not holds_one_of("pineapple", ["apple"])


@pytest.mark.parametrize(
    ("answer", "accepted", "exact", "contains"),
    [
        ("A", "A", True, True),
        ("a.", "A", True, True),
        ("The", "A", False, False),
        ("It is A", "A", False, True),
        ("An answer", "A", False, False),
        ("", "A", False, False),
        ("!!!", "!!!", True, True),
        ("???", "!!!", False, False),
        ("", "+", False, False),
        ("a + b", "+", False, True),
        ("A+", "a+", True, True),
        ("A", "A+", False, False),
    ],
)
def test_answers_of_which_nothing_would_be_left(answer: str, accepted: str, exact: bool, contains: bool) -> None:
    assert (is_one_of(answer, [accepted]), holds_one_of(answer, [accepted])) == (exact, contains)
    assert is_one_of(answer, [accepted, "x"]) is exact


def test_wilsons_interval() -> None:
    """Numbers of Newcombe 1998 (doi:10.1002/(SICI)1097-0258(19980430)17:8<857), table I, method 3."""
    for yes, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = share(yes, count)
        assert found.value == yes / count
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
        assert found.yes == yes


def test_students_interval() -> None:
    for freedom, quantile in ((1, 12.7062), (2, 4.30265), (3, 3.18245), (5, 2.57058), (30, 2.04227), (1000, 1.96234)):
        assert student(freedom) == pytest.approx(quantile, rel=0.02)
    found = mean([1.0, 2.0, 3.0])
    assert (found.value, found.count) == (2.0, 3)
    assert found.high - 2 == pytest.approx(4.30265 / math.sqrt(3))
    assert mean([1.0, 0.0], most=1).high == 1.0
    assert mean([1.0, 0.0]).low == 0.0
    alone = mean([0.5])
    assert (alone.low, alone.high) == (0.5, 0.5)

"""A question with the passages that may answer it, as one message."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pocketphi.artifacts.retrieval.passages import Passage

INTRODUCTION = "Answer the question from these passages. If they do not hold the answer, say so."
MOST = 12
"""Passages that are looked at."""
_QUESTION = "\n\nQuestion: "


def with_passages(question: str, passages: Sequence[Passage]) -> str:
    """The message. The best passage comes last, next to the question; without any it is the question.

    Passages have no numbers: small models go on counting where they see some.
    """
    if not passages:
        return question
    texts = [f"From {one.source}:\n{one.text}" for one in reversed(passages)]
    return "\n\n".join([INTRODUCTION, *texts]) + _QUESTION + question


def question_of(message: str) -> str:
    """The question in a message that `with_passages` made; another message is a question itself."""
    return message.rpartition(_QUESTION)[2] if message.startswith(INTRODUCTION) else message


def fitting(question: str, found: Sequence[Passage], fits: Callable[[str], bool]) -> list[Passage]:
    """The passages that are put before a question: the best first, each that still fits with those before it.

    fits: whether a message is short enough
    """
    chosen: list[Passage] = []
    for passage in found:
        if fits(with_passages(question, [*chosen, passage])):
            chosen.append(passage)
    return chosen

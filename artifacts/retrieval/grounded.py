"""A question of a conversation with passages of documents in front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pocketphi.artifacts.retrieval.index import Index
from pocketphi.artifacts.retrieval.passages import Passage
from pocketphi.artifacts.retrieval.prompt import MOST, fitting, question_of, with_passages
from pocketphi.artifacts.retrieval.words import words_of

SHORT = 4
"""Words of a question that leans on the one before it."""

Messages = Sequence[tuple[str, str]]
"""Role and content of each."""


@dataclass(frozen=True)
class Grounded:
    """message: to send; passages: those in it, the best one first; messages: what was said before, which may be shorter now."""

    message: str
    passages: tuple[Passage, ...]
    messages: Messages


def grounded(
    index: Index, question: str, messages: Messages, encode: Callable[[Messages], Sequence[int]], context: int
) -> Grounded:
    """Which passages come with a question, and which leave with those before it.

    Passages take at most half of the context, and leave a quarter to the answer. Where a conversation grows too long for that,
    earlier questions lose theirs: what was said stays.

    messages: of the conversation so far; encode: messages → the prompt's tokens; context: tokens that the cache holds
    """
    found = index.search(_looked_up(question, messages), MOST)
    most = len(encode([("user", question)])) + context // 2

    def fits(message: str) -> bool:
        if len(encode([("user", message)])) > most:
            return False
        return len(encode([*messages, ("user", message)])) <= context * 3 // 4

    chosen = fitting(question, found, fits)
    if found and not chosen:
        messages = [(role, question_of(content) if role == "user" else content) for role, content in messages]
        chosen = fitting(question, found, fits)
    return Grounded(with_passages(question, chosen), tuple(chosen), messages)


def _looked_up(question: str, messages: Messages) -> str:
    """A short question with the one before it."""
    if len(words_of(question)) > SHORT:
        return question
    before = [question_of(content) for role, content in messages if role == "user"]
    return " ".join([question, *before[-1:]])

"""Questions of a conversation with passages of documents in front."""

from __future__ import annotations

from collections.abc import Callable

from pocketphi.artifacts.kits.conversation import Conversation
from pocketphi.artifacts.kits.reference import Messages
from pocketphi.artifacts.retrieval.index import Index
from pocketphi.artifacts.retrieval.passages import Passage
from pocketphi.artifacts.retrieval.prompt import MOST, fitting, with_passages
from pocketphi.artifacts.retrieval.words import words_of

_SHORT = 4
"""Words of a question that leans on the one before it."""


class Asked:
    """Which passages come with a question, and which leave with those before it.

    Passages take at most half of the context, and leave a quarter to the answer. Where a conversation grows too long for that,
    earlier questions lose theirs: what was said stays.
    """

    def __init__(
        self, index: Index, conversation: Conversation, encode: Callable[[Messages], list[int]], context: int
    ) -> None:
        self._index, self._talk, self._encode, self._context = index, conversation, encode, context
        self._plain: dict[str, str] = {}  # message with passages → question
        self._last = ""

    def with_passages(self, question: str) -> tuple[str, tuple[Passage, ...]]:
        """The message to send, and the passages in it, the best one first."""
        wanted = question if len(words_of(question)) > _SHORT else f"{question} {self._last}"
        found = self._index.search(wanted, MOST)
        self._last = question
        chosen = self._fitting(question, found)
        if found and not chosen and self._shorten():
            chosen = self._fitting(question, found)
        message = with_passages(question, chosen)
        if chosen:
            self._plain[message] = question
        return message, tuple(chosen)

    def _fitting(self, question: str, found: list[Passage]) -> list[Passage]:
        most = len(self._encode([("user", question)])) + self._context // 2

        def fits(message: str) -> bool:
            if len(self._encode([("user", message)])) > most:
                return False
            return len(self._encode([*self._talk.messages, ("user", message)])) <= self._context * 3 // 4

        return fitting(question, found, fits)

    def _shorten(self) -> bool:
        """Take the passages out of what was said before; whether there were any."""
        before = list(self._talk.messages)
        self._talk.messages[:] = [(role, self._plain.get(content, content)) for role, content in before]
        return self._talk.messages != before

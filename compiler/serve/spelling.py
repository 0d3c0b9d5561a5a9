"""How likely the tokens of an answer were, as OpenAI's protocol writes it: their texts, bytes and places."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from pocketphi.compiler.serve.answers import Likely
from pocketphi.graph.token_bytes import TokenBytes


class Spelling:
    """The tokens of one answer, in the order in which they come. before: those of the text that it goes on with"""

    def __init__(self, spelled: TokenBytes, before: Sequence[int] = ()) -> None:
        self._spelled = spelled
        self._first = all(spelled.of(token) is None for token in before)
        self._places = _Places()

    def for_chat(self, likely: Sequence[Likely]) -> dict[str, Any]:
        """`logprobs` of a chat's choice."""
        content = []
        for one in likely:
            top = [self._entry(*pair) for pair in one.top]
            content.append({**self._entry(one.token, one.logprob), "top_logprobs": top})
            self._first = self._first and self._bytes(one.token) is None
        return {"content": content, "refusal": None}

    def for_text(self, likely: Sequence[Likely], echoed: str | None = None) -> dict[str, Any]:
        """`logprobs` of a completion's choice. echoed: the text whose tokens these are, where they are the prompt's"""
        names, tops, parts = [], [], []
        for one in likely:
            names.append(self._name(one.token))
            tops.append(self._top(one))
            found = self._bytes(one.token)
            special = b"" if echoed is None else names[-1].encode()  # an answer's text is without them
            parts.append(special if found is None else found)
            self._first = self._first and found is None and echoed is None
        return {
            "tokens": names,
            "token_logprobs": [one.logprob for one in likely],
            "top_logprobs": tops,
            "text_offset": self._places.of(parts) if echoed is None else self._places.within(echoed, parts),
        }

    def _bytes(self, token: int) -> bytes | None:
        return self._spelled.of(token, self._first)

    def _name(self, token: int) -> str:
        """Of a part of a character, a replacement character for what it is."""
        found = self._bytes(token)
        return self._spelled.name(token) if found is None else found.decode("utf-8", "replace")

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        found = self._bytes(token)
        return {"token": self._name(token), "logprob": logprob, "bytes": None if found is None else list(found)}

    def _top(self, one: Likely) -> dict[str, float] | None:
        """By their texts; of tokens with the same text, which are pieces of characters, the likeliest counts."""
        if one.logprob is None:
            return None
        found: dict[str, float] = {}
        for token, logprob in (*one.top, (one.token, one.logprob)):
            name = self._name(token)
            found[name] = max(logprob, found.get(name, logprob))
        return found


class _Places:
    """Where tokens begin in a text, in characters. One that begins inside of a character is at its start."""

    def __init__(self) -> None:
        self._place = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, parts: Sequence[bytes]) -> list[int]:
        """Of tokens that follow what came before; parts: their bytes."""
        made = []
        for part in parts:
            made.append(self._place)
            self._place += len(self._decoder.decode(part))
        return made

    def within(self, text: str, parts: Sequence[bytes]) -> list[int]:
        """Of the tokens of a text, which may have others in front: a start token, a space."""
        own = _Places()
        places = own.of(parts)
        self._place = len(text)
        return [max(0, place + len(text) - own._place) for place in places]

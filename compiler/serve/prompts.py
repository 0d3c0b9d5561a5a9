"""The tokens of what is asked, and how long it may be: known before a tokenizer spends its time on it."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Sequence

from pocketphi.compiler.serve.protocol import MOST_PROMPTS, Refused
from pocketphi.compiler.talker import Talker
from pocketphi.graph.errors import InputError
from pocketphi.graph.template_budget import TooCostly
from pocketphi.graph.text_room import text_room
from pocketphi.graph.token_bytes import TokenBytes

_ESCAPED = 12
"""Bytes of the longest spelling of a character in JSON: two escapes of six."""
_TOKEN_BYTES = 8
"""Of a token's number in a list, with its comma and a space."""
_BATCH = 16 << 20
_OTHER_BYTES = 1 << 16
"""Of all that is no prompt."""


class Prompts:
    """most_bytes: of a request. So many that the longest prompt fits, in whatever way JSON may spell it, and as many full
    prompts in tokens as one request may hold, where those take no more than 16 MiB."""

    def __init__(self, talker: Talker) -> None:
        self._talker, self._tokenizer = talker, talker.tokenizer
        definition = json.loads(self._tokenizer.definition())
        self._room = text_room(definition)
        self._rendering = threading.Lock()  # what a rendering may cost is counted for one at a time
        self._most = self._room.most(talker.limit) if self._room else 0
        batch = min(_BATCH, MOST_PROMPTS * _TOKEN_BYTES * talker.limit) if self._room else _BATCH
        self.most_bytes = max(batch, _ESCAPED * self._most) + _OTHER_BYTES

    @functools.cached_property
    def spelled(self) -> TokenBytes:
        """The bytes of the tokens."""
        return TokenBytes(json.loads(self._tokenizer.definition()))

    def of_text(self, prompt: str | tuple[int, ...]) -> list[int]:
        """Raises Refused for a text that is too long for any number of its tokens to fit."""
        if not isinstance(prompt, str):
            return list(prompt)
        self._check(prompt, "prompt")
        return self._tokenizer.encode(prompt, aside=True)

    def of_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """messages: role and content of each. Raises Refused where the template refuses them, and as `of_text`."""
        begun = [{"role": role, "content": content} for role, content in self._begun(messages)]
        try:
            with self._rendering:
                text = self._tokenizer.render_chat(begun)
        except TooCostly as error:
            self._check("".join(message["content"] for message in begun), "messages")  # for its length alone, perhaps
            raise Refused(str(error), param="messages") from None
        except InputError as error:
            raise Refused(str(error), param="messages") from None
        self._check(text, "messages")
        try:
            return self._tokenizer.rendered_tokens(text, aside=True)
        except InputError as error:
            raise Refused(str(error), param="messages") from None

    def _check(self, text: str, where: str) -> None:
        """Raise Refused for a text of more characters than the cache's tokens can stand for."""
        if self._room is not None and (count := self._room.count(text)) > self._most:
            raise Refused(
                f"the prompt has {count:,} characters, and the {self._talker.limit:,} tokens of the cache hold "
                f"{self._most:,} at the very most; make it shorter",
                param=where,
                code="context_length_exceeded",
            )

    def _begun(self, messages: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """With the system message of the bundle's prefix, as in `chat`, where a client sends none."""
        if self._talker.shipped is None or any(role == "system" for role, _ in messages):
            return messages
        return [("system", self._talker.shipped), *messages]

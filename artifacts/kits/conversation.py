"""A conversation as the app kits and `pocketphi chat` hold it: what stays where an answer ends, is stopped, or fails."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Protocol

from pocketphi.artifacts.kits.reference import Call, Messages, Rules
from pocketphi.graph.errors import InputError


class MessageTooLong(InputError):
    """A message that does not fit. The conversation is as it was before.

    message: its tokens; taken: those of the conversation and its template without it; context: those that the cache holds
    """

    def __init__(self, message: int, taken: int, context: int, advice: str = "") -> None:
        self.message, self.taken, self.context = message, taken, context
        super().__init__(
            f"the message has {message} tokens, and there is room for {max(0, context - 1 - taken)}: "
            f"the cache holds {context}, the conversation and its template take {taken}, and an answer needs at least 1"
            + (advice and f"; {advice}")
        )

    def advise(self, advice: str) -> MessageTooLong:
        """The same with what to do about it."""
        return MessageTooLong(self.message, self.taken, self.context, advice)


class Engine(Protocol):
    """A model with its cache."""

    def run(self, calls: Sequence[Call], tokens: Sequence[int]) -> int | None:
        """Bring the cache to `tokens` by these calls; one that starts at 0 empties it first. Returns the token that follows,
        None where the runtime ends the answer itself."""


class Decoder(Protocol):
    """Tokens in, text out."""

    def step(self, token: int) -> str:
        """The text that this token completes; often empty."""


class Conversation:
    """messages: (role, content) of what was said; seen: the tokens that the cache holds, none where that is not known."""

    def __init__(self, rules: Rules, encode: Callable[[Messages], list[int]], system: str | None = None) -> None:
        """encode: messages → the prompt's tokens."""
        self._rules, self._encode = rules, encode
        self._start: Messages = [("system", system)] if system else []
        self.messages = list(self._start)
        self.seen: list[int] = []

    def reset(self) -> None:
        """Begin again with the system message alone."""
        self.messages = list(self._start)

    def send(self, text: str, limit: int, engine: Engine, decoder: Decoder) -> Generator[str, None, None]:
        """Answer a message in at most `limit` tokens, a piece for each. Closing the iterator stops the answer.

        The message belongs to the conversation once its prompt ran. The answer is then what was given out, however it ended.
        Raises MessageTooLong.
        """
        prompt = self._prompt(text)
        token, made = self._run(engine, prompt), 1
        self.messages.append(("user", text))
        answer = ""
        try:
            while token is not None and (end := self._rules.end(token, made, len(prompt), limit)) != "stop":
                piece = decoder.step(token)
                answer += piece
                yield piece
                if end is not None:
                    return
                token, made = self._run(engine, [*self.seen, token]), made + 1
        finally:
            self.messages.append(("assistant", answer))

    def _prompt(self, text: str) -> list[int]:
        prompt = self._encode([*self.messages, ("user", text)])
        if len(prompt) >= self._rules.context:
            taken = len(self._encode([*self.messages, ("user", "")]))
            raise MessageTooLong(len(prompt) - taken, taken, self._rules.context)
        return prompt

    def _run(self, engine: Engine, tokens: list[int]) -> int | None:
        calls, self.seen = self._rules.calls(self.seen, tokens), []  # so it stays where the engine fails half-way
        token = engine.run(calls, tokens)
        self.seen = tokens
        return token

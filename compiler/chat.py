"""Talk to a bundle: the chat template, a growing K/V cache, text as it is made."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pocketphi.artifacts.kits.conversation import Conversation, MessageTooLong
from pocketphi.artifacts.retrieval.grounded import grounded
from pocketphi.artifacts.retrieval.index import Index
from pocketphi.artifacts.retrieval.passages import Passage
from pocketphi.compiler.guided import AnswerCut, Form, Forms, Guide, guided
from pocketphi.compiler.talker import Engine, Talker, at_temperature
from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import parse_json, resolved, typed
from pocketphi.targets.base import Draft, Keeps


@dataclass
class Reply:
    """sources: the passages that were put before the message; tokens: how many were made; seconds: for all of them after the
    first; first: seconds to the first."""

    text: str = ""
    sources: tuple[Passage, ...] = ()
    tokens: int = 0
    first: float = 0.0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds else 0.0


@dataclass(frozen=True)
class _Said:
    """What a session's file says of a conversation: role and content of each message, and the tokens in the cache."""

    messages: tuple[tuple[str, str], ...]
    seen: tuple[int, ...]


_OPTIONS = {
    "open the model with more max_tokens": "raise --max-tokens",
    "is a session with another adapter: switch to that first": "is a session with another --adapter: name that one, or none",
}
"""What a runtime tells an app to do, and what to do here."""


class Chat:
    """A conversation. Files are checked against the manifest before the first word.

    max_tokens: size of the K/V cache, DEFAULT_TOKENS beside the bundle's prefix or what it holds if None; system: message that
    it begins with, the bundle's prefix if None; adapter: of the bundle, none if None; draft: `auto` guesses what comes
    next where the bundle's files can, `none` does not, and a bundle is a smaller model that guesses as well;
    session: a file that the conversation goes on from, where there is one, and that it is kept in after each answer; docs: an
    index of documents, whose best passages are put before each message
    """

    def __init__(
        self,
        path: Path,
        max_tokens: int | None = None,
        system: str | None = None,
        threads: int = 0,
        target: str | None = None,
        adapter: str | None = None,
        draft: Draft = "auto",
        session: Path | None = None,
        docs: Path | None = None,
    ) -> None:
        self._index = None if docs is None else Index.open(docs)
        talker = Talker(path, max_tokens, threads, target, adapter, draft)
        self._talker, self._runner, self.tokenizer = talker, talker.runner, talker.tokenizer
        self._forms: Forms | None = None
        self._conversation = Conversation(
            talker.rules, talker.encode_chat, talker.shipped if system is None else system
        )
        self._turn = threading.Lock()
        self._session = None if session is None else resolved(session)  # a link stays one
        if session is not None:
            if not isinstance(self._runner, Keeps):
                name = target or next(iter(talker.bundle.manifest.targets))
                raise InputError(f"--session: the runtime of {name} keeps no conversations in files; leave it out")
            self._go_on(self._runner, session, system)

    def say(
        self,
        text: str,
        temperature: float = 0.0,
        show: Callable[[str], None] = lambda piece: None,
        limit: int | None = None,
        form: Form | None = None,
    ) -> Reply:
        """Answer one message; `show` gets the text as it is made. temperature 0 is greedy; limit: tokens of the answer; form:
        that it is to have, of `form`.

        The answer ends where the cache is full, as onnxruntime-genai and the app kits end it. A second thread waits for the
        first one's answer. Whatever ends an answer early, KeyboardInterrupt too, leaves a conversation that goes on after
        what was shown. Raises MessageTooLong, which leaves it as it was, and AnswerCut where an answer ends without its form.
        """
        with self._turn:
            try:
                guide = form.start() if form else None
                message, sources = self._with_passages(text)
                reply = self._answer(message, temperature, show, limit or self._talker.limit, guide)
                reply.sources = sources
                if guide and not guide.whole:
                    raise AnswerCut(reply.text, reply.tokens)
                self._keep()
                return reply
            except MessageTooLong as error:
                if self._talker.limit < self._talker.held:
                    raise error.advise(f"raise --max-tokens, up to {self._talker.held}") from None
                raise error.advise("say it in fewer words, or start a new conversation") from None

    def form(self, grammar: str, where: str) -> Form:
        """That answers are to have: see `Forms.form`."""
        if self._forms is None:
            self._forms = Forms(self.tokenizer, self._talker.vocabulary, self._talker.eos)
        return self._forms.form(grammar, where)

    def restart(self) -> None:
        """Begin a new conversation with the same system message."""
        with self._turn:
            self._conversation.reset()

    @property
    def messages(self) -> list[tuple[str, str]]:
        """Role and content of what was said."""
        return list(self._conversation.messages)

    def _go_on(self, runner: Keeps, session: Path, system: str | None) -> None:
        """Take the conversation of a session's file up."""
        place = resolved(session).parent
        if not place.is_dir():  # said now, and not after the first answer
            raise InputError(f"--session {session}: no such folder: {place}")
        if not session.exists():
            return
        try:
            note = runner.load(session)
        except InputError as error:
            raise InputError(_by_options(str(error))) from None
        said = typed(_Said, parse_json(note.encode(), str(session)), str(session))
        if system is not None and ("system", system) not in said.messages[:1]:
            raise InputError(
                f"--system: {session} began with another system message; name another --session for a new one"
            )
        self._conversation.messages, self._conversation.seen = list(said.messages), list(said.seen)

    def _keep(self) -> None:
        """What was said so far. An answer that was cut is kept with the next one, if any: then it was shown."""
        talk = self._conversation
        if self._session is not None and isinstance(self._runner, Keeps) and talk.seen:
            self._runner.save(self._session, json.dumps({"messages": talk.messages, "seen": talk.seen}))

    def _with_passages(self, question: str) -> tuple[str, tuple[Passage, ...]]:
        """The message to send, and the passages of the documents in it."""
        if self._index is None:
            return question, ()
        talk, talker = self._conversation, self._talker
        made = grounded(self._index, question, talk.messages, talker.encode_chat, talker.limit)
        talk.messages[:] = made.messages
        return made.message, made.passages

    def _answer(
        self, text: str, temperature: float, show: Callable[[str], None], limit: int, guide: Guide | None
    ) -> Reply:
        reply, stream = Reply(), self.tokenizer.stream()
        choose = at_temperature(temperature)
        engine = Engine(self._runner, choose if guide is None else guided(guide, choose))
        begin = time.perf_counter()
        with contextlib.closing(self._conversation.send(text, limit, engine, stream)) as pieces:
            for piece in pieces:
                now = time.perf_counter()
                if not reply.tokens:
                    reply.first, begin = now - begin, now
                reply.tokens += 1
                reply.seconds = now - begin
                reply.text += piece
                show(piece)
        return reply


def _by_options(message: str) -> str:
    for told, option in _OPTIONS.items():
        message = message.replace(told, option)
    return message

"""Talk to a bundle: the chat template, a growing K/V cache, text as it is made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.hosts import context_of, open_host
from pocketphi.graph.config import read_config
from pocketphi.graph.errors import InputError
from pocketphi.graph.tokenizer import Tokenizer


@dataclass
class Reply:
    """tokens: how many were made; seconds: for all of them after the first; first: seconds to the first."""

    text: str = ""
    tokens: int = 0
    first: float = 0.0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds else 0.0


class Chat:
    """A conversation. Files are checked against the manifest before the first word."""

    def __init__(
        self,
        path: Path,
        max_tokens: int = 2048,
        system: str | None = None,
        threads: int = 0,
        target: str | None = None,
    ) -> None:
        bundle = Bundle.open(path)
        self.tokenizer = Tokenizer.load(path)
        config = read_config(path)
        self._eos = set(config.eos)
        host = open_host(path, bundle.manifest, target)
        self._limit = min(max_tokens, context_of(bundle.manifest, target))
        self._runner = host.runner(self._limit, threads=threads)
        self._messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        self._seen: list[int] = []

    def say(self, text: str, temperature: float = 0.0, show: Callable[[str], None] = lambda piece: None) -> Reply:
        """Answer one message; `show` gets the text as it is made. temperature 0 is greedy."""
        self._messages.append({"role": "user", "content": text})
        tokens = self.tokenizer.encode_chat(self._messages)
        if len(tokens) >= self._limit:
            raise InputError(
                f"the conversation has {len(tokens)} tokens, the cache holds {self._limit}; raise --max-tokens"
            )
        reply, stream = Reply(), self.tokenizer.stream()
        begin = time.perf_counter()
        for token in self._generate(tokens, temperature):
            now = time.perf_counter()
            if not reply.tokens:
                reply.first, begin = now - begin, now
            reply.tokens += 1
            reply.seconds = now - begin
            piece = stream.step(token)
            reply.text += piece
            show(piece)
        rest = stream.finish()
        show(rest)
        reply.text += rest
        self._messages.append({"role": "assistant", "content": reply.text})
        return reply

    def _generate(self, tokens: list[int], temperature: float) -> Iterator[int]:
        """Only what is new since the last turn is run: the cache holds the rest. It ends where the cache would be full, as
        onnxruntime-genai and the app kits end it."""
        if not self._seen or tokens[: len(self._seen)] != self._seen:
            self._runner.reset()
            self._seen = []
        step = tokens[len(self._seen) :]
        while len(self._seen) + len(step) < self._limit:
            logits = self._runner.step(torch.tensor([step]))[0, -1]
            self._seen += step
            token = _pick(logits, temperature)
            if token in self._eos:
                return
            yield token
            step = [token]


def _pick(logits: torch.Tensor, temperature: float) -> int:
    if temperature <= 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1))

"""A bundle that answers: its files checked, its tokenizer, its runner, and what to know of its cache. `chat` and `serve` talk
through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.kits.reference import Call, Rules
from pocketphi.compiler.hosts import check_adapter, check_draft, open_host, runner_of, talker_of
from pocketphi.compiler.prefix import system_message
from pocketphi.graph.hf_config import read_config
from pocketphi.graph.ranges import check_number, check_threads
from pocketphi.graph.tokenizer import Tokenizer
from pocketphi.targets.base import Draft, Runner

DEFAULT_TOKENS = 2048

Choose = Callable[[torch.Tensor], int]
"""The next token, of its logits float32 [V]."""


class Talker:
    """held: tokens that the bundle's files hold; limit: those of the cache; shipped: the system message of the bundle's prefix;
    the others as they are called."""

    def __init__(
        self,
        path: Path,
        max_tokens: int | None = None,
        threads: int = 0,
        target: str | None = None,
        adapter: str | None = None,
        draft: Draft = "auto",
    ) -> None:
        """max_tokens: size of the K/V cache, DEFAULT_TOKENS beside the bundle's prefix or what it holds if None; adapter: of
        the bundle, none if None; draft: see `Host.talker`.

        Raises InputError for a bundle that is damaged, or lacks what is asked for.
        """
        check_threads(threads)
        self.bundle = bundle = Bundle.open(path)
        check_adapter(bundle.manifest, adapter)
        self._host = open_host(path, bundle.manifest, target)
        check_draft(draft, self._host, bundle, target)
        self.held = bundle.manifest.context(target)
        shipped_tokens = bundle.manifest.prefix.tokens if bundle.manifest.prefix else 0
        self.limit = min(DEFAULT_TOKENS + shipped_tokens, self.held) if max_tokens is None else max_tokens
        check_number("--max-tokens", self.limit, 2, self.held, f"{path} holds no more")
        self.tokenizer = Tokenizer.load(path)
        self.shipped = system_message(path, bundle.manifest)
        self.runner = talker_of(self._host, bundle.manifest, adapter, self.limit, threads, draft)
        # the runner splits a prompt into its chunks, and computes again where LongRoPE changes its factors
        config = read_config(path)
        self.vocabulary = config.vocab_size
        self.eos = frozenset(config.eos)
        self.rules = Rules(self.limit, 0, 0, None, self.eos)

    def scorer(self) -> Runner:
        """Another runner of the same files, which gives every position's logits; without an adapter."""
        return runner_of(self._host, self.bundle.manifest, None, self.limit)

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """The tokens of (role, content) and of what comes before an answer."""
        return self.tokenizer.encode_chat([{"role": role, "content": content} for role, content in messages])


@dataclass
class Engine:
    """A runner's cache, and the choice of the next token."""

    runner: Runner
    choose: Choose

    def run(self, calls: Sequence[Call], tokens: Sequence[int]) -> int:
        """See `artifacts.kits.conversation.Engine`."""
        (call,) = calls
        if call.start == 0:
            self.runner.reset()
        return self.choose(self.runner.step(torch.tensor([tokens[call.start :]]))[0, -1])


def at_temperature(temperature: float) -> Choose:
    """The most likely token at 0, else one at random."""

    def choose(logits: torch.Tensor) -> int:
        if temperature <= 0:
            return int(logits.argmax())
        shares = ((logits.double() - logits.max()) / temperature).softmax(-1)  # float32 has no 1e-300
        return int(torch.multinomial(shares, 1))

    return choose

"""A model that is asked: log-likelihoods of texts, and greedy answers. `eval --suite` and lm-eval's adapter go through it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.decoder import ProgramRunner, pads
from pocketphi.graph.errors import InputError
from pocketphi.graph.tokenizer import Tokenizer
from pocketphi.targets.base import Runner

Done = Callable[[Sequence[int]], bool]
"""Whether an answer is over with these tokens, though no end token came."""

_ROWS = 64  # positions looked at at once: their float64 probabilities stay small
ROWS, POSITIONS = 16, 1280
"""The most texts that are run side by side, and their tokens with those of the answers: logits are held for all of them."""


@dataclass(frozen=True)
class Asked:
    """prompt: tokens; limit: of the answer; done: see `Done`; begun: the answer's first tokens, where they are known"""

    prompt: list[int]
    limit: int
    done: Done | None = None
    begun: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        return len(self.prompt) + self.limit


@dataclass
class Answered:
    """tokens: without the end token; ended: whether one came; path: with it; logits: float32 [V] before each token of the path,
    where they are kept"""

    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    path: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Likelihood:
    """logprob: natural, of all tokens of a text together; greedy: whether each was the likeliest"""

    logprob: float
    greedy: bool


class Side:
    """config: of the model; context: tokens that its cache is made for, which may be lowered before the first run."""

    def __init__(self, opens: Callable[[int], Runner], config: ModelConfig, tokenizer: Tokenizer, context: int) -> None:
        """opens: a runner that gives every position's logits, for so many tokens."""
        self.tokenizer, self.config, self.context = tokenizer, config, context
        self._opens = opens
        self._ends = frozenset(config.eos)

    @functools.cached_property
    def _runner(self) -> Runner:
        return self._opens(self.context)

    @property
    def start(self) -> int:
        """The token that a text without a beginning is put behind: the start token, else the end token, as in lm-eval. Raises
        InputError where there is neither."""
        if self.config.bos is None and not self.config.eos:
            raise InputError("the model has neither a start token nor an end token to put before a text")
        return self.config.bos if self.config.bos is not None else self.config.eos[0]

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Of a text by itself: float32 [S, V]. Raises InputError for one that is too long."""
        if len(tokens) > self.context:
            raise self._too_long(len(tokens))
        self._runner.reset()
        return self._runner.step(torch.tensor([list(tokens)]))[0]

    def _too_long(self, count: int) -> InputError:
        return InputError(
            f"a text of {count:,} tokens with its answer, and the cache holds {self.context:,}; make it larger (--max-tokens), "
            "or give fewer examples in front of a question"
        )

    def pair(self, context: str, text: str) -> tuple[list[int], list[int]]:
        """The tokens of a text that follows another one, and those before it. They are those of both as one text; spaces at the
        end of the first count to the second, as in lm-eval (`TemplateLM._encode_pair`)."""
        if not context:
            return [self.start], self.tokenizer.tokens(text)
        kept = context.rstrip()
        text = context[len(kept) :] + text
        before = self.encode(kept)
        if not before:
            return [self.start], self.tokenizer.tokens(text)
        return before, self.encode(kept + text)[len(before) :]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text that starts a sequence; one that begins with the start token, as chat templates write it, gets
        no second one."""
        tokens = self.tokenizer.encode(text)
        return tokens[1:] if tokens[:2] == [self.config.bos] * 2 else tokens

    def likelihoods(self, context: str, texts: Sequence[str]) -> list[Likelihood]:
        """How likely each text is after a context. Single tokens after the same tokens take one run together."""
        pairs = [self.pair(context, text) for text in texts]
        if all(before == pairs[0][0] and len(after) == 1 for before, after in pairs):
            last = self.logits(pairs[0][0])[-1:]
            return [likelihood(last, after) for _, after in pairs]
        return [likelihood(self.logits([*before, *after[:-1]])[len(before) - 1 :], after) for before, after in pairs]

    def rolling(self, text: str, window: int) -> Iterator[tuple[list[int], torch.Tensor]]:
        """The tokens of a text, each predicted once, with the logits [n, V] that predict them: in windows of `window` tokens,
        the last of which reaches back so far that it is full (lm-eval: `get_rolling_token_windows`)."""
        tokens = self.tokenizer.tokens(text)
        whole = [self.start, *tokens]
        for begin in range(0, len(tokens), window):
            new = tokens[begin : begin + window]
            stop = begin + len(new)
            logits = self.logits(whole[max(0, stop - window) : stop])
            yield new, logits[len(logits) - len(new) :]

    def answers(self, asked: Sequence[Asked], keep: bool = False) -> Iterator[Answered]:
        """Greedy answers. keep: the logits too. Texts of a float model run side by side, as each step reads all weights."""
        longest = max(one.total for one in asked)
        if longest > self.context:
            raise self._too_long(longest)
        if isinstance(self._runner, ProgramRunner) and len(asked) > 1 and pads(self.config, longest):
            yield from self._side_by_side(self._runner, asked, keep)
        else:
            yield from (self._alone(one, keep) for one in asked)

    def _alone(self, asked: Asked, keep: bool) -> Answered:
        made, tokens = Answered([*asked.begun], False, [*asked.begun]), [*asked.prompt, *asked.begun]
        self._runner.reset()
        while True:
            logits = self._runner.step(torch.tensor([tokens]))[0, -1]
            if self._add(made, asked, logits, keep):
                return made
            tokens = made.tokens[-1:]

    def _side_by_side(self, runner: ProgramRunner, asked: Sequence[Asked], keep: bool) -> list[Answered]:
        """Rows are padded at the left to one length. One that has ended goes on with its end token, which nobody reads."""
        longest = max(len(one.prompt) for one in asked)
        padding = [longest - len(one.prompt) for one in asked]
        tokens = torch.tensor([[self._filler] * count + one.prompt for count, one in zip(padding, asked)])
        made, over = [Answered() for _ in asked], [False] * len(asked)
        runner.pad(torch.tensor(padding))
        while True:
            logits = runner.step(tokens)[:, -1]
            for row, one in enumerate(asked):
                over[row] = over[row] or self._add(made[row], one, logits[row].clone() if keep else logits[row], keep)
            if all(over):
                return made
            tokens = torch.tensor([[(one.path or [self._filler])[-1]] for one in made])

    @property
    def _filler(self) -> int:
        return self.config.eos[0] if self.config.eos else 0

    def _add(self, made: Answered, asked: Asked, logits: torch.Tensor, keep: bool) -> bool:
        """Take the next token; whether the answer is over."""
        token = int(logits.argmax())
        made.path.append(token)
        if keep:
            made.logits.append(logits)
        if token in self._ends:
            made.ended = True
            return True
        made.tokens.append(token)
        return len(made.tokens) == asked.limit or bool(asked.done and asked.done(made.tokens))


def likelihood(logits: torch.Tensor, tokens: Sequence[int]) -> Likelihood:
    """logits: float32 [n, V] that predict tokens [n]; of no token, all that is certain."""
    logprob, greedy = 0.0, True
    if not tokens:
        return Likelihood(logprob, greedy)
    for rows, wanted in zip(logits.split(_ROWS), torch.tensor(list(tokens)).split(_ROWS)):
        logs = rows.double().log_softmax(-1)
        logprob += float(logs.gather(1, wanted[:, None]).sum())
        greedy = greedy and bool((logs.argmax(-1) == wanted).all())
    return Likelihood(logprob, greedy)


def groups(totals: Sequence[int]) -> Iterator[range]:
    """Neighbours that are run side by side, by how many tokens each takes."""
    begin = 0
    for stop in range(1, len(totals) + 1):
        more = stop < len(totals) and (stop + 1 - begin) * max(totals[begin : stop + 1]) <= POSITIONS
        if not more or stop - begin == ROWS:
            yield range(begin, stop)
            begin = stop

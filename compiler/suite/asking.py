"""What is asked of a model for a line of a suite, and what is found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from pocketphi.compiler.measure import Distance, distance
from pocketphi.compiler.suite.decisions import holds_one_of, is_one_of, leaves_template, loops, refuses
from pocketphi.compiler.suite.found import Found
from pocketphi.compiler.suite.items import Choice, Exact, Line, Prompt, Text
from pocketphi.compiler.suite.side import Answered, Asked, Side, groups, likelihood
from pocketphi.compiler.ui import Advance
from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import show


def most_tokens(line: Line, side: Side, answer_tokens: int, window: int) -> int:
    """Tokens that a line takes together with its answer. Raises InputError where there are none to predict."""
    item = line.item
    if isinstance(item, Text):
        tokens = side.tokenizer.tokens(item.text)
        if not tokens:
            raise InputError(f"the model's tokenizer makes no token of {show(item.text)}")
        return min(window, len([side.start, *tokens]))
    if isinstance(item, Choice):
        return max(sum(map(len, side.pair(item.context, f" {one}"))) for one in item.compared)
    return asked_of(item, side, answer_tokens).total


def asked_of(item: Exact | Prompt, side: Side, answer_tokens: int) -> Asked:
    """The prompt of a line. An exact answer ends with its line; a message goes through the chat template."""
    if isinstance(item, Prompt):
        prompt = side.tokenizer.encode_chat([{"role": "user", "content": item.prompt}])
        return Asked(prompt, item.tokens or answer_tokens)
    return Asked(
        side.encode(item.context),
        item.tokens,
        lambda made: "\n" in side.tokenizer.decode(made).strip(" "),
    )


def choose(line: Line, item: Choice, side: Side, other: Side | None) -> Found:
    """Which choice is the likeliest: by its tokens together, and by its characters."""
    picked = _picked(item, side)
    yes = {name: choice == item.answer for name, choice in picked.items()}
    told = {"chosen": picked["accuracy"]}
    if other:
        expected = _picked(item, other)
        yes |= {f"reference_{name}": choice == item.answer for name, choice in expected.items()}
        yes["same_choice"] = picked["accuracy"] == expected["accuracy"]
        told["reference_chosen"] = expected["accuracy"]
    return Found(line.kind, line.group, line.where, yes, told=told)


def _picked(item: Choice, side: Side) -> dict[str, int]:
    """Normalised by length as in lm-eval: the log-likelihood over the characters of a choice."""
    logs = [one.logprob for one in side.likelihoods(item.context, [f" {text}" for text in item.compared])]
    by_length = [log / len(text) for log, text in zip(logs, item.compared)]
    return {"accuracy": logs.index(max(logs)), "accuracy_by_length": by_length.index(max(by_length))}


def predict(line: Line, item: Text, side: Side, other: Side | None, window: int) -> Found:
    """The log-likelihood of a text, and how far the predictions are from the reference's."""
    sums = {"nll": 0.0, "tokens": 0.0, "bytes": float(len(item.text.encode()))}
    apart, theirs = Distance(), 0.0
    expected = other.rolling(item.text, window) if other else None
    for tokens, came in side.rolling(item.text, window):
        sums["nll"] -= likelihood(came, tokens).logprob
        sums["tokens"] += len(tokens)
        if expected:
            logits = next(expected)[1]
            theirs -= likelihood(logits, tokens).logprob
            apart.add(logits, came)
    if other:
        sums |= {"reference_nll": theirs, "kl": apart.kl_sum, "agree": float(apart.agree)}
    return Found(line.kind, line.group, line.where, sums=sums, told=dict(sums))


def answer(
    lines: Sequence[Line], side: Side, other: Side | None, answer_tokens: int, advance: Advance
) -> Iterator[Found]:
    """Lines that want an answer, in groups that a float model answers side by side. advance: called for each line and side."""
    every = [asked_of(line.item, side, answer_tokens) for line in lines if isinstance(line.item, Exact | Prompt)]
    for group in groups([one.total for one in every]):
        asked = [every[at] for at in group]
        if other is None:
            compared: Iterable[Compared] = (Compared(made) for made in side.answers(asked))
        else:
            expected = list(other.answers(asked, keep=True))
            advance(len(asked))
            compared = (compare(side, one, reference) for one, reference in zip(asked, expected))
        for at, one in zip(group, compared):
            line = lines[at]
            yield _exact(line, line.item, one, side) if isinstance(line.item, Exact) else _behaviour(line, one, side)
            advance(1)


@dataclass(frozen=True)
class Compared:
    """made: a model's own answer; reference: the other model's; apart: of the predictions along that one; same: bool [n], where
    the likeliest token is the reference's"""

    made: Answered
    reference: Answered | None = None
    apart: Distance = field(default_factory=Distance)
    same: torch.Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def start(self) -> int:
        """Tokens until the first difference."""
        return int(self.same.long().cumprod(0).sum())


def compare(side: Side, asked: Asked, reference: Answered) -> Compared:
    """Read the reference's answer in one run, and answer from the first token on that would be another one: up to there the own
    answer is the reference's."""
    came = side.logits([*asked.prompt, *reference.path[:-1]])[len(asked.prompt) - 1 :]
    same = came.argmax(-1) == torch.tensor(reference.path)
    apart = distance(torch.stack(reference.logits), came)
    one = Compared(reference, reference, apart, same)
    if one.start == len(reference.path):
        return one
    (made,) = side.answers([replace(asked, begun=tuple(reference.path[: one.start]))])
    return replace(one, made=made)


def _exact(line: Line, item: Exact, one: Compared, side: Side) -> Found:
    said = first_line(side.tokenizer.decode(one.made.tokens))
    yes, told = _right(said, item.answers), {"said": said}
    if one.reference:
        expected = first_line(side.tokenizer.decode(one.reference.tokens))
        right = _right(expected, item.answers)
        yes = {**yes, **{f"reference_{name}": one for name, one in right.items()}}
        yes["same_verdict"] = yes["contains"] == right["contains"]
        told["reference_said"] = expected
    return Found(line.kind, line.group, line.where, yes, told=told)


def _right(said: str, accepted: Sequence[str]) -> dict[str, bool]:
    return {"exact": is_one_of(said, accepted), "contains": holds_one_of(said, accepted)}


def first_line(text: str) -> str:
    """What an exact answer is: all before the end of its line, which may be nothing."""
    return text.strip(" ").partition("\n")[0].strip()


def _behaviour(line: Line, one: Compared, side: Side) -> Found:
    yes, told = _did(one.made, side, line.kind), {"said": side.tokenizer.decode(one.made.tokens)}
    if one.reference is None:
        return Found(line.kind, line.group, line.where, yes, told=told)
    expected = _did(one.reference, side, line.kind)
    told["reference_said"] = side.tokenizer.decode(one.reference.tokens)
    yes |= {f"reference_{name}": did for name, did in expected.items()}
    yes |= {f"same_{name}": yes[name] == expected[name] for name in ("stops", "refuses") if name in expected}
    yes["new_loops"] = yes["loops"] and not expected["loops"]
    yes["same_first_token"] = bool(one.same[0])
    numbers = {"kl": one.apart.kl, "same_tokens": one.apart.top1, "same_start": one.start / len(one.same)}
    return Found(line.kind, line.group, line.where, yes, numbers, told=told)


def _did(made: Answered, side: Side, kind: str) -> dict[str, bool]:
    """The decisions on an answer by itself. Whether it refuses is told for English alone."""
    did = {
        "stops": made.ended,
        "loops": not made.ended and loops(made.tokens),
        "leaves_template": leaves_template(made.tokens, side.tokenizer.special, side.config.eos),
    }
    return did | ({"refuses": refuses(side.tokenizer.decode(made.tokens))} if kind == "behaviour" else {})

"""A model that is asked: likelihoods against the sum over single steps, and answers side by side against those alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_phi3 import rounding

from pocketphi.compiler.suite.asking import compare, most_tokens
from pocketphi.compiler.suite.items import Line, Text
from pocketphi.compiler.suite.side import ROWS, Answered, Asked, Likelihood, Side, groups
from pocketphi.graph.errors import InputError

Make = Callable[[str], Side]
FLOAT = "random:tiny"


def by_steps(side: Side, tokens: list[int], first: int) -> float:
    """Log-likelihood of tokens[first:], one step after the other."""
    side._runner.reset()
    total = 0.0
    for at, token in enumerate(tokens[:-1]):
        logs = side._runner.step(torch.tensor([[token]]))[0, -1].double()
        if at + 1 >= first:
            total += float(logs[tokens[at + 1]] - logs.logsumexp(0))
    return total


@pytest.mark.parametrize("model", ["bundle", FLOAT])
def test_likelihoods(model: str, bundle: Path, side: Make) -> None:
    asked = side(str(bundle) if model == "bundle" else model)
    context, texts = "Which one? ", ["A", "B", "long"]
    before = asked.tokenizer.tokens("Which one?")
    for text, found in zip(texts, asked.likelihoods(context, texts)):
        whole = [*before, *asked.tokenizer.tokens(f" {text}")]
        # float32 logits, a few tokens
        assert found.logprob == pytest.approx(by_steps(asked, whole, len(before)), abs=1e-4)
        assert not found.greedy
    first, second = asked.likelihoods("Which", ["A", "B"])  # one run for both
    again = [asked.likelihoods("Which", [text])[0] for text in "AB"]
    assert [first, second] == again


def test_what_is_greedy(side: Make) -> None:
    asked = side(FLOAT)
    (made,) = asked.answers([Asked(asked.encode("Once"), 5)])
    wanted = torch.tensor(made.path)
    logits = asked.logits([*asked.encode("Once"), *made.path[:-1]])[3:]
    assert torch.equal(logits.argmax(-1), wanted)


def test_the_context_may_be_empty_or_end_with_spaces(side: Make) -> None:
    asked = side(FLOAT)
    assert asked.pair("", "ab") == ([asked.start], asked.tokenizer.tokens("ab"))
    assert asked.pair("a  ", "b") == (asked.tokenizer.tokens("a"), asked.tokenizer.tokens("  b"))


def test_what_comes_to_no_token(side: Make) -> None:
    asked = side(FLOAT)
    assert asked.pair("\n", "b") == ([asked.start], asked.tokenizer.tokens("b"))  # this tokenizer has no token for it
    assert asked.likelihoods("a", ["\n"]) == [Likelihood(0.0, True)]
    asked.config = replace(asked.config, bos=None, eos=())
    with pytest.raises(InputError, match="neither a start token nor an end token to put before a text"):
        asked.pair("", "b")
    with pytest.raises(InputError, match="neither a start token"):  # before anything runs
        most_tokens(Line(Text("b"), "texts", "a.jsonl:1"), asked, 8, 16)


def test_rolling_predicts_each_token_once(side: Make) -> None:
    asked = side(FLOAT)
    text = "abcdefghijklmnopqrstuvw"
    whole = asked.tokenizer.tokens(text)
    parts = list(asked.rolling(text, 10))
    assert [token for tokens, _ in parts for token in tokens] == whole
    assert [len(tokens) for tokens, _ in parts] == [10, 10, 3]
    last, logits = parts[-1]
    assert torch.equal(logits, asked.logits(whole[12:22])[-3:])  # ten tokens before the last one
    assert len(last) == len(logits) == 3


def test_answers_side_by_side_are_those_alone(side: Make) -> None:
    """Prompts of several lengths and limits, one of which ends at once, and one with an end of its own."""
    together = side(FLOAT)
    prompts = ["a", "Tell me a story about a fox", "Why?", "Who is it, and why is that so?"]
    asked = [Asked(together.encode(prompt), limit) for prompt, limit in zip(prompts, (8, 3, 12, 8))]
    alone = [next(together.answers([one], keep=True)) for one in asked]
    third = alone[2].tokens
    together._ends = frozenset([third[4]])  # from here on
    asked[3] = replace(asked[3], done=lambda made: len(made) == 2)
    alone = [next(together.answers([one], keep=True)) for one in asked]
    assert alone[2].ended
    assert [len(one.tokens) for one in alone[1:2]] == [3]
    assert len(alone[3].tokens) == 2
    for one, other in zip(together.answers(asked, keep=True), alone):
        assert (one.tokens, one.ended, one.path) == (other.tokens, other.ended, other.path)
        apart = float((torch.stack(one.logits) - torch.stack(other.logits)).abs().max())
        assert apart <= rounding(together.config, float(torch.stack(other.logits).abs().max()), 64)


def test_an_answer_goes_on_where_it_is_another_one(bundle: Path, side: Make) -> None:
    """What was compared is what the bundle says by itself."""
    own, other = side(str(bundle)), side(FLOAT)
    starts = []
    for prompt in ("<user>Hello</>", "<user>Tell me</>", "The end of"):
        asked = Asked(own.encode(prompt), 12)
        (reference,) = other.answers([asked], keep=True)
        (alone,) = own.answers([asked])
        found = compare(own, asked, reference)
        assert found.made.path == alone.path
        assert found.made.ended == alone.ended
        same = [a == b for a, b in zip(alone.path, reference.path)]
        assert found.start == (same.index(False) if False in same else len(same))
        assert found.apart.positions == len(reference.path)
        starts.append(found.start)
    assert min(starts) < 12  # else nothing was answered
    itself = compare(other, asked, reference)
    assert itself.made is reference
    assert itself.apart.kl < 1e-9


def test_what_is_too_long(side: Make) -> None:
    asked = side(FLOAT)
    with pytest.raises(
        InputError, match=r"a text of 129 tokens with its answer, and the cache holds 128; make it larger"
    ):
        asked.logits([5] * 129)
    with pytest.raises(InputError, match=r"a text of 130 tokens"):
        list(asked.answers([Asked([5] * 100, 30)]))


def test_groups() -> None:
    assert [list(group) for group in groups([10] * (ROWS + 1))] == [list(range(ROWS)), [ROWS]]
    assert [list(group) for group in groups([600, 600, 700, 5000, 1])] == [[0, 1], [2], [3], [4]]
    assert list(groups([])) == []
    assert Answered().path == []

"""Guesses around a runner: what is guessed is what the TVM runtime guesses, and no token is another one."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pocketphi.targets import guessing
from pocketphi.targets.guessing import MOST, DraftModel, Drafts, Guessing
from pocketphi.targets.tvm_arm.toolchain import SOURCES, find_toolchain, host_arch

HELPERS = Path(__file__).parents[1] / "helpers"


def test_the_rules_are_those_of_the_runtime(tmp_path: Path) -> None:
    """Over texts that repeat themselves and not, with right and wrong guesses, cheap and dear ones, from both sources."""
    program, script, expected, counted = tmp_path / "program", list[str](), list[str](), Counter[str]()
    for seed in range(12):
        chance, drafts = random.Random(seed), Drafts()
        rows, cost, right = (
            chance.choice((0.05, 0.2, 0.6)),
            chance.choice((0.03, 0.2, 1.0)),
            chance.choice((0, 2, MOST)),
        )
        with_model, alphabet = seed % 3 > 0, chance.choice((4, 12, 60))
        drafts.meet(cost)
        script += ["new", f"meet {cost!r}"]
        seen: list[int] = []
        for step in range(150):
            seen += [chance.randrange(alphabet) for _ in range(chance.choice((1, 1, 3)))]
            room, behind = chance.choice((0, 1, 5, 100)), chance.choice((1, 1, 5, 300))
            model_room = chance.choice((0, 100)) if with_model else 0
            tokens, of_model = drafts.next(seen, room, model_room, behind)
            words = [room, model_room, behind, len(seen), *seen]
            script.append(f"next {' '.join(map(str, words))}")
            expected.append(" ".join(map(str, [of_model, *tokens])))
            counted["text" if tokens else "model" if of_model else "none"] += 1
            guessed = len(tokens) or of_model
            if of_model:
                drafts.model_took(of_model, cost * of_model)
                script.append(f"model_took {of_model} {cost * of_model!r}")
            took = (1 + rows * guessed) * (1 + step % 7 / 50)
            drafts.took(guessed, took)
            script.append(f"took {guessed} {took!r}")
            if guessed:
                came = min(right, guessed)
                drafts.learn(came, came < guessed)
                script.append(f"learn {came} {int(came < guessed)}")
    assert min(counted[kind] for kind in ("text", "model", "none")) > 100
    own = find_toolchain("linux", host_arch())
    own.run("-std=c++17", "-O1", f"-I{SOURCES}", str(HELPERS / "drafts_by_rule.cc"), "-o", str(program))
    said = subprocess.run([str(program)], input="\n".join(script), capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == expected


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is guessed follows from the tokens alone."""
    monkeypatch.setattr(guessing, "time", SimpleNamespace(perf_counter=lambda: 0.0))


class Toy:
    """A model whose next token follows from the last ones, and a cache that has to have them all. limit: of the cache."""

    def __init__(self, limit: int, next_: Callable[[list[int]], int]) -> None:
        self.limit, self._next, self.held = limit, next_, list[int]()
        self.fails = False

    def reset(self) -> None:
        self.held = []

    def room(self) -> int:
        return self.limit - len(self.held)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.check(tokens)[:, -1:]

    def check(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.fails:
            raise KeyboardInterrupt
        assert 0 < tokens.shape[1] <= self.room()
        rows = []
        for token in tokens[0].tolist():
            self.held.append(token)
            rows.append(torch.nn.functional.one_hot(torch.tensor(self._next(self.held)), 50).float())
        return torch.stack(rows)[None]

    def forget(self, count: int) -> None:
        assert 0 < count < len(self.held)
        del self.held[-count:]


def repeats(held: list[int]) -> int:
    """A sentence again and again, with another word in it each time."""
    place = len(held) % 20
    return len(held) // 20 % 30 if place == 13 else 30 + place


def answer(runner: Guessing | Toy, prompt: list[int], count: int) -> list[int]:
    logits, made = runner.step(torch.tensor([prompt])), list[int]()
    for _ in range(count):
        made.append(int(logits[0, -1].argmax()))
        logits = runner.step(torch.tensor([made[-1:]]))
    return made


DRAFTS: dict[str, Callable[[list[int]], int]] = {
    "right": repeats,
    "wrong": lambda held: 49,
    "half": lambda held: repeats(held) if len(held) % 5 else 49,
}


@pytest.mark.parametrize("draft", [None, *DRAFTS])
def test_tokens_are_the_same(draft: str | None) -> None:
    """Up to the last one that the cache has room for, in several turns, and where the draft model's has less."""
    toy = Toy(300, repeats)
    model = DraftModel(Toy(240, DRAFTS[draft]), 240) if draft else None
    runner = Guessing(toy, model, 0.05)
    for _ in range(3):
        alone = Toy(300, repeats)
        for prompt, count in (([1, 2, 3], 60), ([4, 5], 1), ([6], 40), ([7, 8, 9, 10], 189)):
            assert answer(runner, prompt, count) == answer(alone, prompt, count)
        assert toy.held[: len(alone.held)] == alone.held
        runner.reset()
    assert runner.calls < 3 * 294 * 0.4


def test_an_interrupted_answer_leaves_nothing_wrong() -> None:
    """Wherever it is: in the model's call, or in the draft model's."""
    whole = answer(Toy(300, repeats), [1, 2, 3], 100)
    toy, draft = Toy(300, repeats), Toy(300, repeats)
    runner = Guessing(toy, DraftModel(draft, 300), 0.05)
    for broken in (toy, draft, toy):
        runner.reset()
        answer(runner, [1, 2, 3], 30)
        broken.fails = True
        with pytest.raises(KeyboardInterrupt):
            answer(runner, [1, 2], 30)
        broken.fails = False
        runner.reset()
        assert answer(runner, [1, 2, 3], 100) == whole

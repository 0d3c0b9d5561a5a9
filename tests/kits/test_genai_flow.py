"""The calls that the kits for onnxruntime-genai make, in the same order, against the real runtime: turns, rewinding, ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pocketphi.artifacts.kits.reference import Rules
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.numerics import generate
from pocketphi.compiler.options import CompileOptions
from pocketphi.targets.ort_mobile.host import OrtRunner


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("genai") / "bundle"
    # blocks of 32: with these weights the answers go on
    compile_model(CompileOptions("random:tiny", out, recipe="rtn", block=32, accuracy_level=0, verify="never"))
    return out


class Chat:
    """`Chat.kt` and `Chat.swift`, on tokens instead of text."""

    def __init__(self, bundle: Path, rules: Rules) -> None:
        import onnxruntime_genai as og

        self.model = og.Model(str(bundle))
        parameters = og.GeneratorParams(self.model)
        parameters.set_search_options(max_length=rules.context, do_sample=False)
        self.generator = og.Generator(self.model, parameters)
        self.rules = rules
        self.seen: list[int] = []
        self.starts: list[int] = []

    def send(self, prompt: list[int], limit: int) -> list[int]:
        start = self.rules.calls(self.seen, prompt)[0].start
        self.generator.rewind_to(start)
        self.starts.append(start)
        self.generator.append_tokens(prompt[start:])

        def chosen() -> object:
            while True:
                self.generator.generate_next_token()
                yield int(self.generator.get_sequence(0)[-1])

        made, _ = self.rules.answer(len(prompt), limit, chosen())  # type: ignore[arg-type]
        self.seen = self.generator.get_sequence(0).tolist()[:-1]  # the last token is not in the cache yet
        return made


def greedy(bundle: Path, prompt: list[int], count: int) -> list[int]:
    return generate(OrtRunner(bundle, len(prompt) + count), torch.tensor([prompt]), count)[0][0].tolist()


def test_turns_continue_and_other_starts_begin_again(bundle: Path) -> None:
    first = list(range(10, 30))
    expected = greedy(bundle, first, 6)
    assert 2 not in expected  # the model's end token; what follows counts on an answer that goes on
    stop = expected[5]
    assert stop not in expected[:5]
    chat = Chat(bundle, Rules(120, 0, 0, None, frozenset({stop})))
    assert chat.send(first, 50) == expected[:5]  # ended by a stop token of ours, which is in the sequence
    second = [*first, *expected, *range(40, 52)]
    assert chat.send(second, 4) == greedy(bundle, second, 4)
    other = list(range(60, 75))
    assert chat.send(other, 4) == greedy(bundle, other, 4)
    assert chat.starts == [0, 25, 0]


def test_the_cache_is_full(bundle: Path) -> None:
    prompt = list(range(5, 25))
    chat = Chat(bundle, Rules(24, 0, 0, None, frozenset()))
    assert chat.send(prompt, 50) == greedy(bundle, prompt, 4)

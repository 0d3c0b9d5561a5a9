"""The calls that the kits for onnxruntime-genai make, in the same order, against the real runtime: turns, rewinding, ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pocketphi.artifacts.kits.conversation import Conversation
from pocketphi.artifacts.kits.reference import Call, Rules
from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.numerics import generate
from pocketphi.compiler.options import compile_options
from pocketphi.targets.ort_mobile.host import OrtRunner


@pytest.fixture(scope="module", params=["", "text", "right model", "wrong model"])
def bundle(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Without tokens that the runtime guesses, with those of the text, and of draft models."""
    folder = tmp_path_factory.mktemp("genai")
    # blocks of 32: with these weights the answers go on
    options: dict[str, Any] = {"recipe": "rtn", "block": 32, "accuracy_level": 0, "verify": "never"}
    if "model" in request.param:
        small = "random:tiny" if request.param == "right model" else "random:tiny@1"
        options["draft"] = compile_model(compile_options(small, folder / "small", **options)).path
    return compile_model(
        compile_options("random:tiny", folder / "bundle", drafts=request.param == "text", **options)
    ).path


class Model:
    """`GenAIModel.kt` and `GenAIModel.swift`."""

    def __init__(self, bundle: Path, rules: Rules) -> None:
        import onnxruntime_genai as og

        self.model = og.Model(str(bundle))
        parameters = og.GeneratorParams(self.model)
        parameters.set_search_options(max_length=rules.context, do_sample=False)
        self.generator = og.Generator(self.model, parameters)
        self.sequence: list[int] = []
        self.starts: list[int] = []

    def run(self, calls: Sequence[Call], tokens: Sequence[int]) -> int | None:
        held, self.sequence = self.sequence, []
        if tokens != held:
            self.starts.append(calls[0].start)
            self.generator.rewind_to(calls[0].start)
            self.generator.append_tokens(list(tokens[calls[0].start :]))
        self.generator.generate_next_token()
        self.sequence = self.generator.get_sequence(0).tolist()
        return self.sequence[-1] if len(self.sequence) > len(tokens) else None

    def step(self, token: int) -> str:
        return f"{token} "


class Chat:
    """A conversation whose text is made of tokens' numbers."""

    def __init__(self, bundle: Path, rules: Rules) -> None:
        self.model = Model(bundle, rules)
        self.talk = Conversation(rules, lambda messages: [int(t) for _, text in messages for t in text.split()])

    def send(self, tokens: list[int], limit: int) -> list[int]:
        text = " ".join(map(str, tokens))
        return [int(piece) for piece in self.talk.send(text, limit, self.model, self.model)]


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
    second = [*first, *expected[:5], *range(40, 52)]
    assert chat.send(second[25:], 4) == greedy(bundle, second, 4)
    other = list(range(60, 75))
    chat.talk.reset()
    assert chat.send(other, 4) == greedy(bundle, other, 4)
    assert chat.model.starts == [0, 25, 0]


def test_texts_that_repeat_themselves(bundle: Path) -> None:
    """There tokens are guessed, of which an answer may take some only."""
    chat, said = Chat(bundle, Rules(200, 0, 0, None, frozenset())), list[int]()
    for limit in (3, 20, 1, 7):
        turn = [*(11, 12, 13, 14) * 4]
        came = chat.send(turn, limit)
        assert came == greedy(bundle, [*said, *turn], limit)
        said += [*turn, *came]
    assert chat.model.starts == [0, 18, 54, 71]


def test_the_runtime_ends_the_answer_itself(bundle: Path, tmp_path: Path) -> None:
    """The model's own end token is not appended to the sequence: its last token must not be taken for a new one."""
    first = list(range(10, 30))
    expected = greedy(bundle, first, 6)
    ends = shutil.copytree(bundle, tmp_path / "bundle")
    settings = json.loads((ends / "genai_config.json").read_text("utf-8"))
    settings["model"]["eos_token_id"] = [expected[5]]
    (ends / "genai_config.json").write_text(json.dumps(settings), "utf-8")
    chat = Chat(ends, Rules(120, 0, 0, None, frozenset({expected[5]})))
    assert chat.send(first, 50) == expected[:5]
    second = [*first, *expected[:5], *range(40, 52)]
    assert chat.send(second[25:], 2) == greedy(bundle, second, 2)
    assert chat.model.starts == [0, 25]


def test_the_cache_is_full(bundle: Path) -> None:
    prompt = list(range(5, 25))
    chat = Chat(bundle, Rules(24, 0, 0, None, frozenset()))
    assert chat.send(prompt, 50) == greedy(bundle, prompt, 4)

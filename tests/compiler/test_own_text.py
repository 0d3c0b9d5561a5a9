"""Text that a model writes itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from text_folders import add_tokenizer

from pocketphi.compiler import own_text
from pocketphi.compiler.cli import main
from pocketphi.compiler.own_text import written
from pocketphi.graph.decoder import ProgramRunner
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.random_weights import PUBLISHED, RandomWeights
from pocketphi.graph.tokenizer import Tokenizer
from pocketphi.graph.trace import trace
from pocketphi.graph.write_checkpoint import write_checkpoint
from pocketphi.passes.calibrate import own_pages


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    write_checkpoint(RandomWeights("random:x", replace(PUBLISHED["tiny"], vocab_size=384)), folder, "fp32")
    return add_tokenizer(folder)


def test_tokens_are_drawn_from_what_the_model_predicts() -> None:
    """The same draws from logits of the whole row at once, without a cache."""
    program = trace(HashedCheckpoint(RandomWeights("random:tiny")))
    start = torch.tensor([[5, 9], [7, 200], [0, 1]])
    steps: list[None] = []
    rows = written(ProgramRunner(program), start, 6, torch.Generator().manual_seed(3), lambda: steps.append(None))
    generator, whole = torch.Generator().manual_seed(3), start
    for _ in range(6):
        logits = ProgramRunner(program).step(whole)[:, -1]
        whole = torch.cat((whole, torch.multinomial(logits.softmax(-1), 1, generator=generator)), 1)
    assert rows == whole.tolist()
    assert len(steps) == 6


def test_a_model_writes_and_is_calibrated_on_it(
    text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, again, other = (tmp_path / name for name in ("own.txt", "again.txt", "other.txt"))
    assert main(["make-text", str(text_model), "-o", str(out), "--tokens", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"text": str(out), "bytes": out.stat().st_size}
    text = out.read_text("utf-8")
    assert text.startswith(own_pages())
    tokens = Tokenizer.load(text_model).tokens(text[len(own_pages()) :])
    assert len(tokens) >= 64
    assert main(["make-text", str(text_model), "-o", str(again), "--tokens", "64"]) == 0
    assert main(["make-text", str(text_model), "-o", str(other), "--tokens", "64", "--seed", "1"]) == 0
    assert again.read_bytes() == out.read_bytes() != other.read_bytes()
    bundle = str(tmp_path / "bundle")
    assert main(["compile", str(text_model), "-o", bundle, "--calibration", str(out), "--verify", "never"]) == 0


def test_half_of_the_sequences_begin_as_a_conversation(
    text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[torch.Tensor] = []
    monkeypatch.setattr(own_text, "written", lambda *args: starts.append(args[1]) or written(*args))
    monkeypatch.setattr(own_text, "LENGTH", 8)
    assert main(["make-text", str(text_model), "-o", str(tmp_path / "own.txt"), "--tokens", "40"]) == 0
    talk, plain = starts
    assert talk.tolist() == 2 * [Tokenizer.load(text_model).tokens("<|user|>")]
    assert plain.shape == (3, 1)


def test_what_cannot_be_written_is_said_first(
    text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "own.txt"

    def refused(model: str, *options: str) -> str:
        assert main(["make-text", model, "-o", str(out), *options]) == 2
        assert not out.exists()
        return capsys.readouterr().err

    assert "the model has no tokenizer, so that what it writes is no text" in refused("random:tiny")
    assert "--tokens 0: expected 1 to" in refused(str(text_model), "--tokens", "0")
    assert "--seed 99999999999999999999: expected 0 to" in refused(str(text_model), "--seed", "9" * 20)
    elsewhere = str(tmp_path / "nowhere" / "own.txt")  # found out before the model has written for an hour
    assert main(["make-text", str(text_model), "-o", elsewhere]) == 2
    assert "there is no folder" in capsys.readouterr().err
    said = refused(str(text_model), "--tokens", str(10**9))
    assert "their keys and values take" in said
    assert "choose fewer" in said
    out.write_text("mine")
    assert main(["make-text", str(text_model), "-o", str(out)]) == 2
    assert "own.txt: exists; choose another -o" in capsys.readouterr().err
    assert out.read_text() == "mine"

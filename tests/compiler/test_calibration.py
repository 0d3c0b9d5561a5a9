"""The text that a compile measures a model on has to say something to the model's tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from heard import Heard

from pocketphi.compiler.calibration import calibration_tokens
from pocketphi.compiler.options import compile_options
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import InputError
from pocketphi.graph.random_weights import PUBLISHED, RandomWeights
from pocketphi.graph.tokenizer import Tokenizer

MODELS = {
    "words": tokenizers.models.WordLevel({"[UNK]": 0, "one": 1, "two": 2}, unk_token="[UNK]"),
    "unigrams": tokenizers.models.Unigram([("[UNK]", 0.0), ("one", -1.0), ("two", -2.0)], unk_id=0),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_text_of_unknown_tokens(tmp_path: Path, kind: str) -> None:
    tokenizer = tokenizers.Tokenizer(MODELS[kind])
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    files = {"tokenizer.json": tokenizer.to_str().encode()}
    assert Tokenizer.from_files(files).unknown == 0
    source = RandomWeights("random:tiny", PUBLISHED["tiny"])
    source.tokenizer_files = lambda: files  # type: ignore[method-assign]
    text = tmp_path / "text"
    options = compile_options("random:tiny", tmp_path, calibration=text)
    text.write_text("три четыре пять")
    with pytest.raises(InputError, match="text: the model's tokenizer knows nothing of the calibration text"):
        calibration_tokens(source, options, Ui())
    text.write_text("три one пять")
    options = compile_options("random:tiny", tmp_path, calibration=text)
    assert 1 in calibration_tokens(source, options, Ui())


def test_a_model_without_a_tokenizer_is_said_once(tmp_path: Path) -> None:
    heard = Heard()
    source = RandomWeights("random:tiny", PUBLISHED["tiny"])
    for _ in range(3):  # as the steps of one compile ask
        calibration_tokens(source, compile_options("random:tiny", tmp_path), heard)
    assert heard.lines == ["the model has no tokenizer: calibrated on random tokens"]


def test_a_tokenizer_that_knows_every_byte() -> None:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    assert Tokenizer.from_files({"tokenizer.json": tokenizer.to_str().encode()}).unknown is None

"""A float model and a bundle of it whose tokens are characters, and a suite that both can be asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from letters_bundle import letters_bundle

from pocketphi.compiler.evaluate import open_model
from pocketphi.compiler.suite.side import Side
from pocketphi.graph.tokenizer import Tokenizer

CONTEXT = 128


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters_bundle(tmp_path_factory.mktemp("suite") / "bundle")


@pytest.fixture(scope="module")
def side(bundle: Path) -> Callable[[str], Side]:
    """A side of a model, with the bundle's tokenizer."""
    tokenizer = Tokenizer.load(bundle)

    def made(model: str) -> Side:
        opened = open_model(model)
        return Side(opened.runner, opened.config, tokenizer, CONTEXT)

    return made


LINES: list[dict[str, Any]] = [
    {"question": "Which?", "choices": ["red", "green", "a colour"], "answer": 0, "by": "text", "category": "colours"},
    {"question": "What is it?", "choices": ["one", "two", "x"], "answer": 2, "by": "text", "category": "numbers"},
    {"question": "And now?", "choices": ["one", "two", "three", "four"], "answer": 3, "category": "numbers"},
    {"question": "Who?", "answers": ["Ada"], "tokens": 6},
    {"question": "When?", "answers": ["never"], "tokens": 9},
    {"text": "It was a dark and stormy night, and nobody knew why."},
    {"text": "x"},
    {"prompt": "Say hello"},
    {"prompt": "Say it in a longer way", "category": "long", "tokens": 20},
    {"prompt": "Hallo", "language": "German"},
    {"prompt": "Bonjour", "language": "French"},
]


@pytest.fixture(scope="module")
def suite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "own.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path

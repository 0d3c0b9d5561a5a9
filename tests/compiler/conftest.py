"""Bundles that the driver's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from letters_bundle import letters_bundle

from pocketphi.compiler.compile import compile_model
from pocketphi.compiler.options import compile_options
from pocketphi.graph.gguf_file import GgufFile, sample_path


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """random:tiny, round to nearest: grouped heads, a window of 48, untied embeddings, no tokenizer."""
    out = tmp_path_factory.mktemp("tiny") / "bundle"
    compile_model(compile_options("random:tiny", out, recipe="rtn", verify="never"))
    return out


@pytest.fixture(scope="session")
def sample_tokenizer_files() -> dict[str, bytes]:
    return GgufFile(sample_path()).tokenizer_files()


@pytest.fixture(scope="session")
def talking_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose 256 tokens are a character each."""
    return letters_bundle(tmp_path_factory.mktemp("chat") / "bundle")

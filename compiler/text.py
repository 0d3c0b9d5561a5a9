"""Texts as tokens: for calibration, verification and measuring."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.tokenizer import Tokenizer

PROBE = (
    "The capital of France is Paris, a city on the river Seine. A compiler reads a program in one language and writes "
    "the same program in another; it must not change what the program means. In 2024 a phone could hold a language model "
    "of 3.8 billion parameters, if each of them took four bits. Water boils at 100 °C at sea level, and at 71 °C on the "
    "summit of Mount Everest. def add(a, b): return a + b"
)
"""What verification feeds a model that has a tokenizer."""


def read_text(path: Path, what: str, content: bytes | None = None) -> str:
    """A UTF-8 file that is not empty. content: of the file, where it has been read already. Raises InputError."""
    try:
        text = (path.read_bytes() if content is None else content).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: {what} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{path}: {what} cannot be read: {error.strerror}") from None
    if not text.strip():
        raise InputError(f"{path}: {what} is empty")
    return text


def windows(tokens: list[int], length: int) -> torch.Tensor:
    """Tokens as int64 [B, length]; a text shorter than a window is one shorter window, the rest of a longer one is left."""
    length = min(length, len(tokens))
    count = len(tokens) // length
    return torch.tensor(tokens[: count * length], dtype=torch.int64).view(count, length)


def random_tokens(config: ModelConfig, count: int) -> list[int]:
    """Uniform random tokens, the same each time, for a model without a tokenizer."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (count,), generator=generator).tolist()


def tokens_of(text: str | None, default: str, files: Mapping[str, bytes], config: ModelConfig, count: int) -> list[int]:
    """At most `count` tokens of the user's text, or of the default one; random ones for a model without a tokenizer.

    Raises InputError for a text that a model without a tokenizer cannot read.
    """
    if files:
        return Tokenizer.from_files(files).encode(text or default)[:count]
    if text is not None:
        raise InputError("the model has no tokenizer, so that a text means nothing to it")
    return random_tokens(config, count)

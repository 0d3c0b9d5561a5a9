"""A bundle that is to guess for another model: what it has to be, whatever the target. Light: options are checked with it."""

from __future__ import annotations

from pathlib import Path

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.manifest import vocabulary_of
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_config import read_config


def open_draft(path: Path, target: str, check: bool = True) -> Bundle:
    """The bundle, its files compared with its manifest if `check`. Raises InputError for one without this target's files."""
    bundle = Bundle.open(path, check)
    held = bundle.manifest.targets
    if target not in held:
        raise InputError(f"--draft {path}: holds {', '.join(held)}; compile it with --target {target}")
    return bundle


def check_tokens(draft: Bundle, vocab_size: int, vocabulary: str | None, whose: str) -> None:
    """Raises InputError where a bundle has other tokens than a model.

    vocabulary: digest of the model's, "" without a tokenizer, None where it is not known; whose: the model, in words
    """
    size, known = read_config(draft.path).vocab_size, vocabulary_of(draft.manifest.text)
    if size != vocab_size or (vocabulary is not None and known != vocabulary):
        raise InputError(
            f"--draft {draft.path}: has another tokenizer than {whose} ({size:,} tokens, and {vocab_size:,}); only a model "
            "with the same tokens can guess for it: take a smaller one of the same family"
        )

"""The tokens that a compile measures a model on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch

from pocketphi.compiler.options import CompileOptions
from pocketphi.compiler.text import read_text, tokens_of, windows
from pocketphi.compiler.ui import Ui
from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.errors import InputError
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.lazy_weights import LazyWeight
from pocketphi.graph.packing import tensor_bytes
from pocketphi.graph.store import store_of
from pocketphi.graph.tokenizer import Tokenizer
from pocketphi.passes.calibrate import WINDOW, default_text
from pocketphi.passes.weight_cache import StoredWeight, WeightCache


def weight_cache(source: HashedCheckpoint, options: CompileOptions, ui: Ui) -> WeightCache:
    """Where rounded weights are kept, with what other machines share, if that was asked for."""
    return WeightCache(options.place.folder, source, store_of(options.place, ui.say))


def calibration_tokens(source: Checkpoint, options: CompileOptions, ui: Ui, count: int | None = None) -> torch.Tensor:
    """int64 [B, S]. count: how many are wanted, --calibration-tokens if None. Raises InputError for a text that says nothing to
    the model's tokenizer."""
    text = None
    if options.calibration is not None:
        text = read_text(options.calibration, "the calibration text", options.content("calibration"))
    files = source.tokenizer_files()
    if not files:
        ui.say_once("the model has no tokenizer: calibrated on random tokens")
    tokens = tokens_of(text, default_text(), files, source.config, count or options.calibration_tokens)
    if not tokens:
        raise InputError(f"{options.calibration}: the calibration text holds no tokens")
    if files and (unknown := Tokenizer.from_files(files).unknown) is not None and set(tokens[1:]) == {unknown}:
        raise InputError(
            f"{options.calibration}: the model's tokenizer knows nothing of the calibration text: all of its tokens are "
            "the unknown one; give a text in a language of the model"
        )
    return windows(tokens, min(WINDOW, options.context or source.config.max_position))


def rounded_key(
    source: HashedCheckpoint, weights: Mapping[str, LazyWeight], tokens: torch.Tensor, *settings: str
) -> str:
    """Of what decides anything that is measured of a model with rounded weights on a text, but for the order of sums.

    source: of the weights that were rounded; settings: what else decides it
    """
    files = [one.path.name if isinstance(one, StoredWeight) else "" for one in weights.values()]
    how = [f"{name} {weight.describe()} {file}" for (name, weight), file in zip(weights.items(), files)]
    parts = [source.digest_all(), json.dumps(source.config.to_hf()), *settings, str(tuple(tokens.shape)), *how]
    return hashlib.sha256("\n".join(parts).encode() + tensor_bytes(tokens)).hexdigest()

"""A Hugging Face `config.json`, key by key: honoured, known to change nothing, told in a notice, or refused.

The keys and defaults are those of the model that it names (`graph/models/`). `graph/hf_agreement.py` compares the result with
what transformers makes of the same file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketphi.graph.config import ModelConfig
from pocketphi.graph.hf_keys import check_keys
from pocketphi.graph.models import find_model
from pocketphi.graph.models.base import Model
from pocketphi.graph.models.settings import Token, rows_only
from pocketphi.graph.packed import Packing, read_packing
from pocketphi.graph.reading import read_json, typed


@dataclass(frozen=True)
class _Generation:
    """What of `generation_config.json` is used; the rest is how to sample."""

    eos_token_id: Token | tuple[Token, ...] | None = None


@dataclass(frozen=True)
class HfConfig:
    """family: what the file says that it is; weights: the file that `transformers_weights` names; notices: one line each on
    what was left out; packing: how the weights are quantized, where they are."""

    family: Model
    model: ModelConfig
    weights: str | None
    notices: tuple[str, ...]
    packing: Packing | None = None


def read_hf_config(data: Mapping[str, Any], where: str) -> HfConfig:
    """Raises InputError for another architecture, a value of another type, or a setting that cannot be honoured."""
    family = find_model(data, where)
    settings = typed(family.settings, data, where)
    notices = check_keys(data, family, where)
    model = family.read(settings, where, notices)
    return HfConfig(family, model, settings.transformers_weights, tuple(notices), read_packing(data, where))


def end_tokens(data: Mapping[str, Any], model: ModelConfig, where: str) -> tuple[tuple[int, ...], list[str]]:
    """The end tokens of a model with those of its `generation_config.json`, where many keep one of a chat; and notices."""
    notices: list[str] = []
    more = rows_only(typed(_Generation, data, where).eos_token_id, model.vocab_size, where, notices)
    return tuple(dict.fromkeys([*model.eos, *more])), notices


def config_of_hf(data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """Read a Hugging Face `config.json`.

    Raises InputError for another architecture, a value of another type, or a setting that cannot be honoured.
    """
    return read_hf_config(data, where).model


def read_config(folder: Path) -> ModelConfig:
    """The config.json of a bundle."""
    path = folder / "config.json"
    return config_of_hf(read_json(path), str(path))

"""The models that can be read, one file each. Nothing else in the compiler knows one by its name.

A file ends in `MODEL`, a `Model` (`base.py`); a line in `MODELS` makes it known. The others are helpers that several use.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pocketphi.graph.errors import InputError
from pocketphi.graph.models.base import Gguf, Model
from pocketphi.graph.reading import either, show, typed

MODELS = {
    "Phi3ForCausalLM": "pocketphi.graph.models.phi3",
    "LlamaForCausalLM": "pocketphi.graph.models.llama",
    "MistralForCausalLM": "pocketphi.graph.models.mistral",
    "Phi3SmallForCausalLM": "pocketphi.graph.models.phi3_small",
    "PhimoeForCausalLM": "pocketphi.graph.models.phimoe",
}
"""The architecture that a `config.json` names → the module of its model."""


@dataclass(frozen=True)
class _Named:
    model_type: str | None = None
    architectures: tuple[str, ...] | None = None


def models() -> list[Model]:
    """All of them, in the order of MODELS."""
    return [importlib.import_module(module).MODEL for module in MODELS.values()]


def find_model(data: Mapping[str, Any], where: str) -> Model:
    """The model that a `config.json` is of: by its type, as in transformers, else by its architectures.

    Raises InputError for one that nobody knows, and where the two contradict each other.
    """
    named = typed(_Named, data, where)
    architectures, every = set(named.architectures or ()), models()
    by_type = [model for model in every if model.model_type == named.model_type]
    chosen = by_type or [model for model in every if architectures & set(model.architectures)]
    if not chosen:
        first = show(named.model_type or (named.architectures or ("",))[0])
        says = architectures or named.model_type
        came = f"unknown architecture {first}" if says else "neither architectures nor model_type"
        raise InputError(f"{where}: {came}, expected {either([model.architecture for model in every])}")
    odd = [name for name in named.architectures or () if name not in chosen[0].architectures]
    odd += [name for name in (named.model_type,) if name not in (None, chosen[0].model_type)]
    if odd:
        expected = f"{chosen[0].architecture} (model_type {chosen[0].model_type})"
        raise InputError(f"{where}: unknown architecture {show(odd[0])}, expected {expected}")
    return chosen[0]


def find_gguf(architecture: object, where: str) -> tuple[Model, Gguf]:
    """The model of a GGUF file's `general.architecture`. Raises InputError for one that nobody knows."""
    known = {model.gguf.architecture: (model, model.gguf) for model in models() if model.gguf}
    if not isinstance(architecture, str) or architecture not in known:
        raise InputError(f"{where}: unknown architecture {show(architecture)}, expected {either(sorted(known))}")
    return known[architecture]

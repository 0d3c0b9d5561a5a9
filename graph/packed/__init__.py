"""Hugging Face folders whose weights a tool has quantized already: one file a tool, which ends in `PACKING`; a line in METHODS
makes it known.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from pocketphi.graph.errors import InputError
from pocketphi.graph.packed.base import OTHERWISE, PackedMatrix, Packing
from pocketphi.graph.reading import show

METHODS = {
    "gptq": "pocketphi.graph.packed.gptq",
    "awq": "pocketphi.graph.packed.awq",
    "compressed-tensors": "pocketphi.graph.packed.compressed_tensors",
    "mlx": "pocketphi.graph.packed.mlx",
    "auto-round": "pocketphi.graph.packed.auto_round",
}
"""The `quant_method` of a quantization → the module of its reader. What MLX writes names none."""

_INSTEAD = {
    "gguf": "name the .gguf file itself",
}
KEYS = ("quantization_config", "compression_config", "quantization")
"""Where a `config.json` may say that its weights are quantized; MLX has the last one, and often the first beside it."""


def read_packing(data: Mapping[str, Any], where: str) -> Packing | None:
    """The quantization that a `config.json` speaks of; None for float weights.

    Raises InputError for one that nobody knows, and for settings that contradict each other or cannot be honoured.
    """
    said = {key: data[key] for key in KEYS if data.get(key) is not None}
    if not said:
        return None
    first = next(iter(said))
    if odd := next((key for key, value in said.items() if value != said[first]), None):
        raise InputError(f"{where}: {first} and {odd} say different things, expected one quantization")
    settings, at = said[first], f"{where}: {first}"
    if not isinstance(settings, Mapping):
        raise InputError(f"{at} is {show(settings)}, expected the settings of a quantization")
    method = settings.get("quant_method")
    if method is None and {"bits", "group_size"} <= settings.keys():
        method = "mlx"
    if method == "intel/auto-round":  # of its first versions
        method = "auto-round"
    if not isinstance(method, str) or method not in METHODS:
        instead = _INSTEAD.get(str(method), OTHERWISE)
        known = ", ".join(METHODS)
        raise InputError(f"{at}: quant_method is {show(method)}, expected one of {known}; {instead}")
    packing: Packing = importlib.import_module(METHODS[method]).PACKING.read(settings, at)
    return packing


__all__ = ["KEYS", "METHODS", "PackedMatrix", "Packing", "read_packing"]

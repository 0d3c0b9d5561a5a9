"""An adapter's file, as ONNX Runtime maps it (`LoraAdapter::Load`, and `Adapters` of onnxruntime-genai): a flatbuffer of named
tensors, each of which takes the place of the initializer of that name.

The graph has an initializer of rank 0 for every factor, which is an input too and so may be replaced (`lower.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketphi.graph.adapters import Factors, feeds, input_names, shape_of, weight_of_input
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import show
from pocketphi.targets import find_target, packages_of
from pocketphi.targets.ort_mobile.refused import refused_by

_VERSION = 1


def write_adapter(path: Path, factors: Factors) -> None:
    """Write the file, the same bytes for the same factors."""
    from onnxruntime import AdapterFormat, OrtValue

    made = AdapterFormat()
    made.set_adapter_version(_VERSION)
    made.set_model_version(_VERSION)
    held = feeds(factors)
    made.set_parameters({name: OrtValue.ortvalue_from_numpy(held[name].numpy()) for name in sorted(held)})
    made.export_adapter(str(path))


def load_parameters(path: Path) -> dict[str, Any]:
    """The tensors in a file by name, as ONNX Runtime reads them: OrtValues. Raises InputError where it refuses the file."""
    if not path.is_file():
        raise InputError(f"{path}: missing from the bundle; {_AGAIN}")
    with packages_of(find_target("ort-mobile")):
        from onnxruntime import AdapterFormat

    with refused_by("ONNX Runtime", path):
        return dict(AdapterFormat.read_adapter(str(path)).get_parameters())


@dataclass(frozen=True)
class SavedFactors:
    """Factors in a file. ranks: by weight; held: its tensors by name."""

    ranks: Mapping[str, int]
    held: Mapping[str, Any]

    def read(self, weight: str) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = (torch.from_numpy(np.array(self.held[name].numpy())) for name in input_names(weight))
        return a, b


def read_adapter(path: Path, config: ModelConfig) -> SavedFactors:
    """Raises InputError for a file that holds anything but factors of weights of this model."""
    held = load_parameters(path)
    ranks = {}
    for name, value in held.items():
        weight = weight_of_input(name) or ""
        try:
            rows, columns = shape_of(config, weight)
            shapes = [held[one].shape() for one in input_names(weight)]
        except KeyError:
            raise InputError(
                f"{path}: holds {show(name, 200)}, expected factors of the model's weights, in pairs; {_AGAIN}"
            ) from None
        rank = shapes[0][-1] if shapes[0] else 0
        if not rank or shapes != [[columns, rank], [rank, rows]] or value.data_type() != "tensor(float)":
            raise InputError(
                f"{path}: {show(name, 200)} is {value.data_type()} {value.shape()}, which is no factor of a weight "
                f"[{rows}, {columns}]; {_AGAIN}"
            )
        ranks[weight] = int(rank)
    return SavedFactors(ranks, held)


_AGAIN = "copy or compile it again"

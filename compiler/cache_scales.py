"""The scales of K/V caches that have one for each channel: measured on the calibration text, or by an earlier command."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import torch

from pocketphi.compiler.calibration import calibration_tokens, rounded_key
from pocketphi.compiler.known import MEASURING, Known
from pocketphi.compiler.options import CompileOptions
from pocketphi.compiler.ui import Ui
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.lazy_weights import Constant, LazyWeight, digest
from pocketphi.graph.packing import tensor_bytes
from pocketphi.graph.program import Program
from pocketphi.passes.cache_scales import TOKENS, Layer, Measured, measure_scales
from pocketphi.targets.base import Prepared

_CODE = (*MEASURING, "compiler/cache_scales.py")
_PARTS = tuple(Layer.__dataclass_fields__)


def measure_caches(
    program: Program,
    source: HashedCheckpoint,
    weights: Mapping[str, LazyWeight],
    prepared: Collection[Prepared],
    options: CompileOptions,
    ui: Ui,
) -> None:
    """Give the targets the scales of their caches, where they want some: of the model with the weights that it will have.

    program: fused, in float; source: of the weights that were rounded; weights: quantized
    """
    asking = [(one, one.cache_bits) for one in prepared if one.cache_bits is not None]
    if not asking:
        return
    tokens = calibration_tokens(source, options, ui)
    tokens = tokens[: max(1, TOKENS // tokens.shape[1])]
    # rotary tables are as long as the context, in all of which keys are looked at
    tables = [digest({"": one.value}) for one in program.weights.values() if isinstance(one, Constant)]
    key = rounded_key(source, weights, tokens, *tables)
    known = Known("cache-scales", ("torch",), options.cache_folder, code=_CODE)
    recalled = {bits: _restored(known.find({"key": key, "bits": bits}), source.config) for _, bits in asking}
    made = {bits: found for bits, found in recalled.items() if found}
    missing = recalled.keys() - made.keys()
    if missing:
        with ui.task("measure keys and values", source.config.layers, "layers") as advance:
            made |= measure_scales(program, weights, tokens, missing, advance)
    for bits in missing:
        known.keep({"key": key, "bits": bits}, data=[tensor_bytes(part) for part in _tensors(made[bits])])
    for one, bits in asking:
        one.take_scales(made[bits])


def _tensors(measured: Measured) -> Iterator[torch.Tensor]:
    return (getattr(layer, part) for layer in measured for part in _PARTS)


def _restored(found: tuple[object, memoryview] | None, config: ModelConfig) -> Measured | None:
    """None where these are not the numbers of such a model."""
    shape = (config.layers, len(_PARTS), config.kv_heads, config.head_dim)
    if found is None or found[1].nbytes != 4 * math.prod(shape):
        return None
    values = torch.frombuffer(bytearray(found[1]), dtype=torch.float32).view(shape)
    return [Layer(*layer) for layer in values]

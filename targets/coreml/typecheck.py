"""A whole package checked by coremltools' own type inference, without reading a weight.

coremltools loads an ML program back operation by operation and infers every type from the operators' definitions, as it does
when it builds one. Weights that lie in the blob file are stood in for by arrays of one element with strides of zero: 32
layers in two functions take seconds instead of minutes, and no memory.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pocketphi.graph.errors import InputError
from pocketphi.targets.coreml.mlpackage import find_model, parse_model
from pocketphi.targets.coreml.proto import missing_coremltools


def typecheck(path: str | Path) -> int:
    """Returns how many operations were checked. Raises InputError with coremltools' reason where one does not pass."""
    path = Path(path)
    model_path = find_model(path)
    spec = parse_model(model_path)
    with _quiet():
        try:
            from pocketphi.targets.coreml.coremltools_parts import load_types
        except ModuleNotFoundError:
            raise missing_coremltools() from None
        try:
            load_types(spec, model_path.parent / "weights", _stand_in)
        except Exception as error:  # whatever coremltools raises is its reason
            raise InputError(f"{path}: coremltools does not accept it: {type(error).__name__}: {error}") from error
    blocks = (b for f in spec.mlProgram.functions.values() for b in f.block_specializations.values())
    return sum(len(block.operations) for block in blocks)


_SMALL = 64


def _stand_in(dtype: Any, shape: tuple[int, ...]) -> Any:
    """For a large constant. A small one is read: it may be a shape or a list of axes, on which types depend."""
    return np.broadcast_to(np.zeros((), dtype), shape) if int(np.prod(shape)) > _SMALL else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what coremltools says at import about torch's version and about libraries that only a Mac has."""
    handlers, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.raiseExceptions = handlers

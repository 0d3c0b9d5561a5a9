"""Typed access to the metadata of a GGUF file's architecture: `ARCH.block_count` and its like."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pocketphi.graph.errors import InputError
from pocketphi.graph.gguf_parse import shown
from pocketphi.graph.models.base import Gguf, Model

_MOST = (1 << 31) - 1


def decimal(value: float) -> float:
    """The shortest decimal of a float32: 1e-05, not 9.999999747378752e-06; infinity for what it cannot hold."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))


@dataclass
class Metadata:
    """The keys `architecture.…` of one file.

    fields:  all metadata
    model:   what it is of; kind: how GGUF files have it
    where:   the file's name, for messages
    notices: lines for the user, added to while the keys are read
    """

    fields: Mapping[str, Any]
    model: Model
    kind: Gguf
    where: str
    notices: list[str] = field(default_factory=list)

    def key(self, name: str) -> str:
        return f"{self.kind.architecture}.{name}"

    def get(self, name: str, default: Any = None) -> Any:
        return self.fields.get(self.key(name), default)

    def has(self, name: str) -> bool:
        return self.key(name) in self.fields

    def whole(self, name: str, default: int | None = None, least: int = 1, most: int = _MOST) -> int:
        """Raises InputError for a key that is missing without a default, of another type, or too small or large."""
        return self._checked(name, self.get(name, default), least, most)

    def each_layer(self, name: str, layers: int, default: int | None = None) -> int:
        """A size that a file may give once, or for each layer; layers of several sizes cannot be compiled."""
        value = self.get(name, default)
        if not isinstance(value, np.ndarray):
            return self._checked(name, value)
        if len(value) != layers or len(set(value.tolist())) != 1:
            raise InputError(
                f"{self.where}: {self.key(name)} is {shown(value)}, expected one number, or the same for all {layers} layers"
            )
        return self._checked(name, value[0].item())

    def real(self, name: str, default: float | None = None, zero: bool = False) -> float:
        """A positive, finite number, as a float32 has it. zero: take 0 too."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._error(name, value, "a number")
        single = decimal(value)
        if not (0 < single < math.inf or (zero and value == 0)):
            raise self._error(name, value, "a positive number")
        return single

    def _checked(self, name: str, value: Any, least: int = 1, most: int = _MOST) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._error(name, value, "a whole number")
        if not least <= value <= most:
            raise self._error(name, value, f"a number from {least} to {most}")
        return value

    def _error(self, name: str, value: Any, expected: str) -> InputError:
        came = f"is {shown(value)}" if value is not None else "is missing"
        return InputError(f"{self.where}: {self.key(name)} {came}, expected {expected}")

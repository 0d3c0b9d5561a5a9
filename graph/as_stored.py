"""A checkpoint under the names and in the order in which the files of its form's class have it: `models/` the other way."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pocketphi.graph.checkpoint import Checkpoint, TensorInfo
from pocketphi.graph.config import ModelConfig
from pocketphi.graph.models import find_model
from pocketphi.graph.models.base import Piece


class AsStored(Checkpoint):
    """Each tensor is put together from the rows of ours that its rows become when it is read."""

    def __init__(self, inner: Checkpoint) -> None:
        self.wrap(inner, "forget_behind")
        self._inner = inner
        self._parts: dict[str, list[tuple[str, int, Piece]]] = {}
        self.tensors: Mapping[str, TensorInfo] = {}
        found = {}
        for name, pieces in _pieces(inner.config).items():
            if name not in inner.tensors:
                continue
            first, info = 0, inner.tensors[name]
            for piece in pieces:
                self._parts.setdefault(piece.name, []).append((name, first, piece))
                first += piece.rows
                rows = sum(part.rows for _, _, part in self._parts[piece.name])
                found[piece.name] = TensorInfo((rows, *info.shape[1:]), info.dtype)
        self.tensors = found

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        rows: torch.Tensor | None = None
        for ours, first, piece in self._parts[name]:
            low, high = (min(max(-(-(end - piece.first) // piece.step), 0), piece.rows) for end in (start, stop))
            if low < high:
                came = self._inner.read(ours, first + low, first + high)
                rows = came.new_empty(stop - start, *came.shape[1:]) if rows is None else rows
                rows[piece.first + piece.step * low - start :: piece.step][: high - low] = came
        return self._inner.read(self._parts[name][0][0], 0, 0) if rows is None else rows


def as_stored(source: Checkpoint) -> Checkpoint:
    """The checkpoint itself, where files of its form's class have the tensors as they are."""
    pieces = _pieces(source.config)
    return source if all([piece.name for piece in of] == [name] for name, of in pieces.items()) else AsStored(source)


def _pieces(config: ModelConfig) -> dict[str, list[Piece]]:
    """By the model whose class the form is: other models are written as that one."""
    return find_model({"architectures": [config.form.architecture]}, "the form").pieces(config)

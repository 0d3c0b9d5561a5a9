"""Where a calibration that was stopped goes on: what runs from one layer to the next, in a file of the cache.

The file is replaced as the run goes on, and deleted when it ends. It counts only for the run that wrote it, and only with all
weights that were quantized up to there: otherwise the run begins at the beginning.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from pocketphi.graph.errors import InputError
from pocketphi.graph.packing import tensor_bytes, tensors_of
from pocketphi.graph.program import Program, ancestors
from pocketphi.graph.reading import typed
from pocketphi.graph.sealed import read_sealed, write_sealed

aten = torch.ops.aten


@dataclass(frozen=True)
class _Said:
    """key: of the run; node: what was about to be given the values, float32 of these shapes, which lie behind this;
    files: weight → the name of its file, of those before"""

    key: str
    node: str
    shapes: tuple[tuple[int, ...], ...]
    files: dict[str, str]


class Stream:
    """The values between layers, and the names of the files of the weights before them."""

    def __init__(self, path: Path, key: str, program: Program, wanted: fx.Node) -> None:
        """path: of the file; key: of the run; wanted: what the run computes"""
        self.path = path
        self.cuts = cuts(wanted)
        of = [
            key,
            program.dump(),
            torch.__version__,
            torch.backends.cpu.get_cpu_capability(),
            str(torch.get_num_threads()),
        ]
        self.key = hashlib.sha256("\n".join(of).encode()).hexdigest()

    def save(self, node: fx.Node, each: Sequence[tuple[Any, ...]], files: Mapping[str, str]) -> None:
        """Keep what `node`, one of `cuts`, is about to be given. Where that cannot be written, a run begins anew.

        each: its arguments for some sequences after the others; files: weight → the name of its file, of those that are done
        """
        values = [[args[node.args.index(arg)] for args in each] for arg in self.cuts[node]]
        shapes = tuple((sum(map(len, parts)), *parts[0].shape[1:]) for parts in values)
        said = _Said(self.key, node.name, shapes, dict(files))
        with contextlib.suppress(OSError):
            write_sealed(self.path, asdict(said), [tensor_bytes(part) for parts in values for part in parts])

    def load(self) -> tuple[dict[fx.Node, torch.Tensor], dict[str, str]] | None:
        """Values that need not be computed again, and the files of the weights before them."""
        found = read_sealed(self.path)
        said = self._said(found[0]) if found else None
        values = tensors_of(said.shapes, found[1]) if found and said else None
        return (dict(zip(self._given(said.node), values)), said.files) if said and values else None

    def _said(self, content: object) -> _Said | None:
        """What a file says; None where it is of another run, or of other values."""
        try:
            said = typed(_Said, content, str(self.path))
        except InputError:
            return None
        return said if said.key == self.key and len(said.shapes) == len(self._given(said.node)) else None

    def _given(self, name: str) -> list[fx.Node]:
        """What runs into the one of `cuts` with a name."""
        return next((args for node, args in self.cuts.items() if node.name == name), [])


def cuts(wanted: fx.Node) -> dict[fx.Node, list[fx.Node]]:
    """The residual sums, each with the two values that it adds, from which all behind it can be computed. A program that is
    not fused has none."""
    order = {node: i for i, node in enumerate(wanted.graph.nodes)}
    found = {}
    for node in ancestors([wanted], ()):
        if node.target is torch.ops.edge.add_rms_norm.default:
            args = [arg for arg in node.all_input_nodes if arg.op != "get_attr"]
            needed = ancestors([wanted], args)
            if not any(one.target is aten.linear.default and order[one] < order[node] for one in needed):
                found[node] = args
    return found

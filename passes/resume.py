"""Where a calibration that was stopped goes on: what runs from one layer to the next, in a file of the cache.

The file is replaced as the run goes on, and deleted when it ends. It counts only for the run that wrote it, and only with all
weights that were quantized up to there: otherwise the run begins at the beginning.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx

from pocketphi.graph.packing import tensor_bytes
from pocketphi.graph.program import Program, ancestors
from pocketphi.graph.sealed import read_sealed, write_sealed

aten = torch.ops.aten


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

    def save(self, node: fx.Node, args: tuple[Any, ...], files: Mapping[str, str]) -> None:
        """Keep what `node`, one of `cuts`, is about to be given. Where that cannot be written, a run begins anew.

        files: weight → the name of its file, of those that are done
        """
        values = [args[node.args.index(arg)] for arg in self.cuts[node]]
        shapes = [list(value.shape) for value in values]
        content = {"key": self.key, "node": node.name, "shapes": shapes, "files": dict(files)}
        with contextlib.suppress(OSError):
            write_sealed(self.path, content, [tensor_bytes(value) for value in values])

    def load(self) -> tuple[dict[fx.Node, torch.Tensor], dict[str, str]] | None:
        """Values that need not be computed again, and the files of the weights before them."""
        found = read_sealed(self.path)
        if found is None or found[0].get("key") != self.key:
            return None
        content, data = found
        node = next(node for node in self.cuts if node.name == content["node"])
        values, at = {}, 0
        for arg, shape in zip(self.cuts[node], content["shapes"], strict=True):
            values[arg] = torch.empty(shape)  # aligned as torch's own: sums may depend on that
            buffer = tensor_bytes(values[arg])
            buffer[:] = data[at : at + len(buffer)]
            at += len(buffer)
        return values, content["files"]


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

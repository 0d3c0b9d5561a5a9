"""Whether model.ort is what a compile makes of model.onnx. A run of it sees few of its weights, and its own tokens and lengths.

ONNX Runtime does not write it twice alike, but for the order of what is in it. So it is made again, ONNX Runtime writes both as
ONNX graphs, and these are compared.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import onnx

from pocketphi.graph.reading import file_inside, show
from pocketphi.targets.base import Check
from pocketphi.targets.ort_mobile.names import GRAPH_FILE, ORT_FILE
from pocketphi.targets.ort_mobile.package import write_ort_file

COMPARED = 1 << 28
"""Bytes of the largest file that is compared: both are held in memory, twice."""


def is_compared(folder: Path) -> bool:
    return file_inside(folder, ORT_FILE, str(folder)).stat().st_size <= COMPARED


def ort_file_check(folder: Path) -> Check:
    """folder: of a bundle whose model.onnx was found to be right."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_ort_file(folder / GRAPH_FILE, scratch / ORT_FILE)
        made, found = (_content(one / ORT_FILE, scratch / GRAPH_FILE) for one in (scratch, folder))
    odd = sorted({name for name, _ in (made - found) | (found - made)})
    detail = f"first {show(odd[0])}" if odd else f"{made.total()} operations, weights and inputs"
    return Check(f"parts of {ORT_FILE} that are not those of {GRAPH_FILE}", len(odd), 0, detail)


def _content(path: Path, scratch: Path) -> Counter[tuple[str, bytes]]:
    """All that decides what a file computes: name and bytes. scratch: a file to write."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(scratch)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.save_model_format", "ONNX")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(str(scratch)).graph
    scratch.unlink()
    held = [*graph.node, *graph.initializer, *graph.sparse_initializer, *graph.input, *graph.output]
    return Counter((getattr(one, "name", ""), one.SerializeToString(deterministic=True)) for one in held)

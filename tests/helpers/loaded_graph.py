"""What ONNX Runtime makes of a graph when it loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort


def graph_as_loaded(model: Path, folder: Path, **settings: Any) -> Any:
    """The optimized graph, which is written into `folder`. settings: of the session."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    for name, value in settings.items():
        setattr(options, name, value)
    ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx", load_external_data=False).graph

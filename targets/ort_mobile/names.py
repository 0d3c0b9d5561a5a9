"""What the files of a bundle are called."""

from __future__ import annotations

GRAPH_FILE = "model.onnx"
GENAI_FILE = "genai_config.json"
DATA_FILE = "model.onnx.data"
ORT_FILE = "model.ort"
OPERATORS_FILE = "required_operators.config"

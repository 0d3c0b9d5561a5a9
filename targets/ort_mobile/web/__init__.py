"""The page that runs a bundle's model.onnx in a browser, and what it has to know of the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pocketphi.artifacts.manifest import TargetRecord
from pocketphi.graph.errors import InputError
from pocketphi.graph.hf_config import read_config
from pocketphi.targets.ort_mobile.prefill import chunk_of

FOLDER = Path(__file__).parent
FILES = ("page.html", "page.css", "page.js", "worker.js", "expand.js")
LIBRARY = ("ort.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm", "tokenizers.mjs", "jinja.mjs")
_FILES = ("model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_MOST = 2 << 30
"""Bytes of weights: 32-bit WebAssembly has 4 GiB, and holds them while it packs them."""
_EXPANDED = 3 << 29
"""Bytes of matrices in float32 (expand.js), twice there while one is packed. More stay in 4 bits, and are slow."""


def settings(folder: Path, record: TargetRecord, files: Mapping[str, int]) -> dict[str, Any]:
    """For the worker. files: of the bundle, with their sizes. Raises InputError for a bundle that a browser cannot run."""
    config = read_config(folder)
    if record.details.get("windowed_cache"):
        raise InputError(
            "a bundle with --windowed-cache does not run in a browser: there a cache grows with each token"
        )
    if "tokenizer.json" not in files:
        raise InputError("this bundle has no tokenizer, so that nobody can talk to it")
    if files["model.onnx.data"] > _MOST:
        raise InputError(f"its weights take {files['model.onnx.data']:,} bytes, and a browser has room for {_MOST:,}")
    longest = config.long_rope.original_max_position if config.long_rope else config.max_position
    return {
        "files": {name: files[name] for name in _FILES if name in files},
        "most": _EXPANDED,
        "vocabulary": config.vocab_size,
        "stops": list(config.eos),
        "chunk": chunk_of(config, record.context or config.max_position) or 0,
        "longest": min(longest, record.context or longest),  # beyond it LongRoPE would turn what is in the cache
    }

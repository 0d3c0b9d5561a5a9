"""Manifests of bundles that hold nothing to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pocketphi.artifacts.manifest import FORMAT, Manifest, parse_manifest

RECIPE = {
    "name": "rtn",
    "block": 32,
    "symmetric": True,
    "palette": None,
    "embedding_bits": 4,
    "head_bits": 4,
    "context": None,
    "all_logits": False,
    "accuracy_level": 4,
    "calibration": None,
    "calibration_tokens": None,
}
MODEL = {
    "parameters": 1000,
    "layers": 1,
    "context": 256,
    "sliding_window": None,
    "long_rope_after": None,
    "kv_cache_bytes_per_token": 768,
}
TARGET: dict[str, Any] = {"operators": {"MatMul": 2}, "notes": ["a note"], "weights": {"w": "0" * 64}}


def manifest_json(targets: dict[str, dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """targets: name → what its entry has besides the common; changes: of recipe and model their entries, or whole fields."""
    made = {
        "format": FORMAT,
        "pocketphi": "0.1.0",
        "versions": {"torch": "2.0"},
        "source": {"model": "sample", "blake3": "0" * 64},
        "recipe": {**RECIPE, **changes.pop("recipe", {})},
        "model": {**MODEL, **changes.pop("model", {})},
        "passes": [{"name": "fuse", "applied": {"norm": 1}, "refused": [["a", "why"]], "removed": 2}],
        "operators": {"edge.attention": 3},
        "targets": {name: {**TARGET, **more} for name, more in (targets or {"ort-mobile": {}}).items()},
        "verification": None,
        "files": {},
    }
    return made | changes


def a_manifest(targets: dict[str, dict[str, Any]] | None = None, **changes: Any) -> Manifest:
    """As a value; see `manifest_json`."""
    return parse_manifest(json.dumps(manifest_json(targets, **changes)).encode(), Path("manifest.json"))

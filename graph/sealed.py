"""Small JSON files of ours in a cache, with the digest of what they hold: one that is damaged counts as missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blake3 import blake3

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import read_json
from pocketphi.graph.writing import new_file


def write_sealed(path: Path, content: Any) -> None:
    """Raises OSError."""
    with new_file(path) as file:
        file.write(json.dumps({"blake3": _digest(content), "content": content}, indent=1).encode())


def read_sealed(path: Path) -> Any:
    """What was written, or None where the file is missing or damaged."""
    try:
        found = read_json(path)
    except InputError:
        return None
    if "content" not in found or found.get("blake3") != _digest(found["content"]):
        return None
    return found["content"]


def _digest(content: Any) -> str:
    return blake3(json.dumps(content, sort_keys=True).encode()).hexdigest()

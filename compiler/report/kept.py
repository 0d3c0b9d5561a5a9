"""What earlier commands found out about a model and kept in the cache, found again by the model alone.

`compiler.known` finds an entry by all that decides it, calibration text and versions included. A report knows the bundle only,
so it looks through the entries of a kind for one that is about the same source or the same shape. What it takes is checked
against the manifest by who asks.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pocketphi.graph.errors import InputError
from pocketphi.graph.places import default_folder
from pocketphi.graph.sealed import read_sealed

_HEAD = 1 << 16
"""Bytes of an entry in which the words that name what it is about are looked for, before all of it is read."""


def kept_about(kind: str, about: Mapping[str, Any], cache: Path | None = None) -> Iterator[tuple[dict[str, Any], Any]]:
    """(what it is about, content) of the whole entries of a kind that say all of `about`, those used last first.

    cache: the folder of all caches, the user's own if None; where there is none, nothing is kept.
    """
    with contextlib.suppress(InputError):
        cache = cache or default_folder()
    if cache is None:
        return
    wanted = json.loads(json.dumps(dict(about)))
    words = [json.dumps({name: value}, separators=(",", ":"))[1:-1].encode() for name, value in wanted.items()]
    for path in sorted((cache / "known").glob(f"{kind}-*"), key=_written, reverse=True):
        if not all(word in _head(path) for word in words):
            continue
        found = read_sealed(path)
        if found is None or not isinstance(found[0], dict) or not isinstance(found[0].get("about"), dict):
            continue
        said = found[0]["about"]
        if said.get("kind") == kind and all(said.get(name) == value for name, value in wanted.items()):
            yield said, found[0].get("content")


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # gone meanwhile
        return 0


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError:
        return b""

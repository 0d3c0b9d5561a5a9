"""The option `--kv-cache`, which every target has: each declares the types that its runtime's cache may have."""

from __future__ import annotations

from collections.abc import Iterable

from pocketphi.graph.options import option


def kv_cache_option(types: Iterable[str], help: str) -> str:
    """A field of `TargetOptions`. types: the first is the default; help: what each of them is."""
    names = tuple(types)
    return option(names[0], f"of keys and values: {help}", choices=names, metavar="TYPE")

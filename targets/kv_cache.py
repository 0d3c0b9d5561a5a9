"""The option `--kv-cache`, which every target has: each declares the types that its runtime's cache may have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pocketphi.graph.errors import InputError
from pocketphi.graph.options import declared, option
from pocketphi.graph.reading import named
from pocketphi.targets import all_targets

if TYPE_CHECKING:
    from pocketphi.targets.target import TargetOptions

NAME = "kv_cache"


def kv_cache_option(types: Iterable[str], help: str) -> str:
    """A field of `TargetOptions` with the name `NAME`. types: the first is the default; help: what each of them is."""
    names = tuple(types)
    return option(names[0], f"of keys and values: {help}", choices=names, metavar="TYPE")


def check_cache_type(options: TargetOptions) -> None:
    """Raise InputError for a type that the target's cache cannot have, naming what would work."""
    one, value = declared(type(options)).get(NAME), getattr(options, NAME, None)
    if one is None or not isinstance(value, str) or value in one.choices:
        return
    others = [t.name for t in all_targets() if NAME in (of := declared(t.options)) and value in of[NAME].choices]
    instead = f"; {' and '.join(others)} can" if others else ""
    raise InputError(
        f"--{one.flag} {named(value)}: {options.target} has no such cache, only {' or '.join(one.choices)}{instead}"
    )

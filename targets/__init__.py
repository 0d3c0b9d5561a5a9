"""Runtimes to compile for: one folder each, which holds all that is known of it.

`target.py` of a folder is its entry: light, without the runtime's packages, which are imported only when they are used.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pocketphi.graph.errors import CannotRun, InputError

if TYPE_CHECKING:
    from pocketphi.targets.target import Target

TARGETS = {
    "ort-mobile": "pocketphi.targets.ort_mobile.target",
    "coreml": "pocketphi.targets.coreml.target",
    "tvm-arm": "pocketphi.targets.tvm_arm.target",
}
"""By the name that a user gives; the first is the default."""


def find_target(name: str) -> Target[Any]:
    """Raises InputError, naming the choices, for one that there is not."""
    if name not in TARGETS:
        raise InputError(f"--target {name}: expected one of {', '.join(TARGETS)}")
    found: Target[Any] = importlib.import_module(TARGETS[name]).TARGET
    return found


def all_targets() -> list[Target[Any]]:
    return [find_target(name) for name in TARGETS]


@contextlib.contextmanager
def packages_of(target: Target[Any]) -> Iterator[None]:
    """A package of a target that the body needs and that is not installed is a CannotRun, which says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing_extra(target, error) from None


def missing_extra(target: Target[Any], error: ModuleNotFoundError) -> CannotRun:
    """What to install where a target's package is missing."""
    return CannotRun(
        f"{target.name} needs the package {error.name!r}; install it with: pip install 'pocketphi[{target.extra}]'"
    )

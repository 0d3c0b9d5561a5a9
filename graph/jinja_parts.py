"""The one part of Jinja that it offers to nobody: what a template put into a `namespace()`."""

from __future__ import annotations

from typing import Any

from pocketphi.graph.foreign import other_parts

_HELD = "_Namespace__attrs"


def values_of(namespace: Any) -> list[Any]:
    """The values that it holds. Raises InputError where Jinja keeps them elsewhere."""
    try:
        held = object.__getattribute__(namespace, _HELD)
    except AttributeError:
        what = "Namespace.__attrs, which the budget of a chat template counts, is not there"
        raise other_parts("jinja2", "3.1.6", what) from None
    return list(held.values())

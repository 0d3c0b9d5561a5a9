"""What a runtime raises about a file, as an error of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import show

_AGAIN = "copy or compile it again"


@contextlib.contextmanager
def refused_by(runtime: str, path: Path) -> Iterator[None]:
    """What a runtime raises about a file as InputError, in one line."""
    try:
        yield
    except Exception as error:  # they have no base of their own
        said = " ".join(str(error).split())
        raise InputError(f"{path}: {runtime} cannot run it ({show(said, 200)}); {_AGAIN}") from None

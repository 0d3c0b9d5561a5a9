"""Where things are kept between commands."""

from __future__ import annotations

import os
from pathlib import Path

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import named


def default_folder() -> Path:
    """The cache: `$POCKETPHI_CACHE`, or `pocketphi` in the user's cache folder. Raises InputError where there is neither."""
    if own := os.environ.get("POCKETPHI_CACHE"):
        try:
            return Path(own).expanduser()
        except RuntimeError:
            raise InputError(f"POCKETPHI_CACHE is {named(own)}: there is no such user's home folder") from None
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "pocketphi"
    try:
        return Path.home() / ".cache" / "pocketphi"
    except RuntimeError:
        raise InputError(
            "there is no home folder for the cache: set HOME or POCKETPHI_CACHE, or choose --cache"
        ) from None

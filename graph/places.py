"""Where things are kept between commands: a folder of this machine, and perhaps a store behind it that other machines share."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import named, path_of
from pocketphi.graph.stores import check_package, check_url, is_url


@dataclass(frozen=True)
class Cache:
    """own: the folder on this machine, the user's own if None; store: the URL of a second level (`graph/store.py`), None for
    none, which may hold a password."""

    own: Path | None = None
    store: str | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        """Raises InputError as `default_folder` does."""
        return self.own or default_folder()

    def check(self) -> None:
        """Raises CannotRun, before any work, where the package for the store is missing."""
        if self.store:
            check_package(self.store)


def parse_cache(text: str) -> Cache:
    """A folder, or the URL of a store, before which the user's own folder stands. Raises InputError for a URL that leads
    nowhere."""
    if not is_url(text):
        return Cache(path_of(text))
    check_url(text)
    return Cache(store=text)


def default_cache() -> Cache:
    """Where no option says one: `$POCKETPHI_CACHE`, a folder or a URL. Raises what `parse_cache` raises."""
    said = os.environ.get("POCKETPHI_CACHE", "")
    return parse_cache(said) if is_url(said) else Cache()


def default_folder() -> Path:
    """The folder: `$POCKETPHI_CACHE` where that is one, or `pocketphi` in the user's cache folder. Raises InputError where
    there is neither."""
    own = os.environ.get("POCKETPHI_CACHE")
    if own and not is_url(own):
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

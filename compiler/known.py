"""What a command found out and the next one need not: kept in the cache, under all that decides it.

Entries are those of a `SealedCache`: one that is damaged counts as missing. What decides an entry is given by its user;
versions of libraries, and our own code, are added here. Where there are many of a kind, those used last stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from pocketphi.compiler.build_key import our_code, version_of
from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import typed
from pocketphi.graph.sealed import SealedCache

T = TypeVar("T")

MEASURING = ("graph", "passes")
"""The code that decides what is measured of a model on given tokens, but for the module that asks."""

_MOST = 64
"""Entries of one kind."""


class Known:
    """The entries of one kind, such as `trace`, that libraries in these versions gave."""

    def __init__(
        self, kind: str, libraries: Iterable[str], cache: Path | None, most: int | None = None, code: Sequence[str] = ()
    ) -> None:
        """cache: the folder of all caches; the user's own if None. Where there is none, nothing is known and nothing kept.
        most: entries of this kind that are kept; 64 if None. code: as `our_code` takes it, all that can change what is kept:
        for what takes an hour, a new version of something else should not measure it again."""
        self._kind = kind
        self._made_by = {"code": our_code(*code), **{name: version_of(name) for name in libraries}}
        self._cache = SealedCache.of_user("known", most or _MOST, f"{kind}-", cache)

    def holds(self, about: Mapping[str, Any]) -> bool:
        """Whether there is an entry; it may still be damaged."""
        return self._cache.holds(self._whole(about))

    def find(self, about: Mapping[str, Any]) -> tuple[Any, memoryview] | None:
        """What was kept about this, JSON and bytes, or None."""
        return self._cache.find(self._whole(about))

    def recall(self, kind: type[T], about: Mapping[str, Any]) -> T | None:
        """The value that was kept about this, or None; what is no such value counts as missing."""
        found = self.recall_with_data(kind, about)
        return None if found is None else found[0]

    def recall_with_data(self, kind: type[T], about: Mapping[str, Any]) -> tuple[T, memoryview] | None:
        """As `recall`, with the bytes that were kept beside the value."""
        if (found := self.find(about)) is None:
            return None
        try:
            return typed(kind, found[0], f"a stored {self._kind}"), found[1]
        except InputError:
            return None

    def keep(self, about: Mapping[str, Any], content: Any = None, data: Sequence[bytes | memoryview] = ()) -> None:
        """Where it cannot be written, it will be found out again."""
        self._cache.keep(self._whole(about), content, data)

    def forget(self, about: Mapping[str, Any]) -> None:
        """What was kept about this is not needed any more."""
        self._cache.forget(self._whole(about))

    def _whole(self, about: Mapping[str, Any]) -> dict[str, Any]:
        return {"kind": self._kind, **self._made_by, **about}


class Begun:
    """What long work that was stopped had come to, about one thing: kept while it goes on, forgotten when it ends. Of different
    works the last two."""

    def __init__(self, kind: str, about: Mapping[str, Any], cache: Path | None, code: Sequence[str] = ()) -> None:
        """about: what decides the result, but for the order of sums, which is added here; cache, code: see `Known`"""
        self._about = {**about, "threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability()}
        self._known = Known(f"{kind}-begun", ("torch",), cache, most=2, code=code)

    def recall(self, kind: type[T]) -> tuple[T, memoryview] | None:
        """What `keep` was given last: a value, and bytes."""
        return self._known.recall_with_data(kind, self._about)

    def keep(self, content: Any, data: Sequence[bytes | memoryview]) -> None:
        self._known.keep(self._about, vars(content), data)

    def forget(self) -> None:
        self._known.forget(self._about)

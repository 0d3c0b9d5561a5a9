"""A second level of the cache that other machines share, anywhere fsspec reaches.

    refs/NAME      what was made under this name: its files, each with the SHA-256 of its content and its size; sealed
    files/SHA256   a file by its content

What is read is compared with the name that it lies under, so that damage is seen, and two machines that write the same thing
at once never mix. A name is written after its files. Nothing depends on a store: where it cannot be reached, read or written,
that is said once, and the work goes on with what this machine has.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pocketphi.graph.errors import InputError
from pocketphi.graph.places import Cache
from pocketphi.graph.reading import file_inside, typed
from pocketphi.graph.sealed import seal, unseal
from pocketphi.graph.stores import kind_of, shown, without_secrets
from pocketphi.graph.writing import new_file

_PIECE, _AHEAD = 1 << 20, 1 << 24
_LARGEST_REF = 1 << 22
_AT_ONCE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")
"""Kinds where a whole object appears at once. Elsewhere a file is written beside its place, and renamed."""
_S3 = {"config_kwargs": {"connect_timeout": 10, "retries": {"max_attempts": 2}}}
_OPTIONS: dict[str, dict[str, Any]] = {"s3": _S3, "s3a": _S3}
"""A store that is not there is noticed in seconds: libraries would try for minutes."""


@dataclass(frozen=True)
class Held:
    """One file of a name. sha256: of its content; bytes: its size"""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Ref:
    """What a name stands for. files: by their paths in the folder"""

    name: str
    files: dict[str, Held]


class _Lost(Exception):
    """The store does not answer, or not so that anything can be made of it."""


@dataclass
class _Place:
    """A store as this process knows it. reads, writes: whether that has worked so far; good: files that it has read or written,
    which need not be written again"""

    url: str
    reads: bool = True
    writes: bool = True
    good: set[str] = field(default_factory=set)

    @functools.cached_property
    def system(self) -> tuple[Any, str]:
        """fsspec's file system, and the path in it. Some connect when they are made."""
        from fsspec.core import url_to_fs

        system, root = url_to_fs(self.url, **_OPTIONS.get(kind_of(self.url), {}))
        return system, root.rstrip("/")


_place = functools.cache(_Place)


def try_again() -> None:
    """What did not work before is tried again: for a process that outlives a command."""
    _place.cache_clear()


class Store:
    """Files by name. say: told of what is damaged, and once of what does not work."""

    def __init__(self, url: str, say: Callable[[str], None]) -> None:
        self.shown = shown(url)
        self._place, self._say = _place(url), say

    def find(self, name: str) -> Ref | None:
        """What was kept under a name; None where there is nothing, or something damaged."""
        path = f"refs/{name}"
        content = self._whole(path)
        if content is None:
            return None
        try:
            found = unseal(content, self.shown)
            ref = typed(Ref, found[0], self.shown) if found else None
        except InputError:
            ref = None
        if ref is None or ref.name != name:
            self._refuse(path)
            return None
        return ref

    def fetch(self, ref: Ref, folder: Path) -> bool:
        """Put the files of a name into a folder. Returns whether all are there, each as it was kept.

        Raises InputError for a file that would lie outside of the folder, OSError where one cannot be written.
        """
        return all(
            self._fetch(held, file_inside(folder, name, f"{self.shown}/refs/{ref.name}"))
            for name, held in ref.files.items()
        )

    def keep(self, name: str, folder: Path, files: Iterable[str]) -> None:
        """Keep these files of a folder under a name, in place of what was there. Raises OSError where one cannot be read."""
        if not self._place.writes:
            return
        held = {file: _held(folder / file) for file in files}
        try:
            for file, one in held.items():
                self._put_file(folder / file, one)
            self._put(f"refs/{name}", b"".join(seal(asdict(Ref(name, held)))))
        except Exception as error:
            self._place.writes = False
            self._tell(f"cannot be written ({self._reason(error)}); what is made stays in the cache of this machine")

    def forget(self, name: str) -> None:
        """Remove a name, if that can be done. Its files stay: others may have them too."""
        self._remove(f"refs/{name}")

    def _fetch(self, held: Held, path: Path) -> bool:
        at, came, size = f"files/{held.sha256}", hashlib.sha256(), 0
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(_Lost, FileNotFoundError), new_file(path) as file:
            for piece in self._read(at):
                came.update(piece)
                file.write(piece)
                size += len(piece)
                if size > held.bytes:
                    break
            if (came.hexdigest(), size) == (held.sha256, held.bytes):
                self._place.good.add(at)
                return True
            self._refuse(at)
            raise _Lost  # and the file with it
        return False

    def _refuse(self, at: str) -> None:
        """Say that an object is damaged, and remove it if that is allowed; what is made anew is written over it anyway."""
        self._say(f"{self.shown}/{at}: damaged: its content is not what was kept under this name; it is made anew")
        self._place.good.clear()  # others may have become so since
        self._remove(at)

    def _remove(self, at: str) -> None:
        with contextlib.suppress(Exception):
            system, root = self._place.system
            system.rm_file(f"{root}/{at}")

    def _whole(self, at: str) -> bytes | None:
        """A small object; None where there is none."""
        content = b""
        with contextlib.suppress(_Lost, FileNotFoundError):
            for piece in self._read(at):
                content += piece
                if len(content) > _LARGEST_REF:
                    break
            return content
        return None

    def _read(self, at: str) -> Iterator[bytes]:
        """The pieces of an object. Raises FileNotFoundError where there is none, _Lost where that cannot be told."""
        if not self._place.reads:
            raise _Lost
        try:
            system, root = self._place.system
            with system.open(f"{root}/{at}", "rb", block_size=_AHEAD) as file:
                while piece := file.read(_PIECE):
                    yield piece
        except FileNotFoundError:
            raise
        except Exception as error:  # of many kinds: each library has its own
            self._place.reads = self._place.writes = False
            self._tell(f"cannot be read ({self._reason(error)}); going on with the cache of this machine alone")
            raise _Lost from None

    def _put_file(self, path: Path, held: Held) -> None:
        """Also where something lies under its name: only who has read it knows that it is whole."""
        system, _ = self._place.system
        at = f"files/{held.sha256}"
        if at not in self._place.good:
            self._whole_at(at, lambda target: system.put_file(str(path), target))
            self._place.good.add(at)

    def _put(self, at: str, content: bytes) -> None:
        system, _ = self._place.system
        self._whole_at(at, lambda target: system.pipe_file(target, content))

    def _whole_at(self, at: str, write: Callable[[str], None]) -> None:
        """Let `write` write an object, which appears when it is whole."""
        system, root = self._place.system
        target = f"{root}/{at}"
        if kind_of(self._place.url) in _AT_ONCE:
            write(target)
            return
        system.makedirs(target.rpartition("/")[0], exist_ok=True)
        partial = f"{target}.{secrets.token_hex(8)}.partial"
        try:
            write(partial)
            system.mv(partial, target)
        except BaseException:
            with contextlib.suppress(Exception):
                system.rm_file(partial)
            raise

    def _reason(self, error: Exception) -> str:
        lines = str(error).strip().splitlines()
        return without_secrets(lines[0][:160] if lines else type(error).__name__, self._place.url)

    def _tell(self, what: str) -> None:
        self._say(f"{self.shown}: {what}")


def store_of(cache: Cache, say: Callable[[str], None]) -> Store | None:
    """What lies behind a cache, None for nothing. say: see `Store`"""
    return Store(cache.store, say) if cache.store else None


def _held(path: Path) -> Held:
    with path.open("rb") as file:
        return Held(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)

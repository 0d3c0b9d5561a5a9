"""Small files of ours in a cache, with the digest of what they hold: one that is damaged counts as missing."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from pocketphi.graph.errors import InputError
from pocketphi.graph.places import default_folder
from pocketphi.graph.reading import parse_json, read_whole
from pocketphi.graph.writing import new_file

_DIGEST = blake3().digest_size
_LENGTH = 8
_SKEW = 3600 * 10**9  # by which the clock of a volume's server may be ahead


class SealedCache:
    """A folder of such files, each by all that decides what it holds. A file says that in full, so that one which lies under
    another's name counts as missing too. A cache that cannot be read or written costs the time of making things again.

    folder: None where there is none; most: files of such names that are kept, of those that were used last; prefix: of names
    """

    def __init__(self, folder: Path | None, most: int, prefix: str = "") -> None:
        self._folder, self._most, self._prefix = folder, most, prefix

    @classmethod
    def of_user(cls, name: str, most: int, prefix: str = "", cache: Path | None = None) -> SealedCache:
        """A folder in that of all caches, the user's own if None; where there is none, nothing is kept."""
        with contextlib.suppress(InputError):
            cache = cache or default_folder()
        return cls(cache and cache / name, most, prefix)

    def holds(self, about: Mapping[str, Any]) -> bool:
        """Whether there is a file; it may still be damaged."""
        path = self._path(_as_read(about))
        return path is not None and path.is_file()

    def find(self, about: Mapping[str, Any]) -> tuple[Any, memoryview] | None:
        """What was kept about this, JSON and bytes, or None."""
        whole = _as_read(about)
        path = self._path(whole)
        found = read_sealed(path) if path else None
        if path is None or found is None or not isinstance(found[0], dict) or found[0].get("about") != whole:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return found[0].get("content"), found[1]

    def keep(
        self, about: Mapping[str, Any], content: Any = None, data: Sequence[bytes | memoryview] = (), tidy: bool = True
    ) -> None:
        """tidy: forget the oldest; what keeps many does that in the end."""
        whole = _as_read(about)
        with contextlib.suppress(OSError):
            if path := self._path(whole):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_sealed(path, {"about": whole, "content": content}, data)
                if tidy:
                    self.tidy()

    def tidy(self) -> None:
        """Forget the oldest files."""
        if self._folder is not None:
            forget_oldest(self._folder, f"{self._prefix}*", self._most)

    def forget(self, about: Mapping[str, Any]) -> None:
        """What was kept about this is not needed any more."""
        with contextlib.suppress(OSError):
            if path := self._path(_as_read(about)):
                path.unlink(missing_ok=True)

    def _path(self, whole: Any) -> Path | None:
        name = blake3(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]
        return self._folder and self._folder / f"{self._prefix}{name}"


def _as_read(about: Mapping[str, Any]) -> Any:
    """As it reads in a file."""
    return json.loads(json.dumps(about))


def write_sealed(path: Path, content: Any, data: Sequence[bytes | memoryview] = ()) -> None:
    """What `seal` makes, as a file. Raises OSError."""
    pieces = seal(content, data)
    with new_file(path) as file:
        file.writelines(pieces)


def read_sealed(path: Path) -> tuple[Any, memoryview] | None:
    """What was written, or None where the file is missing or damaged."""
    try:
        return unseal(read_whole(path), str(path))
    except InputError:
        return None


def seal(content: Any, data: Sequence[bytes | memoryview] = ()) -> list[bytes | memoryview]:
    """JSON, and bytes behind it: BLAKE3 of all that follows, the length of the JSON (8 bytes, little endian), the JSON, the
    bytes."""
    text = json.dumps(content, separators=(",", ":")).encode()
    pieces = [len(text).to_bytes(_LENGTH, "little"), text, *data]
    digest = blake3()
    for piece in pieces:
        digest.update(piece)
    return [digest.digest(), *pieces]


def unseal(sealed: bytes, where: str) -> tuple[Any, memoryview] | None:
    """What was sealed, or None where it is damaged. Raises InputError where the JSON is none."""
    whole = memoryview(sealed)
    if blake3(whole[_DIGEST:]).digest() != whole[:_DIGEST]:
        return None
    start = _DIGEST + _LENGTH
    end = start + int.from_bytes(whole[_DIGEST:start], "little")
    return parse_json(bytes(whole[start:end]), where), whole[end:]


def forget_oldest(folder: Path, pattern: str, keep: int) -> None:
    """Remove files with such names, as `glob` reads the pattern, but for the `keep` that were written last.

    What says that it will be written later, from before a clock was set back, counts as the oldest: it would stay for ever, and
    what is written now would go at once.
    """
    soon = time.time_ns() + _SKEW

    def written(path: Path) -> int:
        at = path.stat().st_mtime_ns
        return at if at <= soon else -1

    with contextlib.suppress(OSError):
        for path in sorted(folder.glob(pattern), key=written)[:-keep]:
            path.unlink()

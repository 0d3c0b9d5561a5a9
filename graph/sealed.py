"""Small files of ours in a cache, with the digest of what they hold: one that is damaged counts as missing."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import parse_json, read_whole
from pocketphi.graph.writing import new_file

_DIGEST = blake3().digest_size
_LENGTH = 8
_SKEW = 3600 * 10**9  # by which the clock of a volume's server may be ahead


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

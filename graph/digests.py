"""Digests of files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from blake3 import blake3

from pocketphi.graph.errors import InputError

_SMALL = 1 << 24
"""Bytes up to which one thread reads a file: a forked process has no others, and the library waits for them for ever."""


def digest_files(paths: Iterable[Path], root: Path | None = None) -> str:
    """BLAKE3 of names, from `root` on if it is given, and contents, in hex. Raises InputError for what cannot be read."""
    whole = blake3()
    for path in paths:
        name = str(path.relative_to(root)) if root else path.name
        try:
            threads = blake3.AUTO if path.stat().st_size > _SMALL else 1
            content = blake3(max_threads=threads).update_mmap(path).digest()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        whole.update(len(name.encode()).to_bytes(8, "little") + name.encode() + content)
    return whole.hexdigest()

"""Digests of files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from blake3 import blake3

from pocketphi.graph.errors import InputError


def digest_files(paths: Iterable[Path], root: Path | None = None) -> str:
    """BLAKE3 of names, from `root` on if it is given, and contents, in hex. Raises InputError for what cannot be read."""
    whole = blake3()
    for path in paths:
        name = str(path.relative_to(root)) if root else path.name
        try:
            content = blake3(max_threads=blake3.AUTO).update_mmap(path).digest()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        whole.update(len(name.encode()).to_bytes(8, "little") + name.encode() + content)
    return whole.hexdigest()

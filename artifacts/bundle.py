"""A bundle is a folder with a `manifest.json` that names every other file with its size and SHA-256.

Made through `new_folder`: a bundle that exists is complete. The manifest's last line holds the SHA-256 of the bytes before it,
so that no byte of it can change unseen, and that a check needs no JSON writer: the app kits do the same in Swift and Kotlin.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketphi.graph.errors import InputError

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
FORMAT = 2
_SEAL = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n}\n')
_SEAL_BYTES = 82


@dataclass(frozen=True)
class Bundle:
    """An existing bundle. path: its folder; manifest: the parsed `manifest.json`."""

    path: Path
    manifest: dict[str, Any]

    @staticmethod
    def open(path: Path, check: bool = True) -> Bundle:
        """Open a bundle; `check` also compares every file with the manifest.

        Raises InputError naming the first file that is missing, extra, truncated or changed.
        """
        try:
            text = (path / MANIFEST).read_bytes()
            manifest = json.loads(text.decode("utf-8"))
            format_, files = manifest["format"], manifest["files"]
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{path}: not a bundle: it has no {MANIFEST}; make one with 'pocketphi compile'") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{path / MANIFEST}: damaged: it does not parse as a manifest") from None
        if format_ != FORMAT:
            raise InputError(f"{path}: bundle format {format_}, this pocketphi reads {FORMAT}; compile it again")
        bundle = Bundle(path, manifest)
        if check:
            if not is_sealed(text):
                raise InputError(f"{path / MANIFEST}: was edited: its own checksum does not match; compile again")
            bundle._check_files(files)
        return bundle

    def _check_files(self, files: dict[str, dict[str, Any]]) -> None:
        outside = [name for name in files if Path(name).is_absolute() or ".." in Path(name).parts]
        if outside:
            raise InputError(
                f"{self.path / MANIFEST}: names {outside[0]}, which lies outside the bundle; compile it again"
            )
        extra = sorted(set(_list_files(self.path)) - set(files) - {MANIFEST, SIGNATURE})
        if extra:
            raise InputError(f"{self.path / extra[0]}: is not part of this bundle; remove it")
        for name, entry in files.items():
            path = self.path / name
            if not path.is_file():
                raise InputError(f"{path}: missing from the bundle; copy or compile it again")
            size = path.stat().st_size
            if size != entry["bytes"]:
                raise InputError(f"{path}: {size} bytes, the manifest says {entry['bytes']}; copy or compile it again")
            if file_digest(path) != entry["sha256"]:
                raise InputError(f"{path}: content differs from its SHA-256 in the manifest; copy or compile it again")
        if (self.path / SIGNATURE).exists():
            from pocketphi.artifacts.signature import check_signature  # needs a package of the extra `build`

            check_signature(self.path)


def check_replaceable(path: Path, force: bool) -> None:
    """Raise InputError where something stands at `path` that may not be replaced: anything, or with `force` no bundle."""
    if not path.exists():
        return
    if not force:
        raise InputError(f"{path}: exists; choose another -o or pass --force to replace it")
    if not path.is_dir() or (any(path.iterdir()) and not (path / MANIFEST).is_file()):
        raise InputError(f"{path}: exists and is not a bundle; --force replaces bundles only")


def write_manifest(folder: Path, content: dict[str, Any], known: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Add the files in `folder`, their digests and the manifest's own, and write it. Returns what was written.

    known: SHA-256 of files that were hashed as they were written
    """
    known = known or {}
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": known.get(name) or file_digest(folder / name)}
        for name in _list_files(folder)
        if name not in (MANIFEST, SIGNATURE)
    }
    manifest = {"format": FORMAT, **content, "files": files}
    text = seal(json.dumps(manifest, indent=1).removesuffix("\n}").encode())
    (folder / MANIFEST).write_bytes(text)
    return {**manifest, "sha256": json.loads(text)["sha256"]}


def seal(head: bytes) -> bytes:
    """A manifest without its end → the manifest: the SHA-256 of what came before is its last entry."""
    return head + b',\n "sha256": "%s"\n}\n' % hashlib.sha256(head).hexdigest().encode()


def is_sealed(manifest: bytes) -> bool:
    """Whether a manifest ends with the SHA-256 of what stands before its last line.

    The last 82 bytes are a comma, a line break, ` "sha256": "…"` with 64 lower-case digits, and `}` on a line of its own.
    """
    head, end = manifest[:-_SEAL_BYTES], _SEAL.fullmatch(manifest[-_SEAL_BYTES:])
    return end is not None and hashlib.sha256(head).hexdigest().encode() == end[1]


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _list_files(folder: Path) -> list[str]:
    found = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
    return sorted(str(path.relative_to(folder)) for path in found)

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
from dataclasses import dataclass, replace
from pathlib import Path

from pocketphi.artifacts.manifest import MANIFEST, SIGNATURE, FileRecord, Manifest, parse_manifest
from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import file_inside, named, read_whole

_SEAL = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n}\n')
_SEAL_BYTES = 82


@dataclass(frozen=True)
class Bundle:
    """An existing bundle. path: its folder; manifest: what `manifest.json` says."""

    path: Path
    manifest: Manifest

    @staticmethod
    def open(path: Path, check: bool = True) -> Bundle:
        """Open a bundle, whose manifest has to be as it was sealed; `check` also compares every file with it.

        Raises InputError naming the first file that is missing, extra, truncated or changed.
        """
        if not (path / MANIFEST).exists():
            raise InputError(f"{path}: not a bundle: it has no {MANIFEST}; make one with 'pocketphi compile'")
        text = read_whole(file_inside(path, MANIFEST, str(path)))
        bundle = Bundle(path, parse_manifest(text, path / MANIFEST))
        if not is_sealed(text):
            raise InputError(f"{path / MANIFEST}: was edited: its own checksum does not match; compile again")
        if check:
            bundle._check_files()
        return bundle

    def file(self, name: str) -> Path:
        """A file of the bundle. Raises InputError for one that the manifest does not name, or a link that leads out."""
        if name not in self.manifest.files:
            raise InputError(f"{self.path / MANIFEST}: names no {name}; compile it again")
        return file_inside(self.path, name, str(self.path / MANIFEST))

    def _check_files(self) -> None:
        files = self.manifest.files
        extra = sorted(set(_list_files(self.path)) - set(files) - {MANIFEST, SIGNATURE})
        if extra:
            raise InputError(f"{self.path}/{named(extra[0])}: is not part of this bundle; remove it")
        for name, entry in files.items():
            try:
                _check_file(self.file(name), entry)
            except OSError as error:
                raise InputError(f"{self.path / name}: cannot be read ({error.strerror})") from None
        if os.path.lexists(self.path / SIGNATURE):
            from pocketphi.artifacts.signature import check_signature  # needs a package of the extra `build`

            check_signature(self.path)


def _check_file(path: Path, entry: FileRecord) -> None:
    """Raise InputError where a file is not as the manifest says."""
    if not path.exists():
        raise InputError(f"{path}: missing from the bundle; copy or compile it again")
    if not path.is_file():
        raise InputError(f"{path}: expected a file; copy or compile it again")
    size = path.stat().st_size
    if size != entry.bytes:
        raise InputError(f"{path}: {size} bytes, the manifest says {entry.bytes}; copy or compile it again")
    if file_digest(path) != entry.sha256:
        raise InputError(f"{path}: content differs from its SHA-256 in the manifest; copy or compile it again")


def check_replaceable(path: Path, force: bool) -> None:
    """Raise InputError where something stands at `path` that may not be replaced: anything, or with `force` no bundle."""
    if not path.exists():
        return
    if not force:
        raise InputError(f"{path}: exists; choose another -o or pass --force to replace it")
    if not path.is_dir() or (any(path.iterdir()) and not (path / MANIFEST).is_file()):
        raise InputError(f"{path}: exists and is not a bundle; --force replaces bundles only")


def write_manifest(folder: Path, manifest: Manifest, known: Mapping[str, str] | None = None) -> Manifest:
    """Write a manifest with the files in `folder`, their digests and its own. Returns what was written.

    known: SHA-256 of files that were hashed as they were written
    """
    known = known or {}
    files = {
        name: FileRecord((folder / name).stat().st_size, known.get(name) or file_digest(folder / name))
        for name in _list_files(folder)
        if name not in (MANIFEST, SIGNATURE)
    }
    made = replace(manifest, files=files, sha256=None)
    text = seal(json.dumps(made.as_json(), indent=1).removesuffix("\n}").encode())
    (folder / MANIFEST).write_bytes(text)
    return parse_manifest(text, folder / MANIFEST)


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
    """Everything but folders, by its path in the folder; a link to a folder is no folder."""
    found = []
    for root, folders, names in os.walk(folder):
        found += [Path(root, name) for name in names]
        found += [Path(root, name) for name in folders if Path(root, name).is_symlink()]
    return sorted(str(path.relative_to(folder)) for path in found)

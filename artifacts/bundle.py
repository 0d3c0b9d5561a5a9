"""A bundle is a folder with a `manifest.json` that names every other file with its size and SHA-256.

Made through `new_folder`: a bundle that exists is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketphi.graph.errors import InputError

MANIFEST = "manifest.json"
FORMAT = 1


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
            manifest = json.loads((path / MANIFEST).read_text("utf-8"))
            format_, files = manifest["format"], manifest["files"]
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{path}: not a bundle: it has no {MANIFEST}; make one with 'pocketphi compile'") from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path / MANIFEST}: damaged: it does not parse as a manifest") from None
        if format_ != FORMAT:
            raise InputError(f"{path}: bundle format {format_}, this pocketphi reads {FORMAT}; compile it again")
        bundle = Bundle(path, manifest)
        if check:
            bundle._check_files(files)
        return bundle

    def _check_files(self, files: dict[str, dict[str, Any]]) -> None:
        if manifest_digest(self.manifest) != self.manifest.get("sha256"):
            raise InputError(f"{self.path / MANIFEST}: was edited: its own checksum does not match; compile again")
        extra = sorted(set(_list_files(self.path)) - set(files) - {MANIFEST})
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


def check_replaceable(path: Path, force: bool) -> None:
    """Raise InputError where something stands at `path` that may not be replaced: anything, or with `force` no bundle."""
    if not path.exists():
        return
    if not force:
        raise InputError(f"{path}: exists; choose another -o or pass --force to replace it")
    if not path.is_dir() or (any(path.iterdir()) and not (path / MANIFEST).is_file()):
        raise InputError(f"{path}: exists and is not a bundle; --force replaces bundles only")


def write_manifest(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Add the files in `folder`, their digests and the manifest's own, and write it. Returns what was written."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_digest(folder / name)}
        for name in _list_files(folder)
        if name != MANIFEST
    }
    manifest = {"format": FORMAT, **content, "files": files}
    manifest["sha256"] = manifest_digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    return manifest


def manifest_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its own digest."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _list_files(folder: Path) -> list[str]:
    found = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
    return sorted(str(path.relative_to(folder)) for path in found)

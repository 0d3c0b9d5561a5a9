"""Bundles by content address, and their links at the place where the build file wants them."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.folder import new_folder, workspace
from pocketphi.artifacts.manifest import MANIFEST, SIGNATURE, Manifest
from pocketphi.graph.errors import InputError


def find_bundle(store: Path) -> Bundle | None:
    """A bundle from the cache, if it is whole; one that is not is removed."""
    if not os.path.lexists(store):
        return None
    try:
        return Bundle.open(store)
    except InputError:
        with workspace(store) as work, contextlib.suppress(OSError):
            store.rename(work / "damaged")  # at once: nobody finds half of it
        return None


def place_bundle(bundle: Bundle, path: Path) -> None:
    """Links, or copies on another disk, unless the same bundle is there already."""
    if path.exists() and not (path / MANIFEST).is_file() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: exists and is not a bundle; choose another out, or remove it")
    if _is_same(bundle, path):
        return
    with new_folder(path, 0, replace=True) as folder:
        for name in (MANIFEST, *bundle.manifest.files):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _link(bundle.path / name, folder / name)


def _is_same(bundle: Bundle, path: Path) -> bool:
    """Whether what stands at `path` is this bundle, whole."""
    if manifest_at(path) != bundle.manifest:
        return False
    held = [found for found in path.rglob("*") if found.is_file() and found.name != SIGNATURE]
    if len(held) != len(bundle.manifest.files) + 1 or any(found.is_symlink() for found in path.rglob("*")):
        return False
    names = [MANIFEST, *bundle.manifest.files]
    if all((path / name).is_file() and os.path.samefile(path / name, bundle.path / name) for name in names):
        return True  # the very files, checked in the cache
    try:
        Bundle.open(path)
    except InputError:
        return False
    return True


def _link(source: Path, target: Path) -> None:
    try:
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise
        except OSError:  # on another disk, or one without links
            shutil.copyfile(source, target)
    except FileNotFoundError:
        raise InputError(f"{source}: gone: another process empties the cache; build again") from None


def manifest_at(path: Path) -> Manifest | None:
    """Of a bundle that is there, whole or not."""
    try:
        return Bundle.open(path, check=False).manifest
    except InputError:
        return None

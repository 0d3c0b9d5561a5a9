"""Bundles by content address, and their links at the place where the build file wants them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.folder import new_folder, put, workspace
from pocketphi.artifacts.manifest import MANIFEST, SIGNATURE, Manifest
from pocketphi.graph.errors import InputError
from pocketphi.graph.sealed import read_sealed, write_sealed
from pocketphi.graph.store import Store


def find_bundle(store: Path) -> Bundle | None:
    """A bundle from the cache, if it is whole and as it was made; another one is removed.

    Bundles at their places are links to the cache's files, so that somebody who edits one there, and makes its manifest fit,
    edits the cache too.
    """
    bundle = whole_bundle(store)
    made = read_sealed(_made(store)) if bundle else None
    if bundle is None or made is None:
        return None  # of a build that was stopped, or is about to say what it made
    if made[0] != _seal_of(bundle):
        _remove(store)
        return None
    return bundle


def fetch_bundle(path: Path, store: Store) -> Bundle | None:
    """A bundle that another machine made, into the cache of this one, if the store has it whole."""
    ref = store.find(f"bundles/{path.name}")
    if ref is None:
        return None
    with workspace(path) as work:
        folder = work / "new"
        folder.mkdir()
        if not store.fetch(ref, folder) or whole_bundle(folder) is None:
            return None
        with contextlib.suppress(InputError):  # another process has fetched or made it meanwhile
            put(folder, path, work, replace=False)
    bundle = Bundle.open(path, check=False)
    keep_made(path, bundle)
    return bundle


def share_bundle(bundle: Bundle, store: Store) -> None:
    """Let other machines find a bundle of the cache."""
    store.keep(f"bundles/{bundle.path.name}", bundle.path, [MANIFEST, *bundle.manifest.files])


def whole_bundle(store: Path) -> Bundle | None:
    """A bundle from the cache, if it is whole; one that is not is removed."""
    if not os.path.lexists(store):
        return None
    try:
        return Bundle.open(store)
    except InputError:
        _remove(store)
        return None


def keep_made(store: Path, bundle: Bundle) -> None:
    """Note beside a bundle in the cache what was made. Where that cannot be written, it is made again the next time."""
    with contextlib.suppress(OSError):
        write_sealed(_made(store), _seal_of(bundle))


def _made(store: Path) -> Path:
    return store.with_name(f"{store.name}.made")


def _seal_of(bundle: Bundle) -> str:
    return hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest()


def _remove(store: Path) -> None:
    with workspace(store) as work, contextlib.suppress(OSError):
        store.rename(work / "damaged")  # at once: nobody finds half of it


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

"""Build a matrix of bundles, each once: what was built before is found by its content address.

A bundle is made in the cache, under the digest of all that decides its bytes (`build_key.py`), and linked to where the build
file wants it. Measurements are kept beside it. A bundle that fails does not stop the others.
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.build_cache import find_bundle, manifest_at, place_bundle
from pocketphi.compiler.build_file import BuildFile, Cell
from pocketphi.compiler.build_gates import claims_of
from pocketphi.compiler.build_key import SourceDigests, bundle_key
from pocketphi.compiler.build_result import Result
from pocketphi.compiler.diff import changes
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import InputError, PocketphiError


def build_matrix(file: BuildFile, ui: Ui, key: bytes | None = None, only: str | None = None) -> list[Result]:
    """Build every bundle of a matrix. key: private key (PEM) to sign with; only: a part of the names to build.

    Raises InputError where nothing is to be built.
    """
    cells = [cell for cell in file.cells if only is None or only in cell.name]
    if not cells:
        raise InputError(f"--only {only}: builds none of {', '.join(cell.name for cell in file.cells)}")
    sources = SourceDigests()
    results = []
    for i, cell in enumerate(cells):
        ui.say(f"[{i + 1}/{len(cells)}] {cell.name}")
        begin = time.perf_counter()
        result = Result(cell.name, file.out / cell.name)
        try:
            _build(file, cell, result, sources, ui, key)
        except PocketphiError as error:
            result.error, result.exit_code = str(error), error.exit_code
        result.seconds = time.perf_counter() - begin
        results.append(result)
        ui.say(result.summary())
    return results


def cache_folder(file: BuildFile) -> Path:
    if file.cache:
        return file.cache
    return Path(os.environ.get("POCKETPHI_CACHE") or Path.home() / ".cache" / "pocketphi")


def _build(file: BuildFile, cell: Cell, result: Result, sources: SourceDigests, ui: Ui, key: bytes | None) -> None:
    if file.device:
        from pocketphi.compiler.device_plan import fit_options
        from pocketphi.compiler.devices import find_device

        fit_options(cell.options, find_device(file.device), choose=False)
    result.key = bundle_key(cell.options, sources)
    store = cache_folder(file) / "bundles" / result.key
    bundle, result.cached = find_bundle(store), True
    if bundle is None:
        bundle, result.cached = _compile(cell, store, cache_folder(file), ui), False
    result.bytes = bundle.manifest.bytes
    previous = manifest_at((file.baseline or file.out) / cell.name)
    result.changes = None if previous is None else changes(previous, bundle.manifest)
    place_bundle(bundle, result.bundle)
    _write_sbom(result.bundle)
    if key is not None:
        from pocketphi.artifacts.signature import sign_bundle

        sign_bundle(result.bundle, key, file.sign or "the key")
    result.claims = claims_of(cell, bundle, file.measure, ui)
    if not all(claim.ok for claim in result.claims):
        result.exit_code = 1


def _compile(cell: Cell, store: Path, cache: Path, ui: Ui) -> Bundle:
    from pocketphi.compiler.compile import compile_model

    store.parent.mkdir(parents=True, exist_ok=True)
    return compile_model(dataclasses.replace(cell.options, out=store, cache=cache), ui)


def _write_sbom(bundle: Path) -> None:
    """Beside the bundle, so that its bytes stay those of `pocketphi compile`."""
    from pocketphi.artifacts.sbom import sbom

    path = bundle.parent / f"{bundle.name}.cdx.json"
    text = sbom(bundle)
    if not path.is_file() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")

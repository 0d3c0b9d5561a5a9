"""Build a matrix of bundles, each once: what was built before is found by its content address.

A bundle is made in the cache, under the digest of all that decides its bytes (`build_key.py`), and linked to where the build
file wants it. Measurements are kept beside it. A bundle that fails does not stop the others.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from pathlib import Path

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.folder import remove_left_over
from pocketphi.compiler.build_cache import find_bundle, keep_made, manifest_at, place_bundle, whole_bundle
from pocketphi.compiler.build_file import BuildFile, Cell
from pocketphi.compiler.build_gates import claims_of, why_not_verified
from pocketphi.compiler.build_key import SourceDigests, bundle_key
from pocketphi.compiler.build_result import Result
from pocketphi.compiler.diff import changes
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import CannotRun, CannotWrite, InputError, PocketphiError
from pocketphi.graph.places import default_folder
from pocketphi.graph.writing import write_whole


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
        gc.collect()  # a command of its own ends before this is worth its time
        result.seconds = time.perf_counter() - begin
        results.append(result)
        ui.say(result.summary())
    return results


def _build(file: BuildFile, cell: Cell, result: Result, sources: SourceDigests, ui: Ui, key: bytes | None) -> None:
    if file.device is not None:
        from pocketphi.compiler.device_plan import fit_options
        from pocketphi.compiler.devices import find_device

        fit_options(cell.options, find_device(file.device), choose=False)
    result.key = bundle_key(cell.options, sources)
    cache = file.cache or default_folder()
    store = cache / "bundles" / result.key
    try:
        bundle, result.cached = find_bundle(store), True
        if bundle is None or (not bundle.manifest.verified and _would_verify(cell, bundle)):
            bundle, result.cached = _compile(cell, store, cache, sources, ui), False
    except CannotWrite as error:
        raise InputError(f"{error.why}; choose another cache in the build file") from None
    result.not_verified = why_not_verified(bundle)
    result.bytes = bundle.manifest.bytes
    previous = manifest_at((file.baseline or file.out) / cell.name)
    result.changes = None if previous is None else changes(previous, bundle.manifest)
    try:
        place_bundle(bundle, result.bundle)
    except CannotWrite as error:
        raise InputError(f"{error.why}; choose another out in the build file") from None
    _write_sbom(Bundle(result.bundle, bundle.manifest))
    if key is not None:
        from pocketphi.artifacts.signature import sign_bundle

        sign_bundle(result.bundle, key, file.sign or "the key")
    result.claims = claims_of(cell, bundle, file.measure, ui)
    _write_report(Bundle(result.bundle, bundle.manifest), result, cache)
    if not all(claim.ok for claim in result.claims):
        result.exit_code = 1


def _would_verify(cell: Cell, bundle: Bundle) -> bool:
    """Whether this build, here and now, would verify a bundle that was not verified when it was made."""
    from pocketphi.compiler.hosts import check_runs_here
    from pocketphi.compiler.verify import wants_verification

    if not wants_verification(cell.options.verify, bundle.manifest.bytes, Ui()):
        return False
    if cell.options.verify == "auto":
        try:
            for target in cell.options.of_targets:
                check_runs_here(target)
        except CannotRun:
            return False
    return True


def _compile(cell: Cell, store: Path, cache: Path, sources: SourceDigests, ui: Ui) -> Bundle:
    from pocketphi.compiler.compile import compile_model

    options = dataclasses.replace(cell.options, out=store, cache=cache, force=store.exists())
    remove_left_over(store.parent)
    try:
        made = compile_model(options, ui, lambda: _check_sources(cell, sources))
    except InputError:
        found = whole_bundle(store)  # by another build, meanwhile
        if found is None or not (found.manifest.verified or cell.options.verify == "never"):
            raise
        return found
    keep_made(store, made)
    return made


def _check_sources(cell: Cell, sources: SourceDigests) -> None:
    sources.check(cell.options.model)
    for one in (*cell.options.lora, *(named.lora for named in cell.options.adapter)):
        sources.check(one)


def _write_sbom(bundle: Bundle) -> None:
    """Beside the bundle, so that its bytes stay those of `pocketphi compile`."""
    from pocketphi.artifacts.sbom import sbom

    _write_beside(bundle, "cdx.json", sbom(bundle))


def _write_report(bundle: Bundle, result: Result, cache: Path) -> None:
    """The same: a page for people, with the gates."""
    from pocketphi.compiler.report.make import Asked, report

    _write_beside(bundle, "html", report(bundle, Asked(claims=result.claims, cache=cache)))


def _write_beside(bundle: Bundle, ending: str, text: str) -> None:
    path = bundle.path.parent / f"{bundle.path.name}.{ending}"
    if not path.is_file() or path.read_text("utf-8") != text:
        write_whole(path, text)

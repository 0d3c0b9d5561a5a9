"""Build a matrix of bundles, each once: what was built before is found by its content address.

A bundle is made in the cache, under the digest of all that decides its bytes (`build_key.py`), by an executor, here or on
other machines (`executors/`). Here it is linked to where the build file wants it. Measurements are kept beside it. A bundle
that fails does not stop the others.
"""

from __future__ import annotations

import time
from contextlib import closing

from pocketphi.artifacts.bundle import Bundle
from pocketphi.compiler.build_cache import fetch_bundle, manifest_at, place_bundle
from pocketphi.compiler.build_file import BuildFile
from pocketphi.compiler.build_key import SourceDigests
from pocketphi.compiler.build_one import Job
from pocketphi.compiler.build_result import Result
from pocketphi.compiler.diff import changes
from pocketphi.compiler.executors import Executor
from pocketphi.compiler.executors.serial import Serial
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import CannotWrite, InputError, PocketphiError
from pocketphi.graph.places import default_cache
from pocketphi.graph.writing import remove_left_over, write_whole


def build_matrix(
    file: BuildFile, ui: Ui, key: bytes | None = None, only: str | None = None, executor: Executor | None = None
) -> list[Result]:
    """Build every bundle of a matrix. key: private key (PEM) to sign with; only: a part of the names to build; executor: where
    they are made, one after the other in this process if None.

    Raises InputError where nothing is to be built, and where the executor cannot begin.
    """
    cells = [cell for cell in file.cells if only is None or only in cell.name]
    if not cells:
        raise InputError(f"--only {only}: builds none of {', '.join(cell.name for cell in file.cells)}")
    cache, sources = file.cache or default_cache(), SourceDigests()
    cache.check()
    remove_left_over(cache.folder, None)
    jobs = {cell.name: Job(cell, file.out / cell.name, cache, file.device, file.measure, sources) for cell in cells}
    results = {}
    with closing((executor or Serial()).run(list(jobs.values()), ui)) as made:
        for result in made:
            begin = time.perf_counter()
            try:
                if result.error is None:
                    _deliver(file, jobs[result.name], result, ui, key)
            except PocketphiError as error:
                result.error, result.exit_code = str(error), error.exit_code
            result.seconds += time.perf_counter() - begin
            results[result.name] = result
            ui.say(result.summary())
    return [results[name] for name in jobs]


def _deliver(file: BuildFile, job: Job, result: Result, ui: Ui, key: bytes | None) -> None:
    """Put what was made where the build file wants it, with what belongs beside it."""
    bundle = _in_the_cache(job, result.key, ui)
    previous = manifest_at((file.baseline or file.out) / job.name)
    result.changes = None if previous is None else changes(previous, bundle.manifest)
    try:
        place_bundle(bundle, result.bundle)
    except CannotWrite as error:
        raise InputError(f"{error.why}; choose another out in the build file") from None
    placed = Bundle(result.bundle, bundle.manifest)
    _write_sbom(placed)
    if key is not None:
        from pocketphi.artifacts.signature import sign_bundle

        sign_bundle(result.bundle, key, file.sign or "the key")
    _write_report(placed, result, job)


def _in_the_cache(job: Job, key: str, ui: Ui) -> Bundle:
    """What was made, perhaps by another machine. Raises InputError where that is not to be had here."""
    path = job.bundle_path(key)
    if path.exists():
        return Bundle.open(path, check=False)
    store = job.store(ui)
    found = fetch_bundle(path, store) if store else None
    if found is None:
        raise InputError(f"{path}: was made, and is not there; is it the same cache on every machine?")
    return found


def _write_sbom(bundle: Bundle) -> None:
    """Beside the bundle, so that its bytes stay those of `pocketphi compile`."""
    from pocketphi.artifacts.sbom import sbom

    _write_beside(bundle, "cdx.json", sbom(bundle))


def _write_report(bundle: Bundle, result: Result, job: Job) -> None:
    """The same: a page for people, with the gates."""
    from pocketphi.compiler.report.make import Asked, report

    _write_beside(bundle, "html", report(bundle, Asked(claims=result.claims, cache=job.cache.folder)))


def _write_beside(bundle: Bundle, ending: str, text: str) -> None:
    path = bundle.path.parent / f"{bundle.path.name}.{ending}"
    if not path.is_file() or path.read_text("utf-8") != text:
        write_whole(path, text)

"""What is computed for one bundle of a matrix, on whichever machine: it is found in the cache or compiled, and measured."""

from __future__ import annotations

import dataclasses
import gc
import time
from dataclasses import dataclass
from pathlib import Path

from pocketphi.artifacts.bundle import Bundle
from pocketphi.artifacts.folder import remove_left_over
from pocketphi.compiler.build_cache import fetch_bundle, find_bundle, keep_made, share_bundle, whole_bundle
from pocketphi.compiler.build_file import Cell, Measure
from pocketphi.compiler.build_gates import claims_of, why_not_verified
from pocketphi.compiler.build_key import SourceDigests, bundle_key
from pocketphi.compiler.build_result import Result
from pocketphi.compiler.ui import Ui
from pocketphi.graph.errors import CannotRun, CannotWrite, InputError, PocketphiError
from pocketphi.graph.places import Cache
from pocketphi.graph.store import Store, store_of


@dataclass(frozen=True)
class Job:
    """One bundle to make. place: where the build wants it; sources: of all jobs of a build, so that each file is read once;
    key: its address, as whoever asks has it; anything else: as in the build file"""

    cell: Cell
    place: Path
    cache: Cache
    device: str | None
    measure: Measure
    sources: SourceDigests
    key: str | None = None

    @property
    def name(self) -> str:
        return self.cell.name

    def store(self, ui: Ui) -> Store | None:
        """What lies behind the cache of this machine."""
        return store_of(self.cache, ui.say)

    def bundle_path(self, key: str) -> Path:
        """In the cache of this machine."""
        return self.cache.folder / "bundles" / key


def make_bundle(job: Job, ui: Ui) -> Result:
    """The bundle is in the cache then, or the result says why not."""
    begin = time.perf_counter()
    result = Result(job.name, job.place)
    try:
        _make(job, result, ui)
    except PocketphiError as error:
        result.error, result.exit_code = str(error), error.exit_code
    gc.collect()  # a command of its own ends before this is worth its time
    result.seconds = time.perf_counter() - begin
    return result


def key_of(job: Job) -> str:
    """The address of the bundle. Raises InputError where a source cannot be read."""
    return bundle_key(job.cell.options, job.sources)


def _make(job: Job, result: Result, ui: Ui) -> None:
    cell = job.cell
    if job.device is not None:
        from pocketphi.compiler.device_plan import fit_options
        from pocketphi.compiler.devices import find_device

        fit_options(cell.options, find_device(job.device), choose=False)
    result.key = key_of(job)
    if job.key not in (None, result.key):
        raise CannotRun(
            f"{cell.name}: would be another bundle here ({result.key}) than where the build was started ({job.key}): a "
            "compiler, an NDK or a CPU that decides its bytes is another one"
        )
    try:
        bundle, result.cached = _found_or_compiled(job, result.key, ui)
    except CannotWrite as error:
        raise InputError(f"{error.why}; choose another cache in the build file") from None
    result.not_verified = why_not_verified(bundle)
    result.bytes = bundle.manifest.bytes
    result.claims = claims_of(cell, bundle, job.measure, ui)
    if not all(claim.ok for claim in result.claims):
        result.exit_code = 1


def _found_or_compiled(job: Job, key: str, ui: Ui) -> tuple[Bundle, bool]:
    """The bundle, and whether it was there. What the store lacks, it gets."""
    path, store = job.bundle_path(key), job.store(ui)
    here = find_bundle(path)
    bundle = here or (fetch_bundle(path, store) if store else None)
    cached = bundle is not None and (bundle.manifest.verified or not _would_verify(job.cell, bundle))
    if bundle is None or not cached:
        bundle = _compile(job, path, ui)
    if store and (not cached or (here and store.find(f"bundles/{key}") is None)):
        share_bundle(bundle, store)
    return bundle, cached


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


def _compile(job: Job, path: Path, ui: Ui) -> Bundle:
    from pocketphi.compiler.compile import compile_model

    cell = job.cell
    options = dataclasses.replace(cell.options, out=path, cache=job.cache, force=path.exists())
    remove_left_over(path.parent)
    try:
        made = compile_model(options, ui, lambda: _check_sources(cell, job.sources))
    except InputError:
        found = whole_bundle(path)  # by another build, meanwhile
        if found is None or not (found.manifest.verified or cell.options.verify == "never"):
            raise
        return found
    keep_made(path, made)
    return made


def _check_sources(cell: Cell, sources: SourceDigests) -> None:
    for one in cell.options.sources:
        sources.check(one)

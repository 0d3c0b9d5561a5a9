"""Whether a bundle's library and what describes it are those that a compile writes. A text that is run sees no more than its
own tokens and lengths, on one number of threads, and in the runtime that is built here: the files of an app are compared.

The library is built once more, with the schedules that tuning.jsonl names. The same program, TVM and compiler give the same
bytes. Where another compiler linked it, its calls and constants are compared, which lie in it as TVM wrote them; machine code
is not then, and `linked_elsewhere` says so.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketphi.artifacts.bundle import file_digest
from pocketphi.graph.program import Program
from pocketphi.graph.reading import file_inside, read_json, read_whole, show, size_inside
from pocketphi.targets.base import Check
from pocketphi.targets.target import Asked
from pocketphi.targets.tvm_arm.build_runtime import build_runtime
from pocketphi.targets.tvm_arm.description import DESCRIPTION, PARAMS_FILE, Description, described_text
from pocketphi.targets.tvm_arm.elf import Elf
from pocketphi.targets.tvm_arm.kv_cache import KV_CACHES, kv_cache_of
from pocketphi.targets.tvm_arm.library import about_library, files_made
from pocketphi.targets.tvm_arm.lower import Schedules
from pocketphi.targets.tvm_arm.package import describe, lowered
from pocketphi.targets.tvm_arm.params import ParamsFile
from pocketphi.targets.tvm_arm.platform import Platform, toolchain_of
from pocketphi.targets.tvm_arm.toolchain import LIBRARY, RUNTIME_FILES, SOURCES_FOLDER
from pocketphi.targets.tvm_arm.tune import database

_RUNTIME, _HEADER = RUNTIME_FILES


@dataclass(frozen=True)
class Planned:
    """A library that a compile writes.

    description: model.json, but for the library's own entries; module: of the library; rows: of schedules that it is made with
    """

    description: dict[str, Any]
    module: Any
    rows: list[database.Record]


def graph_checks(folder: Path, planned: Planned, platform: Platform, described: Description) -> list[Check]:
    """described: what model.json says.

    Raises CannotRun where a library was linked by a toolchain that is not on this machine.
    """
    toolchain = toolchain_of(platform, described.library)
    tuning = file_inside(folder, database.BUNDLED, str(folder))
    with tempfile.TemporaryDirectory() as scratch:
        wanted = files_made(planned.module, platform, Path(scratch), toolchain)
    odd = _other_description(folder, {**planned.description, **about_library(toolchain)})
    size = size_inside(folder, PARAMS_FILE)
    if size != planned.description["params_bytes"]:
        odd.append(f"{PARAMS_FILE}: {size} bytes, expected {planned.description['params_bytes']}")
    if read_whole(tuning) != database.text_of(planned.rows).encode():
        odd.append(f"{database.BUNDLED}: other rows than those of the model's matrices")
    elsewhere = linked_elsewhere(folder, platform, described)
    for file, sha256 in wanted.files.items():
        if (file == _HEADER or not elsewhere) and _digest(folder, file) != sha256:
            odd.append(_why(file))
    if elsewhere and hashlib.sha256(Elf(folder / LIBRARY).calls()).hexdigest() != wanted.calls:
        odd.append(f"{LIBRARY}: other calls or constants")
    files = [DESCRIPTION, database.BUNDLED, *wanted.files]
    detail = f"first {odd[0]}" if odd else f"{len(files)} files, {described.library} built again"
    if elsewhere and not odd:
        detail = f"{DESCRIPTION}, {database.BUNDLED}, {_HEADER}, calls and constants of {LIBRARY}"
    return [Check("files that are not what a compile writes", len(odd), 0, detail)]


def plan(folder: Path, program: Program, platform: Platform, described: Description, asked: Asked) -> Planned:
    """program: what was lowered; described: what model.json says; asked: by the manifest."""
    cache = KV_CACHES[kv_cache_of(described.cache.dtype["saved"])]
    params = ParamsFile.plan(program, platform.isa, cache)
    digest = _digest(folder, PARAMS_FILE)
    made = describe(program, platform, params, digest, asked, cache)
    tuning = file_inside(folder, database.BUNDLED, str(folder))
    used = database.fitting(database.read(tuning), platform)
    schedules = Schedules(platform.isa, {form: record.schedule for form, record in used.items()})
    module = lowered(program, platform, schedules, made, cache)
    return Planned(made, module, [used[form] for form in schedules.asked if form in used])


def linked_elsewhere(folder: Path, platform: Platform, described: Description) -> str | None:
    """Which compilers a library says it was linked by, where they are not those of this machine."""
    if described.library != LIBRARY:
        return None
    size_inside(folder, LIBRARY)
    theirs = Elf(folder / LIBRARY).compilers()
    ours = Elf(build_runtime(toolchain_of(platform, described.library)).library).compilers()
    return None if theirs == ours else f"{show(theirs)} (here: {ours})"


def _digest(folder: Path, name: str) -> str:
    """Raises InputError where there is no such file."""
    size_inside(folder, name)
    return file_digest(folder / name)


def _why(file: str) -> str:
    if file.startswith(f"{SOURCES_FOLDER}/") or file == _RUNTIME:
        return f"{file}: another runtime"
    return f"{file}: {'another interface' if file == _HEADER else 'other calls, constants or machine code'}"


def _other_description(folder: Path, wanted: dict[str, Any]) -> list[str]:
    path = file_inside(folder, DESCRIPTION, str(folder))
    if read_whole(path) == described_text(wanted).encode():
        return []
    found = read_json(path)
    names = [name for name in sorted(found.keys() | wanted.keys()) if show(found.get(name)) != show(wanted.get(name))]
    return [f"{DESCRIPTION}: {show(name)}" for name in names] or [f"{DESCRIPTION}: its text"]

"""Compile a lowered module to native code, and link it as its operating system wants it.

A library holds no weights: models of one shape with weights in the same formats have the same one. Its code takes most of the
time of a small compile, so that it is kept in the user's cache, under all that decides it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from blake3 import blake3
from tvm import IRModule, relax

from pocketphi.artifacts.bundle import file_digest
from pocketphi.graph.sealed import SealedCache
from pocketphi.graph.writing import write_whole
from pocketphi.targets.tvm_arm import archive, objects
from pocketphi.targets.tvm_arm import toolchain as toolchains
from pocketphi.targets.tvm_arm.build_runtime import build_runtime, decided_by, export_sources
from pocketphi.targets.tvm_arm.elf import Elf
from pocketphi.targets.tvm_arm.platform import Platform
from pocketphi.targets.tvm_arm.toolchain import ARCHIVE, LIBRARY, SOURCES_FOLDER, SYSTEM_LIB_PREFIX, Toolchain

_MOST = 64
"""Libraries that are kept, of those that were used last: some hundred kilobytes each."""


@dataclass(frozen=True)
class Made:
    """What a module became. files: their SHA-256 by path; calls: SHA-256 of what TVM wrote beside the machine code, None of an
    archive."""

    files: dict[str, str]
    calls: str | None


def build_library(
    module: IRModule, platform: Platform, folder: Path, toolchain: Toolchain | None = None
) -> dict[str, Any]:
    """Write model.so with the runtime beside it, or libmodel.a and the runtime's sources where nothing links here; returns what
    model.json says of it.

    toolchain: another one than the platform's on this machine
    """
    toolchain = toolchain or platform.toolchain()
    if toolchain.links:
        runtime = build_runtime(toolchain)
        _known_or_built(module, platform, toolchain, folder / LIBRARY)
        for path in (runtime.library, runtime.header):
            shutil.copy(path, folder)
    else:
        module = module.with_attr("system_lib_prefix", SYSTEM_LIB_PREFIX)
        _known_or_built(module, platform, toolchain, folder / ARCHIVE)
        export_sources(folder / SOURCES_FOLDER)
    return about_library(toolchain)


def about_library(toolchain: Toolchain) -> dict[str, Any]:
    """What model.json says of the library that a toolchain makes."""
    if toolchain.links:
        return {"library": LIBRARY}
    return {"library": ARCHIVE, "system_lib": SYSTEM_LIB_PREFIX, "link": toolchain.link_line()}


def files_made(module: IRModule, platform: Platform, folder: Path, toolchain: Toolchain) -> Made:
    """What `build_library` makes of a module. folder: an empty one, where it does."""
    build_library(module, platform, folder, toolchain)
    calls = hashlib.sha256(Elf(folder / LIBRARY).calls()).hexdigest() if toolchain.links else None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return Made({path.relative_to(folder).as_posix(): file_digest(path) for path in files}, calls)


def _contents(module: IRModule) -> dict[str, Any]:
    """What tells a module from every other: TVM's hash of each kernel, which leaves out nothing but names of variables, and the
    rest as TVM writes it. Kernels written so are megabytes, and the hash of what calls them differs between processes."""
    kernels = {variable: one for variable, one in module.functions.items() if isinstance(one, tvm.tirx.PrimFunc)}
    rest = IRModule({variable: one for variable, one in module.functions.items() if variable not in kernels})
    rest = rest.with_attrs(dict(module.attrs or {}))
    return {
        "kernels": {variable.name_hint: tvm_ffi.structural_hash(one) for variable, one in kernels.items()},
        "rest": blake3(tvm.ir.save_json(rest).encode()).hexdigest(),
    }


def _known_or_built(module: IRModule, platform: Platform, toolchain: Toolchain, path: Path) -> None:
    files = [Path(__file__), Path(objects.__file__), Path(toolchains.__file__), Path(archive.__file__)]
    about = {
        **_contents(module),
        "target": str(platform.target()),
        "tvm": tvm.__version__,
        "toolchain": decided_by(toolchain, *files),
        "file": path.name,
    }
    cache = SealedCache.of_user("tvm-library", _MOST)
    if known := cache.find(about):
        write_whole(path, known[1])
        if path.name == LIBRARY:
            path.chmod(path.stat().st_mode | 0o111)  # as a linker leaves it
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        if path.name == LIBRARY:
            objects.link(module, platform.target(), path, toolchain.fcompile, Path(scratch))
        else:
            with objects.passes():
                built = relax.build(module, tvm.target.Target(platform.target()), system_lib=True)
            built.export_library(str(path), fcompile=toolchain.fcompile, workspace_dir=scratch)
    cache.keep(about, data=[path.read_bytes()])

"""Compile a lowered module to native code, and link it as its operating system wants it."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import IRModule, relax

from pocketphi.artifacts.bundle import file_digest
from pocketphi.targets.tvm_arm.build_runtime import build_runtime
from pocketphi.targets.tvm_arm.elf import Elf
from pocketphi.targets.tvm_arm.platform import Platform
from pocketphi.targets.tvm_arm.toolchain import ARCHIVE, LIBRARY, SYSTEM_LIB_PREFIX, Toolchain


@dataclass(frozen=True)
class Made:
    """What a module became. files: their SHA-256 by name; calls: SHA-256 of what TVM wrote beside the machine code, None of an
    archive."""

    files: dict[str, str]
    calls: str | None


_MADE: dict[str, Made] = {}
"""Of each module that this process has built: a compile and its verification build once."""


def build_library(
    module: IRModule, platform: Platform, folder: Path, toolchain: Toolchain | None = None
) -> dict[str, Any]:
    """Write model.so with the runtime beside it, or libmodel.a where nothing links here; returns what model.json says of it.

    toolchain: another one than the platform's on this machine
    """
    toolchain = toolchain or platform.toolchain()
    key = _key(module, platform, toolchain)
    target = tvm.target.Target(platform.target())
    if toolchain.links:
        runtime = build_runtime(toolchain)
        _export(relax.build(module, target), folder / LIBRARY, toolchain)
        for path in (runtime.library, runtime.header):
            shutil.copy(path, folder)
        names = [LIBRARY, runtime.library.name, runtime.header.name]
    else:
        module = module.with_attr("system_lib_prefix", SYSTEM_LIB_PREFIX)
        _export(relax.build(module, target, system_lib=True), folder / ARCHIVE, toolchain)
        names = [ARCHIVE]
    calls = hashlib.sha256(Elf(folder / LIBRARY).calls()).hexdigest() if toolchain.links else None
    _MADE[key] = Made({name: file_digest(folder / name) for name in names}, calls)
    return about_library(toolchain)


def about_library(toolchain: Toolchain) -> dict[str, Any]:
    """What model.json says of the library that a toolchain makes."""
    if toolchain.links:
        return {"library": LIBRARY}
    return {"library": ARCHIVE, "system_lib": SYSTEM_LIB_PREFIX, "link": toolchain.link_line()}


def files_made(module: IRModule, platform: Platform, folder: Path, toolchain: Toolchain) -> Made:
    """What `build_library` makes of a module. folder: where it does, if that is not known from before."""
    key = _key(module, platform, toolchain)
    if key not in _MADE:
        build_library(module, platform, folder, toolchain)
    return _MADE[key]


def _key(module: IRModule, platform: Platform, toolchain: Toolchain) -> str:
    """Of all that decides the files."""
    said = f"{platform}\n{toolchain}\n{tvm.ir.save_json(module)}"
    return hashlib.sha256(said.encode()).hexdigest()


def _export(executable: Any, path: Path, toolchain: Toolchain) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        executable.export_library(str(path), fcompile=toolchain.fcompile, workspace_dir=scratch)

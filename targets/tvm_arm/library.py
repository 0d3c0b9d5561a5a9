"""Compile a lowered module to native code, and link it as its operating system wants it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import tvm
from tvm import IRModule, relax

from pocketphi.targets.tvm_arm.build_runtime import build_runtime
from pocketphi.targets.tvm_arm.platform import Platform
from pocketphi.targets.tvm_arm.toolchain import ARCHIVE, LIBRARY, SYSTEM_LIB_PREFIX, Toolchain


def build_library(module: IRModule, platform: Platform, folder: Path) -> dict[str, Any]:
    """Write model.so with the runtime beside it, or libmodel.a where nothing links here; returns what model.json says of it."""
    toolchain = platform.toolchain()
    target = tvm.target.Target(platform.target())
    if toolchain.links:
        runtime = build_runtime(toolchain)
        _export(relax.build(module, target), folder / LIBRARY, toolchain)
        for path in (runtime.library, runtime.header):
            shutil.copy(path, folder)
        return {"library": LIBRARY}
    module = module.with_attr("system_lib_prefix", SYSTEM_LIB_PREFIX)
    _export(relax.build(module, target, system_lib=True), folder / ARCHIVE, toolchain)
    return {"library": ARCHIVE, "system_lib": SYSTEM_LIB_PREFIX, "link": toolchain.link_line()}


def _export(executable: Any, path: Path, toolchain: Toolchain) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        executable.export_library(str(path), fcompile=toolchain.fcompile, workspace_dir=scratch)

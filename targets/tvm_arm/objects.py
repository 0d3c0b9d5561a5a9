"""Machine code, kernel by kernel: each is compiled once, and kept in the user's cache for every library that has it.

Two models of one shape differ in the kernels of their formats alone, and the same model with another cache in its attention.
TVM compiles a module's kernels apart from each other, so that they give the same code one by one; what calls them is made for
each library.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from blake3 import blake3
from tvm import IRModule, relax, tirx
from tvm.relax import vm_build
from tvm.runtime import _ffi_api

from pocketphi.graph.errors import InputError
from pocketphi.graph.places import default_folder
from pocketphi.graph.sealed import forget_oldest, read_sealed, write_sealed

_MOST = 2048
"""Kernels that are kept, of those that were made last: some ten kilobytes each."""


def link(module: IRModule, target: dict[str, Any], path: Path, fcompile: Any, scratch: Path) -> None:
    """Write the shared library of a lowered module. target: as TVM takes it; scratch: an empty folder. It is what
    `relax.build` does, which gives its kernels to LLVM together."""
    made_for = tvm.target.Target(target)
    with made_for:
        module = relax.get_pipeline("default")(module)
    builder = relax.ExecBuilder()
    kernels = vm_build._filter_tir(vm_build._vmcodegen(builder, module, "bytecode"))
    objects = [] if kernels is None else _objects(kernels, target, scratch)
    executable = relax.VMExecutable(vm_build._ffi_api.VMLink(builder, made_for, None, objects, {}))

    def pack(packed: Any, system: bool, prefix: str, folder: str) -> str:
        calls = Path(folder) / "calls.o"
        _ffi_api.ModulePackImportsToLLVM(packed, system, json.dumps(target), prefix).write_to_file(str(calls))
        return str(calls)

    executable.export_library(str(path), fcompile=fcompile, fpack_imports=pack, workspace_dir=str(scratch))


def _objects(kernels: IRModule, target: dict[str, Any], scratch: Path) -> list[Any]:
    """As libraries of one function each, in the order of their names."""
    folder, made = _folder(), []
    for variable, kernel in sorted(kernels.functions.items(), key=lambda item: item[0].name_hint):
        path = scratch / f"{variable.name_hint}.o"
        _known_or_compiled(IRModule({variable: kernel}), kernel, target, path, folder)
        made.append(tvm.runtime.load_static_library(str(path), [variable.name_hint]))
    if folder is not None:
        forget_oldest(folder, "*", _MOST)
    return made


def _folder() -> Path | None:
    with contextlib.suppress(InputError):
        return default_folder() / "tvm-kernel"
    return None


def _known_or_compiled(
    module: IRModule, kernel: tirx.PrimFunc, target: dict[str, Any], path: Path, folder: Path | None
) -> None:
    """Write the object of a module's one kernel. A cache that cannot be written costs the time of compiling alone."""
    about = {"kernel": tvm_ffi.structural_hash(kernel), "target": target, "tvm": tvm.__version__}
    entry = folder and folder / blake3(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    known = read_sealed(entry) if entry else None
    if known and known[0] == about:
        path.write_bytes(known[1])
        return
    tirx.build(module, tvm.target.Target(target)).write_to_file(str(path))
    if entry:
        with contextlib.suppress(OSError):
            entry.parent.mkdir(parents=True, exist_ok=True)
            write_sealed(entry, about, [path.read_bytes()])

"""Machine code, kernel by kernel: each is compiled once, and kept in the user's cache for every library that has it.

Two models of one shape differ in the kernels of their formats alone, and the same model with another cache in its attention.
TVM compiles a module's kernels apart from each other, so that they give the same code one by one; what calls them is made for
each library.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import IRModule, relax, tirx
from tvm.relax import vm_build
from tvm.runtime import _ffi_api

from pocketphi.graph.sealed import SealedCache

_MOST = 2048
"""Kernels that are kept, of those that were made last: some ten kilobytes each."""


def passes() -> tvm.transform.PassContext:
    """Those that our kernels are compiled with: all but one that makes buffers smaller. None of ours could be, so that it
    changes no code; its time grows with the square of a kernel's length."""
    return tvm.transform.PassContext(disabled_pass=["s_tir.CompactBufferAllocation"])


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
    cache, made = SealedCache.of_user("tvm-kernel", _MOST), []
    for variable, kernel in sorted(kernels.functions.items(), key=lambda item: item[0].name_hint):
        path = scratch / f"{variable.name_hint}.o"
        _known_or_compiled(IRModule({variable: kernel}), kernel, target, path, cache)
        made.append(tvm.runtime.load_static_library(str(path), [variable.name_hint]))
    cache.tidy()
    return made


def _known_or_compiled(
    module: IRModule, kernel: tirx.PrimFunc, target: dict[str, Any], path: Path, cache: SealedCache
) -> None:
    """Write the object of a module's one kernel."""
    about = {"kernel": tvm_ffi.structural_hash(kernel), "target": target, "tvm": tvm.__version__}
    if known := cache.find(about):
        path.write_bytes(known[1])
        return
    with passes():
        tirx.build(module, tvm.target.Target(target)).write_to_file(str(path))
    cache.keep(about, data=[path.read_bytes()], tidy=False)

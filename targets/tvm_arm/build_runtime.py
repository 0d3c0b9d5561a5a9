"""Build the C runtime for a toolchain: TVM's own sources from its wheel with our C API, one small library.

TVM's wheel ships its runtime's sources; `runtime/shim` holds the few headers that it lacks. Everything else of TVM's runtime
(RPC, other devices, profiling, its K/V caches) stays out. Results are kept in the user's cache by all that decides them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pocketphi.graph.errors import InputError
from pocketphi.graph.threads import in_threads
from pocketphi.passes.int4_cache import default_folder
from pocketphi.targets.tvm_arm.toolchain import SOURCES, Toolchain

_FFI = "backtrace object error function tensor dtype container init_once custom_allocator"
_FFI_EXTRA = (
    "module library_module library_module_system_lib library_module_dynamic_lib env_context env_c_api json_parser "
    "json_writer"
)
_TVM = (
    "cpu_device_api device_api file_utils logging module thread_pool threading_backend workspace_pool memory/memory_manager "
    "vm/builtin vm/bytecode vm/executable vm/vm tensor"  # tensor last: it ends with a `using namespace`
)
_RPC = (
    "timer rpc/rpc_channel rpc/rpc_endpoint rpc/rpc_local_session rpc/rpc_session rpc/rpc_module rpc/rpc_server_env "
    "rpc/rpc_device_api"
)
_OURS = ("cpu", "bundle", "pocketphi_runtime")
_PACKAGES = ("apache-tvm", "apache-tvm-ffi")

_FLAGS = [
    *("-std=c++17", "-Os", "-fPIC", "-w"),
    *("-fvisibility=hidden", "-fvisibility-inlines-hidden", "-ffunction-sections", "-fdata-sections"),
    *("-DTVM_FFI_USE_LIBBACKTRACE=0", "-DTVM_FFI_BACKTRACE_ON_SEGFAULT=0"),
    *("-DTVM_FFI_EXPORTS", "-DTVM_RUNTIME_EXPORTS"),
]
"""-Os: two thirds of the size of -O2 and the same time a call, most of which is spent in the model."""

_STATIC = ["-static-libstdc++", "-static-libgcc", "-Wl,-s"]
_LINK = ["-shared", "-Wl,-soname,libpocketphi.so", "-Wl,--gc-sections", "-Wl,--no-undefined", *_STATIC]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RuntimeFiles:
    """library: libpocketphi.so, for an app; runner: the program that the host starts; header: pocketphi_runtime.h."""

    library: Path
    runner: Path
    header: Path = SOURCES / "pocketphi_runtime.h"


def build_runtime(toolchain: Toolchain, cache: Path | None = None) -> RuntimeFiles:
    """The runtime for `toolchain`, from the cache or built in about half a minute.

    cache: folder; the user's by default. Raises InputError if TVM or the compiler is missing or the compile fails.
    """
    folder = (cache or default_folder()) / "tvm-runtime" / f"{toolchain.os}-{toolchain.arch}-{_key(toolchain)}"
    files = RuntimeFiles(folder / "libpocketphi.so", folder / "pocketphi-runner")
    if not files.runner.is_file():
        _LOG.info("building the TVM runtime for %s on %s: half a minute, once", toolchain.os, toolchain.arch)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            built = _build(toolchain, Path(temporary))
            try:
                os.replace(built, folder)
            except OSError:  # another process was first
                if not files.runner.is_file():
                    raise
    return files


def _build(toolchain: Toolchain, folder: Path) -> Path:
    objects = compile_units(toolchain, folder, _units(_TVM, _OURS), _FLAGS)
    result = folder / "runtime"
    result.mkdir()
    (folder / "exports").write_text("{ global: pocketphi_*; local: *; };\n")
    exports = f"-Wl,--version-script={folder / 'exports'}"
    toolchain.run(*_LINK, exports, *objects, "-lm", *_threads(toolchain), "-o", str(result / "libpocketphi.so"))
    _build_runner(toolchain, result)
    return result


def build_rpc_server(toolchain: Toolchain, cache: Path | None = None) -> Path:
    """The program `pocketphi-rpc` for a board: TVM's RPC server without Python. As `build_runtime`."""
    path = (cache or default_folder()) / "tvm-rpc" / f"{toolchain.os}-{toolchain.arch}-{_key(toolchain)}"
    if not path.is_file():
        _LOG.info("building the RPC server for %s on %s: half a minute, once", toolchain.os, toolchain.arch)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
            folder = Path(temporary)
            objects = compile_units(toolchain, folder, _units(f"{_RPC} {_TVM}", ("rpc_server",)), _FLAGS)
            link = ["-Wl,--gc-sections", *_STATIC, *objects, "-lm", *_threads(toolchain)]
            toolchain.run(*link, "-o", str(folder / "rpc"))
            os.replace(folder / "rpc", path)
    return path


def _units(tvm_names: str, own_names: tuple[str, ...]) -> dict[str, list[Path]]:
    tvm, ffi = _package("tvm"), _package("tvm_ffi")
    return {
        "ffi": [ffi / f"src/ffi/{name}.cc" for name in _FFI.split()]
        + [ffi / f"src/ffi/extra/{name}.cc" for name in _FFI_EXTRA.split()],
        "tvm": [tvm / f"src/runtime/{name}.cc" for name in tvm_names.split()],
        "ours": [SOURCES / f"{name}.cc" for name in own_names],
    }


def compile_units(toolchain: Toolchain, folder: Path, units: dict[str, list[Path]], flags: list[str]) -> list[str]:
    """Objects in `folder`, one for each unit of sources."""
    tvm, ffi = _package("tvm"), _package("tvm_ffi")
    include = [SOURCES, tvm / "include", ffi / "include", ffi / "3rdparty/dlpack/include", tvm.parent]
    # quoted includes climb from a source's folder: from these they arrive in the shim
    include += [SOURCES / "shim", SOURCES / "shim/tvm", SOURCES / "shim/tvm/support"]
    flags = [*flags, *(f"-I{path}" for path in include)]

    def compile_unit(name: str, _: object) -> None:
        """Many sources as one: their headers, which take most of the time, are read once."""
        source = folder / f"{name}.cc"
        source.write_text("".join(f'#include "{path}"\n' for path in units[name]))
        toolchain.run(*flags, "-c", str(source), "-o", str(folder / f"{name}.o"))

    in_threads(list(units), compile_unit, lambda _: None)
    return [str(folder / f"{name}.o") for name in units]


def _build_runner(toolchain: Toolchain, folder: Path) -> None:
    flags = ["-std=c++17", "-O2", f"-I{SOURCES}", f"-L{folder}", "-Wl,-rpath,$ORIGIN", *_STATIC]
    toolchain.run(*flags, str(SOURCES / "runner.cc"), "-lpocketphi", "-o", str(folder / "pocketphi-runner"))


def _threads(toolchain: Toolchain) -> list[str]:
    return ["-pthread", "-ldl"] if toolchain.os == "linux" else ["-ldl"]


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise InputError(f"{name} is not installed: pip install 'pocketphi[tvm]'")
    return Path(spec.origin).parent


def _key(toolchain: Toolchain) -> str:
    """Of everything that decides the result."""
    _package("tvm")
    digest = hashlib.sha256()
    compiler = shutil.which(toolchain.compiler[0]) if toolchain.compiler else None
    if compiler is None:
        toolchain.run()  # says what to install
    said = subprocess.run([*toolchain.compiler, "--version"], capture_output=True, check=False).stdout
    parts = [said, *(text.encode() for text in (*toolchain.compiler, *toolchain.flags, *_FLAGS, *_LINK))]
    parts += [version(name).encode() for name in _PACKAGES]
    parts += [path.read_bytes() for path in (Path(__file__), *sorted(SOURCES.rglob("*.*"))) if path.is_file()]
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]

"""Content addresses: what decides the bytes of a bundle, as one digest."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blake3 import blake3

from pocketphi.compiler import __version__
from pocketphi.compiler.options import CompileOptions
from pocketphi.graph.errors import InputError

_LIBRARIES = {
    "ort-mobile": ("onnx", "onnxruntime", "onnxruntime-genai"),
    "coreml": ("coremltools",),
    "tvm-arm": ("apache-tvm", "apache-tvm-ffi"),
}
_SHARED_LIBRARIES = ("torch", "transformers", "numpy", "tokenizers", "gguf", "safetensors")
_NO_MATTER = {"model", "out", "force", "cache", "dump_graphs", "max_bytes", "max_memory", "strict"}
_OUR_CODE = ("graph", "passes", "artifacts", "targets", "compiler")


class SourceDigests:
    """BLAKE3 of models' files, each read once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, model: str) -> str:
        """model: as `open_checkpoint` takes it. Raises InputError where it is not there."""
        if model not in self._known:
            self._known[model] = model if model.startswith("random:") else _digest_files(_files(model))
        return self._known[model]


def bundle_key(options: CompileOptions, sources: SourceDigests) -> str:
    """The address of the bundle that these options make, 32 hex digits."""
    decides: dict[str, Any] = {
        "options": {f.name: getattr(options, f.name) for f in dataclasses.fields(options) if f.name not in _NO_MATTER},
        "source": sources.of(options.model),
        "name": Path(options.model).name,
        "pocketphi": __version__,
        "code": our_code(),
        "libraries": {
            name: _version(name)
            for name in (*_SHARED_LIBRARIES, *(lib for target in options.targets for lib in _LIBRARIES[target]))
        },
    }
    if options.calibration is not None:
        decides["options"]["calibration"] = _digest_files([options.calibration])
    return blake3(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:32]


@functools.cache
def our_code() -> str:
    """BLAKE3 of pocketphi's own modules: a bundle of a changed compiler is another bundle."""
    root = Path(__file__).resolve().parent.parent
    return _digest_files(path for folder in _OUR_CODE for path in sorted((root / folder).rglob("*.py")))


def _files(model: str) -> list[Path]:
    if model == "sample":
        from pocketphi.graph.gguf_file import sample_path

        return [sample_path()]
    path = Path(model)
    if path.is_dir():
        return sorted(found for found in path.iterdir() if found.is_file() and not found.name.startswith("."))
    if not path.is_file():
        raise InputError(f"{model}: no such model; expected a folder, a .gguf file, 'sample' or 'random:SHAPE'")
    if path.suffix == ".gguf":
        from pocketphi.graph.gguf_parts import all_parts

        return list(all_parts(path))
    return [path]


def _digest_files(paths: Iterable[Path]) -> str:
    whole = blake3()
    for path in paths:
        try:
            whole.update(path.name.encode() + blake3(max_threads=blake3.AUTO).update_mmap(path).digest())
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return whole.hexdigest()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

"""Content addresses: what decides the bytes of a bundle, as one digest.

Whether a bundle was verified is not part of it: a verified one serves every build, see `build.py`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from blake3 import blake3

from pocketphi.compiler import __version__
from pocketphi.compiler.options import CompileOptions
from pocketphi.graph.digests import digest_files
from pocketphi.graph.errors import InputError
from pocketphi.graph.lora.named import Lora
from pocketphi.graph.options import Options
from pocketphi.graph.reading import file_inside, read_json
from pocketphi.targets import find_target

_SHARED_LIBRARIES = ("torch", "transformers", "numpy", "tokenizers", "gguf", "safetensors", "jinja2")
_OUR_FILES = ("graph", "passes", "artifacts", "targets", "compiler")
_NOT_OURS = (".pyc", ".pyo", "~", ".swp", ".orig", ".rej")


class SourceDigests:
    """BLAKE3 of models' files, each read once."""

    def __init__(self) -> None:
        self._known: dict[str | Lora, str] = {}
        self._versions: dict[str | Lora, list[tuple[Path, int, int]]] = {}

    def of(self, model: str | Lora) -> str:
        """model: as `open_checkpoint` takes it, or an adapter. Raises InputError where it is not there."""
        if model not in self._known:
            self._versions[model] = _versions(model)
            self._known[model] = model if _is_random(model) else digest_files(_files(model))
        return self._known[model]

    def check(self, model: str | Lora) -> None:
        """Raises InputError where a model's files are no longer those of which the digest was taken."""
        if _versions(model) != self._versions.get(model):
            raise InputError(f"{model}: changed during the build; start again when nothing writes to it")

    def files(self) -> list[tuple[Path, int]]:
        """Every file of which a digest was taken, and its size; the sample lies somewhere else on each machine."""
        own = (versions for model, versions in self._versions.items() if model != "sample")
        return [(path, size) for versions in own for path, size, _ in versions]

    def recognize(self) -> None:
        """On another machine than the one that took the digests: raises InputError where the files here are others."""
        for model, digest in self._known.items():
            if _versions(model) == self._versions[model]:
                continue
            seen = SourceDigests()
            if seen.of(model) != digest:
                raise InputError(f"{model}: holds something else here than where the build was started")
            self._versions[model] = seen._versions[model]


def bundle_key(options: CompileOptions, sources: SourceDigests) -> str:
    """The address of the bundle that these options make, 32 hex digits."""
    targets = {one.target: find_target(one.target) for one in options.of_targets}
    decides: dict[str, Any] = {
        "options": _digested(options),
        "targets": {one.target: [_digested(one), targets[one.target].key(one)] for one in options.of_targets},
        "source": sources.of(options.model),
        "adapters": [sources.of(one) for one in (*options.lora, *(named.lora for named in options.adapter))],
        "name": Path(options.model).name,
        "pocketphi": __version__,
        "code": our_code(),
        "libraries": {name: version_of(name) for name in packages_of(options)},
    }
    if options.uses_text and options.calibration is None:
        decides["python"] = platform.python_version()  # its help texts are part of what is calibrated on
    return blake3(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:32]


def packages_of(options: CompileOptions) -> list[str]:
    """Packages whose version decides what these options make."""
    of_targets = (name for one in options.of_targets for name in find_target(one.target).libraries)
    return [*_SHARED_LIBRARIES, *of_targets]


@functools.cache
def our_code(*within: str) -> str:
    """BLAKE3 of pocketphi's own files: a bundle of a changed compiler is another bundle. within: folders and files, from the
    root on; everything if none."""
    root = Path(__file__).resolve().parent.parent
    paths = (path for one in within or _OUR_FILES for path in (root / one, *sorted((root / one).rglob("*"))))
    return digest_files((path for path in paths if path.is_file() and _is_ours(path.relative_to(root))), root)


def _is_ours(path: Path) -> bool:
    """path: from the root on."""
    hidden = any(part == "__pycache__" or part.startswith(".") for part in path.parts)
    return not hidden and not path.name.endswith(_NOT_OURS)


def _digested(options: Options) -> dict[str, Any]:
    """What decides the bytes, with digests of files in place of what they hold."""
    found = options.deciding()
    return {name: blake3(held).hexdigest() if isinstance(held, bytes) else held for name, held in found.items()}


def _is_random(model: str | Lora) -> TypeGuard[str]:
    return isinstance(model, str) and model.startswith("random:")


def _files(model: str | Lora) -> list[Path]:
    if isinstance(model, Lora):
        return list(model.files)
    if model == "sample":
        from pocketphi.graph.gguf_file import sample_path

        return [sample_path()]
    path = Path(model)
    if path.is_dir():
        held = {found for found in path.iterdir() if found.is_file() and not found.name.startswith(".")}
        return sorted(held | _named(path) | set(path.glob("additional_chat_templates/*.jinja")))
    if not path.is_file():
        raise InputError(f"{model}: no such model; expected a folder, a .gguf file, 'sample' or 'random:SHAPE'")
    if path.suffix == ".gguf":
        from pocketphi.graph.gguf_parts import all_parts

        return list(all_parts(path))
    return [path]


def _named(folder: Path) -> set[Path]:
    """The files that config.json and indexes name as weights, which may lie in folders inside. What is wrong with one of these
    is said by who reads the model."""
    found: set[Path] = set()
    new = {folder / "config.json", *folder.glob("*.index.json")}
    while new:
        found |= new
        names = {name for path in new if path.suffix == ".json" for name in _names(path, folder)}
        new = {folder / name for name in names} - found
    return {path for path in found if os.path.isfile(path)}


def _names(path: Path, folder: Path) -> Iterator[str]:
    """Those in a config.json or an index, which count from the model's folder on."""
    with contextlib.suppress(InputError):
        data = read_json(path)
        listed = data.get("weight_map")
        for name in (data.get("transformers_weights"), *(listed.values() if isinstance(listed, dict) else ())):
            if isinstance(name, str):
                file_inside(folder, name, "", follow=True)
                yield name


def _versions(model: str | Lora) -> list[tuple[Path, int, int]]:
    """What changes when one of a model's files is written or replaced."""
    if _is_random(model):
        return []
    try:
        return [(path, status.st_size, status.st_mtime_ns) for path in _files(model) for status in [path.stat()]]
    except OSError as error:
        raise InputError(f"{model}: cannot be read ({error.strerror})") from None


def version_of(package: str) -> str | None:
    """Of an installed package; None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

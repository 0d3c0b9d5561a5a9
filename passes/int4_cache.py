"""A content-addressed cache on disk for weights whose quantization is expensive: computed once, shared by all targets and
by a compile that was stopped and started again.

A file's name is the SHA-256 of the source's bytes, type and shape, the algorithm with every parameter, and the
activation statistics. Files are safetensors with the canonical parts. Cheap recipes are not cached: rounding to nearest
runs as fast as the disk.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.program import Program
from pocketphi.graph.recipe import PartSpec, materialize
from pocketphi.passes.quantize_weights import Int4Weight

WORKERS = 2


def default_folder() -> Path:
    """`$POCKETPHI_CACHE`, or `pocketphi` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("POCKETPHI_CACHE") or Path(base) / "pocketphi")


@dataclass(frozen=True)
class StoredInt4:
    """A quantized weight read from its file in the cache."""

    path: Path = field(repr=False)
    parts: Mapping[str, PartSpec]
    made_by: str

    def chunks(self) -> Iterator[tuple[int, int]]:
        rows = self.parts["q"].shape[0]
        step = max(1, (1 << 22) // self.parts["q"].shape[1])
        return ((start, min(start + step, rows)) for start in range(0, rows, step))

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        with safe_open(self.path, "pt") as file:
            return {part: file.get_slice(part)[start:stop] for part in self.parts}

    def describe(self) -> str:
        return self.made_by


def cache_weights(
    program: Program, source: HashedCheckpoint, folder: Path, progress: Callable[[str, bool], None]
) -> tuple[int, int]:
    """Replace every `Int4Weight` by its file in the cache, computing those that are not there.

    progress: called with a weight's name and whether it was found. Returns (found, computed).
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = {name: recipe for name, recipe in program.weights.items() if isinstance(recipe, Int4Weight)}

    def work(name: str) -> tuple[StoredInt4, bool]:
        torch.set_num_threads(1)
        stored, found = _stored(jobs[name], source, folder)
        progress(name, found)
        return stored, found

    with ThreadPoolExecutor(WORKERS) as pool:
        results = dict(zip(jobs, pool.map(work, jobs)))
    program.weights.update({name: stored for name, (stored, _) in results.items()})
    found = sum(1 for _, hit in results.values() if hit)
    return found, len(results) - found


def _stored(weight: Int4Weight, source: HashedCheckpoint, folder: Path) -> tuple[StoredInt4, bool]:
    path = folder / f"{_key(weight, source)}.safetensors"
    stored = StoredInt4(path, dict(weight.parts), weight.describe())
    if _is_whole(stored):
        return stored, True
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".partial", delete=False) as file:
        partial = Path(file.name)
    try:
        save_file(materialize(weight), partial)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    return stored, False


def _key(weight: Int4Weight, source: HashedCheckpoint) -> str:
    info = source.tensors[weight.source.tensor]
    stored = f"{info.dtype} {list(info.shape)}"  # the same bytes under another type or shape are another weight
    parts = [source.digest(weight.source.tensor), stored, weight.quantizer.describe(), str(weight.quantizer.version)]
    key = hashlib.sha256("\n".join(parts).encode())
    if weight.importance is not None:
        key.update(weight.importance.contiguous().numpy().tobytes())
    return key.hexdigest()


def _is_whole(stored: StoredInt4) -> bool:
    """Whether the file is there with the parts expected; one that is damaged counts as missing."""
    try:
        with safe_open(stored.path, "pt") as file:
            return all(tuple(file.get_slice(p).get_shape()) == spec.shape for p, spec in stored.parts.items())
    except (FileNotFoundError, SafetensorError, OSError):
        return False

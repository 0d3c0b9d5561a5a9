"""A content-addressed cache on disk for weights whose quantization is expensive: computed once, shared by all targets and
by a compile that was stopped and started again.

A file's name is the SHA-256 of the source's bytes, type and shape, the algorithm with every parameter, and the activation
statistics. Files are safetensors with the canonical parts. A run (all weights, one text) has a file of its own, which names
theirs. Cheap recipes are not cached: rounding to nearest runs as fast as the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pocketphi.graph.errors import InputError
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.int4 import tensor_bytes
from pocketphi.graph.recipe import PartSpec, digest, row_chunks
from pocketphi.graph.threads import WORKERS, workers
from pocketphi.passes.quantize_weights import Int4Weight
from pocketphi.passes.quantizers import Feedback, Statistics

MAX_VALUES = 1 << 23
"""Float values that a worker holds at once."""


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
        return row_chunks(self.parts)

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        with safe_open(self.path, "pt") as file:
            return {part: file.get_slice(part)[start:stop] for part in self.parts}

    def describe(self) -> str:
        return self.made_by


class Int4Cache:
    """Weights by the content that made them."""

    def __init__(self, folder: Path, source: HashedCheckpoint) -> None:
        """source: the checkpoint of all weights; its digests go into the keys."""
        self.folder, self.source = folder, source
        self.found = self.computed = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: the cache cannot be made: {error.strerror}; choose another --cache") from None

    def quantized(self, weight: Int4Weight, statistics: Statistics | None) -> StoredInt4:
        """The weight quantized with the statistics of its inputs: from the cache, or computed now."""
        path = self.folder / f"{self._key(weight, statistics)}.safetensors"
        stored = StoredInt4(path, dict(weight.parts), weight.describe())
        if _is_whole(stored):
            self.found += 1
            return stored
        if statistics is not None:
            weight = replace(weight, feedback=Feedback.of(statistics))
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            parts = _compute(weight)
            save_file(parts, partial, metadata={"digest": digest(parts)})
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
        self.computed += 1
        return stored

    def recall(self, key: str, weights: Mapping[str, Int4Weight]) -> dict[str, StoredInt4] | None:
        """All weights of an earlier run with the same key, or None if any is missing."""
        try:
            paths = json.loads((self.folder / f"{key}.json").read_text("utf-8"))
            stored = {n: StoredInt4(self.folder / paths[n], dict(w.parts), w.describe()) for n, w in weights.items()}
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not all(map(_is_whole, stored.values())):
            return None
        self.found += len(stored)
        return stored

    def remember(self, key: str, stored: Mapping[str, StoredInt4]) -> None:
        """Keep which files a run has given, so that the same run need not measure its inputs again."""
        partial = self.folder / f"{key}.{os.getpid()}.partial"
        partial.write_text(json.dumps({name: weight.path.name for name, weight in stored.items()}), "utf-8")
        partial.rename(self.folder / f"{key}.json")

    def _key(self, weight: Int4Weight, statistics: Statistics | None) -> str:
        info = self.source.tensors[weight.source.tensor]
        stored = f"{info.dtype} {list(info.shape)}"  # the same bytes under another type or shape are another weight
        quantizer = weight.quantizer
        parts = [self.source.digest(weight.source.tensor), stored, quantizer.describe(), str(quantizer.version)]
        key = hashlib.sha256("\n".join(parts).encode())
        if statistics is not None:
            for measured in (statistics.moment, statistics.drift):
                key.update(b"" if measured is None else tensor_bytes(measured))
        return key.hexdigest()


def _compute(weight: Int4Weight) -> dict[str, torch.Tensor]:
    """All parts, by two threads with half of the rows each: torch's own threads cost more than they give here."""
    made = {part: torch.empty(spec.shape, dtype=spec.dtype) for part, spec in weight.parts.items()}
    group, (rows, columns) = weight.quantizer.group, weight.source.parts[""].shape
    rows //= group
    step = min(-(-rows // WORKERS), max(-(-64 // group), MAX_VALUES // (group * columns)))

    def work(start: int) -> None:
        for part, tensor in weight.read(start, min(start + step, rows)).items():
            made[part][start : start + step] = tensor

    with workers() as pool:
        list(pool.map(work, range(0, rows, step)))
    return made


def _is_whole(stored: StoredInt4) -> bool:
    """Whether the file is there with the bytes that were written; one that is damaged counts as missing."""
    try:
        with safe_open(stored.path, "pt") as file:
            expected = (file.metadata() or {}).get("digest")
            return expected == digest({part: file.get_tensor(part) for part in stored.parts})
    except (FileNotFoundError, SafetensorError, OSError):
        return False

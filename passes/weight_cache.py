"""A content-addressed cache on disk for weights whose quantization is expensive: computed once, shared by all targets and
by a compile that was stopped and started again; and, with a store behind it, by other machines.

A file's name is the SHA-256 of the source's bytes, type and shape, the algorithm with every parameter, and the activation
statistics. Files are safetensors with the canonical parts, and with a digest for each chunk of rows: what is read is compared
with what was promised when the weight was computed or found, so that a file that changes meanwhile is an error. A run (all
weights, one text) has a file of its own, which names theirs; each of them says itself which weight it is. Cheap recipes are
not cached: rounding to nearest runs as fast as the disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import PartSpec
from pocketphi.graph.hashed import HashedCheckpoint
from pocketphi.graph.lazy_weights import digest, row_chunks
from pocketphi.graph.packing import tensor_bytes
from pocketphi.graph.processes import in_workers, shared
from pocketphi.graph.reading import parse_object
from pocketphi.graph.safetensors_file import header_of
from pocketphi.graph.sealed import read_sealed, write_sealed
from pocketphi.graph.store import Store
from pocketphi.graph.threads import WORKERS
from pocketphi.graph.writing import new_file, read_at, read_into, remove_left_over
from pocketphi.passes.quantize_weights import QuantizedWeight
from pocketphi.passes.quantizers import ExpertInputs, Feedback, Statistics
from pocketphi.passes.quantizers.base import WORTH_A_PROCESS

MAX_VALUES = 1 << 23
"""Float values that a worker holds at once."""

_MAX_HEADER = 1 << 24
_INSTEAD = "compile again, with a --cache that nothing else writes to"


@dataclass(frozen=True)
class StoredWeight:
    """A quantized weight read from its file in the cache.

    promised: the digest of each chunk of rows, from when the weight was computed or found; offsets: of its parts in the file
    """

    path: Path = field(repr=False)
    parts: Mapping[str, PartSpec]
    made_by: str
    promised: tuple[str, ...] = field(repr=False)
    offsets: Mapping[str, int] = field(repr=False)

    def chunks(self) -> Iterator[tuple[int, int]]:
        return row_chunks(self.parts)

    def read(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        """Raises InputError where the file is not what was promised, or gone."""
        touched = [(i, a, b) for i, (a, b) in enumerate(self.chunks()) if a < stop and start < b]
        try:
            with self.path.open("rb", buffering=0) as file:
                read = [self._read_chunk(file.fileno(), *chunk) for chunk in touched]
        except FileNotFoundError:
            raise InputError(f"{self.path}: gone: another process empties the cache; {_INSTEAD}") from None
        except OSError as error:
            raise InputError(f"{self.path}: the cache cannot be read: {error.strerror}; {_INSTEAD}") from None
        if len(read) == 1 and touched[0][1:] == (start, stop):
            return read[0]
        first = touched[0][1] if touched else start
        return {part: torch.cat([rows[part] for rows in read])[start - first : stop - first] for part in self.parts}

    def describe(self) -> str:
        return self.made_by

    def _read_chunk(self, descriptor: int, number: int, start: int, stop: int) -> dict[str, torch.Tensor]:
        rows, short = {}, False
        for part, spec in self.parts.items():
            rows[part] = torch.empty((stop - start, *spec.shape[1:]), dtype=spec.dtype)
            row_bytes = spec.bytes // spec.shape[0]
            buffer = tensor_bytes(rows[part])
            short = short or read_into(descriptor, buffer, self.offsets[part] + start * row_bytes) != len(buffer)
        if short or digest(rows) != self.promised[number]:
            raise InputError(f"{self.path}: changed: rows {start} to {stop - 1} are not what was computed; {_INSTEAD}")
        return rows


class WeightCache:
    """Weights by the content that made them."""

    def __init__(self, folder: Path, source: HashedCheckpoint, store: Store | None = None) -> None:
        """source: the checkpoint of all weights; its digests go into the keys. store: what other machines made."""
        self.folder, self.source, self.store = folder, source, store
        self.found = self.computed = self.fetched = 0
        self._make_folder()
        remove_left_over(folder, None)

    def quantized(self, weight: QuantizedWeight, statistics: Statistics | ExpertInputs | None) -> StoredWeight:
        """The weight quantized with the statistics of its inputs: from the cache, or computed now."""
        measured = "" if statistics is None else digest(statistics.tensors())
        path = self.folder / f"{_sha256(self._rounding_of(weight), measured)}.safetensors"
        if (stored := self.known(path.name, weight)) is not None:
            self.found += 1
            return stored
        if isinstance(statistics, ExpertInputs):
            parts = _compute_experts(weight, statistics)
        else:
            if statistics is not None:
                weight = replace(weight, feedback=_feedback(weight, statistics))
                del statistics  # a quarter of a gigabyte, for 8,192 inputs
            parts = _compute(weight)
        self.computed += 1
        # another process may have been first: its bytes stay, since it reads them
        stored = self._here(path.name, weight) or self._store(path, weight, parts)
        self._keep(path.name)
        return stored

    def put(self, key: str, weight: QuantizedWeight, parts: Mapping[str, torch.Tensor]) -> StoredWeight:
        """Keep parts that were made of a weight in another way. key: of all that decides them."""
        stored = self._store(self.folder / f"{_sha256(key)}.safetensors", weight, parts)
        self._keep(stored.path.name)
        return stored

    def known(self, name: str, weight: QuantizedWeight) -> StoredWeight | None:
        """The weight in the file of a name, if it is there, or in the store, and says that it is this one."""
        found = self._here(name, weight)
        if found is None and self._fetch(Path(name).name):
            found = self._here(name, weight)
            self.fetched += found is not None
        return found

    def _here(self, name: str, weight: QuantizedWeight) -> StoredWeight | None:
        return _find(self.folder / Path(name).name, weight, self._rounding_of(weight))

    def _fetch(self, name: str) -> bool:
        """Whether the store had this file, and no other; where it cannot be written here, it counts as missing."""
        if self.store is None or (ref := self.store.find(f"weights/{name}")) is None or list(ref.files) != [name]:
            return False
        with contextlib.suppress(InputError, OSError):
            return self.store.fetch(ref, self.folder)
        return False

    def _keep(self, name: str) -> None:
        if self.store:
            self.store.keep(f"weights/{name}", self.folder, [name])

    def recall(self, key: str, weights: Mapping[str, QuantizedWeight]) -> dict[str, StoredWeight] | None:
        """All weights of an earlier run with the same key, or None if any is missing."""
        path = self.folder / f"{key}.run"
        names, _ = read_sealed(path) or (self._fetch(path.name) and read_sealed(path)) or (None, None)
        if not isinstance(names, dict) or not all(isinstance(names.get(name), str) for name in weights):
            return None
        found: dict[str, StoredWeight] = {}
        for name, weight in weights.items():
            stored = self.known(names[name], weight)
            if stored is None:
                return None
            found[name] = stored
        self.found += len(found)
        return found

    def remember(self, key: str, stored: Mapping[str, StoredWeight]) -> None:
        """Keep which files a run has given, so that the same run need not measure its inputs again. Where that cannot be
        written, it will measure them again."""
        with contextlib.suppress(OSError):
            write_sealed(self.folder / f"{key}.run", {name: weight.path.name for name, weight in stored.items()})
            self._keep(f"{key}.run")

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.folder}: the cache cannot be made: {error.strerror}; choose another --cache"
            ) from None

    def _store(self, path: Path, weight: QuantizedWeight, parts: Mapping[str, torch.Tensor]) -> StoredWeight:
        promised = tuple(
            digest({part: tensor[a:b] for part, tensor in parts.items()}) for a, b in row_chunks(dict(weight.parts))
        )
        ordered = dict(sorted(weight.parts.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
        said = {"key": path.stem, "weight": self._rounding_of(weight), "chunks": " ".join(promised)}
        header, offsets = header_of(ordered, said)
        self._make_folder()  # it may have been deleted since
        try:
            with new_file(path) as file:
                file.write(header)
                for part in offsets:
                    file.write(tensor_bytes(parts[part]))
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            why = f"{self.folder}: the cache cannot be written: {error.strerror}"
            raise InputError(
                f"{why}; make room there, or choose another --cache" if full else f"{why}; choose another --cache"
            ) from None
        return StoredWeight(path, dict(weight.parts), weight.describe(), promised, offsets)

    def _rounding_of(self, weight: QuantizedWeight) -> str:
        """What is rounded and how, whatever its inputs are: the same bytes under another type or shape are another weight."""
        info, quantizer = self.source.tensors[weight.source.tensor], weight.quantizer
        stored = f"{info.dtype} {list(info.shape)}"
        return _sha256(self.source.digest(weight.source.tensor), stored, quantizer.describe(), str(quantizer.version))


def _sha256(*lines: str) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _compute(weight: QuantizedWeight, number: int = 0, count: int = 1) -> dict[str, torch.Tensor]:
    """All parts, or those of one of `count` experts, by two workers with half of the rows each: torch's own threads cost more
    than they give here. Rows that make up for each other's errors are rounded by the quantizer's own workers."""
    if weight.feedback and weight.feedback.outputs:
        return weight.read(0, weight.source.parts[""].shape[0])
    specs = {
        part: replace(spec, shape=(spec.shape[0] // count, *spec.shape[1:])) for part, spec in weight.parts.items()
    }
    made = shared(specs)
    group, (rows, columns) = weight.quantizer.group, weight.source.parts[""].shape
    rows //= group * count
    most = max(-(-64 // group), MAX_VALUES // (group * columns))
    turns = -(-rows // (WORKERS * most))  # in each of which all workers have as much to do
    step = -(-rows // (WORKERS * turns))
    first = number * rows

    def work(item: str, progress: Callable[[int], None]) -> None:
        start = int(item)
        for part, tensor in weight.read(first + start, first + min(start + step, rows)).items():
            made[part][start : start + step] = tensor

    in_workers([str(start) for start in range(0, rows, step)], work, long=rows * columns >= WORTH_A_PROCESS)
    return made


def _feedback(weight: QuantizedWeight, statistics: Statistics) -> Feedback:
    """The statistics are of no use afterwards. Raises InputError where squares of the inputs are beyond float32, whatever the
    weight is."""
    if not all(end.isfinite() for one in statistics.tensors().values() for end in one.aminmax()):
        raise InputError(
            f"{weight.source.tensor}: the calibration text makes its inputs too large to be measured; choose --recipe rtn, "
            "or another --calibration"
        )
    return Feedback.of(statistics, weight.quantizer.block, consume=True)


def _compute_experts(weight: QuantizedWeight, inputs: ExpertInputs) -> dict[str, torch.Tensor]:
    """One expert after the other, with the statistics of one at a time in memory."""
    made, count = [], len(inputs.met)
    for number in range(count):
        measured = inputs.statistics(number)
        feedback = _feedback(weight, measured) if measured else None
        made.append(_compute(replace(weight, feedback=feedback), number, count))
    return {part: torch.cat([one[part] for one in made]) for part in weight.parts}


def _find(path: Path, weight: QuantizedWeight, rounding: str) -> StoredWeight | None:
    """What the file at `path` holds, if that is this weight with the bytes that were written; else it counts as missing.

    rounding: see `_rounding_of`
    """
    try:
        with path.open("rb", buffering=0) as file:
            descriptor = file.fileno()
            size = int.from_bytes(read_at(descriptor, 8, 0), "little")
            if size > _MAX_HEADER:
                return None
            entries = parse_object(bytes(read_at(descriptor, size, 8)), str(path))
            said = entries["__metadata__"]
            promised = str(said["chunks"]).split()
            offsets = {part: 8 + size + int(entries[part]["data_offsets"][0]) for part in weight.parts}
            stored = StoredWeight(path, dict(weight.parts), weight.describe(), tuple(promised), offsets)
            chunks = list(stored.chunks())
            if (said["key"], said["weight"]) != (path.stem, rounding) or len(promised) != len(chunks):
                return None
            for number, (start, stop) in enumerate(chunks):
                stored._read_chunk(descriptor, number, start, stop)
            return stored
    except (InputError, OSError, ValueError, KeyError, TypeError, IndexError, OverflowError):
        return None

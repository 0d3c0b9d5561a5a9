"""The blob files of a package, mapped and not read: weights of gigabytes take no memory until a page of them is used."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import torch

from pocketphi.graph.errors import InputError
from pocketphi.graph.reading import file_inside, show
from pocketphi.targets.coreml import blob
from pocketphi.targets.coreml.raw import BITS, Raw, ValueType

_RECORD = 64


class BlobFile:
    """One mapped file. Reading raises ValueError saying what is wrong with a record."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.size = path.stat().st_size
        with path.open("rb") as file:
            # private and writable, as torch wants it: nothing writes, so that its pages stay those of the file
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if self.size else b""
        blob.parse_header(bytes(self._map[:_RECORD]))
        self.data = torch.from_numpy(np.frombuffer(self._map, np.uint8))

    def read(self, offset: int, declared: ValueType) -> Raw:
        """The blob whose record lies at `offset`, which must be of the declared type and size."""
        if offset % 4 or not 0 <= offset <= self.size - _RECORD:
            raise ValueError(f"{self.name} has {self.size} bytes, no record at offset {offset}")
        found = blob.Blob.parse(bytes(self._map[offset : offset + _RECORD]))
        kind, count = found.type.name.lower().replace("float", "fp"), declared.count
        stored = "uint8" if declared.dtype == "bool" else declared.dtype
        if kind != stored or found.count != count:
            raise ValueError(
                f"{self.name} at offset {offset} holds {found.count} values of {kind}, declared is {declared}, {count} values"
            )
        if found.offset + found.nbytes > self.size:
            raise ValueError(
                f"{self.name} at offset {offset}: the data ends at byte {found.offset + found.nbytes}, the file at {self.size}"
            )
        data = self.data[found.offset : found.offset + found.nbytes]
        if BITS[kind] > 8 and found.offset * 8 % BITS[kind]:
            data = data.clone()  # torch views bytes as wider values only where these are aligned
        return Raw(declared.dtype, declared.fixed_shape, data)


class BlobFiles:
    """The files by the names that a model calls them, `@model_path/weights/weight.bin`; opened at their first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, BlobFile] = {}

    def read(self, name: str, offset: int, declared: ValueType) -> Raw:
        if name not in self._open:
            relative = name.removeprefix("@model_path/")
            try:
                path = file_inside(self.folder, relative, "the model")
            except InputError as error:
                raise ValueError(str(error)) from None
            if not path.is_file():
                raise ValueError(f"the weight file {show(relative)} is missing")
            self._open[name] = BlobFile(path)
        return self._open[name].read(offset, declared)

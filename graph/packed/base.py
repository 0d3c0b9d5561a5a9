"""What the reader of one tool's weights is: settings → a `Packing`, stored tensors → a `PackedMatrix`, rows → `Grouped`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pocketphi.graph.errors import InputError
from pocketphi.graph.kept import SIZES, Grouped, Kept, kept_of
from pocketphi.graph.packing import half_precision, unpack_bits
from pocketphi.graph.reading import show, some, typed

if TYPE_CHECKING:
    import torch

    from pocketphi.graph.safetensors_file import RowReader, Stored

ROUND_AGAIN = "choose --recipe search or rtn, which round its values again"
_ROUNDED = "{} of its {:,} scales and minimums are no values of float16, as which files hold them: rounded to that"
_ROWS = 4096
T = TypeVar("T")
Part = Callable[[str], Any]
"""The name of a part of a packed weight → what `safetensors.safe_open(…).get_slice` gives for it."""


class Packing(ABC):
    """The settings of a checkpoint that one tool has quantized.

    tool:  what messages call it
    marks: the part by which a packed weight is known: `qweight` in `model.layers.0.mlp.down_proj.qweight`
    parts: all that one may have, by the ends of their names
    """

    tool: ClassVar[str]
    marks: ClassVar[str]
    parts: ClassVar[frozenset[str]]

    @staticmethod
    @abstractmethod
    def read(data: Mapping[str, Any], where: str) -> Packing:
        """Raises InputError for a setting that is not known, or cannot be honoured. where: file and key, for messages."""

    def in_float(self, module: str) -> bool:
        """Whether the settings say that a weight is not packed, `module` being its name without `.weight`."""
        return False

    @abstractmethod
    def matrix(
        self, module: str, shape: tuple[int, int], parts: Mapping[str, Stored], reader: RowReader
    ) -> PackedMatrix:
        """Raises InputError for parts that are missing, or of another shape than the settings and the model say.

        shape: [N, K] of the weight; reader: of the files that hold the parts
        """

    @abstractmethod
    def second(self, part: Part, row: int, shape: tuple[int, int]) -> torch.Tensor:
        """One row of a weight as float32 [K], in another way than `matrix`: by what the tool's own code does, in few words."""


class PackedMatrix(ABC):
    """One weight [N, K] as a tool has packed it.

    dtype: what messages call its type; kept: how it can be taken over; why: why it cannot be, where that is None
    """

    def __init__(self, module: str, shape: tuple[int, int], parts: Mapping[str, Stored], reader: RowReader) -> None:
        self.module, self.shape, self.parts, self.reader = module, shape, parts, reader
        self.dtype = ""
        self.kept: Kept | None = None
        self.why = ""
        self._remark: str | None = None

    @abstractmethod
    def rows(self, start: int, stop: int) -> Grouped:
        """Rows [start, stop) as they are stored."""

    @abstractmethod
    def halves(self, start: int, stop: int) -> list[torch.Tensor]:
        """What files of targets hold as float16, of rows [start, stop): scales, and minimums where there are some."""

    def needs(self, part: str, shape: tuple[int, ...], *dtypes: str) -> Stored:
        """A part. Raises InputError where it is missing, or is not of this shape and one of these types."""
        name, found = f"{self.module}.{part}", self.parts.get(part)
        if found is None:
            raise InputError(f"{self._where}: tensor {name!r} is missing (the config asks for {list(shape)})")
        if found.shape != shape or found.dtype not in dtypes:
            raise InputError(
                f"{found.file}: {name!r} is {found.dtype} {list(found.shape)}, the settings of the quantization ask for "
                f"{' or '.join(dtypes)} {list(shape)}"
            )
        return found

    def holds(self, bits: int, group: int, zero: bool = False, bias: bool = False) -> None:
        """Say how it can be taken over. group: values of a row that share a scale."""
        self.kept = kept_of(bits, group, zero, bias)
        if self.kept is None:
            sizes = ", ".join(map(str, sorted(SIZES)))
            self.why = f"has groups of {group}; no file holds blocks of another size than multiples of {sizes}"

    def remark(self) -> str:
        """What is rounded where it is taken over, empty for nothing: scales of another type than float16 are looked at."""
        if self._remark is None:
            odd = total = 0
            if any(stored.dtype in ("BF16", "F32") for stored in self.parts.values()):
                for start in range(0, self.shape[0], _ROWS):
                    for values in self.halves(start, min(start + _ROWS, self.shape[0])):
                        odd += int((half_precision(values) != values).sum())
                        total += values.numel()
            self._remark = _ROUNDED.format(f"{odd:,}", total) if odd else ""
        return self._remark

    def read_rows(self, part: str, start: int, stop: int) -> torch.Tensor:
        return self.reader.read(self.parts[part], f"{self.module}.{part}", start, stop)

    def read_columns(self, part: str, start: int, stop: int) -> torch.Tensor:
        return self.reader.read_columns(self.parts[part], f"{self.module}.{part}", start, stop)

    @property
    def _where(self) -> str:
        return str(next(iter(self.parts.values())).file)


@dataclass(frozen=True)
class Order:
    """Which group each column of a weight belongs to, where that was stored: `g_idx` int32 [K]."""

    groups: torch.Tensor

    def block(self, most: int) -> int | None:
        """The largest size of blocks, up to `most`, that lie in one group each; None where the order breaks blocks of any
        size."""
        for size in (most, *(size for size in SIZES if size < most)):
            if len(self.groups) % size == 0:
                blocks = self.groups.view(-1, size)
                if bool((blocks == blocks[:, :1]).all()):
                    return size
        return None

    def is_plain(self, group: int) -> bool:
        """Whether the groups follow each other, as they do where nothing was stored."""
        import torch

        return bool((self.groups == torch.arange(len(self.groups)) // group).all())


class OrderedMatrix(PackedMatrix):
    """One whose columns may have been put into another order before they were grouped; `order` is None where they were not."""

    order: Order | None
    _group: int

    def holds_ordered(self, bits: int, group: int, zero: bool, why: str) -> None:
        """As `holds`, for the order that was stored. why: it cannot be taken over where the order breaks all blocks."""
        block = self.order.block(group) if self.order else group
        self._group = block or group
        if block is None:
            self.why = why
        else:
            self.holds(bits, block, zero)

    def grouped(self, q: torch.Tensor, scale: torch.Tensor, bits: int, zero: torch.Tensor | None) -> Grouped:
        """Values with what their groups share: of each block where it can be taken over, else by the order of columns."""
        order = self.order.groups if self.order else None
        if order is not None and self.kept:
            first = order[:: self._group]
            scale, zero, order = scale[:, first], None if zero is None else zero[:, first], None
        return Grouped(q, scale, bits, zero, order=order)


def groups_in_file(part: Part, name: str, columns: int, groups: int) -> torch.Tensor:
    """The group of each column, for `Packing.second`: int64 [K]. name: of the part that says it, where there is one."""
    import torch

    try:
        found: torch.Tensor = part(name)[:].long()
    except LookupError:
        return torch.arange(columns) // (columns // groups)
    return found


def stored_order(matrix: PackedMatrix, part: str, group: int) -> Order | None:
    """The order of columns, where the file has one that is not the plain one. Raises InputError for a group that is not
    there."""
    columns = matrix.shape[1]
    if part not in matrix.parts:
        return None
    stored = matrix.needs(part, (columns,), "I32")
    groups = matrix.read_rows(part, 0, columns).long()
    if not 0 <= int(groups.min()) <= int(groups.max()) < columns // group:
        raise InputError(
            f"{stored.file}: '{matrix.module}.{part}' names group {int(groups.max())}, expected 0 to {columns // group - 1}"
        )
    order = Order(groups)
    return None if order.is_plain(group) else order


def words(tensor: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Values that lie in the 32-bit words of each row, the first in the lowest bits: int32 [R, W] → uint8 [R, count]."""
    import torch

    held = tensor.clone(
        memory_format=torch.contiguous_format
    )  # a turned column counts as contiguous, and is no view of bytes
    return unpack_bits(held.view(torch.uint8), bits, count)


def group_of(said: int | None, columns: int, where: str) -> int:
    """Values that share a scale. said: None or -1 for a whole row. Raises InputError for what does not divide K."""
    group = columns if said in (None, -1) else int(said or 0)
    if group < 1 or columns % group:
        raise InputError(f"{where}: group_size is {said}, which does not divide the {columns} columns of a weight")
    return group


def settings(
    kind: type[T], data: Mapping[str, Any], where: str, only: Mapping[str, tuple[object, ...]], harmless: frozenset[str]
) -> T:
    """The settings as a dataclass, whose fields are the keys that are honoured.

    only: keys that may have one of these values; harmless: those that change no weight. Raises InputError for another key, or
    another value.
    """
    for key, allowed in only.items():
        if key in data and data[key] not in allowed:
            expected = " or ".join(map(show, allowed))
            raise InputError(f"{where}: {key} is {show(data[key])}, expected {expected}; {OTHERWISE}")
    known = kind.__dataclass_fields__.keys() | only.keys() | harmless  # type: ignore[attr-defined]
    if unknown := [f"{show(key)} = {show(data[key])}" for key in sorted(data.keys() - known) if data[key] is not None]:
        raise InputError(f"{where}: nobody here knows what {some(unknown, 2)} means for the weights; {OTHERWISE}")
    return typed(kind, data, where)


OTHERWISE = "compile the float checkpoint that it was made from"

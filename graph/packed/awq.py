"""AWQ, as AutoAWQ packs it: https://github.com/casper-hansen/AutoAWQ, `awq/modules/linear`.

`gemm` (and GPTQModel's name for it, the same):

    qweight: int32 [K, N/8], 4 bits along N, eight in a word in the order 0, 2, 4, 6, 1, 3, 5, 7
    qzeros:  int32 [K/group, N/8], in the same order
    scales:  float16 [K/group, N]

`gemv`: int32 [N, K/8] along K, qzeros int32 [N, W], scales float16 [N, 8 · W], in plain order; W words hold the K/group zero
points of a row, and some that are not there.

w = scale · (q - zero). Example for gemm: in the word 0x76543210 the nibbles are rows 0, 2, 4, 6, 1, 3, 5, 7 of eight, so that
row 1 has the value 4.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pocketphi.graph.errors import InputError
from pocketphi.graph.kept import Grouped
from pocketphi.graph.packed import auto_round_keys
from pocketphi.graph.packed.base import OTHERWISE, PackedMatrix, Packing, Part, group_of, settings, words
from pocketphi.graph.packing import rounded_up
from pocketphi.graph.reading import named

if TYPE_CHECKING:
    import torch

    from pocketphi.graph.safetensors_file import RowReader, Stored

_PLACE = (0, 4, 1, 5, 2, 6, 3, 7)
"""In which nibble of a word each of eight rows lies."""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    bits: int | None = None
    w_bit: int | None = None
    group_size: int | None = None
    q_group_size: int | None = None
    version: str | None = None
    format: str | None = None
    checkpoint_format: str | None = None
    modules_to_not_convert: tuple[str, ...] | None = None


_ONLY: dict[str, tuple[object, ...]] = {
    "backend": ("autoawq", None),
    "desc_act": (False, None),
    "pack_dtype": ("int32", None),
    "rotation": (None, "", False),
    "adapter": (None,),
    "activation": (None,),
    "dynamic": (None, {}, False),
}
_HARMLESS = frozenset(
    """
    do_fuse exllama_config fuse_max_seq_len lm_head meta method modules_to_fuse quant_method sym zero_point
    """.split()  # noqa: SIM905 - a list would take a line for each
)


class Awq(Packing):
    tool = "AWQ"
    marks = "qweight"
    parts = frozenset({"qweight", "qzeros", "scales"})

    def __init__(self, said: _Settings, where: str) -> None:
        self.said, self.where = said, where
        bits, groups = {said.bits, said.w_bit} - {None}, {said.group_size, said.q_group_size} - {None}
        if bits != {4}:
            raise InputError(f"{where}: bits is {_listed(bits)}, expected 4, which is all that AWQ packs; {OTHERWISE}")
        if len(groups) != 1:
            raise InputError(f"{where}: group_size is {_listed(groups)}, expected one number")
        kinds = {kind.lower() for kind in (said.version, said.format, said.checkpoint_format) if kind} or {"gemm"}
        if kinds not in ({"gemm"}, {"gemv"}):
            raise InputError(f"{where}: the version is {_listed(kinds)}, expected gemm or gemv; {OTHERWISE}")
        self.group_size = next(iter(groups))
        self.gemv = kinds == {"gemv"}

    @staticmethod
    def read(data: Mapping[str, Any], where: str) -> Awq:
        return Awq(
            settings(_Settings, data, where, {**_ONLY, **auto_round_keys.ONLY}, _HARMLESS | auto_round_keys.HARMLESS),
            where,
        )

    def in_float(self, module: str) -> bool:
        return any(name in module for name in self.said.modules_to_not_convert or ())

    def matrix(
        self, module: str, shape: tuple[int, int], parts: Mapping[str, Stored], reader: RowReader
    ) -> PackedMatrix:
        group = group_of(self.group_size, shape[1], f"{self.where}: {module}")
        return (GemvMatrix if self.gemv else GemmMatrix)(module, shape, parts, reader, group)

    def second(self, part: Part, row: int, shape: tuple[int, int]) -> torch.Tensor:
        import torch

        if self.gemv:
            shifts = torch.arange(0, 32, 4)
            q, zero = ((part(name)[row : row + 1].long()[0, :, None] >> shifts & 15).flatten() for name in self._two)
            scale = part("scales")[row : row + 1][0].float()
            groups = torch.arange(shape[1]) // (group_of(self.group_size, shape[1], self.where))
        else:
            nibble = 4 * (row % 8 // 2 + row % 2 * 4)
            q, zero = (part(name)[:, row // 8 : row // 8 + 1].long()[:, 0] >> nibble & 15 for name in self._two)
            scale = part("scales")[:, row : row + 1][:, 0].float()
            groups = torch.arange(shape[1]) // (shape[1] // len(scale))
        return (q - zero[groups]).float() * scale[groups]

    _two = ("qweight", "qzeros")


class AwqMatrix(PackedMatrix):
    """What both ways of packing have in common: values and zero points of 4 bits.

    groups: of a row
    """

    def __init__(
        self, module: str, shape: tuple[int, int], parts: Mapping[str, Stored], reader: RowReader, group: int
    ) -> None:
        super().__init__(module, shape, parts, reader)
        self.dtype, self.groups = "awq4", shape[1] // group
        values, zeros, scales = self.shapes(group)
        self.needs("qweight", values, "I32")
        self.needs("qzeros", zeros, "I32")
        self.needs("scales", scales, "F16", "BF16", "F32")
        self.holds(4, group, zero=True)

    @abstractmethod
    def shapes(self, group: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Of qweight, qzeros and scales as they are stored."""

    @abstractmethod
    def nibbles(self, part: str, start: int, stop: int, count: int) -> torch.Tensor:
        """Rows [start, stop) of qweight or qzeros: uint8 [rows, count]."""

    def rows(self, start: int, stop: int) -> Grouped:
        q = self.nibbles("qweight", start, stop, self.shape[1])
        zero = self.nibbles("qzeros", start, stop, self.groups)
        return Grouped(q, self.halves(start, stop)[0], 4, zero.int())


class GemmMatrix(AwqMatrix):
    def shapes(self, group: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        rows, columns = self.shape
        return (columns, rows // 8), (self.groups, rows // 8), (self.groups, rows)

    def halves(self, start: int, stop: int) -> list[torch.Tensor]:
        return [self.read_columns("scales", start, stop).T.float()]

    def nibbles(self, part: str, start: int, stop: int, count: int) -> torch.Tensor:
        """They lie along the rows; `count` is how many of them the file has."""
        first = start // 8
        stored = self.read_columns(part, first, -(-stop // 8))
        eights = words(stored, 4, 8 * stored.shape[1]).view(len(stored), -1, 8)[..., _PLACE]
        return eights.reshape(len(stored), -1)[:, start - 8 * first : stop - 8 * first].T.contiguous()


class GemvMatrix(AwqMatrix):
    def shapes(self, group: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        rows, columns = self.shape
        width = rounded_up(rounded_up(self.groups, 8) // 8, max(1, 128 // group))
        return (rows, columns // 8), (rows, width), (rows, 8 * width)

    def halves(self, start: int, stop: int) -> list[torch.Tensor]:
        return [self.read_rows("scales", start, stop)[:, : self.groups].float()]

    def nibbles(self, part: str, start: int, stop: int, count: int) -> torch.Tensor:
        return words(self.read_rows(part, start, stop), 4, count)


def _listed(values: object) -> str:
    return " and ".join(sorted(map(named, values))) if isinstance(values, set) and values else "missing"


PACKING = Awq

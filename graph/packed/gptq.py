"""GPTQ, as AutoGPTQ and GPTQModel pack it: https://github.com/ModelCloud/GPTQModel, `nn_modules/qlinear`.

    qweight: int32 [K · bits/32, N], values of a column of the tensor one after the other, the first in the lowest bits
    qzeros:  int32 [groups, N · bits/32], along N; one less than the zero point (`gptq`), or that itself (`gptq_v2`)
    scales:  float16 [groups, N]
    g_idx:   int32 [K], the group of each input; column // group_size where inputs were not put in another order

w = scale · (q - zero). Example of 4 bits: the word 0x87654321 in row r, column n of qweight is w[n, 8·r] = scale · (1 - zero),
then 2, 3, … 8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pocketphi.graph.errors import InputError
from pocketphi.graph.kept import Grouped
from pocketphi.graph.packed import auto_round_keys
from pocketphi.graph.packed.base import (
    OTHERWISE,
    ROUND_AGAIN,
    OrderedMatrix,
    Packing,
    Part,
    group_of,
    groups_in_file,
    settings,
    stored_order,
    words,
)
from pocketphi.graph.reading import show

if TYPE_CHECKING:
    import torch

    from pocketphi.graph.safetensors_file import RowReader, Stored

_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
"""By bits: a word of ones."""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    bits: int
    group_size: int
    desc_act: bool = False
    sym: bool = True
    checkpoint_format: str | None = None
    format: str | None = None
    dynamic: dict[str, dict[str, Any]] | Literal[False] | None = None
    meta: dict[str, Any] | None = None
    modules_to_not_convert: tuple[str, ...] | None = None


_ONLY: dict[str, tuple[object, ...]] = {
    "pack_dtype": ("int32", None),
    "is_marlin_format": (False, None),
    "rotation": (None, "", False),
    "adapter": (None,),
    "activation": (None,),
}
_HARMLESS = frozenset(
    """
    act_group_aware backend batch_size block_name_to_quantize cache_block_outputs damp_auto_increment damp_percent dataset
    disable_exllama exllama_config lm_head max_input_length method model_file_base_name model_name_or_path model_seqlen
    module_name_preceding_first_block modules_in_block_to_quantize mse pad_token_id quant_method static_groups tokenizer
    true_sequential use_cuda_fp16 use_exllama
    """.split()  # noqa: SIM905 - a list would take a line for each
)


class Gptq(Packing):
    tool = "GPTQ"
    marks = "qweight"
    parts = frozenset({"qweight", "qzeros", "scales", "g_idx"})

    def __init__(self, said: _Settings, where: str) -> None:
        self.said, self.where = said, where
        kinds = {kind for kind in (said.checkpoint_format, said.format) if kind} or {"gptq"}
        if not kinds <= {"gptq", "gptq_v2"} or len(kinds) > 1:
            came = " and ".join(map(show, sorted(kinds)))
            raise InputError(
                f"{where}: the format is {came}, expected gptq or gptq_v2; save it so with GPTQModel, or {OTHERWISE}"
            )
        self.v1 = kinds == {"gptq"}
        """Zero points are stored as one less."""
        self.carries = "gptqmodel" in str((said.meta or {}).get("quantizer", ""))
        """GPTQModel subtracts from whole words, so that adding to them gives back any zero point."""
        self._check(said.bits, where)

    @staticmethod
    def read(data: Mapping[str, Any], where: str) -> Gptq:
        return Gptq(
            settings(_Settings, data, where, {**_ONLY, **auto_round_keys.ONLY}, _HARMLESS | auto_round_keys.HARMLESS),
            where,
        )

    def in_float(self, module: str) -> bool:
        listed = self.said.modules_to_not_convert or ()
        return any(name in module for name in listed) or self._of(module) is None

    def matrix(self, module: str, shape: tuple[int, int], parts: Mapping[str, Stored], reader: RowReader) -> GptqMatrix:
        said = self._of(module) or {}
        bits, sym = said.get("bits", self.said.bits), said.get("sym", self.said.sym)
        where = f"{self.where}: {module}"
        self._check(bits, where)
        group = group_of(said.get("group_size", self.said.group_size), shape[1], where)
        return GptqMatrix(self, module, shape, parts, reader, bits, group, bool(sym), self.said.desc_act)

    def second(self, part: Part, row: int, shape: tuple[int, int]) -> torch.Tensor:
        import torch

        def column(name: str, at: int) -> torch.Tensor:
            found: torch.Tensor = part(name)[:, at : at + 1]
            return found[:, 0]

        bits = part("qweight").get_shape()[0] * 32 // shape[1]
        each = 32 // bits
        shifts = torch.arange(0, 32, bits)
        q = (column("qweight", row).long()[:, None] >> shifts & (1 << bits) - 1).flatten()[: shape[1]]
        word = column("qzeros", row // each).long() + (_ONES[bits] if self.v1 else 0)
        zero = word >> (bits * (row % each)) & (1 << bits) - 1
        scale = column("scales", row).float()
        groups = groups_in_file(part, "g_idx", shape[1], len(scale))
        return scale[groups] * (q - zero[groups]).float()

    def _of(self, module: str) -> dict[str, Any] | None:
        """What `dynamic` says of a weight, the first pattern that matches; None: that it is in float."""
        for pattern, said in (self.said.dynamic or {}).items():
            plain = pattern.removeprefix("-:").removeprefix("+:")
            try:
                if re.match(plain, module):
                    return None if pattern.startswith("-:") else said
            except re.error:
                raise InputError(f"{self.where}: dynamic has the pattern {pattern!r}, which is none") from None
        return {}

    @staticmethod
    def _check(bits: object, where: str) -> None:
        if bits not in _ONES or isinstance(bits, bool):
            raise InputError(
                f"{where}: bits is {bits}, expected 2, 4 or 8: values of other widths lie across words, and no format that "
                f"targets share holds them; {OTHERWISE}"
            )


class GptqMatrix(OrderedMatrix):
    def __init__(
        self,
        packing: Gptq,
        module: str,
        shape: tuple[int, int],
        parts: Mapping[str, Stored],
        reader: RowReader,
        bits: int,
        group: int,
        sym: bool,
        reordered: bool,
    ) -> None:
        super().__init__(module, shape, parts, reader)
        self._packing, self._bits, self._sym = packing, bits, sym
        self.dtype = f"gptq{bits}"
        rows, columns = shape
        self.needs("qweight", (columns * bits // 32, rows), "I32")
        self._zeros = self.needs("qzeros", (columns // group, -(-rows * bits // 32)), "I32")
        self.needs("scales", (columns // group, rows), "F16", "BF16", "F32")
        self.order = stored_order(self, "g_idx", group)
        if self.order and not reordered:
            raise InputError(f"{packing.where}: desc_act is false, but {module}.g_idx has another order of columns")
        self.holds_ordered(
            bits,
            group,
            not sym,
            "was quantized in the order of activations (desc_act): values that share a scale lie apart, in no blocks that "
            f"a format holds; {ROUND_AGAIN}, or quantize it with static_groups or without desc_act",
        )

    def rows(self, start: int, stop: int) -> Grouped:
        q = words(self.read_columns("qweight", start, stop).T, self._bits, self.shape[1])
        scale, zero = self.halves(start, stop)[0], None
        stored = self._stored_zeros(start, stop)
        if not self._sym:
            zero = stored.int()
        elif bool((stored != 1 << (self._bits - 1)).any()):
            raise InputError(
                f"{self._packing.where}: sym is true, but a zero point of {self.module} is not {1 << (self._bits - 1)}, the "
                "middle; say sym = false"
            )
        return self.grouped(q, scale, self._bits, zero)

    def halves(self, start: int, stop: int) -> list[torch.Tensor]:
        return [self.read_columns("scales", start, stop).T.float()]

    def _stored_zeros(self, start: int, stop: int) -> torch.Tensor:
        """uint8 [rows, groups]."""
        each, packing = 32 // self._bits, self._packing
        first = start // each
        stored = self.read_columns("qzeros", first, -(-stop // each))
        if packing.v1:
            if not packing.carries and bool(
                (words(stored, self._bits, stored.shape[1] * each) + 1 >> self._bits).any()
            ):
                raise InputError(
                    f"{self._zeros.file}: {self.module}.qzeros holds {(1 << self._bits) - 1}, for which tools add 1 in "
                    "different ways; load it with GPTQModel and save it as gptq_v2"
                )
            stored = stored + _ONES[self._bits]
        return words(stored, self._bits, stored.shape[1] * each)[:, start - first * each : stop - first * each].T


PACKING = Gptq

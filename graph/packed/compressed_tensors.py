"""compressed-tensors in its format `pack-quantized`: https://github.com/vllm-project/compressed-tensors.

    weight_packed:     int32 [N, K · bits/32], values + 2^(bits - 1) of a row one after the other, the first in the lowest bits
    weight_scale:      float16, bfloat16 or float32 [N, groups]; [1] where a weight has one
    weight_zero_point: int32 [N · bits/32, groups], + 2^(bits - 1), along N; of older versions int8 [N, groups] as it is
    weight_g_idx:      int32 [K], the group of each input, of older versions
    weight_shape:      int64 [2]

w = scale · (q - zero). Example of 4 bits: the word 0x87654321 at the start of a row is scale · (1 - 8), then 2 - 8, … 8 - 8.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pocketphi.graph.errors import InputError
from pocketphi.graph.kept import Grouped
from pocketphi.graph.packed.base import (
    OTHERWISE,
    ROUND_AGAIN,
    OrderedMatrix,
    Packing,
    Part,
    groups_in_file,
    settings,
    stored_order,
    words,
)
from pocketphi.graph.reading import show

if TYPE_CHECKING:
    import torch

    from pocketphi.graph.safetensors_file import RowReader, Stored

_BITS = (2, 4, 8)
"""Widths that all versions pack alike; others lay values across words, in one version and not in another."""
_FORMAT = "pack-quantized"


@dataclass(frozen=True, kw_only=True)
class _Weights:
    num_bits: int = 8
    symmetric: bool = True
    strategy: str | None = None
    group_size: int | None = None
    actorder: str | bool | None = None


@dataclass(frozen=True, kw_only=True)
class _Group:
    targets: tuple[str, ...]
    weights: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Settings:
    config_groups: dict[str, dict[str, Any]]
    ignore: tuple[str, ...] | None = None


_ONLY: dict[str, tuple[object, ...]] = {
    "format": (_FORMAT,),
    "kv_cache_scheme": (None, {}),
    "sparsity_config": (None, {}),
    "transform_config": (None, {}),
    "quantization_status": ("compressed", None),
}
_HARMLESS = frozenset({"global_compression_ratio", "quant_method", "version"})
_GROUP_ONLY: dict[str, tuple[object, ...]] = {
    "input_activations": (None,),
    "output_activations": (None,),
    "format": (_FORMAT, None),
}
_WEIGHTS_ONLY: dict[str, tuple[object, ...]] = {
    "type": ("int",),
    "strategy": ("group", "channel", "tensor", None),
    "dynamic": (False, None),
    "block_structure": (None,),
    "actorder": ("weight", "static", "group", "dynamic", False, None),
}
_WEIGHTS_HARMLESS = frozenset({"observer", "observer_kwargs", "scale_dtype", "zp_dtype"})


class CompressedTensors(Packing):
    tool = "compressed-tensors"
    marks = "weight_packed"
    parts = frozenset({"weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape"})

    def __init__(self, said: _Settings, groups: list[tuple[tuple[str, ...], _Weights]], where: str) -> None:
        self.said, self.groups, self.where = said, groups, where

    @staticmethod
    def read(data: Mapping[str, Any], where: str) -> CompressedTensors:
        data = {key: value for key, value in data.items() if not (key == "sparsity_config" and _dense(value))}
        said = settings(_Settings, data, where, _ONLY, _HARMLESS)
        groups = []
        for name, value in said.config_groups.items():
            at = f"{where}: config_groups.{name}"
            group = settings(_Group, value, at, _GROUP_ONLY, frozenset())
            weights = settings(_Weights, group.weights, f"{at}.weights", _WEIGHTS_ONLY, _WEIGHTS_HARMLESS)
            if weights.num_bits not in _BITS:
                raise InputError(
                    f"{at}.weights: num_bits is {weights.num_bits}, expected 2, 4 or 8: versions of the tool pack others in "
                    f"different ways; {OTHERWISE}"
                )
            groups.append((group.targets, weights))
        if not groups:
            raise InputError(f"{where}: config_groups is empty, expected what is quantized, and how")
        return CompressedTensors(said, groups, where)

    def in_float(self, module: str) -> bool:
        return any(self._means(listed, module) for listed in self.said.ignore or ())

    def matrix(self, module: str, shape: tuple[int, int], parts: Mapping[str, Stored], reader: RowReader) -> CtMatrix:
        named = [weights for targets, weights in self.groups if any(self._means(one, module) for one in targets)]
        chosen = named or [weights for targets, weights in self.groups if "Linear" in targets]
        if not chosen:
            raise InputError(
                f"{self.where}: {module} is packed, but no group of config_groups has it among its targets"
            )
        return CtMatrix(chosen[0], module, shape, parts, reader, self.where)

    def second(self, part: Part, row: int, shape: tuple[int, int]) -> torch.Tensor:
        import torch

        packed = part("weight_packed")[row : row + 1][0].long()
        bits = 32 * len(packed) // shape[1]
        middle, mask, shifts = 1 << (bits - 1), (1 << bits) - 1, torch.arange(0, 32, bits)
        q = (packed[:, None] >> shifts & mask).flatten()[: shape[1]] - middle
        whole = part("weight_scale")
        scale = whole[:].float() if whole.get_shape() == [1] else whole[row : row + 1][0].float()
        zero = torch.zeros(len(scale), dtype=torch.int64)
        try:
            stored = part("weight_zero_point")
            if stored.get_dtype() == "I8":
                zero = stored[row : row + 1][0].long()
            else:
                at = row * bits
                zero = (stored[at // 32 : at // 32 + 1][0].long() >> at % 32 & mask) - middle
        except LookupError:
            pass
        groups = groups_in_file(part, "weight_g_idx", shape[1], len(scale))
        return (q - zero[groups]).float() * scale[groups]

    def _means(self, listed: str, module: str) -> bool:
        """Whether an entry of a list names a weight: as it is, by its end, or as a pattern behind `re:`."""
        pattern = listed.removeprefix("re:")
        if pattern == listed:
            return module == listed or module.endswith(f".{listed}")
        try:
            return re.match(pattern, module) is not None
        except re.error:
            raise InputError(f"{self.where}: {show(listed)} is no pattern") from None


class CtMatrix(OrderedMatrix):
    def __init__(
        self,
        said: _Weights,
        module: str,
        shape: tuple[int, int],
        parts: Mapping[str, Stored],
        reader: RowReader,
        where: str,
    ) -> None:
        super().__init__(module, shape, parts, reader)
        rows, columns = shape
        self._bits, self._zeros = said.num_bits, not said.symmetric
        self.dtype = f"int{said.num_bits} (compressed-tensors)"
        strategy = said.strategy or (
            "group" if (said.group_size or 0) > 0 else "channel" if said.group_size else "tensor"
        )
        group = said.group_size if strategy == "group" and said.group_size else columns
        if columns % group:
            raise InputError(f"{where}: group_size is {group}, which does not divide the {columns} columns of {module}")
        self._alone = strategy == "tensor"
        self.needs("weight_packed", (rows, -(-columns * said.num_bits // 32)), "I32")
        scales = (1,) if self._alone else (rows, columns // group)
        self.needs("weight_scale", scales, "F16", "BF16", "F32")
        self._check_shape()
        if said.symmetric and "weight_zero_point" in parts:
            raise InputError(f"{where}: symmetric is true, but there is {module}.weight_zero_point")
        if not said.symmetric:
            if self._alone:
                raise InputError(
                    f"{where}: strategy is 'tensor' with zero points, expected group or channel; {OTHERWISE}"
                )
            old = parts.get("weight_zero_point")
            plain = old is not None and old.dtype == "I8"
            words_of = rows if plain else -(-rows * said.num_bits // 32)
            self.needs("weight_zero_point", (words_of, columns // group), "I8" if plain else "I32")
        self.order = stored_order(self, "weight_g_idx", group)
        self.holds_ordered(
            said.num_bits,
            group,
            self._zeros,
            "was quantized in the order of activations (actorder = group): values that share a scale lie apart, in no "
            f"blocks that a format holds; {ROUND_AGAIN}, or quantize it with actorder = weight",
        )

    def rows(self, start: int, stop: int) -> Grouped:
        q = words(self.read_rows("weight_packed", start, stop), self._bits, self.shape[1])
        scale, zero = self.halves(start, stop)[0], self._stored_zeros(start, stop) if self._zeros else None
        return self.grouped(q, scale, self._bits, zero)

    def halves(self, start: int, stop: int) -> list[torch.Tensor]:
        if self._alone:
            return [self.read_rows("weight_scale", 0, 1).float().expand(stop - start, 1)]
        return [self.read_rows("weight_scale", start, stop).float()]

    def _stored_zeros(self, start: int, stop: int) -> torch.Tensor:
        """int32 [rows, groups], from 0."""
        if self.parts["weight_zero_point"].dtype == "I8":
            return self.read_rows("weight_zero_point", start, stop).int() + (1 << (self._bits - 1))
        each = 32 // self._bits
        first = start // each
        stored = self.read_rows("weight_zero_point", first, -(-stop // each)).T
        return words(stored, self._bits, stored.shape[1] * each)[:, start - first * each : stop - first * each].T.int()

    def _check_shape(self) -> None:
        stored = self.needs("weight_shape", (2,), "I64", "I32")
        said = tuple(self.read_rows("weight_shape", 0, 2).tolist())
        if said != self.shape:
            raise InputError(
                f"{stored.file}: '{self.module}.weight_shape' is {list(said)}, the config asks for {list(self.shape)}"
            )


def _dense(value: object) -> bool:
    return isinstance(value, Mapping) and value.get("format") in (None, "dense")


PACKING = CompressedTensors

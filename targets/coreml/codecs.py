"""How a package holds each format: as which blobs, of which bytes, decoded by which operator, and the way back.

    part                          blob                       bytes
    q, symmetric                  int4 [N, K]                packed ^ 0x88: nibble n stands for n - 8, in two's complement
    q, with zero or offset        uint4 [N, K]               packed
    zero                          uint4/8 [N, K/block]       repacked without the padding at the end of odd rows
    scale                         float16 [N, K/block]       exact, or a bug of the quantizer
    offset                        float16 [N, K/block]       offset - 8 · scale, the value of q = 0: exact, or bad input
    q8                            int8 [N, K]                q8 ^ 0x80: 128 lower, in two's complement
    q8, with zero or offset       uint8 [N, K]               as it is; the offset as above, with 128 for 8
    a4                            int4 [N, K]                packed ^ 0x88, as of q
    offset, of a4                 float16 [N, K/block]       exact, or a bug of the quantizer
    index, of a palette           uint2 … uint6 [N, K]       as it is
    lut                           float16 [N/R, B, 2^bits, 1]  exact, or a bug of the quantizer; B: 1, or blocks of columns

Blocks of other widths, and levels, take two operators, one behind the other: a table of whole numbers, then scales.

    part                          blob                       bytes
    q2, q3, q6, n3, n4            uint2 … uint6 [N, K]       as they are
    zero                          int8 [N, K/block]          zero - middle, as the table's values are
    the levels, of the format     int8 [1, 1, 2^bits, 1]     one constant for all weights in it

For iOS 18 coremltools turns that order round (its pass `canonicalize_quantized_lut_pattern`: an issue, "fixed in iOS26"), and
then every block has a table of its own: 3 bits in blocks of 64 would take what int4 takes. A palette's tables of tiles are such
tables too, each for several rows. So a package has to be made for
iOS 26. There is no index of 5 bits.

Scales that are whole numbers times their row's lie as these numbers in a package for iOS 26, and as floats in one for iOS 18:

    part                          blob                       bytes
    scale, with row_scale         int8 [N, K/block]          scale / row_scale, decoded by `constexpr_blockwise_shift_scale`
    row_scale                     float16 [N, 1]             exact, as are the products

Example, a byte of a symmetric weight: 240 = (0 low, 15 high), that is (-8, 7); 240 ^ 0x88 = 0x78, in two's complement
low nibble 8 = -8, high nibble 7.

Importing this loads neither torch nor coremltools.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, TypeVar

from pocketphi.graph.errors import CompilerBug, InputError
from pocketphi.graph.formats import (
    HINTS,
    Affine4,
    Blocks,
    Format,
    Int2,
    Int3,
    Int4,
    Int6,
    Int8,
    Layout,
    Levels,
    Levels3,
    Levels4,
    Palette,
    Palette2,
    Palette3,
    Palette6,
    PartSpec,
    Tables,
    Values,
    bytes_of,
    format_of,
)
from pocketphi.graph.formats.blocks import scale_codes
from pocketphi.graph.packing import pack_bits, unpack_bits
from pocketphi.targets.coreml.blob import BlobType
from pocketphi.targets.coreml.releases import CHAINS, OLDEST

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import fx

    from pocketphi.artifacts.stream import Rows
    from pocketphi.targets.coreml.coremltools_parts import Var
    from pocketphi.targets.coreml.emitter import Emitter
    from pocketphi.targets.coreml.raw import Raw

P = TypeVar("P")

Blobs = dict[str, tuple[BlobType, tuple[int, ...]]]
"""By part: the type of its blob, and the shape that the model gives it."""


class Codec(ABC):
    """A format in a package.

    operator: decodes a weight where it is used; parameters: of that operator and of one that decodes for it, each with the part
    that it takes, where a weight has it. A part that is not among them is a constant of its own. ios: the oldest release that
    reads it.
    """

    format: type[Format]
    ios: ClassVar[int] = OLDEST
    operator: ClassVar[str] = "constexpr_blockwise_shift_scale"
    parameters: Mapping[str, str]

    @abstractmethod
    def blobs(self, parts: Mapping[str, PartSpec]) -> Blobs:
        """What a weight with these parts is stored as."""

    def bytes_of(self, layout: Layout) -> int:
        """What a weight takes in the file: values lie without gaps, floats are float16."""
        held = {p: Values((math.prod(v.shape),), min(v.bits, 16)) for p, v in layout.items()}
        return bytes_of(held, {"scale": 8} if "row_scale" in layout else None)

    def constants(self) -> dict[str, np.ndarray]:
        """What weights in this format share, by the name of a constant of the package."""
        return {}

    def decoded(self, e: Emitter, name: str, held: Mapping[str, Var]) -> Var:
        """The decoded weight, called `name`. held: what its parameters are."""
        return e.op(self.operator, name, **_with_scales(e, name, held))

    @abstractmethod
    def encode(self, name: str, rows: Rows) -> Rows:
        """Rows of a weight's parts as they are written. name: for messages."""

    @abstractmethod
    def holds(self, stored: Mapping[str, Raw]) -> bool:
        """Whether the parameters of an operator of a package may be those of a weight in this format; where another one gives
        the operator its data, with its parameters."""

    @abstractmethod
    def layout(self, raw: Mapping[str, Raw]) -> Layout:
        """The parts of a stored weight."""

    @abstractmethod
    def decode(self, raw: Mapping[str, Raw], start: int, stop: int) -> Rows:
        """Rows of the parts of a stored weight: the inverse of `encode`."""

    def lower_matmul(self, e: Emitter, node: fx.Node) -> None:
        e.values[node] = e.times(e.name(node), e.value(node.args[0]), e.decoded(node), e.width(node))

    def lower_embedding(self, e: Emitter, node: fx.Node) -> None:
        e.values[node] = self.rows(e, node, e.name(node))

    def rows(self, e: Emitter, node: fx.Node, name: str) -> Var:
        return e.op("gather", name, x=e.decoded(node), indices=e.inputs["inputIds"], axis=0)


_SCALES = {"scale": "scale", "row_scale": "row_scale"}


def _with_scales(e: Emitter, name: str, held: Mapping[str, Var]) -> dict[str, Var]:
    """What a weight's operator takes: scales that are whole numbers times their row's are decoded first."""
    given = dict(held)
    if "row_scale" in given:
        given["scale"] = e.op(Codec.operator, f"{name}_scales", data=given["scale"], scale=given.pop("row_scale"))
    return given


class BlocksCodec(Codec):
    """Blocks of values of 4 or 8 bits: in two's complement, their highest bits turned, but where they have a zero point."""

    format: type[Blocks]

    def __init__(self, form: type[Blocks]) -> None:
        self.format, self.values = form, form.part_names()[0]
        self.signed = f"int{form.bits}"
        self.highest = {4: 0x88, 8: 0x80}[form.bits]
        self.parameters = {"data": self.values, **_SCALES, **({"offset": "zero"} if form.has_zeros() else {})}

    def blobs(self, parts: Mapping[str, PartSpec]) -> Blobs:
        if {"zero", "offset"} <= parts.keys():
            raise CompilerBug("a weight with zero points and offsets: no operator of Core ML has both")
        unsigned = BlobType[f"UINT{self.format.bits}"]
        values = unsigned if {"zero", "offset"} & parts.keys() else BlobType[self.signed.upper()]
        kinds = {self.values: values, "zero": unsigned, "offset": BlobType.FLOAT16}
        shape, blocks = self.format.shape_of(parts), parts["scale"].shape
        per_block = {part: (kind, blocks) for part, kind in kinds.items() if part in parts}
        return {**per_block, self.values: (values, shape), **_scale_blobs(parts)}

    def encode(self, name: str, rows: Rows) -> Rows:
        turned = 0 if {"zero", "offset"} & rows.keys() else self.highest
        stored = {self.values: rows[self.values] ^ turned, **_stored_scales(name, rows)}
        if "zero" in rows:
            zeros = unpack_bits(rows["zero"], self.format.bits, rows["scale"].shape[1])
            stored["zero"] = pack_bits(zeros.reshape(1, -1), self.format.bits)
        if "offset" in rows:
            stored["offset"] = _lowest(name, rows["offset"], rows["scale"], self.format.middle())
        return stored

    def holds(self, stored: Mapping[str, Raw]) -> bool:
        return "data" in stored and stored["data"].dtype in (self.signed, f"u{self.signed}")

    def layout(self, raw: Mapping[str, Raw]) -> Layout:
        shape, more = raw[self.values].shape, {"offset": True} if "offset" in raw else {}
        blocks = raw["scale"].shape[1]
        found = self.format.layout(shape, shape[1] // blocks, "zero" not in raw, "row_scale" in raw, **more)
        return {part: values for part, values in found.items() if part in raw}

    def decode(self, raw: Mapping[str, Raw], start: int, stop: int) -> Rows:
        q = raw[self.values].rows(start, stop)
        scales = _scales(raw, start, stop)
        turned = self.highest if q.dtype == self.signed else 0
        found = {self.values: q.data.view(stop - start, -1) ^ turned, **scales}
        if "zero" in raw:
            found["zero"] = pack_bits(raw["zero"].tensor()[start:stop], self.format.bits)
        if "offset" in raw:
            found["offset"] = raw["offset"].rows(start, stop).tensor().float() + self.format.middle() * scales["scale"]
        return found


class OffsetCodec(BlocksCodec):
    """With an offset m + 8·d: x · (q·d)ᵀ + (sums of x over blocks) · mᵀ, both without a zero point."""

    def lower_matmul(self, e: Emitter, node: fx.Node) -> None:
        x, offset = node.args[0], self._offset(node)
        if offset is None:
            super().lower_matmul(e, node)
            return
        value, weight = e.value(x), e.decoded(node)
        scaled = e.times(f"{node.name}_scaled", value, weight, e.width(node))
        sums = e.op("reduce_sum", f"{node.name}_sums", x=e.in_blocks(node, value, e.width(offset)), axes=[-1])
        lowest = e.times(f"{node.name}_lowest", sums, e.value(offset), e.width(node))
        e.values[node] = e.op("add", e.name(node), x=scaled, y=lowest)

    def lower_embedding(self, e: Emitter, node: fx.Node) -> None:
        offset = self._offset(node)
        if offset is None:
            super().lower_embedding(e, node)
            return
        scaled = self.rows(e, node, f"{node.name}_scaled")
        ids = e.inputs["inputIds"]
        lowest = e.op("gather", f"{node.name}_lowest", x=e.value(offset), indices=ids, axis=0)
        column = e.op("expand_dims", f"{node.name}_column", x=lowest, axes=[-1])
        total = e.op("add", f"{node.name}_sum", x=e.in_blocks(node, scaled, e.width(offset)), y=column)
        e.values[node] = e.op("reshape", e.name(node), x=total, shape=[1, e.length, e.width(node)])

    def _offset(self, node: fx.Node) -> fx.Node | None:
        return dict(zip(self.format.part_names(), node.args[1:])).get("offset")  # type: ignore[return-value]


class AffineCodec(OffsetCodec):
    """The same where the offset is what the middle level stands for: values in two's complement, and the offset as it is."""

    def blobs(self, parts: Mapping[str, PartSpec]) -> Blobs:
        values = (BlobType[self.signed.upper()], self.format.shape_of(parts))
        return {self.values: values, **_scale_blobs(parts), "offset": (BlobType.FLOAT16, parts["offset"].shape)}

    def encode(self, name: str, rows: Rows) -> Rows:
        offset = _half(rows["offset"], f"{name}: an offset")
        return {self.values: rows[self.values] ^ self.highest, **_stored_scales(name, rows), "offset": offset}

    def holds(self, stored: Mapping[str, Raw]) -> bool:
        return "data" in stored and stored["data"].dtype == self.signed and "offset" not in stored

    def decode(self, raw: Mapping[str, Raw], start: int, stop: int) -> Rows:
        values = raw[self.values].rows(start, stop).data.view(stop - start, -1) ^ self.highest
        offset = raw["offset"].rows(start, stop).tensor().float()
        return {self.values: values, **_scales(raw, start, stop), "offset": offset}


class PaletteCodec(Codec):
    """Indices and their tables; a row of the parts is a group of rows that share one."""

    format: type[Tables]
    operator = "constexpr_lut_to_dense"

    def __init__(self, form: type[Tables]) -> None:
        self.format, self.entries, self.bits = form, form.entries(), form.bits
        self.indices = form.part_names()[0]
        self.parameters = {"indices": self.indices, "lut": "lut"}

    def blobs(self, parts: Mapping[str, PartSpec]) -> Blobs:
        groups, *blocks, _ = parts["lut"].shape
        tables = (groups, *(blocks or [1]), self.entries, 1)
        indices = (BlobType[f"UINT{self.bits}"], self.format.shape_of(parts))
        return {self.indices: indices, "lut": (BlobType.FLOAT16, tables)}

    def encode(self, name: str, rows: Rows) -> Rows:
        return {self.indices: rows[self.indices], "lut": _half(rows["lut"], f"{name}: a value")}

    def holds(self, stored: Mapping[str, Raw]) -> bool:
        known = {"indices", "lut"} <= stored.keys() and "scale" not in stored
        return known and stored["indices"].dtype == f"uint{self.bits}"

    def layout(self, raw: Mapping[str, Raw]) -> Layout:
        (rows, columns), (groups, blocks, *_) = raw[self.indices].shape, raw["lut"].shape
        return self.format.layout((rows, columns), rows // groups, columns // blocks if blocks > 1 else 0)

    def decode(self, raw: Mapping[str, Raw], start: int, stop: int) -> Rows:
        (rows, _), (groups, blocks, *_) = raw[self.indices].shape, raw["lut"].shape
        group = rows // groups
        packed = raw[self.indices].rows(start * group, stop * group).data.view(stop - start, group, -1)
        tables = raw["lut"].rows(start, stop).tensor().float().view(stop - start, blocks, -1)
        return {self.indices: packed, "lut": tables if blocks > 1 else tables[:, 0]}


class TableCodec(Codec):
    """Blocks of numbers of the values in a table that the format has, in units of the scale."""

    format: type[Blocks]
    ios = CHAINS

    def __init__(self, form: type[Blocks]) -> None:
        self.format, self.values = form, form.part_names()[0]
        self.levels = form.levels if issubclass(form, Levels) else tuple(range(-form.middle(), form.middle()))
        self.table = f"const.levels_{form.name}"
        self.parameters = {"indices": self.values, **_SCALES, **({"offset": "zero"} if form.has_zeros() else {})}

    def blobs(self, parts: Mapping[str, PartSpec]) -> Blobs:
        numbers = (BlobType[f"UINT{self.format.bits}"], self.format.shape_of(parts))
        zeros = {"zero": (BlobType.INT8, parts["scale"].shape)} if "zero" in parts else {}
        return {self.values: numbers, **_scale_blobs(parts), **zeros}

    def bytes_of(self, layout: Layout) -> int:
        wide = {"zero": Values(layout["zero"].shape, 8)} if "zero" in layout else {}
        return super().bytes_of({**layout, **wide})

    def constants(self) -> dict[str, np.ndarray]:
        import numpy

        return {self.table: numpy.array(self.levels, numpy.int8).reshape(1, 1, -1, 1)}

    def decoded(self, e: Emitter, name: str, held: Mapping[str, Var]) -> Var:
        given = {**held, "lut": e.constant(self.table, self.constants()[self.table])}
        numbers = {parameter: given.pop(parameter) for parameter in ("indices", "lut")}
        data = e.op("constexpr_lut_to_dense", f"{name}_levels", **numbers)
        return e.op(self.operator, name, data=data, **_with_scales(e, name, given))

    def encode(self, name: str, rows: Rows) -> Rows:
        stored = {self.values: rows[self.values], **_stored_scales(name, rows)}
        if "zero" in rows:
            zeros = unpack_bits(rows["zero"], self.format.bits, rows["scale"].shape[1])
            stored["zero"] = (zeros.short() - self.format.middle()).char()
        return stored

    def holds(self, stored: Mapping[str, Raw]) -> bool:
        if not {"indices", "lut", "scale"} <= stored.keys() or stored["indices"].dtype != f"uint{self.format.bits}":
            return False
        lut = stored["lut"]
        return lut.dtype == "int8" and lut.tensor().flatten().tolist() == list(self.levels)

    def layout(self, raw: Mapping[str, Raw]) -> Layout:
        shape = raw[self.values].shape
        return self.format.layout(shape, shape[1] // raw["scale"].shape[1], "zero" not in raw, "row_scale" in raw)

    def decode(self, raw: Mapping[str, Raw], start: int, stop: int) -> Rows:
        numbers = raw[self.values].rows(start, stop).data.view(stop - start, -1)
        found = {self.values: numbers, **_scales(raw, start, stop)}
        if "zero" in raw:
            zeros = raw["zero"].rows(start, stop).tensor().short() + self.format.middle()
            low, high = int(zeros.min()), int(zeros.max())
            if low < 0 or high >= 2**self.format.bits:
                raise InputError(f"a zero point of {self.format.name} is {low if low < 0 else high}; compile it again")
            found["zero"] = pack_bits(zeros, self.format.bits)
        return found


CODECS: dict[str, Codec] = {
    "int4": OffsetCodec(Int4),
    "int8": OffsetCodec(Int8),
    "affine4": AffineCodec(Affine4),
    **{form.name: TableCodec(form) for form in (Int2, Int3, Int6, Levels3, Levels4)},
    **{form.name: PaletteCodec(form) for form in (Palette, Palette2, Palette3, Palette6)},
}


def find_codec(stored: Mapping[str, Raw], constant: Callable[[str], Raw]) -> tuple[Codec, dict[str, Raw]] | None:
    """The codec of a weight, and what its parts are: of several that might be, the one that needs the most of what there is.

    stored: the parameters of its operator; constant: a part that is a constant of its own, or InputError
    """
    found: list[tuple[int, Codec, dict[str, Raw]]] = []
    for codec in (codec for codec in CODECS.values() if codec.holds(stored)):
        form = codec.format
        raw = {part: stored[parameter] for parameter, part in codec.parameters.items() if parameter in stored}
        for part in set(form.part_names()) - set(codec.parameters.values()):
            with contextlib.suppress(InputError):
                raw[part] = constant(part)
        needed = set(form.part_names()) - form.optional()
        if needed <= raw.keys():
            found.append((len(needed), codec, raw))
    return max(found, key=lambda one: one[0])[1:] if found else None


def held(parts: Mapping[str, P], ios: int) -> dict[str, P]:
    """The parts of a weight that a package for a release holds."""
    left_out = {"row_offset"} if ios >= CHAINS else HINTS
    return {part: one for part, one in parts.items() if part not in left_out}


def is_chain(parts: Mapping[str, PartSpec]) -> bool:
    """Whether a weight takes operators one behind the other."""
    form = format_of(parts)
    return form is not None and ("row_scale" in parts or isinstance(CODECS[form.name], TableCodec))


def _scale_blobs(parts: Mapping[str, PartSpec]) -> Blobs:
    if "row_scale" not in parts:
        return {"scale": (BlobType.FLOAT16, parts["scale"].shape)}
    return {
        "scale": (BlobType.INT8, parts["scale"].shape),
        "row_scale": (BlobType.FLOAT16, parts["row_scale"].shape),
    }


def _stored_scales(name: str, rows: Rows) -> Rows:
    if "row_scale" not in rows:
        return {"scale": _half(rows["scale"], f"{name}: a scale")}
    by_row = _half(rows["row_scale"], f"{name}: the scale of a row")
    return {"scale": scale_codes(rows["scale"], rows["row_scale"]).char(), "row_scale": by_row}


def _scales(raw: Mapping[str, Raw], start: int, stop: int) -> Rows:
    """The inverse of `_stored_scales`."""
    scale = raw["scale"].rows(start, stop).tensor().float()
    if "row_scale" not in raw:
        return {"scale": scale}
    by_row = raw["row_scale"].rows(start, stop).tensor().float()
    return {"scale": scale * by_row, "row_scale": by_row}


def _lowest(name: str, offset: torch.Tensor, scale: torch.Tensor, middle: int) -> torch.Tensor:
    """The value of q = 0 in each block. Raises InputError unless float16 has it, and the canonical offset comes back."""
    half = _half(offset - middle * scale, f"{name}: a block's smallest value", InputError)
    if not bool((half.float() + middle * scale == offset).all()):
        raise InputError(
            f"{name}: offset - {middle} · scale is not exact in float32; compile from the float checkpoint"
        )
    return half


def _half(values: torch.Tensor, what: str, error: type[CompilerBug | InputError] = CompilerBug) -> torch.Tensor:
    half = values.half()
    wrong = half.float() != values
    if bool(wrong.any()):
        raise error(f"{what} is {float(values[wrong][0])!r}, which float16 does not have")
    return half

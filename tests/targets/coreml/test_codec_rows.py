"""Each codec alone: what its blobs stand for by Core ML's rules, in arithmetic of the test's own, and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pocketphi.graph.errors import InputError
from pocketphi.graph.formats import FORMATS, Affine, Blocks, PartSpec, specs
from pocketphi.graph.packing import pack_bits
from pocketphi.targets.coreml.codecs import CODECS, Codec, TableCodec, find_codec
from pocketphi.targets.coreml.raw import Raw

ROWS, COLUMNS, BLOCK = 16, 96, 32  # three blocks: a row of nibbles ends in the middle of a byte
BLOCKS = [
    (name, extra)
    for name, codec in CODECS.items()
    if issubclass(codec.format, Blocks)
    for extra in (
        ["offset"]
        if issubclass(codec.format, Affine)
        else ["", *(["zero"] if codec.format.has_zeros() else []), *(["offset"] if name == "int4" else [])]
    )
]


def weight(name: str, extra: str, block: int = 0) -> Any:
    """Random parts. Zero points and values go from the smallest to the largest that there is.

    block: of columns with a table of their own; 0: all of them
    """
    form: Any = FORMATS[name]
    draw = np.random.default_rng(len(name + extra))
    if not issubclass(form, Blocks):
        parts = specs(form.layout((ROWS, COLUMNS), 4, block))
        indices, lut = (parts[part].shape for part in form.part_names())
        return form(torch.from_numpy(draw.integers(0, 256, indices, np.uint8)), torch.randn(lut).half().float())
    numbers = torch.from_numpy(draw.integers(0, 2**form.bits, (ROWS, COLUMNS)))
    scale = torch.from_numpy(draw.choice([-0.5, 0.25, 1.75], (ROWS, COLUMNS // BLOCK))).float()
    more: dict[str, torch.Tensor] = {}
    if extra == "zero":
        ends = torch.tensor([0, 2**form.bits - 1, 2 ** (form.bits - 1)])
        more["zero"] = pack_bits(ends.repeat(ROWS, 1), form.bits)
    if extra == "offset":
        more["offset"] = torch.from_numpy(draw.integers(-8, 8, scale.shape)).float() / 4
    return form(pack_bits(numbers, form.bits), scale, **more)


def stored(codec: Codec, parts: dict[str, torch.Tensor]) -> dict[str, Raw]:
    """As the file holds it: written in two pieces of rows of the parts."""
    rows = next(iter(parts.values())).shape[0]
    pieces = [codec.encode("w", {n: t[a:b] for n, t in parts.items()}) for a, b in ((0, rows // 2), (rows // 2, rows))]
    layout = codec.blobs(specs_of(parts))
    assert pieces[0].keys() == layout.keys()
    kinds = {"FLOAT16": "fp16"}
    return {
        part: Raw(
            kinds.get(kind.name, kind.name.lower()),
            shape,
            torch.cat([piece[part].contiguous().view(torch.uint8).flatten() for piece in pieces]),
        )
        for part, (kind, shape) in layout.items()
    }


def specs_of(parts: dict[str, torch.Tensor]) -> Any:
    return {name: PartSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in parts.items()}


def by_the_rules(codec: Any, raw: dict[str, Raw]) -> torch.Tensor:
    """`constexpr_lut_to_dense` and `constexpr_blockwise_shift_scale`: table[index], then (data - offset) · scale."""
    values = raw[codec.values].tensor().float()
    if isinstance(codec, TableCodec):
        (table,) = codec.constants().values()
        values = torch.from_numpy(table.flatten()).float()[values.long()]
    zero = raw["zero"].tensor().float() if "zero" in raw else torch.zeros(ROWS, COLUMNS // BLOCK)
    scaled = (values.view(ROWS, -1, BLOCK) - zero[..., None]) * raw["scale"].tensor().float()[..., None]
    if "offset" in raw:  # added by the graph
        scaled = scaled + raw["offset"].tensor().float()[..., None]
    return scaled.view(ROWS, COLUMNS)


@pytest.mark.parametrize(("name", "extra"), BLOCKS)
def test_blocks(name: str, extra: str) -> None:
    codec, made = CODECS[name], weight(name, extra)
    raw = stored(codec, made.tensors())
    assert torch.equal(by_the_rules(codec, raw), made.dequantize())
    check_the_way_back(codec, raw, made.tensors())


@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("name", [name for name, codec in CODECS.items() if not issubclass(codec.format, Blocks)])
def test_palettes(name: str, block: int) -> None:
    codec: Any = CODECS[name]
    made = weight(name, "", block)
    raw = stored(codec, made.tensors())
    index = raw[codec.indices].tensor().long()
    width = block or COLUMNS
    assert raw["lut"].shape == (ROWS // 4, COLUMNS // width, codec.entries, 1)
    tables = raw["lut"].tensor().float()[..., 0].repeat_interleave(4, 0).repeat_interleave(width, 1)
    assert torch.equal(tables.gather(2, index[..., None])[..., 0], made.dequantize())
    check_the_way_back(codec, raw, made.tensors())


def check_the_way_back(codec: Codec, raw: dict[str, Raw], parts: dict[str, torch.Tensor]) -> None:
    assert codec.bytes_of(codec.layout(raw)) == sum(one.nbytes for one in raw.values())
    told = {parameter: raw[part] for parameter, part in codec.parameters.items() if part in raw}
    for table in codec.constants().values():
        told["lut"] = Raw("int8", table.shape, torch.from_numpy(table.view(np.uint8).ravel()))

    def constant(part: str) -> Raw:
        if part in raw:
            return raw[part]
        raise InputError(part)

    assert find_codec(told, constant) == (codec, raw)
    for parameter in codec.parameters.keys() & {"data", "indices", "lut"}:
        assert not codec.holds({name: one for name, one in told.items() if name != parameter})
    assert specs(codec.layout(raw)) == specs_of(parts)
    rows = next(iter(parts.values())).shape[0]
    back = codec.decode(raw, rows // 4, rows)
    assert back.keys() == parts.keys()
    for part, tensor in parts.items():
        assert torch.equal(back[part], tensor[rows // 4 :]), part

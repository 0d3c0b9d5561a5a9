"""Kernels compiled for this host, one function at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from pocketphi.graph.cpu import cpu_flags
from pocketphi.graph.formats import FORMATS, Affine, Blocks, Int4, PartSpec
from pocketphi.graph.formats.blocks import row_scales, scale_codes
from pocketphi.targets.tvm_arm.interleave import Interleaved
from pocketphi.targets.tvm_arm.isa import ISAS, LINUX_NAMES, Isa
from pocketphi.targets.tvm_arm.toolchain import host_arch

WIDTHS = [
    (form, zero)
    for form in FORMATS.values()
    if issubclass(form, Blocks) and form is not Int4
    for zero in (False, True)[: 1 + form.has_zeros()]
]
"""Formats in blocks beside int4, without zero points and with them where they may have some."""


def here() -> list[Any]:
    """Parameters: every instruction set of this host's architecture, skipped where its CPU lacks a feature."""
    flags = cpu_flags()
    made = []
    for isa in ISAS.values():
        if isa.arch == host_arch():
            missing = [name for name in isa.features if LINUX_NAMES.get(name, name) not in flags]
            skip = pytest.mark.skipif(bool(missing), reason=f"this CPU has no {missing}")
            made.append(pytest.param(isa, id=isa.name, marks=skip))
    return made


def in_turn(*factors: Sequence[Any]) -> list[Any]:
    """Parameters: every combination of values, with one of the sets that this CPU has: each meets each."""
    sets = [one for one in here() if not one.marks[0].args[0]] or here()
    places = itertools.product(*(range(len(values)) for values in factors))
    chosen = [([values[i] for values, i in zip(factors, at, strict=True)], sets[sum(at) % len(sets)]) for at in places]
    return [
        pytest.param(*values, *isa.values, id="-".join(map(str, [*values, isa.id])), marks=isa.marks)
        for values, isa in chosen
    ]


def run(isa: Isa, function: Any, *arguments: torch.Tensor) -> list[torch.Tensor]:
    """Compile a PrimFunc, call it, and return all of its arguments as they are afterwards."""
    import tvm

    from pocketphi.targets.tvm_arm.objects import passes

    with passes():
        library = tvm.compile(tvm.IRModule({"f": function}), target=tvm.target.Target(isa.target()))
    held = [tvm.runtime.tensor(argument.contiguous().numpy()) for argument in arguments]
    library["f"](*held)
    return [torch.from_numpy(tensor.numpy()) for tensor in held]


def random_weight(
    rows: int,
    columns: int,
    block: int,
    zero: bool = False,
    offset: bool = False,
    form: type[Blocks] = Int4,
    by_row: bool = False,
) -> Blocks:
    """A matrix of random values, with scales of both signs, a block of zeros and an outlier. by_row: with row scales."""
    generator = torch.Generator().manual_seed(0)
    most = 1 << form.bits
    blocks = columns // block
    scale = (torch.rand(rows, blocks, generator=generator) * 0.1 + 0.01) * torch.tensor([1.0, -1.0]).repeat(blocks)[
        :blocks
    ]
    scale[0, 0], scale[-1, -1] = 0, 40.0
    zeros = torch.randint(0, most, (rows, blocks), generator=generator, dtype=torch.uint8) if zero else None
    values = torch.randint(0, most, (rows, columns), generator=generator, dtype=torch.uint8)
    row_scale = row_scales(scale.abs().amax(1, keepdim=True)) if by_row else None
    scale = scale.half().float() if row_scale is None else scale_codes(scale, row_scale) * row_scale
    offsets = torch.randn(rows, blocks, generator=generator)
    if issubclass(form, Affine):
        unit = row_scales(offsets.abs().amax(1, keepdim=True)) if by_row else None
        offsets = offsets.half().float() if unit is None else scale_codes(offsets, unit) * unit
        return form.pack(values, scale, None, row_scale, offsets, unit)
    made = form.pack(values, scale, zeros, row_scale)
    return replace(made, offset=offsets) if offset else made


def placed(weight: Blocks, isa: Isa) -> Interleaved:
    """How a weight lies in a file."""
    return Interleaved.of({name: PartSpec(tuple(t.shape), t.dtype) for name, t in weight.tensors().items()}, isa)


def check_chunks(whole: Any, chunked: Any) -> None:
    """Two kernels with caches of their own and the same tables: a prompt in chunks leaves and gives the same as at once."""
    qkv = whole.tokens(40)
    expected = whole.run(qkv)
    pieces = torch.cat([chunked.run(piece) for piece in qkv.split([3, 2, 11, 1, 5, 6, 12])])
    assert all((a.numpy() == b.numpy()).all() for a, b in zip(whole.cache, chunked.cache))
    assert torch.equal(pieces, expected)

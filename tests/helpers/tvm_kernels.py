"""Kernels compiled for this host, one function at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pocketphi.graph.formats import Int4
from pocketphi.targets.tvm_arm.isa import ISAS, LINUX_NAMES, Isa
from pocketphi.targets.tvm_arm.platform import cpu_flags
from pocketphi.targets.tvm_arm.toolchain import host_arch


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


def run(isa: Isa, function: Any, *arguments: torch.Tensor) -> list[torch.Tensor]:
    """Compile a PrimFunc, call it, and return all of its arguments as they are afterwards."""
    import tvm

    library = tvm.compile(tvm.IRModule({"f": function}), target=tvm.target.Target(isa.target()))
    held = [tvm.runtime.tensor(argument.contiguous().numpy()) for argument in arguments]
    library["f"](*held)
    return [torch.from_numpy(tensor.numpy()) for tensor in held]


def random_int4(rows: int, columns: int, block: int, zero: bool = False, offset: bool = False, seed: int = 0) -> Int4:
    """A matrix of random values, with scales of both signs, a block of zeros and an outlier."""
    generator = torch.Generator().manual_seed(seed)
    blocks = columns // block
    scale = (torch.rand(rows, blocks, generator=generator) * 0.1 + 0.01) * torch.tensor([1.0, -1.0]).repeat(blocks)[
        :blocks
    ]
    scale[0, 0], scale[-1, -1] = 0, 40.0
    zeros = torch.randint(0, 16, (rows, blocks), generator=generator, dtype=torch.uint8) if zero else None
    made = Int4.pack(
        torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8), scale.half().float(), zeros
    )
    offsets = torch.randn(rows, blocks, generator=generator) if offset else None
    return Int4(made.q, made.scale, made.zero, offsets)

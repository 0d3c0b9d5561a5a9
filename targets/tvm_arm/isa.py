"""Instruction sets that kernels are made for. Plain data: it is read without TVM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pocketphi.graph.errors import InputError


@dataclass(frozen=True)
class Isa:
    """One instruction set.

    name:       what the command line and model.json call it
    lanes:      rows of a matrix in a vector of int32 or float32
    features:   what a CPU must have, by the names of Linux' /proc/cpuinfo; checked when a bundle is opened
    attributes: LLVM's names for them
    pairs:      its product takes 8 columns of two rows, of weights and of activations: both are stored in that order
    tile_rows:  activations that a prefill multiplies with a vector of weights while it is in registers
    registers:  vector registers
    """

    name: str
    arch: str
    lanes: int
    features: tuple[str, ...]
    attributes: tuple[str, ...]
    tile_rows: int
    registers: int = 32
    pairs: bool = False

    def target(self, system: str = "linux", cpu: str | None = None) -> dict[str, Any]:
        """The target as TVM takes it. cpu: LLVM's name, whose pipeline instructions are scheduled for."""
        triple = TRIPLES[system, self.arch]
        made: dict[str, Any] = {"kind": "llvm", "mtriple": triple, "mattr": list(self.attributes)}
        return {**made, "mcpu": cpu} if cpu else made


TRIPLES = {
    ("linux", "aarch64"): "aarch64-linux-gnu",
    ("linux", "x86_64"): "x86_64-linux-gnu",
    ("android", "aarch64"): "aarch64-linux-android29",
    ("ios", "aarch64"): "arm64-apple-ios16.0",
}

_VNNI = ("avx512f", "avx512bw", "avx512dq", "avx512vl")

ISAS = {
    isa.name: isa
    for isa in (
        Isa("neon", "aarch64", 4, ("asimd",), ("+neon",), tile_rows=2),
        Isa("dotprod", "aarch64", 4, ("asimd", "asimddp"), ("+neon", "+dotprod"), tile_rows=4),
        Isa("i8mm", "aarch64", 4, ("asimd", "asimddp", "i8mm"), ("+neon", "+dotprod", "+i8mm"), 4, pairs=True),
        Isa("avx2", "x86_64", 8, ("avx2", "fma", "f16c"), ("+avx2", "+fma", "+f16c"), tile_rows=4, registers=16),
        Isa(
            "avx512vnni",
            "x86_64",
            16,
            ("avx2", "fma", "f16c", *_VNNI, "avx512_vnni"),
            ("+avx2", "+fma", "+f16c", *(f"+{name}" for name in _VNNI), "+avx512vnni", "+evex512"),
            tile_rows=8,
        ),
    )
}


def find_isa(name: str) -> Isa:
    """Raises InputError naming those that there are."""
    if name not in ISAS:
        raise InputError(f"instruction set {name!r}: expected one of {', '.join(ISAS)}")
    return ISAS[name]

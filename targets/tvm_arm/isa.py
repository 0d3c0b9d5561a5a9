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
    features:   what a CPU must have, by LLVM's names; checked when a bundle is opened
    pairs:      its product takes 8 columns of two rows, of weights and of activations: both are stored in that order
    signed:     weights are stored as q - middle and multiplied at the upper end of a byte (16·(q - 8) of int4), where one
                operation unpacks them from either nibble
    sum_bits:   of the sums that its product adds to: products of 8 bits go into 16 only where both factors are signed
    tile_rows:  activations that a prefill multiplies with a vector of weights while it is in registers
    together:   of a tile's rows, whose activations lie together so that one load serves them; each such group goes through
                all of a step's weights, which are kept in registers
    tile_units: vectors of rows of a matrix that a tile works on at once: a stream of weights from memory for each
    decode_units: vectors of rows that a decode works on at once, to hide the products' latency and that of memory
    decode_unroll: steps of columns in a decode's loop body, as far as the registers allow: fewer instructions for addresses
    registers:  vector registers
    """

    name: str
    arch: str
    lanes: int
    features: tuple[str, ...]
    tile_rows: int
    together: int = 1
    registers: int = 32
    pairs: bool = False
    signed: bool = False
    sum_bits: int = 32
    tile_units: int = 1
    decode_units: int = 1
    decode_unroll: int = 1

    def is_signed(self, bits: int) -> bool:
        """Whether weights of so many bits are stored signed."""
        return self.signed or (bits == 8 and self.sum_bits == 16)

    def target(self, system: str = "linux", cpu: str | None = None) -> dict[str, Any]:
        """The target as TVM takes it. cpu: LLVM's name, whose pipeline instructions are scheduled for."""
        triple = TRIPLES[system, self.arch]
        made: dict[str, Any] = {"kind": "llvm", "mtriple": triple, "mattr": [f"+{name}" for name in self.features]}
        return {**made, "mcpu": cpu} if cpu else made


TRIPLES = {
    ("linux", "aarch64"): "aarch64-linux-gnu",
    ("linux", "x86_64"): "x86_64-linux-gnu",
    ("android", "aarch64"): "aarch64-linux-android29",
    ("ios", "aarch64"): "arm64-apple-ios16.0",
}

_I8MM = ("neon", "dotprod", "i8mm")
_AVX2 = ("avx2", "fma", "f16c")
_VNNI = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni")

ISAS = {
    isa.name: isa
    for isa in (
        Isa("neon", "aarch64", 4, ("neon",), tile_rows=2, sum_bits=16, decode_units=2),
        Isa("dotprod", "aarch64", 4, ("neon", "dotprod"), 16, 4, signed=True, decode_units=2, decode_unroll=2),
        Isa("i8mm", "aarch64", 4, _I8MM, 16, 4, pairs=True, signed=True, decode_unroll=4),
        Isa("avx2", "x86_64", 8, _AVX2, tile_rows=2, registers=16, sum_bits=16, decode_units=4),
        Isa("avx512vnni", "x86_64", 16, _VNNI, 8, 2, tile_units=2, decode_units=4),
    )
}
"""In each architecture from the narrowest to the widest."""

LINUX_NAMES = {"neon": "asimd", "dotprod": "asimddp", "avx512vnni": "avx512_vnni"}
"""Where /proc/cpuinfo calls a feature something else."""


def find_isa(name: str) -> Isa:
    """Raises InputError naming those that there are."""
    if name not in ISAS:
        raise InputError(f"instruction set {name!r}: expected one of {', '.join(ISAS)}")
    return ISAS[name]

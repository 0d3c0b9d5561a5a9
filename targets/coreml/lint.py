"""What each compute unit of a phone makes of a package: is it fit for it, and which limit does it break?

From Apple's guides and reported limits; nothing here was measured on a device. Sources: the guides of coremltools on
quantization and palettization (int4 blocks are for the GPU, palettes and one scale a row for the Neural Engine) and its issues
#2593 (weight file), #2631 (state sizes), #2600 (flexible shapes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

ENGINE_WEIGHT_LIMIT = 2**31
"""Bytes of a weight file that the Neural Engine takes: "exceeds the maximum (2147483648 bytes)"."""
ENGINE_DOUBTFUL = 10**9
"""Above this, packages have been refused on phones with iOS 18, as the makers of Anemll report."""
ENGINE_ALIGN = 32
GPU, ENGINE, CPU = "GPU", "Neural Engine", "CPU"
_OPTIONS = {GPU: "cpuAndGPU", ENGINE: "cpuAndNeuralEngine", CPU: "cpuOnly"}
"""The member of `MLComputeUnits` that chooses a unit."""


@dataclass(frozen=True)
class Facts:
    """What a package is made of.

    weight_bytes:  size of weight.bin
    states:        name → shape, float16
    blocks:        sizes of blocks along K → how many matrices; those with one scale a row are not among them
    palettes:      matrices that are indices into lookup tables
    chains:        matrices that are decoded by two operators, one behind the other
    dense_bytes:   what all compressed matrices take as float16
    float_weights: matrices left in float16
    float32_norms: norms that compute in float32
    flexible:      inputs without a fixed size
    """

    weight_bytes: int
    states: dict[str, tuple[int, ...]]
    blocks: dict[int, int]
    palettes: int
    chains: int
    dense_bytes: int
    float_weights: list[str]
    float32_norms: int
    flexible: bool

    @property
    def state_bytes(self) -> int:
        return sum(2 * math.prod(shape) for shape in self.states.values())


@dataclass(frozen=True)
class Unit:
    """The verdict for one compute unit.

    limits:   what the unit does not take; what breaks one runs elsewhere, without a word
    slow:     what costs speed or memory on it
    reported: trouble that others had, or nobody yet, and that cannot be looked for here
    """

    name: str
    limits: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    reported: list[str] = field(default_factory=list)

    @property
    def fit(self) -> bool:
        return not self.limits

    def line(self, best: bool = False) -> str:
        """The verdict in one line."""
        fit = f"fit{', the one to choose' if best else ''}" if self.fit else "not fit"
        slow = [f"slow: {text}" for text in self.slow]
        remarks = "; ".join([*self.limits, *slow, *(f"reported: {text}" for text in self.reported)])
        return f"{self.name} ({_OPTIONS[self.name]}): {fit}{f': {remarks}' if remarks else ''}"

    def recorded(self) -> dict[str, Any]:
        return {"fit": self.fit, "limits": self.limits, "slow": self.slow, "reported": self.reported}


def lint(facts: Facts) -> list[Unit]:
    """A verdict for each unit; the first is the one to choose."""
    engine, gpu, cpu = _engine(facts), _gpu(facts), _cpu(facts)
    return [engine, gpu, cpu] if engine.fit else [gpu, engine, cpu]


def _gpu(facts: Facts) -> Unit:
    slow = _float_matrices(facts)
    if facts.palettes:
        slow.append(f"{facts.palettes} matrices are palettes, which it gains less from than from blocks")
    return Unit(GPU, slow=slow, reported=_chains(facts))


def _engine(facts: Facts) -> Unit:
    limits, reported = [], _chains(facts)
    if facts.weight_bytes > ENGINE_WEIGHT_LIMIT:
        limits.append(f"the weight file has {facts.weight_bytes:,} bytes, its limit is {ENGINE_WEIGHT_LIMIT:,}")
    elif facts.weight_bytes > ENGINE_DOUBTFUL:
        reported.append(f"weight files of more than {ENGINE_DOUBTFUL / 1e9:.0f} GB were refused on iOS 18")
    if facts.blocks:
        count, sizes = sum(facts.blocks.values()), ", ".join(map(str, sorted(facts.blocks)))
        limits.append(f"{count} matrices have a scale for each block of {sizes}, it wants one a row or a palette")
    odd = {name: shape for name, shape in facts.states.items() if shape[-1] % ENGINE_ALIGN or shape[-2] % ENGINE_ALIGN}
    if odd:
        name, shape = next(iter(odd.items()))
        limits.append(f"state {name} {list(shape)} has last sizes that are no multiples of {ENGINE_ALIGN}")
    if facts.float32_norms:
        limits.append(f"{facts.float32_norms} norms compute in float32, which it has not")
    if facts.flexible:
        limits.append("inputs have flexible shapes, which run on the CPU")
    if facts.states:
        reported.append("a cache written at a position known at run time only has crashed there")
    return Unit(ENGINE, limits, _float_matrices(facts), reported)


def _cpu(facts: Facts) -> Unit:
    dense = f"weights are decompressed to {facts.dense_bytes / 1e9:,.2f} GB of float16 when loaded, or at each call"
    return Unit(CPU, slow=[*_float_matrices(facts), *([dense] if facts.dense_bytes else [])])


def _chains(facts: Facts) -> list[str]:
    count = facts.chains
    told = f"{count} matrices are decoded by operators one behind the other, of whose speed nobody has told"
    return [told] if count else []


def _float_matrices(facts: Facts) -> list[str]:
    names = facts.float_weights
    return [f"{len(names)} matrices are float16, four times the size of int4 (first {names[0]})"] if names else []

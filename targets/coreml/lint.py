"""What each compute unit of a phone makes of a package, and which one it is fit for: from Apple's guides and reported limits.

Nothing here was measured on a device. Sources: the guide of coremltools on quantization (per-block int4 is for the GPU,
per-channel or palettes for the Neural Engine) and its issues #2593 (weight file), #2631 (state sizes), #2600 (flexible shapes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ENGINE_WEIGHT_LIMIT = 2**31
"""Bytes of a weight file that the Neural Engine takes: "exceeds the maximum (2147483648 bytes)"."""
ENGINE_ALIGN = 32
GPU, ENGINE, CPU = "GPU", "Neural Engine", "CPU"


@dataclass(frozen=True)
class Facts:
    """What a package is made of.

    weight_bytes:  size of weight.bin
    states:        name → shape, float16
    blocks:        sizes of int4 blocks along K → how many matrices; those with one scale a row are not among them
    float_weights: matrices left in float16
    float32_norms: norms that compute in float32
    flexible:      inputs without a fixed size
    """

    weight_bytes: int
    states: dict[str, tuple[int, ...]]
    blocks: dict[int, int]
    float_weights: list[str]
    float32_norms: int
    flexible: bool

    @property
    def state_bytes(self) -> int:
        return sum(2 * math.prod(shape) for shape in self.states.values())


def lint(facts: Facts) -> dict[str, list[str]]:
    """Compute unit → remarks; the first unit is the one that the package is fit for."""
    found = {GPU: _gpu(facts), ENGINE: _engine(facts), CPU: _cpu(facts)}
    # the engine is named only where nothing speaks against it: what it refuses runs on the CPU without a word
    best = ENGINE if not found[ENGINE] else GPU
    return {unit: found[unit] for unit in sorted(found, key=lambda unit: unit != best)}


def verdict(remarks: dict[str, list[str]]) -> str:
    """One line: the unit to choose, and what speaks against the Neural Engine."""
    best = next(iter(remarks))
    units = {GPU: "MLComputeUnits.cpuAndGPU", ENGINE: "MLComputeUnits.cpuAndNeuralEngine"}
    against = f"; not for the Neural Engine: {'; '.join(remarks[ENGINE])}" if remarks[ENGINE] else ""
    return f"Core ML: fit for the {best} ({units[best]}){against}"


def _gpu(facts: Facts) -> list[str]:
    found = []
    if facts.float_weights:
        names = facts.float_weights
        found.append(f"{len(names)} matrices are float16, four times the size of int4 (first {names[0]})")
    return found


def _engine(facts: Facts) -> list[str]:
    found = []
    if facts.weight_bytes > ENGINE_WEIGHT_LIMIT:
        found.append(f"the weight file has {facts.weight_bytes:,} bytes, its limit is {ENGINE_WEIGHT_LIMIT:,}")
    if facts.blocks:
        count, sizes = sum(facts.blocks.values()), ", ".join(map(str, sorted(facts.blocks)))
        found.append(f"{count} matrices have int4 blocks of {sizes}, it wants one scale a row or a palette")
    odd = {name: shape for name, shape in facts.states.items() if shape[-1] % ENGINE_ALIGN or shape[-2] % ENGINE_ALIGN}
    if odd:
        name, shape = next(iter(odd.items()))
        found.append(f"state {name} {list(shape)} has last sizes that are no multiples of {ENGINE_ALIGN}")
    if facts.float32_norms:
        found.append(f"{facts.float32_norms} norms compute in float32, which it has not")
    if facts.flexible:
        found.append("inputs have flexible shapes, which run on the CPU")
    if facts.states:
        found.append("the cache is written at a position known at run time only, which has crashed there")
    return found


def _cpu(facts: Facts) -> list[str]:
    return ["int4 weights are decompressed to float16 when the model is loaded or at each call"] if facts.blocks else []

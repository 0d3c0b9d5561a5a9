"""The hot loop of a kernel's assembly, as LLVM prints it: what the cost model reads, and what tests look at."""

from __future__ import annotations

import re

from pocketphi.graph.errors import CompilerBug
from pocketphi.targets.tvm_arm.isa import Isa

PRODUCTS = {
    "neon": ("smull", "smlal"),
    "dotprod": ("sdot",),
    "i8mm": ("smmla", "sdot"),
    "avx2": ("vpmaddubsw",),
    "avx512vnni": ("vpdpbusd",),
}
"""Instructions of a product, by instruction set; `smmla` takes two rows of activations, `sdot` serves one."""

_LABEL = re.compile(r"^(\.?L\w+):")
_JUMP = re.compile(r"^\s+(?:b\.\w+|b|cb\w+|tb\w+|j\w+)\s.*?(\.?L\w+)$")
_COMMENT = {"aarch64": "//", "x86_64": "#"}


def hot_loop(assembly: str, isa: Isa) -> list[str]:
    """The instructions of the innermost loop with the most products. Raises CompilerBug where there is none."""
    lines = _instructions(assembly, isa)
    labels = {found.group(1): n for n, line in enumerate(lines) if (found := _LABEL.match(line))}
    loops = []
    for end, line in enumerate(lines):
        jump = _JUMP.match(line)
        start = labels.get(jump.group(1), end) if jump else end
        if start < end:
            loops.append((start, end))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    bodies = [[line for line in lines[start : end + 1] if not _LABEL.match(line)] for start, end in inner]
    best = max(bodies, key=lambda body: products(body, isa), default=[])
    if not products(best, isa):
        raise CompilerBug(f"no loop with {' or '.join(PRODUCTS[isa.name])} in the assembly for {isa.name}")
    return best


def products(loop: list[str], isa: Isa) -> int:
    """How many of a loop's instructions are products."""
    return sum(line.split()[0].startswith(PRODUCTS[isa.name]) for line in loop)


def spills(loop: list[str]) -> list[str]:
    """Instructions that load from the stack or store to it."""
    return [line.strip() for line in loop if re.search(r"\[sp\b|\[x29\b|%rsp|%rbp\)", line)]


def _instructions(assembly: str, isa: Isa) -> list[str]:
    """Labels and instructions, without directives and comments."""
    lines = (line.split(_COMMENT[isa.arch])[0].rstrip() for line in assembly.splitlines())
    return [line for line in lines if line and (_LABEL.match(line) or re.match(r"^\s+[a-z]", line))]

"""Is what goes into the quantizer what transformers would run? Asked before a byte is written, on the user's own weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from pocketphi.graph.checkpoint import Checkpoint
from pocketphi.graph.config import EMBEDDING
from pocketphi.graph.errors import CheckFailed
from pocketphi.graph.lora.beside import Beside
from pocketphi.graph.program import Program
from pocketphi.graph.second_adapters import merged_row
from pocketphi.graph.second_reading import SecondReading, second_reading
from pocketphi.passes.equal import compare_graphs
from pocketphi.targets.base import Check

_ROWS = 64
"""Read at once from each of three places of a tensor, of which three are compared."""
_SCATTERED = 16
"""Rows that are compared one by one, from all of a tensor: each of the parts that it may be stacked from."""


def rewrites_check(traced: Program, fused: Program, context: int | None = None) -> Check:
    """The rewritten graph computes the bits of the traced one; see `passes.equal`.

    context: positions that the rewritten graph covers; the model's maximum if None
    """
    found = compare_graphs(traced, fused, traced.weights, context or traced.config.max_position)
    if found.overflows:
        first = f"first {found.overflows}: a weight before it is far too large"
        return Check("values that the model's own graph cannot hold in float32", 1, 0, first)
    detail = f"{found.places} values, {found.products} of the weights multiplied"
    if found.left_out:
        detail += f"; not run: {', '.join(found.left_out)}"
    return Check("rewrites that change a bit", int(bool(found.differs)), 0, found.differs or detail)


def reading_checks(source: Checkpoint) -> list[Check]:
    """What our reader gives is what the format's own library gives: rows of three places of every tensor, bit for bit.

    Empty for a checkpoint without files.
    """
    if source.unmerged is not None:
        return [*reading_checks(source.unmerged), adapters_check(source, source.unmerged)]
    theirs = second_reading(source.label, source.files, source.config)
    if theirs is None:
        return []
    wrong, rows = [], 0
    for name in source.tensors:
        chunks = list(source.chunks(name))
        for first, last in {chunks[0], chunks[len(chunks) // 2], chunks[-1]}:
            start, stop = first, min(last, first + _ROWS)
            numbers = sorted({start, (start + stop) // 2, stop - 1})
            rows += len(numbers)
            if not _same_rows(source, theirs, name, start, stop, numbers):
                wrong.append(name)
        for row in _scattered(source.tensors[name].rows):
            rows += 1
            if name not in wrong and not _same_rows(source, theirs, name, row, row + 1, [row]):
                wrong.append(name)
    detail = f"{rows} rows of {len(source.tensors)} tensors" if not wrong else f"first {wrong[0]}"
    off = theirs.off(source.tokenizer_files())
    return [
        Check(f"rows that {theirs.library} reads otherwise", len(wrong), 0, detail),
        Check("settings read otherwise than the files say", len(off), 0, f"first {off[0]}" if off else "none"),
    ]


def adapters_check(source: Checkpoint, base: Checkpoint) -> Check:
    """The merged weights are the base's with the adapters, as numpy makes them of what safetensors' own library reads."""
    wrong, rows = [], 0
    for name in source.tensors:
        stored = EMBEDDING if name not in base.tensors else name
        for row in _scattered(source.tensors[name].rows):
            own = base.read(stored, row, row + 1)[0].double().numpy()
            expected, largest = merged_row(source.adapters, base.config, name, row, own)
            rows += 1
            came = source.read(name, row, row + 1)[0].double().numpy()
            # rounded once to float32; and what sums in another order may differ by in float64
            if not bool((abs(came - expected) <= 2.0**-24 * abs(expected) + 2.0**-40 * largest).all()):
                wrong.append(name)
                break
    detail = f"{rows} rows of {len(source.tensors)} tensors" if not wrong else f"first {wrong[0]}"
    return Check("rows that are not the base's with its adapters", len(wrong), 0, detail)


def factors_check(adapters: Mapping[str, Beside], base: Checkpoint) -> Check:
    """The products of the factors are what numpy makes of what safetensors' own library reads."""
    wrong, rows = [], 0
    for one in adapters.values():
        for name in one.ranks:
            a, b = (factor.double() for factor in one.read(name))
            stored = EMBEDDING if name not in base.tensors else name
            for row in _scattered(b.shape[1]):
                own = base.read(stored, row, row + 1)[0].double().numpy()
                merged, largest = merged_row([one.adapter], base.config, name, row, own)
                rows += 1
                terms = (a.abs() @ b[:, row].abs()).numpy()  # each factor is rounded once to float32
                off = abs((a @ b[:, row]).numpy() - (merged - own))
                if not bool((off <= 2.0**-22 * terms + 2.0**-40 * largest).all()):
                    wrong.append(name)
                    break
    detail = f"{rows} rows of {len(adapters)} adapters" if not wrong else f"first {wrong[0]}"
    return Check("rows of adapters that safetensors reads otherwise", len(wrong), 0, detail)


def _scattered(rows: int) -> list[int]:
    """Row numbers from each sixteenth of a tensor, each at another place of it: none is the first of every head."""
    step = max(1, rows // _SCATTERED)
    return sorted({min(i * step + (5 * i + 1) % step, rows - 1) for i in range(-(-rows // step))})


def _same_rows(
    source: Checkpoint, theirs: SecondReading, name: str, start: int, stop: int, numbers: Sequence[int]
) -> bool:
    """numbers: which rows of [start, stop)"""
    places = [number - start for number in numbers]
    try:
        expected = theirs.rows(name, numbers)
    except LookupError:
        return False
    same = torch.equal(source.read(name, start, stop)[places].float(), expected)
    if held := source.kept(name):
        # (q - 8)·d + (m + 8·d) is rounded otherwise than q·d + m: by a unit of float32 of the largest term; and float16 of a
        # scale that it does not have, by half of a unit of that
        unit = 2**-10 if held.rounds else 2**-23
        kept = source.read_kept(name, start, stop).dequantize()[places]
        return same and torch.allclose(kept, expected, rtol=0, atol=16 * float(expected.abs().max()) * unit)
    return same


def require(checks: list[Check]) -> None:
    """Raises CheckFailed naming the first check that failed."""
    for check in checks:
        if not check.ok:
            raise CheckFailed(
                f"verification: {check.name}: {check.measured:.2g} exceeds {check.bound:g} ({check.detail})"
            )

"""Is what goes into the quantizer what transformers would run? Asked before a byte is written, on the user's own weights."""

from __future__ import annotations

from pocketphi.graph.errors import CheckFailed
from pocketphi.graph.program import Program
from pocketphi.passes.equal import compare_graphs
from pocketphi.targets.base import Check


def rewrites_check(traced: Program, fused: Program, context: int | None = None) -> Check:
    """The rewritten graph computes the bits of the traced one; see `passes.equal`.

    context: positions that the rewritten graph covers; the model's maximum if None
    """
    found = compare_graphs(traced, fused, traced.weights, context or traced.config.max_position)
    detail = f"{found.places} values, {found.products} of the weights multiplied"
    if found.left_out:
        detail += f"; not run: {', '.join(found.left_out)}"
    return Check("rewrites that change a bit", int(bool(found.differs)), 0, found.differs or detail)


def require(checks: list[Check]) -> None:
    """Raises CheckFailed naming the first check that failed."""
    for check in checks:
        if not check.ok:
            raise CheckFailed(
                f"verification: {check.name}: {check.measured:.2g} exceeds {check.bound:g} ({check.detail})"
            )
